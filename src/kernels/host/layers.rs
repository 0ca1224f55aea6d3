//! Linear layers: rows are normalised and packed, multiplied, and each tile is finished (bias, activation, gate, residual) while it
//! is in the first cache.

use std::ops::Range;

use candle_core::{Result, bail};

use super::activation::{gelu_erf, gelu_tanh, silu};
use super::format::{Format, PANEL_COLUMNS};
use super::lanes::{LANES, Lanes, Task};
use super::operand::{Operand, Rounding, Writer};
use super::output::Output;
use super::panels::{PAIRED_COLUMNS, Panels};
use super::product::{Sink, Tile, product};
use super::simd::Simd;
use super::{HostRows, read, read_norm};
use crate::kernels::Precision;
use crate::kernels::linear::{Activation, GatedMlp, Linear, Norm, Weights};

/// How the host computes.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Host {
    pub(in crate::kernels) simd: Simd,
    pub(in crate::kernels) precision: Precision,
}

impl Host {
    /// How what is multiplied by weights is rounded.
    fn rounding(self, weights: Format) -> Rounding {
        match (weights, self.precision) {
            (Format::Int8, _) if matches!(self.simd, Simd::Avx512Vnni | Simd::Avx512Bf16) => {
                Rounding::OffsetInt8
            }
            (Format::Int8, _) => Rounding::Int8,
            (_, Precision::F32) => Rounding::F32,
            (Format::Bf16, _) if self.simd.multiplies_bf16() => Rounding::Bf16,
            _ => Rounding::WidenedBf16,
        }
    }

    /// Room for rows that will be multiplied by `weights`.
    fn operand(self, rows: usize, weights: &Panels) -> Operand {
        let rounding = self.rounding(weights.format);
        let widened = rounding.format() != weights.format;
        let multiple = if widened { 2 } else { 1 };
        Operand::new(self.simd, rounding, (rows, weights.depth), multiple)
    }

    fn packed(self, x: &HostRows, weights: &Panels) -> Operand {
        let mut operand = self.operand(x.rows, weights);
        operand.copy(self.simd, |row| x.row(row));
        operand
    }

    fn normed(self, x: &HostRows, norm: &Norm, weights: &Panels) -> Result<Operand> {
        let mut operand = self.operand(x.rows, weights);
        read_norm(norm, |norm| {
            operand.fill(self.simd, |row, out| norm.row(self.simd, x.row(row), out));
        })?;
        Ok(operand)
    }
}

fn panels(linear: &Linear) -> Result<&Panels> {
    match &linear.weight {
        Weights::Host(panels) => Ok(panels),
        Weights::Device(_) => bail!("a device weight reached a host operation"),
    }
}

/// Runs `with` on a layer's bias, empty where it has none.
fn with_bias<T>(linear: &Linear, with: impl FnOnce(&[f32]) -> T) -> Result<T> {
    match &linear.bias {
        Some(bias) => read(bias, with),
        None => Ok(with(&[])),
    }
}

/// Bias and activation, on a tile in place.
struct Finish<'a> {
    rows: &'a mut [[f32; PANEL_COLUMNS]],
    /// Of this panel's outputs; empty where there is none.
    bias: &'a [f32],
    activation: Activation,
}

impl Task for Finish<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut bias = [0.0; PANEL_COLUMNS];
        bias[..self.bias.len()].copy_from_slice(self.bias);
        for row in self.rows {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
            match self.activation {
                Activation::None => {}
                Activation::GeluTanh => {
                    for half in row.chunks_exact_mut(LANES) {
                        // SAFETY: a half of a row is a vector; the instruction set is there by the task's contract.
                        unsafe { gelu_tanh(L::load(half.as_ptr())).store(half.as_mut_ptr()) };
                    }
                }
                Activation::GeluErf => {
                    for value in row {
                        *value = gelu_erf(*value);
                    }
                }
            }
        }
    }
}

