//! The few heavy operations the model is made of, each in two versions behind one function of [`Kernels`].
//!
//! `plain` says in candle operations what each operation is: it runs on any candle device, is the CUDA and Metal path, and is the
//! specification `host` is tested against. `host` is the CPU: weights are packed once for the widest instructions the CPU has,
//! activations are f32 in scratch memory that is used again, sums are f32 (or exact integers) in an order that depends on nothing
//! but the row.
//!
//! In: [`Activations`], and weights loaded by [`Kernels::linear`] and its siblings. Out: new activations, or the given ones changed.

mod activations;
mod awake;
mod heads;
pub(crate) mod host;
mod linear;
mod pausing;
mod plain;
#[cfg(test)]
mod tests;
mod turns;
pub mod weight;

pub use activations::Activations;
pub use awake::keep_awake;
pub use heads::{HeadRange, Heads, Projections, Rope, Spans};
pub use host::simd::Simd;
pub(crate) use host::simd::{Loops, run_loops};
pub use host::{return_free_memory, return_large_memory};
pub use linear::{
    Activation, GatedMlp, Linear, Norm, Sensitivity, Table, WeightError, check_shape,
};
pub use pausing::Gate;
pub use turns::{let_others_in, prefer_short_turns, take_usual_turns};
pub use weight::{HostTensor, WeightDtype, WeightMap};

use candle_core::{DType, Device, Result, Tensor};

use self::activations::Place;
use self::host::{Host, HostRows};

/// How the host rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Weights as the file has them, everything else f32.
    F32,
    /// Weights, the inputs of every linear layer, and what attention multiplies are rounded to bf16 where the CPU multiplies bf16;
    /// sums, norms, softmax and the residual stream are f32.
    Bf16,
    /// As bf16, but weights are int8 with a scale for each output, and the inputs of linear layers int8 with a scale for each row,
    /// found anew for every row; both symmetric, sums exact. Layers of [`Sensitivity::High`] stay in bf16.
    Int8,
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

impl Kernels {
    /// The host's fastest instruction set.
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

    /// The host, or `None` on a device.
    fn on_host(&self) -> Option<Host> {
        match *self {
            Kernels::Host { precision, simd } => Some(Host { simd, precision }),
            Kernels::Candle { .. } => None,
        }
    }

    /// Numbers as activations.
    ///
    /// # Shapes
    /// `data` flattened `[rows, width]`.
    pub fn rows(&self, data: &[f32], width: usize) -> Result<Activations> {
        if let Kernels::Candle { device, dtype } = self {
            let shape = (data.len() / width, width);
            return Ok(Tensor::from_slice(data, shape, device)?
                .to_dtype(*dtype)?
                .into());
        }
        Ok(HostRows::of(data, width).into())
    }

    /// The bytes of all `parts`, one after the other, as activations: of each byte what `value` makes of it.
    ///
    /// # Shapes
    /// Together flattened `[rows, width]`, each part whole rows.
    pub fn bytes(
        &self,
        parts: &[&[u8]],
        width: usize,
        value: impl Fn(u8) -> f32 + Sync,
    ) -> Result<Activations> {
        if self.on_host().is_some() {
            return Ok(host::bytes(parts, width, value).into());
        }
        let bytes = parts.iter().flat_map(|part| part.iter());
        let values: Vec<f32> = bytes.map(|&byte| value(byte)).collect();
        self.rows(&values, width)
    }

    /// The rows `ids` of a table.
    ///
    /// # Shapes
    /// `table [vocabulary, width]` -> `[ids, width]`.
    pub fn embedding(&self, table: &Table, ids: &[u32]) -> Result<Activations> {
        match table {
            Table::Host(table) => Ok(host::lookup(table, &[(ids, None)]).into()),
            Table::Device(table) => Ok(plain::gather_rows(table, ids)?.into()),
        }
    }

