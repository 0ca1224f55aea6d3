//! The official OpenAI clients, with only `base_url` set: the same floats as raw JSON.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::peers::picture;
use crate::server::Server;

const PYTHON: &str = r#"
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
def vectors(**more):
    return [d.embedding for d in client.embeddings.create(model="model", **more).data]
print(json.dumps({
    "default": vectors(input="hello"),
    "float": vectors(input="hello", encoding_format="float"),
    "base64_is_left_alone": [isinstance(d, str) for d in vectors(input="hello", encoding_format="base64")],
    "dimensions": vectors(input="hello", dimensions=64),
    "list": vectors(input=["hello", "world"]),
    "picture": vectors(input=[{"image": sys.argv[2]}]),
    "fused": vectors(input=[{"content": [{"type": "image_url", "image_url": {"url": sys.argv[2]}}, {"type": "text", "text": "hello"}]}]),
    "ids": vectors(input=[[1, 2, 3], [4, 5]]),
    "one_sequence": vectors(input=[1, 2, 3]),
    "extra_body": vectors(input="hello", extra_body={"instruction": "Find it."}),
}))
"#;

const NODE: &str = r#"
import { createRequire } from "node:module";
const require = createRequire(process.argv[3] + "/");
const { OpenAI } = require("openai");
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none" });
const vectors = async (more) => (await client.embeddings.create({ model: "model", ...more })).data.map((d) => d.embedding);
console.log(JSON.stringify({
  default: await vectors({ input: "hello" }),
  float: await vectors({ input: "hello", encoding_format: "float" }),
  base64_is_left_alone: (await vectors({ input: "hello", encoding_format: "base64" })).map((e) => typeof e === "string"),
  dimensions: await vectors({ input: "hello", dimensions: 64 }),
  list: await vectors({ input: ["hello", "world"] }),
  picture: await vectors({ input: [{ image: process.argv[4] }] }),
  fused: await vectors({ input: [{ content: [{ type: "image_url", image_url: { url: process.argv[4] } }, { type: "text", text: "hello" }] }] }),
  ids: await vectors({ input: [[1, 2, 3], [4, 5]] }),
  one_sequence: await vectors({ input: [1, 2, 3] }),
  extra_body: await vectors({ input: "hello", instruction: "Find it." }),
}));
"#;

pub(crate) fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn installed(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/sdk")
        .join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A Python with `openai`: the one named, or one made under `target/`.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("MANIFOLD_TEST_PYTHON") {
        return python.into();
    }
    let home = installed("python");
    let python = home.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home));
    }
    let has_it = Command::new(&python)
        .args(["-c", "import openai"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_it {
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "openai"]));
    }
    python
}

/// A directory whose `node_modules` has `openai`.
pub(crate) fn node_modules() -> PathBuf {
    if let Some(directory) = std::env::var_os("MANIFOLD_TEST_NODE_MODULES") {
        return directory.into();
    }
    let home = installed("node");
    if !home.join("node_modules/openai").exists() {
        run(Command::new("npm")
            .args([
                "install",
                "--no-save",
                "--no-audit",
                "--no-fund",
                "--silent",
                "openai",
                "--prefix",
            ])
            .arg(&home));
    }
    home
}

/// Asks the same as the scripts, in raw JSON.
async fn expected(server: &Server) -> Value {
    let ask = async |body: Value| json!(server.vectors(&body).await);
    let picture = picture("odd_100x37.png");
    let fused = json!([{ "type": "image", "image": picture }, { "type": "text", "text": "hello" }]);
    json!({
        "default": ask(json!({ "input": "hello" })).await,
        "float": ask(json!({ "input": "hello" })).await,
        "base64_is_left_alone": [true],
        "dimensions": ask(json!({ "input": "hello", "dimensions": 64 })).await,
        "list": ask(json!({ "input": ["hello", "world"] })).await,
        "picture": ask(json!({ "input": [{ "image": picture }] })).await,
        "fused": ask(json!({ "input": { "content": fused } })).await,
        "ids": ask(json!({ "input": [[1, 2, 3], [4, 5]] })).await,
        "one_sequence": ask(json!({ "input": [1, 2, 3] })).await,
        "extra_body": ask(json!({ "input": "hello", "instruction": "Find it." })).await,
    })
}

/// Numbers as the f32 they are: clients differ in how many digits they print.
pub(crate) fn as_f32(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!((number.as_f64().unwrap() as f32).to_bits()),
        Value::Array(values) => values.iter().map(as_f32).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), as_f32(value)))
            .collect(),
        other => other.clone(),
    }
}

/// A server of the embedded model, whose vectors have 256 dimensions, so that 64 of them are less.
fn wide() -> Server {
    let arguments = ["--model", "manifold-tiny", "--served-model-name", "model"];
    Server::start(&[&arguments[..], &["--dtype", "f32"]].concat(), &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_python_client_gets_the_same_floats() {
    let server = wide();
    let printed =
        run(Command::new(python()).args(["-c", PYTHON, &server.url, &picture("odd_100x37.png")]));
    let got: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(as_f32(&got), as_f32(&expected(&server).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_node_client_gets_the_same_floats() {
    let server = wide();
    let home = node_modules();
    let script = tempfile::Builder::new().suffix(".mjs").tempfile().unwrap();
    std::fs::write(script.path(), NODE).unwrap();
    let printed = run(Command::new("node")
        .arg(script.path())
        .arg(&server.url)
        .arg(&home)
        .arg(picture("odd_100x37.png")));
    let got: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(as_f32(&got), as_f32(&expected(&server).await));
}
