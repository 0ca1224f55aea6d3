//! The checkpoint's tensors by name, handed out as the kernels want them.

use super::ModelError;
use crate::kernels::{
    GatedMlp, HostTensor, Kernels, Linear, Norm, Sensitivity, Table, WeightError, WeightMap,
    check_shape,
};

/// All tensors of a checkpoint, and where they are to go.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a> {
    pub(super) tensors: &'a WeightMap,
    pub(super) kernels: &'a Kernels,
    /// Of the linear layers that are taken.
    pub(super) sensitivity: Sensitivity,
}

fn named(name: &str) -> impl FnOnce(WeightError) -> ModelError + '_ {
    move |reason| ModelError::Tensor {
        name: name.to_owned(),
        reason,
    }
}

impl<'a> Parameters<'a> {
    /// The same, for layers of this sensitivity.
    pub(super) fn with(self, sensitivity: Sensitivity) -> Self {
        Parameters {
            sensitivity,
            ..self
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<&'a HostTensor, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor {
                name: name.to_owned(),
            })
    }

    /// A tensor of the given shape.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&'a HostTensor, ModelError> {
        let tensor = self.get(name)?;
        check_shape(tensor, shape).map_err(named(name))?;
        Ok(tensor)
    }

    /// A table that is looked up.
    pub(super) fn table(&self, name: &str, shape: [usize; 2]) -> Result<Table, ModelError> {
        self.kernels
            .table(self.get(name)?, shape)
            .map_err(named(name))
    }

    /// `{prefix}.weight` `[columns, depth]` and `{prefix}.bias`; dimensions after the first are flattened.
    pub(super) fn linear(
        &self,
        prefix: &str,
        (columns, depth): (usize, &[usize]),
    ) -> Result<Linear, ModelError> {
        let shape: Vec<usize> = std::iter::once(columns)
            .chain(depth.iter().copied())
            .collect();
        let (weight, bias) = (format!("{prefix}.weight"), format!("{prefix}.bias"));
        let tensor = self.shaped(&weight, &shape)?;
        let linear = self
            .kernels
            .linear(std::slice::from_ref(tensor), self.sensitivity)
            .map_err(named(&weight))?;
        let vector = self
            .kernels
            .vector(self.get(&bias)?, columns)
            .map_err(named(&bias))?;
        Ok(linear.with_bias(vector))
    }

    /// Several weights of the same depth, without bias, as one layer: their names and numbers of outputs.
    pub(super) fn stacked(
        &self,
        weights: &[(String, usize)],
        depth: usize,
    ) -> Result<Linear, ModelError> {
        let mut tensors = Vec::with_capacity(weights.len());
        for (name, columns) in weights {
            tensors.push(self.shaped(name, &[*columns, depth])?.clone());
        }
        let name = weights.first().map_or("", |(name, _)| name);
        self.kernels
            .linear(&tensors, self.sensitivity)
            .map_err(named(name))
    }

    /// `{prefix}.gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn gated_mlp(
        &self,
        prefix: &str,
        (hidden, inner): (usize, usize),
    ) -> Result<GatedMlp, ModelError> {
        let name = |projection: &str| format!("{prefix}.{projection}_proj.weight");
        let gate = self.shaped(&name("gate"), &[inner, hidden])?;
        let up = self.shaped(&name("up"), &[inner, hidden])?;
        let down = self.shaped(&name("down"), &[hidden, inner])?;
        self.kernels
            .gated([gate, up], down, self.sensitivity)
            .map_err(named(&name("gate")))
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
