//! What the environment says. In: its variables. Out: a value or a fault for each that begins with `MANIFOLD_`; the others
//! are not ours.

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{ConfigFault, Origin, suggestion};
use super::table::{ENVIRONMENT_PREFIX, Kind, SETTINGS};
use super::value;
use super::{Given, Layer};

/// Names the file of settings, as `--config` does.
pub(super) const CONFIG_VARIABLE: &str = "MANIFOLD_CONFIG";

/// Variables of the test suite, which the servers it starts inherit.
const TEST_PREFIX: &str = "MANIFOLD_TEST_";

/// The file the environment names.
pub(super) fn config_file(variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let named = variables.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    named.map(|(_, path)| PathBuf::from(path))
}

/// Everything the environment says.
pub(super) fn layer(variables: &[(OsString, OsString)]) -> Layer {
    let mut layer = Layer::default();
    for (name, text) in variables {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        let Some(text) = text.to_str() else {
            let problem = "holds bytes that are not UTF-8";
            layer.faults.push(ConfigFault::new(origin(name), problem));
            continue;
        };
        if name == CONFIG_VARIABLE || name.starts_with(TEST_PREFIX) || is_service_link(rest, text) {
            continue;
        }
        match read(name, text) {
            Ok(given) => layer.given.push(given),
            Err(fault) => layer.faults.push(fault),
        }
    }
    refuse_twice(&mut layer);
    layer
}

fn read(name: &str, text: &str) -> Result<Given, ConfigFault> {
    let fault = |problem: String| ConfigFault::new(origin(name), problem);
    let named = |variables: Vec<String>| variables.iter().any(|variable| variable == name);
    let Some(index) = SETTINGS.iter().position(|row| named(row.variables())) else {
        let candidates = SETTINGS.iter().flat_map(|row| row.variables());
        let hint = suggestion(name, candidates);
        return Err(fault(format!("is no setting{hint}")));
    };
    let kind = SETTINGS[index].kind;
    let value = value::from_typed(kind, &[text.to_owned()]).map_err(fault)?;
    if kind == Kind::Secrets && value == value::Value::Secrets(Vec::new()) {
        // Whoever sets a key wants requests refused without one; an empty key would let everybody in.
        return Err(fault("holds no key".to_owned()));
    }
    Ok(Given {
        index,
        value,
        origin: origin(name),
    })
}

/// A setting named by two of its variables is a contradiction, even when both say the same today.
fn refuse_twice(layer: &mut Layer) {
    let given = &layer.given;
    for (position, later) in given.iter().enumerate() {
        if let Some(earlier) = given[..position]
            .iter()
            .find(|one| one.index == later.index)
        {
            layer.faults.push(ConfigFault::new(
                later.origin.clone(),
                format!("is the same setting as {}: give one", earlier.origin),
            ));
        }
    }
}

fn origin(name: &str) -> Origin {
    Origin::Environment {
        variable: name.to_owned(),
    }
}

