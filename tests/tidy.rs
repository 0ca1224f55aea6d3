//! The house rules, as a test. In: the text of the repository. Out: a list of places that break a rule, or nothing.
//!
//! Each rule is a pure function from files to complaints, and each has a test that it catches a violation: a checker that
//! cannot fail checks nothing. Standard library only, milliseconds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The rooms, left to right: a room imports only rooms further right.
const ROOMS: [&str; 13] = [
    "main",
    "cli",
    "config",
    "api",
    "service",
    "batcher",
    "engine",
    "processor",
    "model",
    "kernels",
    "media",
    "vectors",
    "telemetry",
];

/// The rooms that import no other.
const LEAVES: [&str; 4] = ["kernels", "media", "vectors", "telemetry"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 10] = [
    "utils", "util", "common", "helpers", "helper", "types", "manager", "misc", "prelude", "base",
];

/// What may stand at the top, besides names that begin with a dot and what `.gitignore` names.
const TOP_LEVEL: [&str; 12] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "Dockerfile",
    "clippy.toml",
    "src",
    "tests",
    "benches",
    "configs",
    "examples",
];

/// Longest file without its tests, in lines.
const MAX_FILE_LINES: usize = 400;

/// Longest `main.rs`, in lines: it only wires.
const MAX_MAIN_LINES: usize = 99;

/// Words that only some files may hold: the words, who may, and why.
const RESERVED: [(&[&str], &[&str], &str); 6] = [
    (
        &["StatusCode"],
        &["src/api/"],
        "only api knows status codes",
    ),
    (
        &["candle_core", "candle_nn", "candle_flash_attn"],
        &["src/engine/", "src/model/", "src/kernels/"],
        "tensors exist only in engine, model and kernels",
    ),
    (
        &[
            "reqwest",
            "hyper::client",
            "hyper_util::client",
            "UdpSocket",
        ],
        // The hub's library hands out reqwest's errors: one file there puts them into words and opens nothing.
        &["src/media/fetch", "src/engine/refusal.rs"],
        "only media/fetch opens outbound connections",
    ),
    (
        &["TcpStream::connect", "ToSocketAddrs", "lookup_host"],
        // The health check asks our own server, at an address nobody but the operator names.
        &["src/media/fetch", "src/cli/healthcheck.rs"],
        "only media/fetch resolves names and opens outbound connections",
    ),
    (
        &["Command::new"],
        &["src/media/"],
        "only media starts processes",
    ),
    (
        &["hf_hub"],
        &["src/engine/"],
        "only engine downloads from the hub",
    ),
];

/// A file of Rust.
struct Source {
    /// From the top of the repository, with forward slashes.
    path: String,
    text: String,
    /// `text` with comments and the insides of literals blanked, up to the test module.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = code_only(text);
        let code = match test_module_start(&code) {
            _ if is_test_file(path) => String::new(),
            Some(start) => code[..start].to_owned(),
            None => code,
        };
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
        }
    }

    fn in_src(&self) -> bool {
        self.path.starts_with("src/")
    }

    /// `api` for `src/api/error.rs` and for `src/api.rs`.
    fn room(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let room = match rest.split_once('/') {
            Some((room, _)) => room,
            None => rest.strip_suffix(".rs")?,
        };
        ROOMS.contains(&room).then_some(room)
    }

    fn complaint(&self, at: usize, what: &str) -> String {
        let line = 1 + self.code[..at].matches('\n').count();
        format!("{}:{line}: {what}", self.path)
    }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Where `#[cfg(test)] mod … {` begins, which by convention is the rest of the file; a module that is a file of its own ends nothing.
fn test_module_start(code: &str) -> Option<usize> {
    const MARK: &str = "#[cfg(test)]";
    let mut marks = code.match_indices(MARK).map(|(at, _)| at);
    marks.find(|at| {
        let item = code[at + MARK.len()..].trim_start();
        let end = item.find(['{', ';']);
        item.starts_with("mod ") && end.is_some_and(|end| item[end..].starts_with('{'))
    })
}

