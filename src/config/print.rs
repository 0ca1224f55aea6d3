//! Settings as TOML that people read and programs can use as a file. In: [`Values`]. Out: text.

use std::fmt::Write;

use super::table::{Kind, SECTIONS, Setting};
use super::value::Value;
use super::values::Values;

/// Every value with its origin, for `--print-config`.
pub(super) fn with_origins(values: &Values) -> String {
    let mut text = String::new();
    for (section, _) in SECTIONS {
        write_section(&mut text, section, None);
        for (row, value, origin) in values.rows().filter(|row| row.0.section() == *section) {
            write_line(&mut text, row, value, &format!("  # {origin}"));
        }
    }
    text
}

/// Every default with what it means, for `configs/default.toml`.
#[cfg(test)]
pub(super) fn with_help(values: &Values) -> String {
    let mut text = "\
# Every setting of manifold with its default. `manifold serve --config FILE` reads a file like this one; leave out what
# need not change. A setting can also be given by a variable or a flag, which win over the file: `batch.max_tokens` is
# MANIFOLD_BATCH_MAX_TOKENS and --batch-max-tokens. `manifold serve --print-config` shows what holds and why.
#
# A test keeps this file equal to the built-in defaults.
"
    .to_owned();
    for (section, about) in SECTIONS {
        write_section(&mut text, section, Some(about));
        for (row, value, _) in values.rows().filter(|row| row.0.section() == *section) {
            let _ = writeln!(text, "\n# {}", row.help);
            let short: Vec<String> = row.flags().into_iter().skip(1).collect();
            if !short.is_empty() {
                let _ = writeln!(text, "# Also --{}", short.join(", --"));
            }
            write_line(&mut text, row, value, "");
        }
    }
    text
}

// Writing to a `String` cannot fail, here and below.
fn write_section(text: &mut String, section: &str, about: Option<&str>) {
    if !text.is_empty() {
        text.push('\n');
    }
    if let Some(about) = about {
        let _ = writeln!(text, "# {about}");
    }
    let _ = writeln!(text, "[{section}]");
}

fn write_line(text: &mut String, row: &Setting, value: &Value, comment: &str) {
    // A secret may not stand in a file of settings, so its line is a comment.
    let hidden = if row.kind == Kind::Secrets { "# " } else { "" };
    let _ = writeln!(
        text,
        "{hidden}{} = {}{comment}",
        row.name(),
        value.to_toml()
    );
}
