//! The document against the router and the parsers.

use std::collections::BTreeSet;

use super::super::{guarded_routes, open_routes};
use super::*;

fn document(hidden_size: Option<usize>, keys: bool) -> Value {
    let settings = ApiSettings::default();
    build(Limits {
        settings: &settings,
        hidden_size,
        keys,
    })
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let routes = guarded_routes().into_iter().chain(open_routes());
    let routes: BTreeSet<(String, String)> = routes
        .map(|(path, method, _)| {
            let method = method.as_str().to_lowercase();
            (path.replace("{*", "{"), method)
        })
        .collect();
    let document = document(None, false);
    let paths = document["paths"].as_object().expect("paths").iter();
    let described: BTreeSet<(String, String)> = paths
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").keys();
            methods.map(|method| (path.clone(), method.clone()))
        })
        .collect();
    assert_eq!(described, routes);
}

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.insert(reference.clone());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_schema_is_used_and_every_reference_leads_to_one() {
    let document = document(Some(2048), true);
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let schemas = document["components"]["schemas"].as_object();
    let schemas: BTreeSet<String> = schemas
        .expect("schemas")
        .keys()
        .map(|name| format!("#/components/schemas/{name}"))
        .collect();
    assert_eq!(found, schemas);
}

#[test]
fn every_code_of_the_error_table_stands_at_a_route_with_its_status() {
    let document = document(Some(2048), true);
    let responses = &document["paths"]["/v1/embeddings"]["post"]["responses"];
    for code in ErrorCode::ALL {
        let (status, _, name) = code.row();
        if code == ErrorCode::NotFound {
            continue;
        }
        let row = responses[status.as_str()]["description"].as_str();
        let listed = row.is_some_and(|row| row.split(", ").any(|listed| listed == name));
        assert!(listed, "{name} at {status}: {row:?}");
    }
}

#[test]
fn every_refusal_of_every_route_has_an_example_that_is_as_described() {
    let document = document(Some(2048), true);
    let mut met = BTreeSet::new();
    for operation in document["paths"].as_object().expect("paths").values() {
        for operation in operation.as_object().expect("methods").values() {
            let responses = operation["responses"].as_object().expect("responses");
            for (status, response) in responses.iter().filter(|(status, _)| *status != "200") {
                let content = &response["content"]["application/json"];
                let mut schema = content["schema"].clone();
                schema["components"] = document["components"].clone();
                let validator = jsonschema::draft202012::new(&schema).expect("a schema");
                let names = response["description"].as_str().expect("codes").split(", ");
                for name in names {
                    let example = &content["examples"][name]["value"];
                    assert!(validator.is_valid(example), "{name} at {status}: {example}");
                    assert!(example.to_string().contains(&format!("{name:?}")), "{name}");
                    met.insert(name.to_owned());
                }
            }
        }
    }
    let all: BTreeSet<String> = ErrorCode::ALL.map(|code| code.row().2.to_owned()).into();
    // A route that is none is described nowhere.
    let missing: Vec<&String> = all.difference(&met).collect();
    assert_eq!(missing, ["not_found"]);
}

#[test]
fn what_depends_on_this_server_is_told() {
    let loading = document(None, false);
    let loaded = document(Some(64), true);
    let dimensions = |document: &Value| {
        document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["dimensions"].clone()
    };
    assert_eq!(dimensions(&loading)["maximum"], Value::Null);
    assert_eq!(dimensions(&loaded)["maximum"], 64);
    let post = |document: &Value| document["paths"]["/v1/embeddings"]["post"].clone();
    assert_eq!(post(&loading)["security"], Value::Null);
    assert_eq!(post(&loading)["responses"]["401"], Value::Null);
    assert_eq!(post(&loaded)["security"][0]["key"], json!([]));
    assert!(post(&loaded)["responses"]["401"].is_object());
    let live = &loaded["paths"]["/health/live"]["get"];
    assert_eq!(live["security"], Value::Null);
}

#[test]
fn the_viewer_asks_nobody_but_this_server() {
    for outside in ["http://", "https://", "//cdn", "@import", "src="] {
        assert!(!VIEWER.contains(outside), "{outside}");
    }
}
