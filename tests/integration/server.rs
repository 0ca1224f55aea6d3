//! A server of the test's own: started on a free port, killed when it goes out of scope.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running server.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) child: Child,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub(crate) fn media(fixture_name: &str, file: &str) -> Vec<u8> {
    std::fs::read(fixture(fixture_name).join("media").join(file)).unwrap()
}

impl Server {
    /// Starts the binary with `serve --port 0` and more; returns when it has printed its URL.
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Server::start_logging(arguments, environment, Stdio::null())
    }

    /// The same on a port of the test's choice.
    pub(crate) fn start_on(port: u16, arguments: &[&str]) -> Self {
        Server::spawn(port, arguments, &[], Stdio::null())
    }

    /// The same, with its log where the test wants it.
    pub(crate) fn start_logging(
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: Stdio,
    ) -> Self {
        Server::spawn(0, arguments, environment, log)
    }

    fn spawn(port: u16, arguments: &[&str], environment: &[(&str, &str)], log: Stdio) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_manifold"))
            .args(["serve", "--port", &port.to_string()])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .map_while(Result::ok)
            .find(|line| line.starts_with("http://") || line.starts_with("https://"));
        Server {
            url: url.expect("the server prints its URL when it is ready"),
            child,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        let (_, address) = self.url.split_once("//").unwrap();
        address
    }

    /// Sends it a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let told = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(told.unwrap().success());
    }

    /// Tells it to stop and waits until it has; its exit code.
    #[cfg(unix)]
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the server did not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A server of one of the fixtures' models, in f32: the goldens are.
    pub(crate) fn of(name: &str) -> Self {
        let model = fixture(name).join("model");
        let root = fixture(name).join("media");
        Server::start(
            &[
                "--model",
                model.to_str().unwrap(),
                "--allowed-local-media-path",
                root.to_str().unwrap(),
                "--dtype",
                "f32",
            ],
            &[],
        )
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        self.send(
            reqwest::Method::POST,
            "/v1/embeddings",
            &[("content-type", "application/json")],
            body.to_string().into_bytes(),
        )
        .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(reqwest::Method::GET, path, &[], Vec::new()).await
    }

    pub(crate) async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = reqwest::Client::new()
            .request(method, format!("{}{path}", self.url))
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            bytes: response.bytes().await.unwrap().to_vec(),
        }
    }

    /// The vectors of a request that must succeed.
    pub(crate) async fn vectors(&self, body: &Value) -> Vec<Vec<f32>> {
        let answer = self.post(body).await;
        assert_eq!(answer.status, 200, "{}: {}", shown(body), answer.json());
        vectors(&answer.json())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("not JSON: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// Says that a test was skipped and why: where people look who run it alone, and in the file that `.ci/run` prints in the end.
pub(crate) fn skipped(why: &str) {
    use std::io::Write;
    println!("skipped: {why}");
    let Some(file) = std::env::var_os("MANIFOLD_TEST_SKIPPED") else {
        return;
    };
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    let test = std::thread::current();
    writeln!(file, "{}: {why}", test.name().unwrap_or("a test")).unwrap();
}

/// The float vectors of an answer, read back to the f32 they were.
pub(crate) fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let numbers = |data: &Value| {
        data["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() as f32)
            .collect()
    };
    answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(numbers)
        .collect()
}

/// A body for a failure message: short.
pub(crate) fn shown(body: &Value) -> String {
    body.to_string().chars().take(300).collect()
}
