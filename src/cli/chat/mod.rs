//! `garrick chat`: a terminal's conversation with a server, over HTTP.
//!
//! Owns reading lines, printing answers as they come, and what Ctrl-C means. Knows the server only by its API.

mod conversation;
mod sse;

use std::io::{BufRead, IsTerminal, Write};

use futures_util::StreamExt;
use reqwest::{Client, Response, Url};
use serde_json::Value;
use tokio::sync::mpsc;

use super::args::ChatArgs;
use super::{Exit, Failure, address};
use conversation::{Conversation, Part};
use sse::SseReader;

/// Longest error body that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// Where answers come from.
struct Server {
    client: Client,
    endpoint: Url,
    key: Option<String>,
}

/// How an answer ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Complete,
    /// By Ctrl-C.
    Interrupted,
}

/// Runs the command on the terminal until the end of input or Ctrl-C.
pub fn run(args: ChatArgs) -> Result<(), Failure> {
    let server = Server::new(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Internal, format!("no runtime: {e}")))?;
    let interactive = std::io::stdin().is_terminal();
    runtime.block_on(converse(&server, Conversation::new(&args), read_lines(), interactive))
}

async fn converse(
    server: &Server,
    mut conversation: Conversation,
    mut lines: mpsc::Receiver<String>,
    interactive: bool,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    loop {
        if interactive {
            say(&mut out, "> ")?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            return if interactive { say(&mut out, "\n") } else { Ok(()) };
        };
        if line.trim().is_empty() {
            continue;
        }
        conversation.ask(&line);
        let mut answer = String::new();
        let interrupt = async {
            // Without a handler Ctrl-C ends the program, which is an answer too.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = server.answer(&conversation, &mut answer, &mut out, interrupt).await;
        if !answer.is_empty() {
            say(&mut out, "\n")?;
        }
        match ended {
            Ok(Ended::Interrupted) if !interactive => return Ok(()),
            Ok(_) => conversation.answered(&answer),
            Err(failure) if !interactive => return Err(failure),
            Err(failure) => {
                eprintln!("error: {failure}");
                conversation.unask();
            }
        }
    }
}

/// Lines of standard input, from a thread that may block; one waits at most.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line {
                Ok(line) => {
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
                Err(e) => {
                    eprintln!("error: cannot read the input: {e}");
                    return;
                }
            }
        }
    });
    receiver
}

impl Server {
    fn new(args: &ChatArgs) -> Result<Self, Failure> {
        let endpoint = address::chat_endpoint(&args.url)?;
        let local = matches!(endpoint.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let builder = if local { Client::builder().no_proxy() } else { Client::builder() };
        let client = builder.build().map_err(|e| Failure::new(Exit::Internal, e))?;
        Ok(Self { client, endpoint, key: address::key(args.key.as_ref()) })
    }

    /// Asks for the next answer, writes it to `out` as it comes and collects it in `answer`, until it ends or
    /// `interrupt` does; leaving the stream is how the server learns to stop.
    async fn answer(
        &self,
        conversation: &Conversation,
        answer: &mut String,
        out: &mut impl Write,
        interrupt: impl Future<Output = ()>,
    ) -> Result<Ended, Failure> {
        tokio::select! {
            ended = self.stream(conversation, answer, out) => ended.map(|()| Ended::Complete),
            () = interrupt => Ok(Ended::Interrupted),
        }
    }

    async fn stream(
        &self,
        conversation: &Conversation,
        answer: &mut String,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let mut request = self.client.post(self.endpoint.clone()).json(&conversation.request());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let mut events = SseReader::default();
        let mut body = response.bytes_stream();
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|e| self.unreachable(&e))?;
            for data in events.push(&bytes).map_err(|e| Failure::new(Exit::Unavailable, e))? {
                match conversation::part(&data) {
                    Part::Text(text) => {
                        answer.push_str(&text);
                        say(out, &text)?;
                    }
                    Part::Nothing => {}
                    Part::Done => return Ok(()),
                    Part::Failed(message) => return Err(Failure::new(Exit::Unavailable, message)),
                }
            }
        }
        Err(Failure::new(Exit::Unavailable, "the server ended the stream before the answer was complete"))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut message = format!("no answer from {}", self.endpoint);
        // The last cause says what happened (connection refused, reset); those before repeat the address.
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        message.push_str(&format!(": {cause}"));
        if error.is_connect() {
            message.push_str(" (is the server running? --url names another one)");
        }
        Failure::new(Exit::Unavailable, message)
    }
}

/// The server's refusal in its own words.
async fn refused(response: Response) -> Failure {
    let status = response.status();
    let exit = if status.is_client_error() { Exit::Usage } else { Exit::Unavailable };
    let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
    while let Some(Ok(bytes)) = chunks.next().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ERROR_BYTES {
            break;
        }
    }
    let message = serde_json::from_slice::<Value>(&body).ok().and_then(|b| conversation::error_message(&b));
    let hint = if status.as_u16() == 401 { " (--key or GARRICK_API_KEY gives the key)" } else { "" };
    Failure::new(exit, format!("{status}: {}{hint}", message.as_deref().unwrap_or("no reason given")))
}

fn say(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::new(Exit::Internal, format!("cannot write the output: {e}")))
}

#[cfg(test)]
mod tests;
