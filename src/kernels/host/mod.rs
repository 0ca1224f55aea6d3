//! The operations on the CPU: rows of scratch memory in and out, packed weights between.
#![expect(
    unsafe_code,
    reason = "vector and tile instructions, outputs written by several threads, and memory read as other numbers"
)]

mod activation;
mod attention;
mod buffer;
pub(crate) mod format;
mod key_panels;
mod lanes;
mod layers;
mod mixing;
mod operand;
mod output;
pub(crate) mod panels;
mod product;
mod rounding;
mod rows;
pub(crate) mod simd;
mod softmax;
mod tile;

use candle_core::{Result, Storage, Tensor, bail};
use rayon::prelude::*;

use self::attention::{Attending, Mode};
use self::buffer::Buffer;
pub use self::buffer::{return_free_memory, return_large_memory};
use self::key_panels::{Columns, KeyRows};
pub(super) use self::layers::{Host, gated_mlp, linear, linear_add, mlp, norm_linear};
use self::rows::{NormWeights, RotatedHeads, Rotation};
use self::simd::Simd;
use super::linear::Norm;
use super::weight::HostTensor;
use super::{Activations, HeadRange, Heads, Precision, Projections, Rope, Spans};
use crate::kernels::pausing::give_way;

/// Rows of f32 in scratch memory, contiguous.
#[derive(Debug, Clone)]
pub(super) struct HostRows {
    buffer: Buffer,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl HostRows {
    /// Rows whose numbers are whatever was there before.
    fn stale(rows: usize, width: usize) -> Self {
        HostRows {
            buffer: Buffer::stale(rows * width),
            rows,
            width,
        }
    }

    pub(super) fn of(data: &[f32], width: usize) -> Self {
        let mut rows = Self::stale(data.len() / width, width);
        rows.data_mut().copy_from_slice(data);
        rows
    }

    pub(super) fn data(&self) -> &[f32] {
        self.buffer.f32s()
    }

    fn data_mut(&mut self) -> &mut [f32] {
        self.buffer.f32s_mut()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data()[row * self.width..(row + 1) * self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let width = self.width;
        &mut self.data_mut()[row * width..(row + 1) * width]
    }
}

/// Runs `with` on the elements of a contiguous f32 tensor, without copying them.
fn read<T>(tensor: &Tensor, with: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("a device tensor reached a host operation")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a strided tensor reached a host operation")
    };
    Ok(with(&storage.as_slice::<f32>()?[start..end]))
}

/// Runs `with` on the weights of a norm.
fn read_norm<T>(norm: &Norm, with: impl FnOnce(NormWeights<'_>) -> T) -> Result<T> {
    let eps = norm.eps as f32;
    read(&norm.weight, |weight| match &norm.bias {
        None => Ok(with(NormWeights {
            weight,
            bias: None,
            eps,
        })),
        Some(bias) => read(bias, |bias| {
            with(NormWeights {
                weight,
                bias: Some(bias),
                eps,
            })
        }),
    })?
}

/// The rows `ids` of a table, each times its weight, summed over the lookups in order.
pub(super) fn lookup(table: &HostTensor, lookups: &[(&[u32], Option<&[f32]>)]) -> HostRows {
    let width = table.shape[1];
    let bytes = width * table.dtype.size_bytes();
    let mut out = HostRows::stale(lookups[0].0.len(), width);
    out.data_mut()
        .par_chunks_mut(width)
        .enumerate()
        .for_each(|(row, out)| {
            give_way();
            out.fill(0.0);
            for (ids, weights) in lookups {
                let at = ids[row] as usize * bytes;
                let weight = weights.map_or(1.0, |weights| weights[row]);
                let values = table.dtype.values(&table.bytes()[at..at + bytes]);
                for (out, value) in out.iter_mut().zip(values) {
                    *out += weight * value;
                }
            }
        });
    out
}

pub(super) fn norm(simd: Simd, x: &HostRows, norm: &Norm) -> Result<HostRows> {
    let mut out = HostRows::stale(x.rows, x.width);
    read_norm(norm, |weights| {
        rows::norm(simd, x.data(), weights, out.data_mut());
    })?;
    Ok(out)
}

pub(super) fn add(x: &mut HostRows, y: &HostRows) {
    x.data_mut()
        .par_chunks_mut(x_chunk(y.width))
        .zip(y.data().par_chunks(x_chunk(y.width)))
        .for_each(|(x, y)| {
            give_way();
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        });
}

/// The bytes of all parts, one after the other, each as the number `value` makes of it.
pub(super) fn bytes(parts: &[&[u8]], width: usize, value: impl Fn(u8) -> f32 + Sync) -> HostRows {
    let rows = parts.iter().map(|part| part.len()).sum::<usize>() / width;
    let mut out = HostRows::stale(rows, width);
    let mut rest = out.data_mut();
    for part in parts {
        let (own, others) = rest.split_at_mut(part.len());
        rest = others;
        own.par_chunks_mut(x_chunk(width))
            .zip(part.par_chunks(x_chunk(width)))
            .for_each(|(out, bytes)| {
                give_way();
                for (out, &byte) in out.iter_mut().zip(bytes) {
                    *out = value(byte);
                }
            });
    }
    out
}

/// Numbers of sixteen rows.
fn x_chunk(width: usize) -> usize {
    16 * width.max(1)
}

pub(super) fn gather_rows(x: &HostRows, ids: &[u32]) -> HostRows {
    let mut out = HostRows::stale(ids.len(), x.width);
    for (i, &id) in ids.iter().enumerate() {
        out.row_mut(i).copy_from_slice(x.row(id as usize));
    }
    out
}

pub(super) fn replace_rows(x: &mut HostRows, ids: &[u32], with: &HostRows) {
    for (i, &id) in ids.iter().enumerate() {
        x.row_mut(id as usize).copy_from_slice(with.row(i));
    }
}

pub(super) fn add_rows(x: &mut HostRows, ids: &[u32], plus: &HostRows) {
    for (i, &id) in ids.iter().enumerate() {
        for (x, plus) in x.row_mut(id as usize).iter_mut().zip(plus.row(i)) {
            *x += plus;
        }
    }
}

pub(super) fn rotate(
    simd: Simd,
    x: &mut HostRows,
    heads: &[HeadRange<'_>],
    rope: &Rope,
) -> Result<()> {
    let head_dim = 2 * rope.cos.dim(1)?;
    let norms = heads
        .iter()
        .map(|heads| {
            heads
                .norm
                .map(|norm| Ok((norm.weight.to_vec1::<f32>()?, norm.eps as f32)))
                .transpose()
        })
        .collect::<Result<Vec<_>>>()?;
    let heads: Vec<_> = heads
        .iter()
        .zip(&norms)
        .map(|(heads, norm)| RotatedHeads {
            start: heads.columns.start,
            end: heads.columns.end,
            norm: norm.as_ref().map(|(weight, eps)| NormWeights {
                weight,
                bias: None,
                eps: *eps,
            }),
        })
        .collect();
    let width = x.width;
    read(&rope.cos, |cos| {
        read(&rope.sin, |sin| {
            let rotation = Rotation { cos, sin, head_dim };
            rows::rotate(simd, x.data_mut(), width, &heads, rotation);
        })
    })?
}

pub(super) fn attention(
    (simd, precision): (Simd, Precision),
    projections: Projections<'_>,
    past: &[Option<&Activations>],
    spans: &Spans,
    heads: Heads,
) -> Result<HostRows> {
    let Projections { q, k, v } = projections;
    let (queries, keys_of_own, values) = (q.0.host()?, k.0.host()?, v.0.host()?);
    fn view(rows: &HostRows, start: usize) -> Columns<'_> {
        Columns {
            data: rows.data(),
            stride: rows.width,
            start,
        }
    }
    let mut sequences = Vec::with_capacity(spans.sequences());
    for sequence in 0..spans.sequences() {
        let mut keys = Vec::with_capacity(2);
        if let Some(past) = past.get(sequence).copied().flatten() {
            let past = past.host()?;
            keys.push(KeyRows {
                keys: view(past, k.1),
                values: view(past, v.1),
                rows: 0..past.rows,
            });
        }
        keys.push(KeyRows {
            keys: view(keys_of_own, k.1),
            values: view(values, v.1),
            rows: spans.keys(sequence),
        });
        sequences.push(Attending {
            queries: spans.queries(sequence),
            keys,
        });
    }
    let mode = Mode {
        simd,
        bf16: precision != Precision::F32 && simd.multiplies_bf16(),
        causal: spans.causal,
    };
    let mut out = HostRows::stale(queries.rows, heads.heads * heads.head_dim);
    attention::attention(mode, view(queries, q.1), &sequences, heads, out.data_mut());
    Ok(out)
}
