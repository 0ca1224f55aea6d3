//! Weights in the form the kernels use, made from a checkpoint's tensors.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::host::format::Format;
use super::host::panels::{Arrangement, Panels};
use super::weight::{HostTensor, WeightDtype};
use super::{Kernels, Precision};

/// A tensor of the checkpoint that is not what the model needs.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The shape differs.
    #[error("its shape is {found:?}, the configuration needs {expected:?}")]
    Shape {
        /// In the file.
        found: Vec<usize>,
        /// By `config.json`.
        expected: Vec<usize>,
    },
    /// There is no memory to pack it in.
    #[error("there is no memory for it")]
    Memory(#[from] std::io::Error),
    /// The device refused it.
    #[error("it could not be put on the device")]
    Device(#[from] candle_core::Error),
}

/// A table of rows that are looked up, `[vocabulary, width]`.
#[derive(Debug, Clone)]
pub enum Table {
    /// Where the checkpoint is mapped: only the rows that are looked up are ever read.
    Host(HostTensor),
    /// On a candle device.
    Device(Tensor),
}

/// The weights of a linear layer, `[out, in]`.
#[derive(Debug, Clone)]
pub(super) enum Weights {
    /// Packed for the host's tiles.
    Host(Arc<Panels>),
    /// On a candle device.
    Device(Tensor),
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(super) weight: Weights,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
}

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// Whether int8 may be used for a layer's weights and inputs.
///
/// The model keeps in bf16 the vision tower and the first eighth of the decoder layers. Measured with `benches/precision.rs`: of what
/// int8 takes from a text's cosine on random weights of the 2B's shape, the first decoder layer causes two thirds, because the
/// embeddings it adds to are small and all later layers read its error; it alone in bf16 takes 0.9907 to 0.9966, the first four 0.9985.
/// By kind, `down_proj` causes nearly half with a quarter of the work (products of gates have long tails), q, k and v a quarter with a
/// sixth, gate and up a sixth with half: no kind alone is worth as much.
///
/// Mixing the channels of both sides before they are rounded (`host::mixing`) takes the tails away: 0.9990 for a text, and with six
/// channels 32 times as large as the rest, as trained weights have them, 0.9993 where it was 0.949. A picture has 0.9976 with the
/// tower's blocks and mergers in int8, 0.9984 with the first six blocks in bf16, 0.9988 with twelve, 0.9990 with all 24, and 0.9995 with
/// the mergers, too: each adds its own part of the error, and the decoder enlarges all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sensitivity {
    /// In the number format that was asked for.
    Ordinary,
    /// At least bf16.
    High,
}

/// The SwiGLU block: `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    /// `[intermediate, hidden]` twice, each gate beside what it gates.
    pub(super) gate_up: Linear,
    /// `[hidden, intermediate]`.
    pub(super) down: Linear,
}

/// Scale, and for a layer norm shift, of a normalisation.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[width]`, f32.
    pub weight: Tensor,
    /// `[width]`, f32; a layer norm has one, a root-mean-square norm has not.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

impl Kernels {
    /// Takes a table of the checkpoint. On the host it stays where it is mapped.
    ///
    /// # Errors
    /// [`WeightError::Shape`].
    pub fn table(&self, tensor: &HostTensor, shape: [usize; 2]) -> Result<Table, WeightError> {
        check_shape(tensor, &shape)?;
        Ok(match self {
            Kernels::Host { .. } => Table::Host(tensor.clone()),
            Kernels::Candle { device, dtype } => {
                Table::Device(to_device(tensor, &shape, *dtype, device)?)
            }
        })
    }

    /// Takes a linear layer without a bias; several tensors of the same depth become one layer, their outputs one after the
    /// other. On the host the weights are packed, on the threads of the pool this is called in, and the tensors' pages released.
    ///
    /// # Shapes
    /// Each tensor `[out, ..]` with `..` multiplying to `depth`.
    ///
    /// # Errors
    /// [`WeightError::Memory`], [`WeightError::Device`].
    pub fn linear(
        &self,
        tensors: &[HostTensor],
        sensitivity: Sensitivity,
    ) -> Result<Linear, WeightError> {
        let weight = self.weights(tensors, Arrangement::Stacked, sensitivity)?;
        Ok(Linear { weight, bias: None })
    }

