//! Two replicas behind nginx, as `configs/nginx.conf` has it, stopped and killed in turn under load.
//!
//! By default a few times; `MANIFOLD_TEST_RESTARTS=100` and `MANIFOLD_TEST_KILLS=20` make it the whole proof, which prints its numbers with
//! `--nocapture`.
#![cfg(unix)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;

use crate::server::Server;

/// Longer than `fail_timeout` in the configuration, which nginx counts in whole seconds: it asks a replica that was away again only after
/// that, and must not find the other one away by then.
const BETWEEN_RESTARTS: Duration = Duration::from_millis(3300);
const CLIENTS: usize = 8;

fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// nginx before two ports, with the configuration of the repository but its paths and addresses.
struct Nginx {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Nginx {
    fn start(replicas: [u16; 2]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/nginx.conf");
        let mut text = std::fs::read_to_string(shipped).unwrap();
        let within = |name: &str| directory.path().join(name).display().to_string();
        for (shipped, ours) in [
            ("/tmp/nginx", within("nginx")),
            ("/dev/stdout", within("access.log")),
            ("/dev/stderr", within("error.log")),
            ("listen 8000", format!("listen 127.0.0.1:{port}")),
            ("manifold-1:8080", format!("127.0.0.1:{}", replicas[0])),
            ("manifold-2:8080", format!("127.0.0.1:{}", replicas[1])),
        ] {
            assert!(text.contains(shipped), "{shipped} is not in nginx.conf");
            text = text.replace(shipped, &ours);
        }
        let file = within("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("nginx")
            .env("PATH", format!("{path}:/usr/sbin"))
            .args(["-c", &file, "-e", &within("error.log"), "-g", "daemon off;"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Nginx {
            child: child.expect("nginx (Debian's nginx-light)"),
            url: format!("http://127.0.0.1:{port}"),
            _directory: directory,
        }
    }

    async fn is_up(&self) {
        for _ in 0..200 {
            let answer = reqwest::get(format!("{}/v1/models", self.url)).await;
            if answer.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("nginx does not answer");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers only when it is asked.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.child.wait();
    }
}

/// What the clients saw.
#[derive(Default)]
struct Tally {
    sent: AtomicUsize,
    /// Requests that were not answered with vectors, and so were sent again.
    retried: AtomicUsize,
    /// Those that were not answered the second time either.
    lost: AtomicUsize,
    done: AtomicBool,
}

/// Asks until it is told to stop, each failed request once more.
async fn client(url: String, tally: Arc<Tally>) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    while !tally.done.load(Relaxed) {
        let number = tally.sent.fetch_add(1, Relaxed);
        let body = json!({ "input": format!("text number {number}") }).to_string();
        let ask = async || {
            let request = client.post(format!("{url}/v1/embeddings"));
            let request = request.header("content-type", "application/json");
            match request.body(body.clone()).send().await {
                Ok(answer) if answer.status() == 200 => answer.bytes().await.is_ok(),
                _ => false,
            }
        };
        if !ask().await {
            tally.retried.fetch_add(1, Relaxed);
            if !ask().await {
                tally.lost.fetch_add(1, Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends a replica and starts it again, in turn, so many times under load. What the clients saw: sent, sent again, lost.
async fn under_load(count: usize, end: fn(&mut Server)) -> (usize, usize, usize) {
    let ports = [free_port(), free_port()];
    let mut replicas = ports.map(|port| Some(Server::start_on(port, &["--threads", "1"])));
    let nginx = Nginx::start(ports);
    nginx.is_up().await;
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(client(nginx.url.clone(), tally.clone())))
        .collect();
    for turn in 0..count {
        tokio::time::sleep(BETWEEN_RESTARTS).await;
        let mut replica = replicas[turn % 2].take().unwrap();
        let port = ports[turn % 2];
        let again = tokio::task::spawn_blocking(move || {
            end(&mut replica);
            Server::start_on(port, &["--threads", "1"])
        });
        replicas[turn % 2] = Some(again.await.unwrap());
    }
    tokio::time::sleep(BETWEEN_RESTARTS).await;
    tally.done.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let of = |count: &AtomicUsize| count.load(Relaxed);
    (of(&tally.sent), of(&tally.retried), of(&tally.lost))
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_fail_no_request() {
    let count = times("MANIFOLD_TEST_RESTARTS", 4);
    let (sent, failed, _) = under_load(count, |replica| assert_eq!(replica.stop(), Some(0))).await;
    println!("{count} restarts, {sent} requests: {failed} failed");
    assert_eq!(failed, 0, "of {sent}");
    assert!(sent > 100 * count, "only {sent} were sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_loses_no_request_that_is_sent_once_more() {
    let count = times("MANIFOLD_TEST_KILLS", 2);
    let kill = |replica: &mut Server| {
        replica.child.kill().unwrap();
        replica.child.wait().unwrap();
    };
    let (sent, retried, lost) = under_load(count, kill).await;
    println!("{count} kills, {sent} requests: {retried} sent again, {lost} lost");
    assert_eq!(lost, 0, "of {sent}, {retried} sent again");
    assert!(sent > 100 * count, "only {sent} were sent");
}
