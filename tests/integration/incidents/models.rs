//! A checkpoint is data: whatever else lies beside its weights changes nothing and is not run.

use std::fs;

use serde_json::{Value, json};

use crate::server::{Server, fixture};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_checkpoint_is_executed() {
    let directory = tempfile::tempdir().unwrap();
    let (model, proof) = (
        directory.path().join("model"),
        directory.path().join("proof"),
    );
    copy(&fixture("parity").join("model"), &model);
    let shell = format!("touch {}", proof.display());
    let template = format!(
        "{{{{ cycler.__init__.__globals__.os.popen('{shell}').read() }}}}{{% for m in messages %}}evil{{% endfor %}}"
    );
    fs::write(model.join("chat_template.jinja"), &template).unwrap();
    let python = format!("import os\nos.system({shell:?})\n");
    for file in [
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "setup.py",
    ] {
        fs::write(model.join(file), &python).unwrap();
    }
    edit(&model.join("chat_template.json"), |json| {
        json["chat_template"] = json!(template)
    });
    edit(&model.join("tokenizer_config.json"), |json| {
        json["chat_template"] = json!(template);
        json["auto_map"] = json!({ "AutoTokenizer": ["tokenization_evil.Evil", null] });
    });
    edit(&model.join("config.json"), |json| {
        json["auto_map"] =
            json!({ "AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil" });
        json["trust_remote_code"] = json!(true);
    });
    edit(&model.join("modules.json"), |json| {
        json[0]["type"] = json!("modeling_evil.Evil");
    });
    let body =
        json!({ "input": ["a cat", { "text": "a dog", "instruction": "Find {{ 7 * 7 }}." }] });
    let honest = Server::of("parity").vectors(&body).await;
    let served = Server::start(&["--model", model.to_str().unwrap(), "--dtype", "f32"], &[]);
    assert_eq!(served.vectors(&body).await, honest);
    assert!(!proof.exists(), "something was run");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

fn edit(path: &std::path::Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}