/// Blanks comments and the insides of strings and characters; every byte keeps its place.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_or_comment(bytes, at);
        if end == at {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
        out.extend(bytes[at..end.min(bytes.len())].iter().map(blank));
        at = end;
    }
    String::from_utf8(out).expect("only whole literals and comments were blanked")
}

/// How many bytes of a comment, a string or a character begin here; 0 when none does.
fn literal_or_comment(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return find(rest, b"\n").unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment(rest);
    }
    match rest[0] {
        b'"' => quoted(rest),
        b'r' if !word_before || bytes[at - 1] == b'b' || bytes[at - 1] == b'c' => raw_string(rest),
        b'\'' => character(rest),
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`; 0 for a word that begins with r and for `r#type`.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    find(&rest[body..], &close).map_or(rest.len(), |found| body + found + close.len())
}

/// `'x'` or `'\n'`; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    let text = String::from_utf8_lossy(&rest[..rest.len().min(16)]);
    let mut after = text.chars().skip(1);
    match (after.next(), after.next()) {
        (Some('\\'), _) => find(&rest[3..], b"'").map_or(0, |found| found + 4),
        (Some(inner), Some('\'')) => 2 + inner.len_utf8(),
        _ => 0,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut windows = haystack.windows(needle.len());
    windows.position(|window| window == needle)
}

/// The rooms that code names by `crate::room`, with places; `crate::{a, b::c}` too.
fn rooms_named(code: &str) -> Vec<(usize, String)> {
    let word = |text: &str| -> String {
        let fits = |c: &char| c.is_alphanumeric() || *c == '_';
        text.trim_start().chars().take_while(fits).collect()
    };
    let mut named = Vec::new();
    for (at, mark) in code.match_indices("crate::") {
        let rest = code[at + mark.len()..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            named.push((at, word(rest)));
            continue;
        };
        let mut depth = 0;
        let mut item_begins = true;
        for (inner, c) in group.char_indices() {
            if item_begins && depth == 0 && !c.is_whitespace() {
                named.push((at, word(&group[inner..])));
                item_begins = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' => item_begins = true,
                _ => {}
            }
        }
    }
    named
}

fn rooms_import_only_to_the_right(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else {
        return Vec::new();
    };
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    let mut complaints = Vec::new();
    for (at, named) in rooms_named(&source.code) {
        if named == room || place(&named).is_none() {
            continue;
        }
        if LEAVES.contains(&room) {
            let what = format!("{room} is a leaf and imports no room, not {named}");
            complaints.push(source.complaint(at, &what));
        } else if place(&named) < place(room) {
            let what = format!("{room} imports {named}, which stands to its left");
            complaints.push(source.complaint(at, &what));
        }
    }
    complaints
}

fn files_begin_with_their_purpose(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{}: does not begin with `//!`", source.path)]
}

fn files_are_short(source: &Source) -> Vec<String> {
    if !source.in_src() {
        return Vec::new();
    }
    let lines = source.code.lines().count();
    let limit = match source.path.as_str() {
        "src/main.rs" => MAX_MAIN_LINES,
        _ => MAX_FILE_LINES,
    };
    if lines <= limit {
        return Vec::new();
    }
    vec![format!(
        "{}: {lines} lines without tests, more than {limit}",
        source.path
    )]
}

fn names_say_something(source: &Source) -> Vec<String> {
    let path = Path::new(&source.path).with_extension("");
    let empty = |part: &&str| EMPTY_NAMES.contains(part);
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let found = parts.iter().find(|part| source.in_src() && empty(part));
    found.map_or_else(Vec::new, |part| {
        vec![format!(
            "{}: `{part}` says nothing about what is inside",
            source.path
        )]
    })
}

fn features_are_asked_in_one_place(source: &Source) -> Vec<String> {
    let may = ["src/engine/device.rs", "src/kernels/"];
    if !source.in_src() || may.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    let asks = |line: &str| line.contains("cfg") && line.contains("feature =");
    let mut at = 0;
    let mut complaints = Vec::new();
    for line in source.code.split_inclusive('\n') {
        if asks(line) {
            complaints.push(source.complaint(
                at,
                "asks for a feature: only engine/device.rs and kernels may",
            ));
        }
        at += line.len();
    }
    complaints
}

