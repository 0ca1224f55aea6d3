//! The few heavy operations the model is made of, each in two versions behind one function of [`Kernels`].
//!
//! `plain` says in candle operations what each operation is: it runs on any candle device, is the CUDA and Metal path, and is the
//! specification `host` is tested against. `host` is the CPU: weights stay where the file was mapped, activations are f32, sums
//! are f32 in an order that depends on nothing but the row.
//!
//! In: tensors, all contiguous, and weights loaded by [`Kernels::matrix`] and its siblings. Out: new tensors.

pub(crate) mod host;
mod linear;
mod plain;
#[cfg(test)]
mod tests;
pub mod weight;

pub use host::lanes::Simd;
pub use linear::{Activation, GatedMlp, Linear, Matrix, Norm, WeightError};
pub use weight::{HostTensor, WeightDtype, WeightMap};

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

/// How the host rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Weights as the file has them, everything else f32.
    F32,
    /// Weights and the inputs of every linear layer are rounded to bf16; sums, norms, softmax and the residual stream are f32.
    Bf16,
}

/// Which version of the operations runs, and in what precision.
#[derive(Debug, Clone)]
pub enum Kernels {
    /// Our own code on the CPU.
    Host {
        /// Rounding.
        precision: Precision,
        /// Instruction set.
        simd: Simd,
    },
    /// Candle operations on a device.
    Candle {
        /// Where the tensors live.
        device: Device,
        /// What weights and activations are stored in; norms, softmax and rotary angles are f32 inside.
        dtype: DType,
    },
}

/// How many heads, how wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Heads {
    /// `head_dim^-0.5`.
    pub fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// Which query rows attend to which key rows: sequence `i` has queries `cu_q[i]..cu_q[i + 1]` and keys `cu_k[i]..cu_k[i + 1]`.
///
/// With `causal` the last query sees all keys of its sequence, the one before it one less, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// `[sequences + 1]`.
    pub cu_q: Vec<u32>,
    /// `[sequences + 1]`.
    pub cu_k: Vec<u32>,
    /// Whether later keys are hidden.
    pub causal: bool,
}

impl Spans {
    /// Every sequence attends to itself.
    pub fn of(cu_seqlens: &[u32], causal: bool) -> Self {
        Spans {
            cu_q: cu_seqlens.to_vec(),
            cu_k: cu_seqlens.to_vec(),
            causal,
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_k.len() - 1
    }

    pub(crate) fn queries(&self, sequence: usize) -> Range<usize> {
        self.cu_q[sequence] as usize..self.cu_q[sequence + 1] as usize
    }

    pub(crate) fn keys(&self, sequence: usize) -> Range<usize> {
        self.cu_k[sequence] as usize..self.cu_k[sequence + 1] as usize
    }
}

/// Cosines and sines of a rotary embedding, f32, `[rows, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Kernels {
    /// The host's widest instruction set.
    pub fn host(precision: Precision) -> Self {
        Kernels::Host {
            precision,
            simd: Simd::detect(),
        }
    }

    /// Where activations live.
    pub fn device(&self) -> Device {
        match self {
            Kernels::Host { .. } => Device::Cpu,
            Kernels::Candle { device, .. } => device.clone(),
        }
    }

    /// What activations are stored in.
    pub fn dtype(&self) -> DType {
        match self {
            Kernels::Host { .. } => DType::F32,
            Kernels::Candle { dtype, .. } => *dtype,
        }
    }

    /// The rows `ids` of a table.
    ///
    /// # Shapes
    /// `table [vocabulary, width]` -> `[ids, width]`.
    pub fn embedding(&self, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
        match table {
            Matrix::Host(table) => host::embedding(table, ids),
            Matrix::Device(table) => plain::gather_rows(table, ids),
        }
    }

    /// `activation(x W^T + b)`.
    ///
    /// # Shapes
    /// `x [rows, in]` -> `[rows, out]`.
    pub fn linear(&self, x: &Tensor, linear: &Linear, activation: Activation) -> Result<Tensor> {
        match self {
            Kernels::Host { precision, simd } => {
                host::linear((*precision, *simd), x, linear, activation)
            }
            Kernels::Candle { .. } => plain::linear(x, linear, activation),
        }
    }

