//! `manifold verify`: how far this machine's results are from the reference. In: a [`Config`]. Out: a table, one line a
//! case, and success only when every line is within its bound.

use std::io::Write;

use anyhow::bail;

use crate::config::{Config, ConfigArgs};
use crate::telemetry;

/// What the operator typed after `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// One comparison with the reference.
#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    /// The reference case.
    case: String,
    /// What was compared: "embedding", "input_ids", …
    what: String,
    /// Cosine similarity; `None` where the compared things are not vectors.
    cosine: Option<f64>,
    /// Largest absolute difference.
    max_abs: f64,
    /// Whether it is within the bound of its kind.
    ok: bool,
}

/// Computes the cases and prints the table.
///
/// # Errors
/// When the model cannot be loaded, no case applies, or a case is out of bounds.
pub(super) fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<()> {
    telemetry::init(&config.telemetry)?;
    let named = |row: &Comparison| match &args.case {
        Some(text) => row.case.contains(text.as_str()),
        None => true,
    };
    let rows: Vec<Comparison> = compare(config)?.into_iter().filter(named).collect();
    print_table(&mut std::io::stdout().lock(), &rows)?;
    let failed = rows.iter().filter(|row| !row.ok).count();
    match (rows.len(), failed) {
        (0, _) => bail!("no reference case applies to this checkpoint"),
        (_, 0) => Ok(()),
        (all, failed) => bail!("{failed} of {all} comparisons are out of bounds"),
    }
}

/// To be wired: loads the checkpoint, computes the built-in cases that apply to it and compares them.
fn compare(_config: &Config) -> anyhow::Result<Vec<Comparison>> {
    Ok(Vec::new())
}

/// Writes one line a comparison, columns as wide as their longest entry.
fn print_table(to: &mut impl Write, rows: &[Comparison]) -> std::io::Result<()> {
    let width = |of: fn(&Comparison) -> &str, least: &str| {
        let widths = rows.iter().map(|row| of(row).chars().count());
        widths.max().unwrap_or(0).max(least.len())
    };
    let case_width = width(|row| &row.case, "case");
    let what_width = width(|row| &row.what, "what");
    writeln!(
        to,
        "{:<case_width$}  {:<what_width$}  {:>11}  {:>8}  ok",
        "case", "what", "cosine", "max abs"
    )?;
    for row in rows {
        // Eight digits: the bound of a good vector lies in the fifth.
        let cosine = row
            .cosine
            .map_or("-".to_owned(), |cosine| format!("{cosine:.8}"));
        let ok = if row.ok { "ok" } else { "FAIL" };
        writeln!(
            to,
            "{:<case_width$}  {:<what_width$}  {cosine:>11}  {:>8.2e}  {ok}",
            row.case, row.what, row.max_abs
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_marks_failures() {
        let row = |case: &str, what: &str, cosine, max_abs, ok| Comparison {
            case: case.to_owned(),
            what: what.to_owned(),
            cosine,
            max_abs,
            ok,
        };
        let rows = [
            row("text_plain", "embedding", Some(0.999_999_99), 1.5e-7, true),
            row("png", "input_ids", None, 0.0, true),
            row("video", "embedding", Some(-0.5), 0.25, false),
        ];
        let mut text = Vec::new();
        print_table(&mut text, &rows).expect("written");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            "\
case        what            cosine   max abs  ok
text_plain  embedding   0.99999999   1.50e-7  ok
png         input_ids            -    0.00e0  ok
video       embedding  -0.50000000   2.50e-1  FAIL
"
        );
    }
}