    /// The weighted sum of several lookups in a table, added in their order. On a device the weights are rounded to the model's
    /// number format first, as in the reference.
    ///
    /// # Shapes
    /// `table [vocabulary, width]`, each lookup `rows` ids and weights -> `[rows, width]`.
    pub fn interpolate(
        &self,
        table: &Table,
        lookups: &[(Vec<u32>, Vec<f32>)],
    ) -> Result<Activations> {
        match table {
            Table::Host(table) => {
                let lookups: Vec<_> = lookups
                    .iter()
                    .map(|(ids, weights)| (ids.as_slice(), Some(weights.as_slice())))
                    .collect();
                Ok(host::lookup(table, &lookups).into())
            }
            Table::Device(table) => Ok(plain::interpolate(table, lookups)?.into()),
        }
    }

    /// `activation(x W^T + b)`.
    ///
    /// # Shapes
    /// `x [rows, in]` -> `[rows, out]`.
    pub fn apply(
        &self,
        x: &Activations,
        linear: &Linear,
        activation: Activation,
    ) -> Result<Activations> {
        match self.on_host() {
            Some(host) => Ok(host::linear(host, x.host()?, linear, activation)?.into()),
            None => Ok(plain::linear(x.device()?, linear, activation)?.into()),
        }
    }

    /// `norm(x) W^T + b` for each of several layers.
    ///
    /// # Shapes
    /// `x [rows, in]` -> each `[rows, out]`.
    pub fn norm_apply<const N: usize>(
        &self,
        x: &Activations,
        norm: &Norm,
        linears: [&Linear; N],
    ) -> Result<[Activations; N]> {
        let all: Vec<Activations> = match self.on_host() {
            Some(host) => host::norm_linear(host, x.host()?, norm, &linears)?
                .into_iter()
                .map(Activations::from)
                .collect(),
            None => {
                let normed = plain::norm(x.device()?, norm)?;
                linears
                    .iter()
                    .map(|linear| {
                        plain::linear(&normed, linear, Activation::None).map(Activations::from)
                    })
                    .collect::<Result<_>>()?
            }
        };
        all.try_into()
            .map_err(|_| candle_core::Error::Msg("one result for each layer".to_owned()))
    }

    /// `residual + x W^T + b`.
    ///
    /// # Shapes
    /// `x [rows, in]`, `residual [rows, out]` -> `[rows, out]`.
    pub fn apply_add(
        &self,
        x: &Activations,
        linear: &Linear,
        residual: Activations,
    ) -> Result<Activations> {
        match self.on_host() {
            Some(host) => {
                let mut out = residual.into_host()?;
                host::linear_add(host, x.host()?, linear, &mut out)?;
                Ok(out.into())
            }
            None => {
                let product = plain::linear(x.device()?, linear, Activation::None)?;
                Ok((product + residual.device()?)?.into())
            }
        }
    }

    /// `x + fc2(activation(fc1(norm(x))))`.
    ///
    /// # Shapes
    /// `x [rows, width]` -> the same.
    pub fn mlp(
        &self,
        x: Activations,
        norm: &Norm,
        [fc1, fc2]: [&Linear; 2],
        activation: Activation,
    ) -> Result<Activations> {
        match self.on_host() {
            Some(host) => {
                let mut out = x.into_host()?;
                host::mlp(host, &mut out, norm, [fc1, fc2], activation)?;
                Ok(out.into())
            }
            None => {
                let inner = plain::linear(&plain::norm(x.device()?, norm)?, fc1, activation)?;
                let product = plain::linear(&inner, fc2, Activation::None)?;
                Ok((product + x.device()?)?.into())
            }
        }
    }

    /// `x + down(silu(gate(norm(x))) * up(norm(x)))`.
    ///
    /// # Shapes
    /// `x [rows, hidden]` -> the same.
    pub fn gated_mlp(&self, x: Activations, norm: &Norm, mlp: &GatedMlp) -> Result<Activations> {
        match self.on_host() {
            Some(host) => {
                let mut out = x.into_host()?;
                host::gated_mlp(host, &mut out, norm, mlp)?;
                Ok(out.into())
            }
            None => {
                let product = plain::gated_mlp(&plain::norm(x.device()?, norm)?, mlp)?;
                Ok((product + x.device()?)?.into())
            }
        }
    }

