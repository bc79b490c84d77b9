//! OpenAI's own Python SDK against the server: `sdk.py` beside this file, run by the Python of `target/venv`.

use std::process::Command;

use crate::fixture::{Launch, project};

#[test]
fn openais_python_sdk_finds_what_it_expects() {
    let python = project().join("target/venv/bin/python");
    let has_sdk = Command::new(&python).args(["-c", "import openai"]).output().is_ok_and(|out| out.status.success());
    if !has_sdk {
        let message = "target/venv has no OpenAI SDK; scripts/test.sh makes it";
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return;
    }
    let launch = Launch::fake("fake").keyed();
    let (key, limited) = (launch.new_key(""), launch.new_key("--rpm 1"));
    let server = launch.start();
    let run = Command::new(python)
        .arg(project().join("tests/server/sdk.py"))
        .env("GARRICK_URL", format!("http://{}/v1", server.address))
        .env("GARRICK_KEY", key)
        .env("GARRICK_LIMITED_KEY", limited)
        .output()
        .expect("Python runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(run.status.success(), "{}\n{}", said(&run.stdout), said(&run.stderr));
}
