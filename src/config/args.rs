//! What the operator typed after a subcommand's name: one flag for each setting of the table, and the two that are about
//! the settings themselves. In: the command line. Out: [`ConfigArgs`].

use std::path::PathBuf;

use clap::builder::PathBufValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::error::{ConfigFault, Origin};
use super::table::{Kind, SECTIONS, SETTINGS, Setting};
use super::value;
use super::{Given, Layer};

/// The flags of the settings, as typed. `clap`'s derive cannot build arguments from a table, so its traits are implemented
/// here; a subcommand takes them with `#[command(flatten)]`.
#[derive(Debug, Clone, Default)]
pub struct ConfigArgs {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--print-config`.
    pub print_config: bool,
    /// Index in the table, and what each repetition of its flag said.
    typed: Vec<(usize, Vec<String>)>,
}

impl ConfigArgs {
    /// Everything that was typed.
    pub(super) fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        for (index, typed) in &self.typed {
            let row = &SETTINGS[*index];
            let origin = Origin::Flag {
                flag: format!("--{}", row.flags().join(", --")),
            };
            match value::from_typed(row.kind, typed) {
                Ok(value) => layer.given.push(Given {
                    index: *index,
                    value,
                    origin,
                }),
                Err(problem) => layer.faults.push(ConfigFault::new(origin, problem)),
            }
        }
        layer
    }
}

impl Args for ConfigArgs {
    fn augment_args(mut command: Command) -> Command {
        command = command
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(PathBufValueParser::new())
                    .help("A TOML file of settings [env: MANIFOLD_CONFIG]"),
            )
            .arg(
                Arg::new("print-config")
                    .long("print-config")
                    .action(ArgAction::SetTrue)
                    .help("Print every setting with its value and where it comes from, and stop"),
            );
        for (section, about) in SECTIONS {
            command = command.next_help_heading(heading(section, about));
            for row in SETTINGS.iter().filter(|row| row.section() == *section) {
                command = add_flags(command, row);
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            print_config: matches.get_flag("print-config"),
            typed: Vec::new(),
        };
        for (index, row) in SETTINGS.iter().enumerate() {
            if row.flags().is_empty() {
                continue;
            }
            if let Kind::Boolean { off: Some(off) } = row.kind
                && matches.value_source(off) == Some(ValueSource::CommandLine)
            {
                args.typed.push((index, vec!["false".to_owned()]));
            }
            if let Some(typed) = matches.get_many::<String>(row.key) {
                args.typed.push((index, typed.cloned().collect()));
            }
        }
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The help heading of a section, which also names it for [`hide_sections`].
fn heading(section: &str, about: &str) -> String {
    format!("{section}: {}", about.trim_end_matches('.'))
}

/// Leaves the flags of some sections out of a subcommand's help; they are still accepted.
pub fn hide_sections(command: Command, sections: &[&str]) -> Command {
    command.mut_args(|arg| {
        let section = arg.get_help_heading().and_then(|text| text.split_once(':'));
        match section {
            Some((section, _)) if sections.contains(&section) => arg.hide(true),
            _ => arg,
        }
    })
}

fn add_flags(mut command: Command, row: &'static Setting) -> Command {
    let flags = row.flags();
    let Some((own, aliases)) = flags.split_first() else {
        return command;
    };
    let variable = row.variables().swap_remove(0);
    let help = format!("{} [default: {}] [env: {variable}]", row.help, row.default);
    let mut arg = Arg::new(row.key)
        .long(own.clone())
        .visible_aliases(aliases.to_vec())
        .value_name(value_name(row.kind))
        .help(help)
        .action(match row.kind {
            Kind::Texts | Kind::Integers { .. } | Kind::Map => ArgAction::Append,
            _ => ArgAction::Set,
        });
    if let Kind::Boolean { off } = row.kind {
        arg = arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true");
        if let Some(off) = off {
            arg = arg.conflicts_with(off);
            let off = Arg::new(off).long(off).action(ArgAction::SetTrue);
            command = command.arg(off.help(format!("The same as --{own}=false")));
        }
    }
    command.arg(arg)
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Texts | Kind::Secrets => "TEXT",
        Kind::Choice(_) => "WORD",
        Kind::Device => "DEVICE",
        Kind::LogFilter => "FILTER",
        Kind::Integer { .. } | Kind::Integers { .. } => "N",
        Kind::Number { .. } => "NUMBER",
        Kind::Boolean { .. } => "true|false",
        Kind::Map => "NAME=TEXT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Value;

    fn parse(words: &[&str]) -> Result<ConfigArgs, clap::Error> {
        let command = ConfigArgs::augment_args(Command::new("serve"));
        let words = std::iter::once(&"serve").chain(words);
        ConfigArgs::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    fn given(words: &[&str]) -> Vec<(&'static str, String)> {
        let layer = parse(words).expect("flags parse").layer();
        assert!(layer.faults.is_empty(), "{:?}", layer.faults);
        let pair = |given: &Given| (SETTINGS[given.index].key, given.value.to_toml());
        layer.given.iter().map(pair).collect()
    }

    #[test]
    fn the_command_is_well_formed() {
        ConfigArgs::augment_args(Command::new("serve")).debug_assert();
    }

    #[test]
    fn dotted_flags_and_aliases_mean_the_same() {
        assert_eq!(given(&["--model", "a/b"]), given(&["--model-id=a/b"]));
        assert_eq!(
            given(&["--served-model-name", "x", "--served-model-name", "y"]),
            [("model.served_names", "[\"x\", \"y\"]".to_owned())]
        );
    }

    #[test]
    fn every_setting_but_a_secret_has_a_flag() {
        for row in SETTINGS {
            let default = match row.kind {
                Kind::Secrets => {
                    assert!(parse(&["--auth-api-keys", "k"]).is_err());
                    assert!(parse(&["--api-key", "k"]).is_err());
                    continue;
                }
                Kind::Texts => "a",
                Kind::Map => "a=b",
                Kind::Integers { .. } => "80",
                _ => row.default.trim_matches('"'),
            };
            for flag in row.flags() {
                assert_eq!(given(&[&format!("--{flag}={default}")])[0].0, row.key);
            }
        }
    }

    #[test]
    fn a_boolean_flag_needs_no_value() {
        let on = [("media.allow_private_networks", "true".to_owned())];
        assert_eq!(given(&["--allow-private-networks"]), on);
        let off = [("media.url_fetch", "false".to_owned())];
        assert_eq!(given(&["--no-url-fetch"]), off);
        assert_eq!(given(&["--media-url-fetch=false"]), off);
        assert!(parse(&["--no-url-fetch", "--media-url-fetch"]).is_err());
    }

    #[test]
    fn a_flag_given_twice_is_refused_unless_it_lists() {
        assert!(parse(&["--port", "1", "--server-port", "2"]).is_err());
        let ports = given(&["--media-allowed-ports=80", "--media-allowed-ports=8080,443"]);
        assert_eq!(ports[0].1, Value::Integers(vec![80, 8080, 443]).to_toml());
    }

    #[test]
    fn a_wrong_value_is_a_fault_that_names_the_flag() {
        let layer = parse(&["--port", "http"])
            .expect("clap leaves values to us")
            .layer();
        assert_eq!(
            layer.faults[0].to_string(),
            "flag --server-port, --port: \"http\" is not allowed, expected a whole number from 0 to 65535"
        );
    }
}
