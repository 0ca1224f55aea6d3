//! The operations in candle's own: what each one is, on any device.
//!
//! Norms, rotations and softmax are computed in f32 whatever the tensors are stored in, as transformers does.

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::{Activation, GatedMlp, Linear, Norm, Weights};
use super::{Activations, HeadRange, Heads, Projections, Rope, Spans};

fn device_weight(linear: &Linear) -> Result<&Tensor> {
    match &linear.weight {
        Weights::Device(tensor) => Ok(tensor),
        Weights::Host(_) => candle_core::bail!("a host weight reached a device operation"),
    }
}

/// `[rows, in]` -> `[rows, out]`.
pub(super) fn linear(x: &Tensor, linear: &Linear, activation: Activation) -> Result<Tensor> {
    let mut y = x.matmul(&device_weight(linear)?.t()?)?; // [rows, out]
    if let Some(bias) = &linear.bias {
        y = y.broadcast_add(bias)?;
    }
    match activation {
        Activation::None => Ok(y),
        Activation::GeluTanh => y.gelu(),
        Activation::GeluErf => y.gelu_erf(),
    }
}

/// `[rows, hidden]` -> `[rows, hidden]`.
pub(super) fn gated_mlp(x: &Tensor, mlp: &GatedMlp) -> Result<Tensor> {
    let gate_up = linear(x, &mlp.gate_up, Activation::None)?; // [rows, 2 * intermediate]
    let gate_up = gate_up.chunk(2, 1)?;
    let inner = (gate_up[0].silu()? * &gate_up[1])?;
    linear(&inner, &mlp.down, Activation::None) // [rows, hidden]
}

/// `[.., width]` -> the same.
pub(super) fn norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    match &norm.bias {
        Some(bias) => layer_norm(x, norm, bias),
        None => rms_norm(x, norm),
    }
}

/// `[.., width]` -> the same.
fn rms_norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled = wide.broadcast_div(&(variance + norm.eps)?.sqrt()?)?;
    scaled.broadcast_mul(&norm.weight)?.to_dtype(x.dtype())
}

/// `[rows, width]` -> the same.
fn layer_norm(x: &Tensor, norm: &Norm, bias: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(variance + norm.eps)?.sqrt()?)?
        .broadcast_mul(&norm.weight)?
        .broadcast_add(bias)?
        .to_dtype(x.dtype())
}

/// `[rows, width]` -> the same.
pub(super) fn rotate(x: &Tensor, heads: &[HeadRange<'_>], rope: &Rope) -> Result<Tensor> {
    let width = x.dim(1)?;
    let mut parts = Vec::with_capacity(2 * heads.len() + 1);
    let mut at = 0;
    for heads in heads {
        let columns = &heads.columns;
        if columns.start > at {
            parts.push(x.narrow(1, at, columns.start - at)?);
        }
        let rotated = x.narrow(1, columns.start, columns.len())?.contiguous()?;
        parts.push(rotate_heads(&rotated, heads.norm, rope)?);
        at = columns.end;
    }
    if at < width {
        parts.push(x.narrow(1, at, width - at)?);
    }
    Tensor::cat(&parts, 1)
}

/// `[rows, heads * head_dim]` -> the same.
fn rotate_heads(x: &Tensor, norm: Option<&Norm>, rope: &Rope) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = rope.cos.dim(1)?;
    let mut heads = x.reshape((rows, width / (2 * half), 2 * half))?; // [rows, heads, head_dim]
    if let Some(norm) = norm {
        heads = rms_norm(&heads, norm)?;
    }
    let heads = heads.to_dtype(DType::F32)?;
    let (low, high) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let (cos, sin) = (rope.cos.unsqueeze(1)?, rope.sin.unsqueeze(1)?); // [rows, 1, half]
    let first = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let second = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?
        .reshape((rows, width))?
        .to_dtype(x.dtype())
}

/// The columns of `heads` heads: rows `start..start + len`, as `[heads, len, head_dim]`.
fn split(
    (x, column): (&Tensor, usize),
    (start, len): (usize, usize),
    (heads, head_dim): (usize, usize),
) -> Result<Tensor> {
    x.narrow(0, start, len)?
        .narrow(1, column, heads * head_dim)?
        .contiguous()?
        .reshape((len, heads, head_dim))?
        .transpose(0, 1)?
        .contiguous()
}