    /// Normalisation of each row, in f32: by mean and variance for a norm with a bias, else by the root mean square.
    ///
    /// # Shapes
    /// `x [rows, width]` -> the same.
    pub fn norm(&self, x: &Activations, norm: &Norm) -> Result<Activations> {
        match self.on_host() {
            Some(Host { simd, .. }) => Ok(host::norm(simd, x.host()?, norm)?.into()),
            None => Ok(plain::norm(x.device()?, norm)?.into()),
        }
    }

    /// Normalises heads (those that have a norm) and rotates their halves: `rotate_half` in transformers' words. Other columns
    /// stay as they are.
    ///
    /// # Shapes
    /// `x [rows, width]` -> the same; `rope` `[rows, head_dim / 2]`.
    pub fn rotate(
        &self,
        x: Activations,
        heads: &[HeadRange<'_>],
        rope: &Rope,
    ) -> Result<Activations> {
        match self.on_host() {
            Some(Host { simd, .. }) => {
                let mut out = x.into_host()?;
                host::rotate(simd, &mut out, heads, rope)?;
                Ok(out.into())
            }
            None => Ok(plain::rotate(x.device()?, heads, rope)?.into()),
        }
    }

    /// Softmax attention within each sequence. A sequence may have a past: keys and values in the columns of `projections`,
    /// computed before, that come before its own.
    ///
    /// # Shapes
    /// `past` empty or `[sequences]` -> `[query_rows, heads * head_dim]`.
    pub fn attention(
        &self,
        projections: Projections<'_>,
        past: &[Option<&Activations>],
        spans: &Spans,
        heads: Heads,
    ) -> Result<Activations> {
        match self.on_host() {
            Some(Host { simd, precision }) => {
                Ok(host::attention((simd, precision), projections, past, spans, heads)?.into())
            }
            None => Ok(plain::attention(projections, past, spans, heads)?.into()),
        }
    }

    /// `x + y`.
    ///
    /// # Shapes
    /// Both `[rows, width]`.
    pub fn add(&self, x: Activations, y: &Activations) -> Result<Activations> {
        if self.on_host().is_none() {
            return Ok((x.device()? + y.device()?)?.into());
        }
        let mut out = x.into_host()?;
        host::add(&mut out, y.host()?);
        Ok(out.into())
    }

    /// The rows `rows` of `x`, in that order.
    ///
    /// # Shapes
    /// `x [n, width]` -> `[rows, width]`.
    pub fn gather_rows(&self, x: &Activations, rows: &[u32]) -> Result<Activations> {
        match &x.0 {
            Place::Host(x) => Ok(host::gather_rows(x, rows).into()),
            Place::Device(x) => Ok(plain::gather_rows(x, rows)?.into()),
        }
    }

    /// The rotation of the rows `rows`, in that order.
    pub fn gather_rope(&self, rope: &Rope, rows: &[u32]) -> Result<Rope> {
        Ok(Rope {
            cos: plain::gather_rows(&rope.cos, rows)?,
            sin: plain::gather_rows(&rope.sin, rows)?,
        })
    }

    /// `x` with its rows `rows` replaced by those of `with`.
    ///
    /// # Shapes
    /// `x [n, width]`, `with [rows, width]` -> `[n, width]`.
    pub fn replace_rows(
        &self,
        x: Activations,
        rows: &[u32],
        with: &Activations,
    ) -> Result<Activations> {
        if self.on_host().is_none() {
            return Ok(plain::replace_rows(x.device()?, rows, with.device()?)?.into());
        }
        let mut out = x.into_host()?;
        host::replace_rows(&mut out, rows, with.host()?);
        Ok(out.into())
    }

    /// `x` with `plus` added to its rows `rows`.
    ///
    /// # Shapes
    /// `x [n, width]`, `plus [rows, width]` -> `[n, width]`.
    pub fn add_rows(
        &self,
        x: Activations,
        rows: &[u32],
        plus: &Activations,
    ) -> Result<Activations> {
        if self.on_host().is_none() {
            return Ok(plain::add_rows(x.device()?, rows, plus.device()?)?.into());
        }
        let mut out = x.into_host()?;
        host::add_rows(&mut out, rows, plus.host()?);
        Ok(out.into())
    }
}
