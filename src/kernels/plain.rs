//! The operations in candle's own: what each one is, on any device.
//!
//! Norms, rotations and softmax are computed in f32 whatever the tensors are stored in, as transformers does.

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::{Activation, GatedMlp, Linear, Matrix, Norm};
use super::{Heads, Rope, Spans};

fn device_matrix(matrix: &Matrix) -> Result<&Tensor> {
    match matrix {
        Matrix::Device(tensor) => Ok(tensor),
        Matrix::Host(_) => candle_core::bail!("a host weight reached a device operation"),
    }
}

/// `[rows, in]` -> `[rows, out]`.
pub(super) fn linear(x: &Tensor, linear: &Linear, activation: Activation) -> Result<Tensor> {
    let mut y = x.matmul(&device_matrix(&linear.weight)?.t()?)?; // [rows, out]
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
    let gate = x.matmul(&device_matrix(&mlp.gate)?.t()?)?.silu()?; // [rows, intermediate]
    let up = x.matmul(&device_matrix(&mlp.up)?.t()?)?; // [rows, intermediate]
    (gate * up)?.matmul(&device_matrix(&mlp.down)?.t()?) // [rows, hidden]
}

/// `[.., width]` -> the same.
pub(super) fn rms_norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled = wide.broadcast_div(&(variance + norm.eps)?.sqrt()?)?;
    scaled.broadcast_mul(&norm.weight)?.to_dtype(x.dtype())
}

/// `[rows, width]` -> the same.
pub(super) fn layer_norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let mut y = centred
        .broadcast_div(&(variance + norm.eps)?.sqrt()?)?
        .broadcast_mul(&norm.weight)?;
    if let Some(bias) = &norm.bias {
        y = y.broadcast_add(bias)?;
    }
    y.to_dtype(x.dtype())
}

/// `[rows, heads * head_dim]` -> the same.
pub(super) fn rope(x: &Tensor, norm: Option<&Norm>, rope: &Rope) -> Result<Tensor> {
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

/// `q [query_rows, heads * head_dim]`, `k` and `v` `[rows, kv_heads * head_dim]` -> as `q`.
pub(super) fn attention([q, k, v]: [&Tensor; 3], spans: &Spans, heads: Heads) -> Result<Tensor> {
    let group = heads.heads / heads.kv_heads;
    let mut results = Vec::with_capacity(spans.sequences());
    for sequence in 0..spans.sequences() {
        let (queries, keys) = (spans.queries(sequence), spans.keys(sequence));
        let split = |x: &Tensor, start: usize, len: usize, heads_of_x: usize| {
            x.narrow(0, start, len)?
                .reshape((len, heads_of_x, heads.head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let query_heads = split(q, queries.start, queries.len(), heads.heads)?.reshape((
            heads.kv_heads,
            group * queries.len(),
            heads.head_dim,
        ))?;
        let key_heads = split(k, keys.start, keys.len(), heads.kv_heads)?;
        let value_heads = split(v, keys.start, keys.len(), heads.kv_heads)?;
        // [kv_heads, group * queries, keys]
        let scores = (query_heads.matmul(&key_heads.t()?)?.to_dtype(DType::F32)?
            * f64::from(heads.scale()))?;
        let mut scores = scores.reshape((heads.heads, queries.len(), keys.len()))?;
        if spans.causal {
            scores = scores.broadcast_add(&causal_mask(queries.len(), keys.len(), q.device())?)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
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
