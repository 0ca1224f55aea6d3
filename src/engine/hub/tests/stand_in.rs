//! A hub on loopback for the tests: the few routes of huggingface.co that a download uses, and the ways they fail.
//!
//! Source: the requests hf-hub 1.0.0 makes (`fetch_repo_info`, `list_tree`, `download_file_stream`) and the shape of the real
//! hub's answers: large files are answered with a redirect to another address, the listing has `lfs.oid`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::engine::sample_checkpoint::Files;

/// The commit everything belongs to.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The repository's id.
pub(super) const ID: &str = "owner/tiny-model";

/// What the server does wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Asks for this token.
    pub(super) token: Option<String>,
    /// Breaks the connection after this many bytes of a safetensors file.
    pub(super) cut_after: Option<usize>,
    /// After the first such break it sends not a byte more of one.
    pub(super) then_nothing: bool,
    /// Answers 403 to file requests only, as for a gated repository.
    pub(super) gated: bool,
    /// Answers every range request with the whole file.
    pub(super) ignores_ranges: bool,
    /// Sends these bytes in place of every safetensors file.
    pub(super) forged: Option<Vec<u8>>,
    /// Lists the SHA-256 where hf-hub looks for it.
    pub(super) lists_sha256: bool,
    /// Never answers file requests.
    pub(super) silent: bool,
}

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

struct Shelf {
    files: Files,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
}

/// The running server; it is gone when this is dropped.
pub(super) struct StandIn {
    shelf: Arc<Shelf>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl StandIn {
    pub(super) fn start(files: Files, faults: Faults) -> Self {
        let shelf = Arc::new(Shelf {
            files,
            faults: Mutex::new(faults),
            seen: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(shelf.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            shelf,
            address,
            _runtime: runtime,
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        *self.shelf.faults.lock().unwrap() = faults;
    }

    /// The requests since the last call.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shelf.seen.lock().unwrap())
    }
}

fn status(code: StatusCode, error_code: &str) -> Response<Body> {
    let body = json!({"error": "as told"}).to_string();
    Response::builder()
        .status(code)
        .header("x-error-code", error_code)
        .body(Body::from(body))
        .unwrap()
}

fn json_body(value: &serde_json::Value) -> Response<Body> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(value.to_string()))
        .unwrap()
}

async fn answer(State(shelf): State<Arc<Shelf>>, request: Request) -> Response<Body> {
    let silent = shelf.faults.lock().unwrap().silent;
    if silent && !request.uri().path().starts_with("/api/") {
        std::future::pending::<()>().await;
    }
    respond(&shelf, &request)
}

fn respond(shelf: &Shelf, request: &Request) -> Response<Body> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    };
    shelf.seen.lock().unwrap().push(seen.clone());
    let faults = shelf.faults.lock().unwrap().clone();
    if let Some(token) = &faults.token
        && seen.authorization.as_deref() != Some(&format!("Bearer {token}"))
        // As at the real hub, the address a large file is redirected to carries its own permission.
        && !seen.path.starts_with("/cdn/")
    {
        return status(StatusCode::UNAUTHORIZED, "RepoNotFound");
    }
    let path = seen.path.as_str();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let Some(rest) = rest.strip_prefix(&format!("{ID}/")) else {
            return status(StatusCode::NOT_FOUND, "RepoNotFound");
        };
        return match rest.split_once('/') {
            Some(("revision", "main" | "v1" | COMMIT)) => {
                json_body(&json!({"id": ID, "sha": COMMIT, "siblings": []}))
            }
            Some(("tree", COMMIT)) => json_body(&listing(&shelf.files, faults.lists_sha256)),
            _ => status(StatusCode::NOT_FOUND, "RevisionNotFound"),
        };
    }
    if let Some(name) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) {
        if faults.gated {
            return status(StatusCode::FORBIDDEN, "GatedRepo");
        }
        return match shelf.files.contains_key(name) {
            true if is_large(name) => redirect(name, &shelf.files[name]),
            true => file(&shelf.files[name], request, &faults, name),
            false => status(StatusCode::NOT_FOUND, "EntryNotFound"),
        };
    }
    match path.strip_prefix("/cdn/") {
        Some(name) => {
            if faults.then_nothing && seen.method == "GET" {
                shelf.faults.lock().unwrap().cut_after = Some(0);
            }
            let bytes = faults.forged.as_ref().unwrap_or(&shelf.files[name]);
            file(bytes, request, &faults, name)
        }
        None => status(StatusCode::NOT_FOUND, "RepoNotFound"),
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// The real hub's listing: `lfs.oid`, and the git object id of the pointer file.
fn listing(files: &Files, lists_sha256: bool) -> serde_json::Value {
    let entry = |(name, bytes): (&String, &Vec<u8>)| {
        let sha256 = super::sha256(bytes);
        let mut entry =
            json!({"type": "file", "oid": &sha256[..40], "size": bytes.len(), "path": name});
        if is_large(name) {
            entry["lfs"] = json!({"oid": sha256, "size": bytes.len(), "pointerSize": 134});
            if lists_sha256 {
                entry["lfs"]["sha256"] = sha256.into();
            }
        }
        entry
    };
    let mut entries: Vec<_> = files.iter().map(entry).collect();
    entries.push(json!({"type": "directory", "oid": "aa", "size": 0, "path": "1_Pooling"}));
    entries.into()
}

fn redirect(name: &str, bytes: &[u8]) -> Response<Body> {
    Response::builder()
        .status(StatusCode::FOUND)
        .header(header::LOCATION, format!("/cdn/{name}"))
        .header("x-repo-commit", COMMIT)
        .header("x-linked-size", bytes.len())
        .header("x-linked-etag", format!("\"{}\"", super::sha256(bytes)))
        .body(Body::empty())
        .unwrap()
}

fn requested_start(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::RANGE)?
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn file(bytes: &[u8], request: &Request, faults: &Faults, name: &str) -> Response<Body> {
    let start = requested_start(request.headers()).filter(|_| !faults.ignores_ranges);
    let rest = Bytes::copy_from_slice(&bytes[start.unwrap_or(0)..]);
    let mut response = Response::builder()
        .status(if start.is_some() {
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        })
        .header(header::ETAG, format!("\"{}\"", &super::sha256(bytes)[..40]))
        .header("x-repo-commit", COMMIT)
        .header(header::CONTENT_LENGTH, rest.len());
    if let Some(start) = start {
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        response = response.header(header::CONTENT_RANGE, range);
    }
    let body = match faults.cut_after {
        _ if request.method() == Method::HEAD => Body::empty(),
        Some(cut) if is_large(name) && cut < rest.len() => {
            // The pause lets the server send what it has; it drops what is still buffered when a body fails.
            let broken = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut"))
            };
            Body::from_stream(stream::iter([Ok(rest.slice(..cut))]).chain(stream::once(broken)))
        }
        _ => Body::from(rest),
    };
    response.body(body).unwrap()
}