    /// Takes a SwiGLU block.
    ///
    /// # Shapes
    /// `gate` and `up` `[intermediate, hidden]`, `down [hidden, intermediate]`.
    ///
    /// # Errors
    /// [`WeightError::Memory`], [`WeightError::Device`].
    pub fn gated(
        &self,
        [gate, up]: [&HostTensor; 2],
        down: &HostTensor,
        sensitivity: Sensitivity,
    ) -> Result<GatedMlp, WeightError> {
        let pair = [gate.clone(), up.clone()];
        Ok(GatedMlp {
            gate_up: Linear {
                weight: self.weights(&pair, Arrangement::Paired, sensitivity)?,
                bias: None,
            },
            down: self.linear(std::slice::from_ref(down), sensitivity)?,
        })
    }

    fn weights(
        &self,
        tensors: &[HostTensor],
        arrangement: Arrangement,
        sensitivity: Sensitivity,
    ) -> Result<Weights, WeightError> {
        match self {
            Kernels::Host { precision, .. } => {
                let is_bf16 = tensors
                    .iter()
                    .all(|tensor| tensor.dtype == WeightDtype::Bf16);
                let format = match (precision, sensitivity) {
                    (Precision::Int8, Sensitivity::Ordinary) => Format::Int8,
                    (Precision::Int8 | Precision::Bf16, _) => Format::Bf16,
                    (Precision::F32, _) if is_bf16 => Format::Bf16,
                    (Precision::F32, _) => Format::F32,
                };
                let panels = Panels::pack(format, arrangement, tensors)?;
                for tensor in tensors {
                    tensor.release();
                }
                Ok(Weights::Host(Arc::new(panels)))
            }
            Kernels::Candle { device, dtype } => {
                let parts = tensors.iter().map(|tensor| {
                    let shape = [tensor.shape[0], tensor.shape[1..].iter().product()];
                    to_device(tensor, &shape, *dtype, device)
                });
                let parts = parts.collect::<Result<Vec<_>, _>>()?;
                Ok(Weights::Device(Tensor::cat(&parts, 0)?))
            }
        }
    }

    /// Takes a vector of the checkpoint (a bias) in the activations' dtype.
    ///
    /// # Errors
    /// [`WeightError::Shape`].
    pub fn vector(&self, tensor: &HostTensor, width: usize) -> Result<Tensor, WeightError> {
        check_shape(tensor, &[width])?;
        to_device(tensor, &[width], self.dtype(), &self.device())
    }

    /// Takes a vector of the checkpoint in f32 (the weight of a norm).
    ///
    /// # Errors
    /// [`WeightError::Shape`].
    pub fn vector_f32(&self, tensor: &HostTensor, width: usize) -> Result<Tensor, WeightError> {
        check_shape(tensor, &[width])?;
        to_device(tensor, &[width], DType::F32, &self.device())
    }
}

impl Linear {
    /// The layer with a bias, `[out]`.
    #[must_use]
    pub fn with_bias(self, bias: Tensor) -> Self {
        Linear {
            bias: Some(bias),
            ..self
        }
    }
}

/// Refuses a tensor of another shape.
///
/// # Errors
/// [`WeightError::Shape`].
pub fn check_shape(tensor: &HostTensor, expected: &[usize]) -> Result<(), WeightError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(WeightError::Shape {
        found: tensor.shape.clone(),
        expected: expected.to_vec(),
    })
}

fn to_device(
    tensor: &HostTensor,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor, WeightError> {
    let stored = match tensor.dtype {
        WeightDtype::F32 => DType::F32,
        WeightDtype::F16 => DType::F16,
        WeightDtype::Bf16 => DType::BF16,
    };
    Ok(Tensor::from_raw_buffer(tensor.bytes(), stored, shape, device)?.to_dtype(dtype)?)
}