    /// `residual + x W^T + b`.
    ///
    /// # Shapes
    /// `x [rows, in]`, `residual [rows, out]` -> `[rows, out]`.
    pub fn linear_add(&self, x: &Tensor, linear: &Linear, residual: &Tensor) -> Result<Tensor> {
        match self {
            Kernels::Host { precision, simd } => {
                host::linear_add((*precision, *simd), x, linear, residual)
            }
            Kernels::Candle { .. } => plain::linear(x, linear, Activation::None)? + residual,
        }
    }

    /// `residual + down(silu(gate(x)) * up(x))`.
    ///
    /// # Shapes
    /// `x` and `residual` `[rows, hidden]` -> `[rows, hidden]`.
    pub fn gated_mlp(&self, x: &Tensor, mlp: &GatedMlp, residual: &Tensor) -> Result<Tensor> {
        match self {
            Kernels::Host { precision, simd } => {
                host::gated_mlp((*precision, *simd), x, mlp, residual)
            }
            Kernels::Candle { .. } => plain::gated_mlp(x, mlp)? + residual,
        }
    }

    /// Root-mean-square normalisation of each row, in f32.
    ///
    /// # Shapes
    /// `x [rows, width]` -> the same.
    pub fn rms_norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        match self {
            Kernels::Host { simd, .. } => host::rms_norm(*simd, x, norm),
            Kernels::Candle { .. } => plain::rms_norm(x, norm),
        }
    }

    /// Layer normalisation of each row, in f32.
    ///
    /// # Shapes
    /// `x [rows, width]` -> the same.
    pub fn layer_norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        match self {
            Kernels::Host { simd, .. } => host::layer_norm(*simd, x, norm),
            Kernels::Candle { .. } => plain::layer_norm(x, norm),
        }
    }

    /// Normalises each head (when `norm` is given) and rotates its halves: `rotate_half` in transformers' words.
    ///
    /// # Shapes
    /// `x [rows, heads * head_dim]` -> the same.
    pub fn rope(&self, x: &Tensor, norm: Option<&Norm>, rope: &Rope) -> Result<Tensor> {
        match self {
            Kernels::Host { simd, .. } => host::rope(*simd, x, norm, rope),
            Kernels::Candle { .. } => plain::rope(x, norm, rope),
        }
    }

    /// Softmax attention within each sequence.
    ///
    /// # Shapes
    /// `q [query_rows, heads * head_dim]`, `k` and `v` `[rows, kv_heads * head_dim]` -> as `q`.
    pub fn attention(
        &self,
        [q, k, v]: [&Tensor; 3],
        spans: &Spans,
        heads: Heads,
    ) -> Result<Tensor> {
        match self {
            Kernels::Host { simd, .. } => host::attention(*simd, [q, k, v], spans, heads),
            Kernels::Candle { .. } => plain::attention([q, k, v], spans, heads),
        }
    }

    /// The rows `rows` of `x`, in that order.
    ///
    /// # Shapes
    /// `x [n, width]` -> `[rows, width]`.
    pub fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        plain::gather_rows(x, rows)
    }

    /// `x` with its rows `rows` replaced by those of `with`.
    ///
    /// # Shapes
    /// `x [n, width]`, `with [rows, width]` -> `[n, width]`.
    pub fn replace_rows(&self, x: &Tensor, rows: &[u32], with: &Tensor) -> Result<Tensor> {
        plain::replace_rows(x, rows, with)
    }

    /// `x` with `plus` added to its rows `rows`.
    ///
    /// # Shapes
    /// `x [n, width]`, `plus [rows, width]` -> `[n, width]`.
    pub fn add_rows(&self, x: &Tensor, rows: &[u32], plus: &Tensor) -> Result<Tensor> {
        plain::add_rows(x, rows, plus)
    }
}