/// `silu(gate) * up`, the gates in the first half of a row and the products put there.
struct Gate<'a>(&'a mut [[f32; PANEL_COLUMNS]]);

/// A half of a row is one vector.
const _: () = assert!(PAIRED_COLUMNS == LANES && PANEL_COLUMNS == 2 * LANES);

impl Task for Gate<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for row in self.0 {
            let row = row.as_mut_ptr();
            // SAFETY: a row is two vectors; the instruction set is there by the task's contract.
            unsafe {
                let up = L::load(row.add(LANES));
                silu(L::load(row)).mul(up).store(row);
            }
        }
    }
}

/// A tile written to its place in rows of f32, or added to what is there.
struct Store<'a> {
    tile: &'a [[f32; PANEL_COLUMNS]],
    outputs: Range<usize>,
    row: usize,
    output: Output,
    add: bool,
}

impl Task for Store<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (i, values) in self.tile.iter().enumerate() {
            // SAFETY: a tile's rows and columns are its own.
            let to = unsafe { self.output.columns(self.row + i, self.outputs.clone()) };
            // A whole panel's width is known here, which makes it vector code without a remainder.
            match (<&mut [f32; PANEL_COLUMNS]>::try_from(&mut *to), self.add) {
                (Ok(to), true) => {
                    for (to, value) in to.iter_mut().zip(values) {
                        *to += value;
                    }
                }
                (Ok(to), false) => *to = *values,
                (Err(_), true) => {
                    for (to, value) in to.iter_mut().zip(values) {
                        *to += value;
                    }
                }
                (Err(_), false) => to.copy_from_slice(&values[..to.len()]),
            }
        }
    }
}

/// What is done with a product before it is written.
#[derive(Clone, Copy)]
enum Finishing {
    /// An activation.
    Of(Activation),
    /// The gates of a SwiGLU are applied to what stands beside them.
    Gated,
}

/// Where a product goes.
#[derive(Clone, Copy)]
enum Place {
    /// Over what is there.
    Rows(Output),
    /// Added to what is there.
    Residual(Output),
    /// Rounded, for the next layer.
    Operand(Writer),
}

/// A linear layer's end: bias, activation or gate, and the way out.
struct Ending<'a> {
    host: Host,
    weights: &'a Panels,
    /// `[out]`, or empty.
    bias: &'a [f32],
    finishing: Finishing,
    place: Place,
}

impl Sink for Ending<'_> {
    fn fetch(&self, rows: Range<usize>, panel: usize) {
        let outputs = self.weights.outputs(panel);
        match self.place {
            Place::Rows(output) | Place::Residual(output) => output.fetch(rows, outputs),
            Place::Operand(writer) => writer.fetch(rows, outputs),
        }
    }

    fn take(&self, tile: Tile<'_>) {
        let (simd, outputs) = (self.host.simd, self.weights.outputs(tile.panel));
        match self.finishing {
            Finishing::Gated => simd.run(Gate(&mut *tile.rows)),
            Finishing::Of(Activation::None) if self.bias.is_empty() => {}
            Finishing::Of(activation) => simd.run(Finish {
                rows: &mut *tile.rows,
                bias: self.bias.get(outputs.clone()).unwrap_or_default(),
                activation,
            }),
        }
        let (output, add) = match self.place {
            Place::Rows(output) => (output, false),
            Place::Residual(output) => (output, true),
            Place::Operand(writer) => {
                let place = (tile.row, outputs.start);
                // SAFETY: a tile's rows and columns are its own; the operand it comes from is cut into rows as this one is.
                unsafe { writer.write_tile(simd, place, tile.rows, outputs.len()) };
                return;
            }
        };
        simd.run(Store {
            tile: tile.rows,
            outputs,
            row: tile.row,
            output,
            add,
        });
    }
}

