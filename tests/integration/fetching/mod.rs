//! Thousands of URLs that a stranger might send, in a network of the test's own where every address answers. Claims: none is fetched that leads
//! home, and not one packet goes there; honest ones all are.
//!
//! The server runs in a network namespace; behind its only link lies a second one, `world`, that answers at every address there is, names
//! included. `capture` sees every packet of the first. Linux, and where namespaces are allowed: else the test says that it was skipped.

mod capture;
mod urls;
mod world;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::server::{Server, media, skipped};
use capture::Capture;
use urls::{Answer, Case};

/// Says to the ignored tests below that they are where they may run: they change addresses and routes.
const INSIDE: &str = "MANIFOLD_TEST_NAMESPACE";
/// The server's own address. It is public, as a server's may be; what listens there besides it is not for strangers.
const HOME: &str = "11.0.0.1";
const WORLD: &str = "11.0.0.2";
const NAME_SERVER: &str = "9.9.9.9";

/// How a URL is refused; other errors would be about what was fetched.
const REFUSALS: [&str; 3] = ["media_url_blocked", "media_fetch_failed", "invalid_value"];

/// A command in a new network namespace, as root of a user namespace where this is not root already.
fn unshared(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    let root = Command::new("id").arg("-u").output();
    if root.is_ok_and(|id| id.stdout != b"0\n") {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(program);
    command
}

/// This very binary, for one of the ignored tests below.
fn role(program: Option<&str>, name: &str, directory: &Path) -> Command {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let mut command = match program {
        Some(_) => {
            let mut command = Command::new("unshare");
            command.args(["--net", own]);
            command
        }
        None => unshared(own),
    };
    command
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(format!("fetching::{name}"))
        .env(INSIDE, directory);
    command
}

#[test]
fn no_url_reaches_what_is_not_public_and_every_honest_one_is_fetched() {
    // Everything the test needs, tried out: a namespace, a link between two, and raw sockets.
    let mut probe = unshared("sh");
    probe.args([
        "-c",
        "ip link add m0 type veth peer name m1 && mount --version",
    ]);
    match probe.output() {
        Ok(output) if output.status.success() && Path::new("/etc/resolv.conf").exists() => {}
        _ => {
            skipped("needs unshare, ip and the right to make network namespaces");
            return;
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let output = role(None, "in_a_namespace", directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    // Without these lines nothing was tried.
    let counted = said.lines().filter(|line| line.starts_with("tried "));
    assert_eq!(counted.count(), 4, "{said}\n{errors}");
    print!("{said}");
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let status = Command::new(words[0]).args(&words[1..]).status();
    assert!(status.is_ok_and(|status| status.success()), "{command}");
}

/// The other namespace; it ends with this.
struct World(Child);

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the other namespace and links the two.
fn connect_to_the_world(directory: &Path) -> World {
    let mut world = role(Some("unshare"), "as_the_world", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(world.stdout.take().unwrap()).lines();
    let mut wait_for = |word: &str| {
        let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(word)));
        assert!(found.is_some(), "the world ended before it was {word}");
    };
    wait_for("unshared");
    run("ip link set lo up");
    run(&format!(
        "ip link add w0 type veth peer name w1 netns {}",
        world.id()
    ));
    world.stdin.take().unwrap().write_all(b"go\n").unwrap();
    run(&format!("ip addr add {HOME}/30 dev w0"));
    run("ip -6 addr add 2a00::1/64 dev w0 nodad");
    run("ip link set w0 up");
    run(&format!("ip route add default via {WORLD}"));
    run("ip -6 route add default via 2a00::2");
    wait_for("ready");
    World(world)
}

/// Has names resolved by the world alone: files of this namespace's own over the system's.
fn replace_resolver(directory: &Path) {
    let files = [
        (
            "resolv.conf",
            format!("nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n"),
        ),
        ("nsswitch.conf", "hosts: files dns\n".to_owned()),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
    ];
    for (name, text) in files {
        let (own, system) = (directory.join(name), Path::new("/etc").join(name));
        std::fs::write(&own, text).unwrap();
        if system.exists() {
            run(&format!(
                "mount --bind {} {}",
                own.display(),
                system.display()
            ));
        }
    }
}

/// Asks for every URL; what came of each kind.
async fn ask(server: &Server, cases: Vec<Case>) -> BTreeMap<String, Vec<String>> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/embeddings", server.url);
    let asked = cases.into_iter().map(|case| {
        let body = json!({ "input": { "image": case.url } });
        let request = client.post(&url).json(&body);
        async move {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.unwrap();
            let code = body["error"]["code"].as_str().unwrap_or("fetched");
            assert!([200, 400].contains(&status), "{}: {body}", case.url);
            let message = body["error"]["message"].as_str().unwrap_or_default();
            // What is said of a URL that was understood is one of a few sentences, which hold no address.
            let numbers = message.trim_start_matches("input.image: ").chars();
            let numbers = numbers.filter(char::is_ascii_digit).collect::<String>();
            let is_ours = code == "invalid_value" || numbers.is_empty() || numbers == "200";
            assert!(is_ours, "{}: {message}", case.url);
            (case, code.to_owned())
        }
    });
    let mut outcomes = BTreeMap::<String, Vec<String>>::new();
    let mut answers = futures_util::stream::iter(asked).buffer_unordered(16);
    while let Some((case, code)) = answers.next().await {
        let fits = match case.expected {
            Answer::Fetched => code == "fetched",
            Answer::Refused => REFUSALS.contains(&code.as_str()),
        };
        let key = if fits { code } else { format!("WRONG: {code}") };
        outcomes.entry(key).or_default().push(case.url);
    }
    outcomes
}

/// Asserts that everything went as it should, and says how much that was.
fn judge(what: &str, outcomes: &BTreeMap<String, Vec<String>>) {
    let wrong = outcomes
        .iter()
        .filter(|(code, _)| code.starts_with("WRONG"));
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
    let counts = outcomes
        .iter()
        .map(|(code, urls)| format!("{} {code}", urls.len()));
    let counts: Vec<String> = counts.collect();
    println!("tried {what}: {}", counts.join(", "));
}

#[test]
#[ignore = "run by the test above, in a namespace of its own"]
fn in_a_namespace() {
    let Some(directory) = std::env::var_os(INSIDE) else {
        return;
    };
    let directory = Path::new(&directory);
    world::make_certificate(directory);
    let _world = connect_to_the_world(directory);
    replace_resolver(directory);
    // Services of this machine that are for itself: on the loopback, and on all its addresses behind a firewall.
    let _canaries: Vec<TcpListener> = [80, 443]
        .map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        .into();
    let _canaries_v6: Vec<TcpListener> = [80, 443]
        .map(|port| TcpListener::bind(("::1", port)).unwrap())
        .into();
    let certificate = directory.join("cert.pem");
    let environment = [("SSL_CERT_FILE", certificate.to_str().unwrap())];
    let start =
        |more: &[&str]| Server::start(&[&["--host", HOME][..], more].concat(), &environment);
    let capture = Capture::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();

    let server = start(&["--request-timeout-ms=30000"]);
    let hostile = urls::hostile();
    assert!(hostile.len() >= 1000, "only {}", hostile.len());
    judge("hostile", &runtime.block_on(ask(&server, hostile)));
    judge("honest", &runtime.block_on(ask(&server, urls::honest())));
    drop(server);

    let server = start(&["--media-max-redirects=3"]);
    judge(
        "redirected",
        &runtime.block_on(ask(&server, urls::redirected())),
    );
    drop(server);
    let seen = capture.at_canaries();
    assert!(seen.is_empty(), "packets to {seen:?}");

    // The control: where the operator allows it, the same URLs do reach home, and that is seen. Metadata stays refused.
    let server = start(&["--allow-private-networks", "--media-fetch-timeout-ms=500"]);
    judge(
        "allowed",
        &runtime.block_on(ask(&server, urls::allowed_by_option())),
    );
    let seen = capture.at_canaries();
    for canary in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"] {
        assert!(seen.contains_key(canary), "{canary} is not among {seen:?}");
    }
    assert!(!seen.contains_key("169.254.169.254") && !seen.contains_key("fd00:ec2::254"));
}

#[test]
#[ignore = "run by the test above, in a namespace of its own"]
fn as_the_world() {
    let Some(directory) = std::env::var_os(INSIDE) else {
        return;
    };
    println!("unshared");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    run("ip link set lo up");
    run(&format!("ip addr add {WORLD}/30 dev w1"));
    run("ip -6 addr add 2a00::2/64 dev w1 nodad");
    run("ip link set w1 up");
    run(&format!("ip addr add {NAME_SERVER}/32 dev lo"));
    // Every address is this machine.
    run("ip route add local 0.0.0.0/0 dev lo table main");
    run("ip -6 route add local ::/0 dev lo table main");
    let picture = media("parity", "tiny_20x20.png");
    world::serve(Path::new(&directory), picture);
}

/// A URL within a path of the world, where a redirect leads.
fn hidden(url: &str) -> String {
    base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(url)
}
