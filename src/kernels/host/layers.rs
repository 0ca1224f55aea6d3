//! Linear layers: rows are normalised and packed, multiplied, and each tile is finished (bias, activation, gate, residual) while it
//! is in the first cache.

use candle_core::{Result, bail};

use super::activation::{gelu_erf, gelu_tanh, silu};
use super::format::{Format, PANEL_COLUMNS};
use super::lanes::{Lanes, Task};
use super::operand::{Operand, Rounding};
use super::panels::{PAIRED_COLUMNS, Panels};
use super::product::{Tile, product};
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
        operand.fill(self.simd, |row, out| out.copy_from_slice(x.row(row)));
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

/// Where tiles write: rows of `width` numbers, each tile its own columns.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: tiles write disjoint columns or rows of the same buffer; nobody reads it before all have ended.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    fn of(rows: &mut HostRows) -> Self {
        Output {
            rows: rows.rows,
            width: rows.width,
            start: rows.data_mut().as_mut_ptr(),
        }
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// No other task touches these columns, and the rows live.
    #[expect(
        clippy::mut_from_ref,
        reason = "the pointer is the shared thing, each slice of it is disjoint"
    )]
    unsafe fn columns(&self, row: usize, columns: std::ops::Range<usize>) -> &mut [f32] {
        assert!(
            row < self.rows && columns.end <= self.width,
            "inside the output"
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's contract.
        unsafe {
            let start = self.start.add(row * self.width + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
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
                    for value in row {
                        *value = gelu_tanh(*value);
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

impl Task for Gate<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for row in self.0 {
            let (gate, up) = row.split_at_mut(PAIRED_COLUMNS);
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = silu(*gate) * *up;
            }
        }
    }
}

/// A tile written to its place in rows of f32, or added to what is there.
struct Store<'a> {
    tile: &'a [[f32; PANEL_COLUMNS]],
    outputs: std::ops::Range<usize>,
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
            if let (Ok(to), true) = (<&mut [f32; PANEL_COLUMNS]>::try_from(&mut *to), self.add) {
                for (to, value) in to.iter_mut().zip(values) {
                    *to += value;
                }
            } else if self.add {
                for (to, value) in to.iter_mut().zip(values) {
                    *to += value;
                }
            } else {
                to.copy_from_slice(&values[..to.len()]);
            }
        }
    }
}

/// Multiplies and hands over each finished tile with the outputs it holds.
fn finished(
    host: Host,
    x: &Operand,
    linear: &Linear,
    activation: Activation,
    put: impl Fn(Tile<'_>, std::ops::Range<usize>) + Sync,
) -> Result<()> {
    let weights = panels(linear)?;
    with_bias(linear, |bias| {
        product(host.simd, x, weights, |tile| {
            let outputs = weights.outputs(tile.panel);
            if !bias.is_empty() || activation != Activation::None {
                host.simd.run(Finish {
                    rows: &mut *tile.rows,
                    bias: bias.get(outputs.clone()).unwrap_or_default(),
                    activation,
                });
            }
            put(tile, outputs);
        });
    })
}

/// Writes a finished tile, or adds it.
fn store(
    simd: Simd,
    tile: Tile<'_>,
    outputs: std::ops::Range<usize>,
    (output, add): (Output, bool),
) {
    simd.run(Store {
        tile: tile.rows,
        outputs,
        row: tile.row,
        output,
        add,
    });
}

/// `activation(x W^T + b)` of packed rows.
fn apply(host: Host, x: &Operand, linear: &Linear, activation: Activation) -> Result<HostRows> {
    let mut out = HostRows::stale(x.rows, panels(linear)?.columns);
    let output = Output::of(&mut out);
    finished(host, x, linear, activation, |tile, outputs| {
        store(host.simd, tile, outputs, (output, false));
    })?;
    Ok(out)
}

/// `out += x W^T + b` of packed rows.
fn apply_add(host: Host, x: &Operand, linear: &Linear, out: &mut HostRows) -> Result<()> {
    if (out.rows, out.width) != (x.rows, panels(linear)?.columns) {
        bail!("a residual of another shape than the product")
    }
    let output = Output::of(out);
    finished(host, x, linear, Activation::None, |tile, outputs| {
        store(host.simd, tile, outputs, (output, true));
    })
}

pub(in crate::kernels) fn linear(
    host: Host,
    x: &HostRows,
    linear: &Linear,
    activation: Activation,
) -> Result<HostRows> {
    apply(host, &host.packed(x, panels(linear)?), linear, activation)
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
        .map(|linear| apply(host, &operand, linear, Activation::None))
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
    let inner = activated(host, (&operand, fc1), panels(fc2)?, |store| {
        finished(host, &operand, fc1, activation, |tile, outputs| {
            store(tile, outputs)
        })
    })?;
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
    let inner = activated(
        host,
        (&operand, &mlp.gate_up),
        panels(&mlp.down)?,
        |store| {
            finished(
                host,
                &operand,
                &mlp.gate_up,
                Activation::None,
                |tile, outputs| {
                    host.simd.run(Gate(&mut *tile.rows));
                    store(tile, outputs);
                },
            )
        },
    )?;
    apply_add(host, &inner, &mlp.down, x)
}

/// What a layer makes of `x`, packed for the layer after it. `run` is given what stores a tile.
///
/// In int8 the scale of a row is known only when the whole row is, so there the rows are kept in f32 in between.
fn activated(
    host: Host,
    (x, linear): (&Operand, &Linear),
    next: &Panels,
    run: impl FnOnce(&(dyn Fn(Tile<'_>, std::ops::Range<usize>) + Sync)) -> Result<()>,
) -> Result<Operand> {
    if host.rounding(next.format).format() == Format::Int8 {
        let mut rows = HostRows::stale(x.rows, panels(linear)?.columns);
        let output = Output::of(&mut rows);
        run(&|tile, outputs| store(host.simd, tile, outputs, (output, false)))?;
        return Ok(host.packed(&rows, next));
    }
    let mut operand = host.operand(x.rows, next);
    let writer = operand.writer();
    run(&|tile, outputs| {
        let place = (tile.row, outputs.start);
        // SAFETY: a tile's rows and columns are its own; the operand it comes from is cut into rows as this one is.
        unsafe { writer.write_tile(host.simd, place, tile.rows, outputs.len()) };
    })?;
    Ok(operand)
}
