use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;

fn args(url: String) -> ChatArgs {
    ChatArgs {
        url,
        key: Some("sk-1".into()),
        model: "demo".into(),
        system: None,
        temperature: Some(0.7),
        max_tokens: None,
    }
}

/// A server for one request: answers with `head` and the `pieces`, each sent by itself; returns the request it read.
/// `hold` keeps the connection until the client leaves.
fn server(head: &str, pieces: &[&str], hold: bool) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let (head, pieces) = (head.to_owned(), pieces.iter().map(|p| p.to_string()).collect::<Vec<_>>());
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let (mut request, mut chunk) = (String::new(), [0; 4096]);
        while !request.ends_with('}') {
            let n = stream.read(&mut chunk).unwrap();
            assert!(n > 0, "the client hung up: {request}");
            request.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
        }
        stream.write_all(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
        }
        if hold {
            // Returns when the client has closed its side.
            assert_eq!(stream.read(&mut chunk).unwrap_or(0), 0);
        }
        request
    });
    (url, thread)
}

/// Asks once; returns how it ended, the answer and what was printed.
fn ask(url: String, interrupt: impl Future<Output = ()>) -> (Result<Ended, Failure>, String, String) {
    let args = args(url);
    let server = Server::new(&args).unwrap();
    let mut conversation = Conversation::new(&args);
    conversation.ask("Hi");
    let (mut answer, mut printed) = (String::new(), Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(server.answer(&conversation, &mut answer, &mut printed, interrupt));
    (ended, answer, String::from_utf8(printed).unwrap())
}

const STREAM: &str = "200 OK\r\ncontent-type: text/event-stream";

#[test]
fn an_answer_is_printed_as_it_comes() {
    let pieces = [
        ": beat\n\nid: 0\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\nid: 1\nda",
        "ta: {\"choices\":[{\"delta\":{\"content\":\"Gr\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"üße\"}}]}\n\n",
        "data: [DONE]\n\n",
    ];
    let (url, thread) = server(STREAM, &pieces, false);
    let (ended, answer, printed) = ask(url, std::future::pending());
    assert_eq!(ended.unwrap(), Ended::Complete);
    assert_eq!((answer.as_str(), printed.as_str()), ("Grüße", "Grüße"));
    let request = thread.join().unwrap();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains("authorization: bearer sk-1\r\n"), "{request}");
    assert!(request.contains(r#""stream":true"#) && request.contains(r#""temperature":0.7"#), "{request}");
}

#[test]
fn an_interrupt_keeps_what_came_and_leaves_the_stream() {
    let (url, thread) = server(STREAM, &["data: {\"choices\":[{\"delta\":{\"content\":\"One\"}}]}\n\n"], true);
    let (ended, answer, _) = ask(url, tokio_sleep(500));
    assert_eq!((ended.unwrap(), answer.as_str()), (Ended::Interrupted, "One"));
    thread.join().unwrap();
}

async fn tokio_sleep(ms: u64) {
    tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
}

#[test]
fn refusals_are_told_in_the_servers_words() {
    let body = r#"{"error":{"message":"no such key","type":"authentication_error"}}"#;
    let (url, thread) = server("401 Unauthorized\r\ncontent-type: application/json", &[body], false);
    let failure = ask(url, std::future::pending()).0.unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert_eq!(failure.message, "401 Unauthorized: no such key (--key or GARRICK_API_KEY gives the key)");
    thread.join().unwrap();
    let (url, thread) = server("503 Service Unavailable", &["busy"], false);
    let failure = ask(url, std::future::pending()).0.unwrap_err();
    assert_eq!(
        (failure.exit, failure.message.as_str()),
        (Exit::Unavailable, "503 Service Unavailable: no reason given")
    );
    thread.join().unwrap();
}

#[test]
fn a_stream_that_breaks_is_no_answer() {
    for (piece, message) in [
        ("data: {\"error\":{\"message\":\"out of time\"}}\n\n", "out of time"),
        ("data: {\"choices\":[]}\n\n", "the server ended the stream before the answer was complete"),
    ] {
        let (url, thread) = server(STREAM, &[piece], false);
        let failure = ask(url, std::future::pending()).0.unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Unavailable, message));
        thread.join().unwrap();
    }
}

#[test]
fn nobody_there_is_said_so() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let failure = ask(format!("http://127.0.0.1:{port}"), std::future::pending()).0.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.message.contains("refused") && failure.message.contains("is the server running?"), "{failure}");
}

#[test]
fn an_address_must_be_http() {
    for url in ["https://example.com", "nonsense", "ftp://x"] {
        let Err(failure) = Server::new(&args(url.into())) else { panic!("{url} was taken") };
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.starts_with(&format!("--url {url}: ")), "{failure}");
    }
}
