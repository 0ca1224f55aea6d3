//! The operations on the CPU: tensors in and out, plain slices inside.
#![expect(
    unsafe_code,
    reason = "vector instructions, outputs written by several threads, and mapped bytes read as numbers"
)]

mod attention;
mod gemm;
pub(crate) mod lanes;
mod rows;

use candle_core::{Result, Storage, Tensor, bail};
use gemm::{Rows, WeightView};
use lanes::Simd;

use super::linear::{Activation, GatedMlp, Linear, Matrix, Norm};
use super::weight::{HostTensor, WeightDtype};
use super::{Heads, Precision, Rope, Spans};

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

fn tensor(data: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(data, (rows, columns), &candle_core::Device::Cpu)
}

/// The bytes of f32 numbers.
pub(crate) fn bytes_of_f32(data: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialised, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The bytes of u16 numbers.
pub(crate) fn bytes_of_u16(data: &[u16]) -> &[u8] {
    // SAFETY: every byte of a u16 is initialised, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The numbers a host weight is made of.
fn view(weight: &HostTensor) -> Result<WeightView<'_>> {
    let bytes = weight.bytes();
    // SAFETY: any bits are a valid u16 or f32; `align_to` itself finds out whether the bytes are aligned.
    let (view, loose) = match weight.dtype {
        WeightDtype::Bf16 => {
            let (head, data, tail) = unsafe { bytes.align_to::<u16>() };
            (WeightView::Bf16(data), head.len() + tail.len())
        }
        WeightDtype::F32 => {
            let (head, data, tail) = unsafe { bytes.align_to::<f32>() };
            (WeightView::F32(data), head.len() + tail.len())
        }
        WeightDtype::F16 => bail!("an f16 weight reached a host operation"),
    };
    if loose != 0 {
        bail!("a misaligned weight reached a host operation");
    }
    Ok(view)
}

fn host_matrix(matrix: &Matrix) -> Result<(WeightView<'_>, usize, usize)> {
    let Matrix::Host(weight) = matrix else {
        bail!("a device weight reached a host operation")
    };
    Ok((view(weight)?, weight.shape[0], weight.shape[1]))
}

/// The input of a linear layer as its precision wants it.
fn rounded(precision: Precision, x: &[f32]) -> std::borrow::Cow<'_, [f32]> {
    match precision {
        Precision::F32 => x.into(),
        Precision::Bf16 => x
            .iter()
            .map(|&value| rows::round_to_bf16(value))
            .collect::<Vec<_>>()
            .into(),
    }
}

pub(super) fn embedding(table: &HostTensor, ids: &[u32]) -> Result<Tensor> {
    let width = table.shape[1];
    let mut out = vec![0.0; ids.len() * width];
    for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
        let range = id as usize * width..(id as usize + 1) * width;
        match view(table)? {
            WeightView::F32(data) => out.copy_from_slice(&data[range]),
            WeightView::Bf16(data) => {
                for (out, &bits) in out.iter_mut().zip(&data[range]) {
                    *out = f32::from_bits(u32::from(bits) << 16);
                }
            }
        }
    }
    tensor(out, ids.len(), width)
}

type Mode = (Precision, Simd);

pub(super) fn linear(
    mode: Mode,
    x: &Tensor,
    linear: &Linear,
    activation: Activation,
) -> Result<Tensor> {
    let apply: fn(f32) -> f32 = match activation {
        Activation::None => |x| x,
        Activation::GeluTanh => rows::gelu_tanh,
        Activation::GeluErf => rows::gelu_erf,
    };
    finish_linear(mode, x, linear, |_, _, out| {
        for value in out {
            *value = apply(*value);
        }
    })
}

pub(super) fn linear_add(
    mode: Mode,
    x: &Tensor,
    linear: &Linear,
    residual: &Tensor,
) -> Result<Tensor> {
    let width = residual.dim(1)?;
    read(residual, |residual| {
        finish_linear(mode, x, linear, |row, column, out| {
            let at = row * width + column;
            for (value, residual) in out.iter_mut().zip(&residual[at..]) {
                *value += residual;
            }
        })
    })?
}

