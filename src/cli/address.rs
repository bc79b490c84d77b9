//! Where a running server is, as `chat` and `load` are told it.

use reqwest::Url;

use super::{Exit, Failure};

/// The chat endpoint of the server at `url`, which may end in `/v1` as OpenAI's clients have it.
pub fn chat_endpoint(url: &str) -> Result<Url, Failure> {
    let wrong = |why: &str| {
        let message = format!("--url {url}: must be an address as http://127.0.0.1:8080 ({why})");
        Failure::new(Exit::Usage, message)
    };
    let base = url.trim_end_matches('/').trim_end_matches("/v1");
    let endpoint = Url::parse(&format!("{base}/v1/chat/completions")).map_err(|e| wrong(&e.to_string()))?;
    if endpoint.scheme() != "http" {
        return Err(wrong("http only: TLS is not built in"));
    }
    Ok(endpoint)
}

/// The key given, or else the environment's.
pub fn key(given: Option<&String>) -> Option<String> {
    given.cloned().or_else(|| std::env::var("GARRICK_API_KEY").ok()).filter(|key| !key.is_empty())
}
