//! `/openapi.json` and `/docs`: who may read them, that the document is valid, and that the server does what it says.

use std::fs;

use serde_json::json;

use crate::fixture::{Launch, Request, project, python_with, succeeds};

#[test]
fn the_document_is_valid() {
    let Some(mut python) = python_with("openapi_spec_validator") else { return };
    let server = Launch::fake("fake").start();
    let document = server.get("/openapi.json");
    assert_eq!(document.ok()["openapi"], "3.1.0");
    let file = server.launch.dir().join("openapi.json");
    fs::write(&file, &document.body).expect("a file");
    succeeds(python.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(file));
}

/// Some thousand requests made from the document, good and bad, the same each time: see schemathesis.toml.
#[test]
fn schemathesis_finds_the_server_as_documented() {
    let Some(mut python) = python_with("schemathesis") else { return };
    // A short context: what goes on to its end must not take long.
    let launch = Launch::fake("fake").arg("--max-model-len").arg("512").keyed();
    let key = launch.new_key("");
    let server = launch.start();
    succeeds(
        python
            .args(["-m", "schemathesis.cli", "--config-file"])
            .arg(project().join("tests/server/schemathesis.toml"))
            .args(["run", &format!("http://{}/openapi.json", server.address)])
            .args(["--header", &format!("Authorization: Bearer {key}")])
            // It leaves files where it runs.
            .current_dir(server.launch.dir())
            .env("NO_PROXY", "*"),
    );
}

#[test]
fn the_description_needs_no_key_and_can_be_switched_off() {
    let server = Launch::fake("fake").keyed().start();
    let page = server.ask(&Request::get("/docs"));
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert_eq!(server.ask(&Request::get("/openapi.json")).ok()["info"]["title"], "Garrick");
    let shut = Launch::fake("fake").keyed().set("server.docs=false").start();
    for path in ["/docs", "/openapi.json"] {
        shut.ask(&Request::get(path)).error(401);
        shut.get(path).error(404);
    }
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    let server = Launch::fake("fake").keyed().start();
    let key = server.launch.new_key("");
    let cases = [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("HEAD", "/v1/models", "GET"),
        ("OPTIONS", "/v1/models/fake", "GET"),
        ("TRACE", "/tokenize", "POST"),
        ("DELETE", "/metrics", "GET"),
        ("BREW", "/docs", "GET"),
        ("POST", "/health/ready", "GET, HEAD"),
    ];
    for (method, path, allowed) in cases {
        let mut connection = server.connect();
        connection.send(&Request::new(method, path).key(&key));
        let answer = if method == "HEAD" { connection.head() } else { connection.receive() };
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        if method != "HEAD" {
            let error = answer.error(405);
            assert_eq!((&error["code"], &error["param"]), (&json!("method_not_allowed"), &json!(null)), "{error}");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(allowed)), "{error}");
        }
    }
    // What a route is without a key, its methods are too.
    server.ask(&Request::new("PUT", "/v1/completions")).error(401);
}