fn reserved_words_stay_in_their_rooms(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (words, may, why) in RESERVED {
        if !source.in_src() || may.iter().any(|path| source.path.starts_with(path)) {
            continue;
        }
        for word in words {
            for (at, _) in source.code.match_indices(word) {
                complaints.push(source.complaint(at, &format!("`{word}`: {why}")));
            }
        }
    }
    complaints
}

fn lints_are_expected_not_allowed(source: &Source) -> Vec<String> {
    let code = code_only(&source.text);
    let mut complaints = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let line = line.trim_start();
        if (line.starts_with("#[") || line.starts_with("#![")) && line.contains("allow(") {
            let place = format!("{}:{}", source.path, index + 1);
            complaints.push(format!(
                "{place}: `allow`: write `#[expect(…, reason = \"…\")]`"
            ));
        }
    }
    complaints
}

fn base_names_are_unique(sources: &[Source]) -> Vec<String> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.in_src()) {
        let name = source.path.rsplit('/').next().unwrap_or_default();
        if matches!(name, "mod.rs" | "error.rs" | "tests.rs") {
            continue;
        }
        if let Some(first) = seen.insert(name, &source.path) {
            complaints.push(format!("{}: has the name of {first}", source.path));
        }
    }
    complaints
}

fn top_level_is_known(entries: &[String], gitignore: &str) -> Vec<String> {
    let ignored = |name: &str| gitignore.lines().any(|line| line.trim_matches('/') == name);
    let known = |name: &str| name.starts_with('.') || TOP_LEVEL.contains(&name) || ignored(name);
    let unknown = entries.iter().filter(|name| !known(name));
    unknown
        .map(|name| format!("{name}: not a known entry of the top directory"))
        .collect()
}

/// Paths of somebody's machine: a home directory, or a place where only that machine keeps its work.
fn no_path_of_a_machine(path: &str, text: &str) -> Vec<String> {
    // Written in halves, so that this file passes its own rule.
    let marks = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
    ];
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for mark in marks {
            for (at, _) in line.match_indices(mark) {
                // `https://example.org/home/` and `../home/` are no absolute paths.
                let before = line[..at].chars().next_back();
                let absolute = before.is_none_or(|c| !c.is_alphanumeric() && !"_.-~})".contains(c));
                let after = line[at + mark.len()..].chars().next();
                let names = after.is_some_and(|c| c.is_alphanumeric() || c == '.' || c == '_');
                if absolute && names {
                    complaints.push(format!(
                        "{path}:{}: a path of somebody's machine",
                        index + 1
                    ));
                }
            }
        }
    }
    complaints
}

