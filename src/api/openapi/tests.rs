use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::actors::messages::FinishReason;

fn json() -> Value {
    serde_json::to_value(document()).unwrap()
}

#[test]
fn paths_are_the_routes_that_metrics_know() {
    let known: BTreeSet<String> = crate::api::ROUTES.iter().map(|path| path.replace(":.+}", "}")).collect();
    let described: BTreeSet<String> = document().paths.paths.keys().cloned().collect();
    assert_eq!(described, known);
}

#[test]
fn every_operation_has_a_name_of_its_own_and_a_group() {
    let ids: BTreeSet<&str> = OPERATIONS.iter().map(|of| of.id).collect();
    assert_eq!(ids.len(), OPERATIONS.len());
    for operation in OPERATIONS {
        assert!(TAGS.iter().any(|(name, _)| *name == operation.tag), "{}", operation.id);
        assert!(operation.open != operation.codes.contains(&crate::base::error::Code::Unauthenticated));
    }
}

/// Every reference leads somewhere, and nothing lies unused.
#[test]
fn references_and_components_match() {
    fn collect(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                into.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, into));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, into)),
            _ => {}
        }
    }
    let document = json();
    let (mut used, mut there) = (BTreeSet::new(), BTreeSet::new());
    collect(&document, &mut used);
    for kind in ["schemas", "responses", "parameters", "headers"] {
        let names = document["components"][kind].as_object().unwrap().keys();
        there.extend(names.map(|name| format!("#/components/{kind}/{name}")));
    }
    assert_eq!(used, there);
}

#[test]
fn words_are_those_of_the_code() {
    let words = [FinishReason::Stop, FinishReason::Length].map(FinishReason::as_str);
    let schema = json()["components"]["schemas"]["ChatChoice"]["properties"]["finish_reason"]["enum"].take();
    assert_eq!(schema, serde_json::json!(words));
}