/// `[query_rows, heads * head_dim]`.
pub(super) fn attention(
    Projections { q, k, v }: Projections<'_>,
    past: &[Option<&Activations>],
    spans: &Spans,
    heads: Heads,
) -> Result<Tensor> {
    let group = heads.heads / heads.kv_heads;
    let (wide, narrow) = (
        (heads.heads, heads.head_dim),
        (heads.kv_heads, heads.head_dim),
    );
    let mut results = Vec::with_capacity(spans.sequences());
    for sequence in 0..spans.sequences() {
        let (queries, own) = (spans.queries(sequence), spans.keys(sequence));
        let past = past.get(sequence).copied().flatten();
        let all = |(x, column): (&Activations, usize)| {
            let own = split((x.device()?, column), (own.start, own.len()), narrow)?;
            let Some(past) = past else { return Ok(own) };
            let before = split((past.device()?, column), (0, past.rows()), narrow)?;
            Tensor::cat(&[before, own], 1)?.contiguous()
        };
        let query_heads = split((q.0.device()?, q.1), (queries.start, queries.len()), wide)?;
        let query_heads =
            query_heads.reshape((heads.kv_heads, group * queries.len(), heads.head_dim))?;
        let (key_heads, value_heads) = (all(k)?, all(v)?); // [kv_heads, keys, head_dim]
        let keys = 0..key_heads.dim(1)?;
        // [kv_heads, group * queries, keys]
        let scores = (query_heads.matmul(&key_heads.t()?)?.to_dtype(DType::F32)?
            * f64::from(heads.scale()))?;
        let mut scores = scores.reshape((heads.heads, queries.len(), keys.len()))?;
        if spans.causal {
            scores =
                scores.broadcast_add(&causal_mask(queries.len(), keys.len(), scores.device())?)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(value_heads.dtype())?;
        let weights = weights.reshape((heads.kv_heads, group * queries.len(), keys.len()))?;
        let mixed =
            weights
                .matmul(&value_heads)?
                .reshape((heads.heads, queries.len(), heads.head_dim))?;
        results.push(
            mixed
                .transpose(0, 1)?
                .reshape((queries.len(), heads.heads * heads.head_dim))?,
        );
    }
    Tensor::cat(&results, 0)
}

/// `[queries, keys]`: 0 where the key is seen, minus infinity where not; the last query sees the last key.
fn causal_mask(queries: usize, keys: usize, device: &Device) -> Result<Tensor> {
    let hidden = |query: usize, key: usize| key + queries > query + keys;
    let mask: Vec<f32> = (0..queries)
        .flat_map(|query| {
            (0..keys).map(move |key| {
                if hidden(query, key) {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
        })
        .collect();
    Tensor::from_vec(mask, (queries, keys), device)
}

/// `[n, width]` -> `[rows, width]`.
pub(super) fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

/// `[rows, width]`.
pub(super) fn interpolate(table: &Tensor, lookups: &[(Vec<u32>, Vec<f32>)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (ids, weights) in lookups {
        let weights = Tensor::new(weights.as_slice(), table.device())?
            .to_dtype(table.dtype())?
            .unsqueeze(1)?;
        let rows = gather_rows(table, ids)?.broadcast_mul(&weights)?;
        sum = Some(match sum {
            Some(sum) => (sum + rows)?,
            None => rows,
        });
    }
    sum.map_or_else(|| candle_core::bail!("nothing to look up"), Ok)
}

/// `[n, width]` with its rows `rows` replaced by `with [rows, width]`.
pub(super) fn replace_rows(x: &Tensor, rows: &[u32], with: &Tensor) -> Result<Tensor> {
    let n = x.dim(0)?;
    let mut from: Vec<u32> = (0..n as u32).collect();
    for (i, &row) in rows.iter().enumerate() {
        from[row as usize] = (n + i) as u32;
    }
    gather_rows(&Tensor::cat(&[x, with], 0)?, &from)
}

/// `[n, width]` with `plus [rows, width]` added to its rows `rows`.
pub(super) fn add_rows(x: &Tensor, rows: &[u32], plus: &Tensor) -> Result<Tensor> {
    x.index_add(&Tensor::new(rows, x.device())?, plus, 0)
}