/// Multiplies packed rows by a layer's weights, and finishes and places what comes of it.
fn run(
    host: Host,
    x: &Operand,
    linear: &Linear,
    (finishing, place): (Finishing, Place),
) -> Result<()> {
    let weights = panels(linear)?;
    with_bias(linear, |bias| {
        let ending = Ending {
            host,
            weights,
            bias,
            finishing,
            place,
        };
        product(host.simd, x, weights, &ending);
    })
}

/// `activation(x W^T + b)` of packed rows.
fn apply(host: Host, x: &Operand, linear: &Linear, finishing: Finishing) -> Result<HostRows> {
    let width = panels(linear)?.columns;
    let mut out = HostRows::stale(x.rows, width);
    run(
        host,
        x,
        linear,
        (finishing, Place::Rows(Output::of(out.data_mut(), width))),
    )?;
    Ok(out)
}

/// `out += x W^T + b` of packed rows.
fn apply_add(host: Host, x: &Operand, linear: &Linear, out: &mut HostRows) -> Result<()> {
    if (out.rows, out.width) != (x.rows, panels(linear)?.columns) {
        bail!("a residual of another shape than the product")
    }
    let width = out.width;
    let place = Place::Residual(Output::of(out.data_mut(), width));
    run(host, x, linear, (Finishing::Of(Activation::None), place))
}

pub(in crate::kernels) fn linear(
    host: Host,
    x: &HostRows,
    linear: &Linear,
    activation: Activation,
) -> Result<HostRows> {
    let operand = host.packed(x, panels(linear)?);
    apply(host, &operand, linear, Finishing::Of(activation))
}

pub(in crate::kernels) fn linear_add(
    host: Host,
    x: &HostRows,
    linear: &Linear,
    out: &mut HostRows,
) -> Result<()> {
    apply_add(host, &host.packed(x, panels(linear)?), linear, out)
}

pub(in crate::kernels) fn norm_linear(
    host: Host,
    x: &HostRows,
    norm: &Norm,
    linears: &[&Linear],
) -> Result<Vec<HostRows>> {
    let Some(first) = linears.first() else {
        return Ok(Vec::new());
    };
    let operand = host.normed(x, norm, panels(first)?)?;
    linears
        .iter()
        .map(|linear| apply(host, &operand, linear, Finishing::Of(Activation::None)))
        .collect()
}

/// `x += fc2(activation(fc1(norm(x))))`.
pub(in crate::kernels) fn mlp(
    host: Host,
    x: &mut HostRows,
    norm: &Norm,
    [fc1, fc2]: [&Linear; 2],
    activation: Activation,
) -> Result<()> {
    let operand = host.normed(x, norm, panels(fc1)?)?;
    let finishing = Finishing::Of(activation);
    let inner = activated(host, (&operand, fc1), finishing, panels(fc2)?)?;
    apply_add(host, &inner, fc2, x)
}

/// `x += down(silu(gate(norm(x))) * up(norm(x)))`.
pub(in crate::kernels) fn gated_mlp(
    host: Host,
    x: &mut HostRows,
    norm: &Norm,
    mlp: &GatedMlp,
) -> Result<()> {
    let operand = host.normed(x, norm, panels(&mlp.gate_up)?)?;
    let (gate_up, down) = (&mlp.gate_up, panels(&mlp.down)?);
    let inner = activated(host, (&operand, gate_up), Finishing::Gated, down)?;
    apply_add(host, &inner, &mlp.down, x)
}

/// What a layer makes of `x`, packed for the layer after it.
///
/// In int8 the scale of a row is known only when the whole row is, so there the rows are kept in f32 in between.
fn activated(
    host: Host,
    (x, linear): (&Operand, &Linear),
    finishing: Finishing,
    next: &Panels,
) -> Result<Operand> {
    if host.rounding(next.format).format() == Format::Int8 {
        let rows = apply(host, x, linear, finishing)?;
        return Ok(host.packed(&rows, next));
    }
    let mut operand = host.operand(x.rows, next);
    let place = Place::Operand(operand.writer());
    run(host, x, linear, (finishing, place))?;
    Ok(operand)
}
