//! The checkpoint's tensors by name, handed out as the kernels want them.

use super::ModelError;
use crate::kernels::{HostTensor, Kernels, Linear, Matrix, Norm, WeightError, WeightMap};

/// All tensors of a checkpoint, and where they are to go.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a> {
    pub(super) tensors: &'a WeightMap,
    pub(super) kernels: &'a Kernels,
}

fn named(name: &str) -> impl FnOnce(WeightError) -> ModelError + '_ {
    move |reason| ModelError::Tensor {
        name: name.to_owned(),
        reason,
    }
}

impl<'a> Parameters<'a> {
    pub(super) fn get(&self, name: &str) -> Result<&'a HostTensor, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor {
                name: name.to_owned(),
            })
    }

    /// A weight of the given shape; dimensions after the first are flattened.
    pub(super) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Matrix, ModelError> {
        self.kernels
            .matrix(self.get(name)?, shape)
            .map_err(named(name))
    }

    /// `{prefix}.weight` `[columns, depth]` and `{prefix}.bias`.
    pub(super) fn linear(
        &self,
        prefix: &str,
        columns: usize,
        depth: &[usize],
    ) -> Result<Linear, ModelError> {
        let shape: Vec<usize> = std::iter::once(columns)
            .chain(depth.iter().copied())
            .collect();
        let weight = self.matrix(&format!("{prefix}.weight"), &shape)?;
        let bias = format!("{prefix}.bias");
        let bias = self
            .kernels
            .vector(self.get(&bias)?, columns)
            .map_err(named(&bias))?;
        Ok(Linear {
            weight,
            bias: Some(bias),
        })
    }

    /// `{prefix}.weight` `[columns, depth]`, no bias.
    pub(super) fn linear_without_bias(
        &self,
        prefix: &str,
        columns: usize,
        depth: usize,
    ) -> Result<Linear, ModelError> {
        Ok(Linear {
            weight: self.matrix(&format!("{prefix}.weight"), &[columns, depth])?,
            bias: None,
        })
    }

    /// A linear layer of which the file stores `parts` stacked on each other, taken apart without copying.
    pub(super) fn stacked<const PARTS: usize>(
        &self,
        prefix: &str,
        columns: usize,
        depth: usize,
    ) -> Result<[Linear; PARTS], ModelError> {
        let (weight_name, bias_name) = (format!("{prefix}.weight"), format!("{prefix}.bias"));
        let (weight, bias) = (self.get(&weight_name)?, self.get(&bias_name)?);
        let (all_weights, all_biases) = (vec![PARTS * columns, depth], vec![PARTS * columns]);
        for (name, tensor, expected) in [
            (&weight_name, weight, all_weights),
            (&bias_name, bias, all_biases),
        ] {
            if tensor.shape != expected {
                return Err(named(name)(WeightError::Shape {
                    found: tensor.shape.clone(),
                    expected,
                }));
            }
        }
        let mut parts = Vec::with_capacity(PARTS);
        for part in 0..PARTS {
            let weight = part_of(weight, part, PARTS, vec![columns, depth]);
            let bias = part_of(bias, part, PARTS, vec![columns]);
            parts.push(Linear {
                weight: self
                    .kernels
                    .matrix(&weight, &[columns, depth])
                    .map_err(named(&weight_name))?,
                bias: Some(
                    self.kernels
                        .vector(&bias, columns)
                        .map_err(named(&bias_name))?,
                ),
            });
        }
        Ok(parts
            .try_into()
            .unwrap_or_else(|_| unreachable!("the loop makes PARTS layers")))
    }

    /// `{prefix}.weight` of an RMSNorm.
    pub(super) fn rms_norm(
        &self,
        prefix: &str,
        width: usize,
        eps: f64,
    ) -> Result<Norm, ModelError> {
        let name = format!("{prefix}.weight");
        let weight = self
            .kernels
            .vector_f32(self.get(&name)?, width)
            .map_err(named(&name))?;
        Ok(Norm {
            weight,
            bias: None,
            eps,
        })
    }

    /// `{prefix}.weight` and `{prefix}.bias` of a LayerNorm.
    pub(super) fn layer_norm(
        &self,
        prefix: &str,
        width: usize,
        eps: f64,
    ) -> Result<Norm, ModelError> {
        let norm = self.rms_norm(prefix, width, eps)?;
        let name = format!("{prefix}.bias");
        let bias = self
            .kernels
            .vector_f32(self.get(&name)?, width)
            .map_err(named(&name))?;
        Ok(Norm {
            bias: Some(bias),
            ..norm
        })
    }
}

/// The `part`-th of `parts` equal pieces along the first dimension.
fn part_of(tensor: &HostTensor, part: usize, parts: usize, shape: Vec<usize>) -> HostTensor {
    let bytes = tensor.range.len() / parts;
    let start = tensor.range.start + part * bytes;
    HostTensor {
        shape,
        range: start..start + bytes,
        ..tensor.clone()
    }
}