/// Whether Kubernetes made this variable, not the operator: for a Service called `manifold` every pod beside it gets
/// `MANIFOLD_SERVICE_HOST`, `MANIFOLD_PORT=tcp://10.0.0.7:80`, `MANIFOLD_PORT_80_TCP_ADDR` and more. They are not meant
/// for us, and a server that took them for settings would not start.
///
/// # Source
/// Kubernetes, "Accessing the Service", environment variables; the shape is that of Docker's old container links.
fn is_service_link(rest: &str, text: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    const PARTS: [&str; 4] = ["", "_ADDR", "_PORT", "_PROTO"];
    let link_port = |tail: &str| {
        let (digits, protocol) = tail.split_once('_').unwrap_or((tail, ""));
        let known = |name: &&str| PARTS.iter().any(|part| protocol == format!("{name}{part}"));
        !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && PROTOCOLS.iter().any(known)
    };
    let service = rest.ends_with("SERVICE_HOST")
        || rest.ends_with("SERVICE_PORT")
        || rest.contains("SERVICE_PORT_");
    let port = (rest == "PORT" || rest.ends_with("_PORT")) && text.contains("://");
    let mut ports = rest.match_indices("PORT_");
    let linked = ports.any(|(at, found)| link_port(&rest[at + found.len()..]));
    service || port || linked
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(pairs: &[(&str, &str)]) -> Layer {
        let own = |(name, text): &(&str, &str)| (OsString::from(name), OsString::from(text));
        layer(&pairs.iter().map(own).collect::<Vec<_>>())
    }

    fn faults(pairs: &[(&str, &str)]) -> Vec<String> {
        read_all(pairs)
            .faults
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn an_unknown_variable_of_ours_is_a_fault_and_a_foreign_one_is_not() {
        assert_eq!(
            faults(&[
                ("MANIFOLD_BATCH_MAX_TOKEN", "1"),
                ("PATH", "/bin"),
                ("MANIFOLDER", "x")
            ]),
            [
                "environment MANIFOLD_BATCH_MAX_TOKEN: is no setting (did you mean MANIFOLD_BATCH_MAX_TOKENS?)"
            ]
        );
    }

    #[test]
    fn the_short_and_the_dotted_variable_together_are_a_fault() {
        assert_eq!(
            faults(&[("MANIFOLD_MODEL_ID", "a/b"), ("MANIFOLD_MODEL", "a/b")]),
            [
                "environment MANIFOLD_MODEL: is the same setting as environment MANIFOLD_MODEL_ID: give one"
            ]
        );
    }

    #[test]
    fn an_empty_key_does_not_open_the_door() {
        assert_eq!(
            faults(&[("MANIFOLD_API_KEY", " , ")]),
            ["environment MANIFOLD_API_KEY: holds no key"]
        );
    }

    #[test]
    fn variables_of_kubernetes_services_and_of_the_tests_are_not_ours() {
        let links = [
            ("MANIFOLD_SERVICE_HOST", "10.0.0.7"),
            ("MANIFOLD_SERVICE_PORT", "80"),
            ("MANIFOLD_SERVICE_PORT_HTTP", "80"),
            ("MANIFOLD_PORT", "tcp://10.0.0.7:80"),
            ("MANIFOLD_PORT_80_TCP", "tcp://10.0.0.7:80"),
            ("MANIFOLD_PORT_80_TCP_ADDR", "10.0.0.7"),
            ("MANIFOLD_PORT_80_TCP_PORT", "80"),
            ("MANIFOLD_SERVER_PORT", "tcp://10.0.0.8:80"),
            ("MANIFOLD_CANARY_PORT_8080_TCP_PROTO", "tcp"),
            ("MANIFOLD_TEST_PYTHON", "/usr/bin/python3"),
        ];
        let layer = read_all(&links);
        assert!(layer.faults.is_empty(), "{:?}", layer.faults);
        assert!(layer.given.is_empty());
        assert_eq!(read_all(&[("MANIFOLD_PORT", "9000")]).given.len(), 1);
    }

    #[test]
    fn no_variable_of_the_table_looks_like_a_service_link() {
        for variable in SETTINGS.iter().flat_map(|row| row.variables()) {
            let rest = variable
                .strip_prefix(ENVIRONMENT_PREFIX)
                .expect("our prefix");
            assert!(!is_service_link(rest, "1"), "{variable}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_text_are_a_fault() {
        use std::os::unix::ffi::OsStringExt;
        let pair = (
            OsString::from("MANIFOLD_HOST"),
            OsString::from_vec(vec![0xff]),
        );
        assert_eq!(layer(&[pair]).faults.len(), 1);
    }

    proptest! {
        #[test]
        fn any_variable_is_read_refused_or_left(name in "MANIFOLD_[A-Z0-9_]{0,30}", text in ".*") {
            read_all(&[(&name, &text)]);
        }
    }
}