/// `x W^T + b`, then `finish(row, first column, values)` on every piece of the result.
fn finish_linear(
    (precision, simd): Mode,
    x: &Tensor,
    linear: &Linear,
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Result<Tensor> {
    let (weight, columns, depth) = host_matrix(&linear.weight)?;
    let rows = x.dim(0)?;
    let mut out = vec![0.0; rows * columns];
    let bias = linear
        .bias
        .as_ref()
        .map(|bias| bias.to_vec1::<f32>())
        .transpose()?;
    read(x, |x| {
        let x = rounded(precision, x);
        gemm::product(
            simd,
            Rows { data: &x, depth },
            [weight],
            &mut out,
            |row, column, [products], out| {
                match &bias {
                    Some(bias) => {
                        for ((out, product), bias) in
                            out.iter_mut().zip(products).zip(&bias[column..])
                        {
                            *out = product + bias;
                        }
                    }
                    None => out.copy_from_slice(products),
                }
                finish(row, column, out);
            },
        );
    })?;
    tensor(out, rows, columns)
}

pub(super) fn gated_mlp(
    mode: Mode,
    x: &Tensor,
    mlp: &GatedMlp,
    residual: &Tensor,
) -> Result<Tensor> {
    let (precision, simd) = mode;
    let (gate, intermediate, hidden) = host_matrix(&mlp.gate)?;
    let (up, ..) = host_matrix(&mlp.up)?;
    let rows = x.dim(0)?;
    let mut inner = vec![0.0; rows * intermediate];
    read(x, |x| {
        let x = rounded(precision, x);
        gemm::product(
            simd,
            Rows {
                data: &x,
                depth: hidden,
            },
            [gate, up],
            &mut inner,
            |_, _, [gate, up], out| {
                for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = rows::silu(gate) * up;
                }
            },
        );
    })?;
    let inner = tensor(inner, rows, intermediate)?;
    let down = Linear {
        weight: mlp.down.clone(),
        bias: None,
    };
    linear_add(mode, &inner, &down, residual)
}

/// Runs `with(input, output)` on a tensor and a new one of its shape.
fn map(x: &Tensor, with: impl FnOnce(&[f32], &mut [f32])) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let mut out = vec![0.0; rows * columns];
    read(x, |x| with(x, &mut out))?;
    tensor(out, rows, columns)
}

pub(super) fn rms_norm(simd: Simd, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    read(&norm.weight, |weight| {
        map(x, |x, out| {
            rows::rms_norm(simd, x, weight, norm.eps as f32, out)
        })
    })?
}

pub(super) fn layer_norm(simd: Simd, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let Some(bias) = &norm.bias else {
        bail!("a layer norm without a bias")
    };
    read(&norm.weight, |weight| {
        read(bias, |bias| {
            map(x, |x, out| {
                rows::layer_norm(simd, x, (weight, bias), norm.eps as f32, out)
            })
        })?
    })?
}

pub(super) fn rope(simd: Simd, x: &Tensor, norm: Option<&Norm>, rope: &Rope) -> Result<Tensor> {
    let head_dim = 2 * rope.cos.dim(1)?;
    let weight = norm.map(|norm| norm.weight.to_vec1::<f32>()).transpose()?;
    let norm = weight.as_deref().zip(norm.map(|norm| norm.eps as f32));
    read(&rope.cos, |cos| {
        read(&rope.sin, |sin| {
            let rotation = rows::Rotation { cos, sin, head_dim };
            map(x, |x, out| rows::rope(simd, x, norm, rotation, out))
        })?
    })?
}

pub(super) fn attention(
    simd: Simd,
    [q, k, v]: [&Tensor; 3],
    spans: &Spans,
    heads: Heads,
) -> Result<Tensor> {
    read(k, |k| {
        read(v, |v| {
            map(q, |q, out| {
                attention::attention(simd, (q, k, v), spans, heads, out)
            })
        })
    })??
}
