//! Weights in the form the kernels use, made from a checkpoint's tensors.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

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
    /// The device refused it.
    #[error("it could not be put on the device")]
    Device(#[from] candle_core::Error),
}

/// A weight matrix, `[out, in]` or `[vocabulary, width]`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// Bytes in host memory, bf16 or f32, aligned.
    Host(HostTensor),
    /// On a candle device.
    Device(Tensor),
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Tensor>,
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

/// The SwiGLU block: `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    /// `[intermediate, hidden]`.
    pub gate: Matrix,
    /// `[intermediate, hidden]`.
    pub up: Matrix,
    /// `[hidden, intermediate]`.
    pub down: Matrix,
}

/// Scale, and for a layer norm shift, of a normalisation.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[width]`, f32.
    pub weight: Tensor,
    /// `[width]`, f32; only layer norms have one.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

impl Kernels {
    /// Takes a matrix of the checkpoint. On the host it stays where it is mapped, unless the precision needs it rounded or the
    /// file has it misaligned or in f16.
    ///
    /// # Errors
    /// [`WeightError::Shape`].
    pub fn matrix(&self, tensor: &HostTensor, shape: &[usize]) -> Result<Matrix, WeightError> {
        check_shape(tensor, shape)?;
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        match self {
            Kernels::Host { precision, .. } => {
                let mut matrix = match (tensor.dtype, precision) {
                    (WeightDtype::Bf16, _) => in_place(tensor),
                    (WeightDtype::F32, Precision::F32) => in_place(tensor),
                    (WeightDtype::F16, Precision::F32) => owned_f32(tensor),
                    (_, Precision::Bf16) => owned_bf16(tensor),
                };
                matrix.shape = vec![rows, columns];
                Ok(Matrix::Host(matrix))
            }
            Kernels::Candle { device, dtype } => Ok(Matrix::Device(to_device(
                tensor,
                &[rows, columns],
                *dtype,
                device,
            )?)),
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

fn check_shape(tensor: &HostTensor, expected: &[usize]) -> Result<(), WeightError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(WeightError::Shape {
        found: tensor.shape.clone(),
        expected: expected.to_vec(),
    })
}

/// The tensor itself where its bytes are aligned for its elements, else an aligned copy.
fn in_place(tensor: &HostTensor) -> HostTensor {
    if (tensor.bytes().as_ptr() as usize).is_multiple_of(tensor.dtype.size_bytes()) {
        return tensor.clone();
    }
    match tensor.dtype {
        WeightDtype::F32 => owned_f32(tensor),
        WeightDtype::F16 | WeightDtype::Bf16 => owned_bf16(tensor),
    }
}

/// Every element as f32, in order.
fn values(tensor: &HostTensor) -> Box<dyn Iterator<Item = f32> + '_> {
    let bytes = tensor.bytes();
    let halves = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    match tensor.dtype {
        WeightDtype::F32 => Box::new(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        ),
        WeightDtype::F16 => Box::new(halves.map(|bits| f16::from_bits(bits).to_f32())),
        WeightDtype::Bf16 => Box::new(halves.map(|bits| bf16::from_bits(bits).to_f32())),
    }
}

/// Elements that own their memory and lend it as bytes.
struct Owned<T>(Vec<T>);

impl AsRef<[u8]> for Owned<f32> {
    fn as_ref(&self) -> &[u8] {
        super::host::bytes_of_f32(&self.0)
    }
}

impl AsRef<[u8]> for Owned<u16> {
    fn as_ref(&self) -> &[u8] {
        super::host::bytes_of_u16(&self.0)
    }
}

fn owned_f32(tensor: &HostTensor) -> HostTensor {
    let data: Vec<f32> = values(tensor).collect();
    let range = 0..data.len() * 4;
    HostTensor {
        dtype: WeightDtype::F32,
        shape: tensor.shape.clone(),
        owner: Arc::new(Owned(data)),
        range,
    }
}

fn owned_bf16(tensor: &HostTensor) -> HostTensor {
    let data: Vec<u16> = values(tensor)
        .map(|value| bf16::from_f32(value).to_bits())
        .collect();
    let range = 0..data.len() * 2;
    HostTensor {
        dtype: WeightDtype::Bf16,
        shape: tensor.shape.clone(),
        owner: Arc::new(Owned(data)),
        range,
    }
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