/// Every file beneath the top that `.gitignore` does not name, by its path from the top.
fn files_beneath(top: &Path, gitignore: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![String::new()];
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(top.join(&directory)).expect("a readable directory");
        for entry in entries.map(|entry| entry.expect("a readable entry")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = match directory.as_str() {
                "" => name.clone(),
                _ => format!("{directory}/{name}"),
            };
            let ignored = gitignore.lines().any(|line| line.trim_matches('/') == name);
            if name == ".git" || ignored {
                continue;
            }
            match entry.file_type().expect("a file type") {
                kind if kind.is_dir() => waiting.push(path),
                kind if kind.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

const FILE_RULES: [fn(&Source) -> Vec<String>; 7] = [
    rooms_import_only_to_the_right,
    files_begin_with_their_purpose,
    files_are_short,
    names_say_something,
    features_are_asked_in_one_place,
    reserved_words_stay_in_their_rooms,
    lints_are_expected_not_allowed,
];

#[test]
fn the_repository_keeps_the_house_rules() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let gitignore = fs::read_to_string(top.join(".gitignore")).expect(".gitignore");
    let mut complaints = Vec::new();
    let mut sources = Vec::new();
    let mut entries = Vec::new();
    for path in files_beneath(top, &gitignore) {
        let entry = path.split('/').next().unwrap_or_default().to_owned();
        if entries.last() != Some(&entry) {
            entries.push(entry);
        }
        // Pictures, clips and weights are no text.
        let Ok(text) = fs::read_to_string(top.join(&path)) else {
            continue;
        };
        complaints.extend(no_path_of_a_machine(&path, &text));
        if path.ends_with(".rs") {
            sources.push(Source::new(&path, &text));
        }
    }
    assert!(
        sources.len() > 20,
        "only {} files were found",
        sources.len()
    );
    for source in &sources {
        complaints.extend(FILE_RULES.iter().flat_map(|rule| rule(source)));
    }
    complaints.extend(base_names_are_unique(&sources));
    complaints.extend(top_level_is_known(&entries, &gitignore));
    let mut report = String::new();
    for complaint in &complaints {
        writeln!(report, "  {complaint}").expect("a string takes all");
    }
    assert!(
        complaints.is_empty(),
        "{} house rules are broken:\n{report}",
        complaints.len()
    );
}

/// The complaints of one rule about one file.
fn judge(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    rule(&Source::new(path, text))
}

#[test]
fn an_import_to_the_left_is_caught_in_every_spelling() {
    let judge = |path, text| judge(rooms_import_only_to_the_right, path, text);
    assert_eq!(
        judge("src/model/rope.rs", "//! x\nuse crate::engine::Engine;\n"),
        ["src/model/rope.rs:2: model imports engine, which stands to its left"]
    );
    assert_eq!(
        judge(
            "src/batcher/queue.rs",
            "use crate::{\n  model::A, api::{B, C}, service};"
        )
        .len(),
        2
    );
    assert_eq!(
        judge("src/service.rs", "fn f() { crate::config::x() }").len(),
        1
    );
    assert_eq!(
        judge("src/media/mod.rs", "use crate::telemetry;").len(),
        1,
        "leaves import nothing"
    );
}

#[test]
fn an_import_to_the_right_and_a_mention_are_fine() {
    let judge = |text| judge(rooms_import_only_to_the_right, "src/engine/mod.rs", text);
    assert!(judge("use crate::model::A;\nuse crate::{kernels, engine::B};").is_empty());
    assert!(
        judge(
            "/// See [`crate::api::Router`].\n// crate::api\n/* crate::api /* x */ crate::api */"
        )
        .is_empty()
    );
    assert!(
        judge("const A: &str = \"crate::api\"; const B: &str = r#\"\"crate::api\"#;").is_empty()
    );
    assert!(judge("fn a() {}\n#[cfg(test)]\nmod tests { use crate::api::X; }").is_empty());
}

#[test]
fn quotes_lifetimes_and_characters_are_told_apart() {
    let blanked = |text: &str| {
        code_only(text)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        blanked("fn f<'a>(x: &'a str) { g('\"', \"b\\\"c\", '\\'') } // d"),
        "fn f<'a>(x: &'a str) { g( , , ) }"
    );
    assert_eq!(
        blanked("let r#type = r\"a\\\"; done();"),
        "let r#type = ; done();"
    );
    assert_eq!(
        blanked("let c = 'é'; let b = br##\"x\"# y\"##; done()"),
        "let c = ; let b = b ; done()"
    );
    assert_eq!(code_only("\"é\n\"").len(), "\"é\n\"".len());
}

#[test]
fn reserved_words_elsewhere_are_caught() {
    let judge = |path, text| judge(reserved_words_stay_in_their_rooms, path, text);
    assert_eq!(
        judge("src/service.rs", "use axum::http::StatusCode;").len(),
        1
    );
    assert_eq!(
        judge("src/processor/mod.rs", "use candle_core::Tensor;").len(),
        1
    );
    assert_eq!(
        judge("src/engine/mod.rs", "reqwest::get(x); Command::new(y);").len(),
        2
    );
    assert_eq!(judge("src/media/hub.rs", "use hf_hub::Api;").len(), 1);
    assert_eq!(judge("src/cli/serve.rs", "TcpStream::connect(x)").len(), 1);
    assert!(judge("src/cli/healthcheck.rs", "TcpStream::connect_timeout(x)").is_empty());
    assert!(judge("src/api/error.rs", "StatusCode::OK").is_empty());
    assert!(judge("src/service.rs", "// a StatusCode").is_empty());
}

#[test]
fn a_second_way_to_fetch_is_caught() {
    let judge = |path, text| judge(reserved_words_stay_in_their_rooms, path, text);
    for way in [
        "reqwest::get(url)",
        "hyper::client::conn::http1::handshake(io)",
        "use hyper_util::client::legacy::Client;",
        "TcpStream::connect(address)",
        "UdpSocket::bind(address)",
        "tokio::net::lookup_host(name)",
        "use std::net::ToSocketAddrs;",
    ] {
        // Not even the rest of the room that decodes what was fetched.
        for path in [
            "src/media/loader.rs",
            "src/media/video.rs",
            "src/api/mod.rs",
        ] {
            assert_eq!(judge(path, way).len(), 1, "{way} in {path}");
        }
        assert!(judge("src/media/fetch/dial.rs", way).is_empty(), "{way}");
    }
}

#[test]
fn a_feature_asked_elsewhere_is_caught() {
    let text = "fn a() {}\n#[cfg(feature = \"cuda\")]\nfn b() {}";
    let judge = |path| judge(features_are_asked_in_one_place, path, text);
    assert_eq!(
        judge("src/engine/mod.rs"),
        ["src/engine/mod.rs:2: asks for a feature: only engine/device.rs and kernels may"]
    );
    assert!(judge("src/engine/device.rs").is_empty());
    assert!(judge("src/kernels/linear.rs").is_empty());
}

#[test]
fn length_name_beginning_and_allow_are_caught() {
    let long = "//! x\n".repeat(MAX_FILE_LINES + 1);
    assert_eq!(judge(files_are_short, "src/api/mod.rs", &long).len(), 1);
    assert!(judge(files_are_short, "src/api/tests.rs", &long).is_empty());
    let elsewhere = format!("//! x\n#[cfg(test)]\nmod tests;\n{long}");
    assert_eq!(
        judge(files_are_short, "src/api/mod.rs", &elsewhere).len(),
        1
    );
    let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n{long}}}");
    assert!(judge(files_are_short, "src/api/mod.rs", &tested).is_empty());
    assert_eq!(
        judge(files_are_short, "src/main.rs", &"//! x\n".repeat(100)).len(),
        1
    );
    assert_eq!(judge(names_say_something, "src/api/utils.rs", "").len(), 1);
    assert_eq!(judge(names_say_something, "src/helpers/x.rs", "").len(), 1);
    assert_eq!(
        judge(files_begin_with_their_purpose, "src/api/x.rs", "use a;").len(),
        1
    );
    let allow = concat!("fn f() {\n    #[al", "low(dead_code)]\n}");
    assert_eq!(
        judge(lints_are_expected_not_allowed, "tests/x.rs", allow).len(),
        1
    );
}

#[test]
fn a_second_file_of_the_same_name_is_caught() {
    let source = |path: &str| Source::new(path, "//! x");
    let sources = [
        "src/api/image.rs",
        "src/media/image.rs",
        "src/api/error.rs",
        "src/media/error.rs",
    ]
    .map(source);
    assert_eq!(
        base_names_are_unique(&sources),
        ["src/media/image.rs: has the name of src/api/image.rs"]
    );
}

#[test]
fn a_stray_entry_at_the_top_is_caught() {
    let entries = [".github", "src", "target", "notes.txt"].map(str::to_owned);
    assert_eq!(top_level_is_known(&entries, "/target/\n").len(), 1);
}

#[test]
fn a_path_of_a_machine_is_caught() {
    let path = |text: &str| no_path_of_a_machine("a.md", text).len();
    assert_eq!(path(concat!("see /wo", "rk/x and /ho", "me/me/y")), 2);
    assert_eq!(path(concat!("\"/ro", "ot/.cache\"")), 1);
    assert_eq!(
        path(concat!(
            "https://example.org/wo",
            "rk/x, ../wo",
            "rk/x, a /ho",
            "me/<name>"
        )),
        0
    );
}
