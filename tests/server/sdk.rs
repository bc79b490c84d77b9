//! OpenAI's own Python SDK against the server: `sdk.py` beside this file, run by the Python of `target/venv`.

use crate::fixture::{Launch, project, python_with, succeeds};

#[test]
fn openais_python_sdk_finds_what_it_expects() {
    let Some(mut python) = python_with("openai") else { return };
    let launch = Launch::fake("fake").keyed();
    let (key, limited) = (launch.new_key(""), launch.new_key("--rpm 1"));
    let server = launch.start();
    succeeds(
        python
            .arg(project().join("tests/server/sdk.py"))
            .env("GARRICK_URL", format!("http://{}/v1", server.address))
            .env("GARRICK_KEY", key)
            .env("GARRICK_LIMITED_KEY", limited),
    );
}
