//! An HTTP/1.1 response as the load client needs it: its status, how many events its body has, and when the first text
//! came. Pure: bytes in, cut anywhere.
//!
//! Never reads JSON: an event is what ends with an empty line, so a comment counts as one. The cost is a scan for line
//! feeds, some nanoseconds an event: what is measured is to be the server.

/// A longer head is no answer.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The first text is looked for this far, and an error's body is kept this far.
const MAX_OPENING_BYTES: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    #[error("the response's head is longer than {MAX_HEAD_BYTES} bytes")]
    LongHead,
    #[error("the response's head is not HTTP/1.1 with a status and a length: {0:?}")]
    Head(String),
    #[error("the response's body has a chunk without a length")]
    Chunk,
}

#[derive(Debug)]
enum State {
    Head,
    /// In the line before a chunk; what follows its length does not count.
    Size {
        len: usize,
        is_over: bool,
    },
    /// Bytes of the body that follow.
    Data {
        left: usize,
        is_chunk: bool,
    },
    /// The line end after a chunk.
    Gap,
    /// After the last chunk: lines up to an empty one.
    Trailer {
        line_len: usize,
    },
    Done,
}

/// Reads one response; [`ResponseReader::reset`] makes it ready for the next.
#[derive(Debug)]
pub struct ResponseReader {
    state: State,
    head: Vec<u8>,
    status: u16,
    num_events: u64,
    after_newline: bool,
    /// The body up to its first text.
    opening: Vec<u8>,
    has_text: bool,
}

impl ResponseReader {
    pub fn new() -> Self {
        Self {
            state: State::Head,
            head: Vec::new(),
            status: 0,
            num_events: 0,
            after_newline: false,
            opening: Vec::new(),
            has_text: false,
        }
    }

    pub fn reset(&mut self) {
        let (mut head, mut opening) = (std::mem::take(&mut self.head), std::mem::take(&mut self.opening));
        head.clear();
        opening.clear();
        *self = Self { head, opening, ..Self::new() };
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// 0 before the head is complete.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Events that ended so far.
    pub fn num_events(&self) -> u64 {
        self.num_events
    }

    /// Whether a text that is not empty has come.
    pub fn has_text(&self) -> bool {
        self.has_text
    }

    /// The beginning of the body, for an error's message.
    pub fn opening(&self) -> &[u8] {
        &self.opening
    }

    /// Takes the next bytes; what follows the end of the response is ignored.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), BadResponse> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Head => {
                    bytes = self.push_head(bytes)?;
                    continue;
                }
                State::Data { left, is_chunk } => {
                    let (now, later) = bytes.split_at(bytes.len().min(*left));
                    *left -= now.len();
                    if *left == 0 {
                        self.state = if *is_chunk { State::Gap } else { State::Done };
                    }
                    self.push_body(now);
                    bytes = later;
                    continue;
                }
                State::Size { len: 0, .. } if byte == b'\n' => self.state = State::Trailer { line_len: 0 },
                State::Size { len, .. } if byte == b'\n' => self.state = State::Data { left: *len, is_chunk: true },
                State::Size { len, is_over } => match (byte as char).to_digit(16) {
                    Some(digit) if !*is_over && *len <= usize::MAX >> 8 => *len = *len * 16 + digit as usize,
                    Some(_) if !*is_over => return Err(BadResponse::Chunk),
                    _ => *is_over = true,
                },
                State::Gap if byte == b'\n' => self.state = State::Size { len: 0, is_over: false },
                State::Trailer { line_len: 0 } if byte == b'\n' => self.state = State::Done,
                State::Trailer { line_len } if byte == b'\n' => *line_len = 0,
                State::Trailer { line_len } if byte != b'\r' => *line_len += 1,
                State::Gap | State::Trailer { .. } => {}
                State::Done => return Ok(()),
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Returns what follows the head.
    fn push_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BadResponse> {
        let before = self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(MAX_HEAD_BYTES + 1 - before)]);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() > MAX_HEAD_BYTES { Err(BadResponse::LongHead) } else { Ok(&[]) };
        };
        self.head.truncate(end + 4);
        let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
        let wrong = || BadResponse::Head(head.lines().next().unwrap_or_default().chars().take(80).collect());
        let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        self.status = status.ok_or_else(wrong)?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        self.state = match (field("transfer-encoding:"), field("content-length:").map(str::parse)) {
            (Some("chunked"), _) => State::Size { len: 0, is_over: false },
            (None, Some(Ok(0))) => State::Done,
            (None, Some(Ok(left))) => State::Data { left, is_chunk: false },
            _ => return Err(wrong()),
        };
        Ok(&bytes[end + 4 - before..])
    }

    fn push_body(&mut self, bytes: &[u8]) {
        // In this form the compiler compares many bytes at once.
        let pairs = bytes.iter().zip(&bytes[1..]).filter(|&(&a, &b)| (a == b'\n') & (b == b'\n')).count();
        self.num_events += pairs as u64 + u64::from(self.after_newline && bytes[0] == b'\n');
        self.after_newline = bytes[bytes.len() - 1] == b'\n';
        if !self.has_text && self.opening.len() < MAX_OPENING_BYTES {
            let room = MAX_OPENING_BYTES - self.opening.len();
            self.opening.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.has_text = self.status == 200 && holds_text(&self.opening);
        }
    }
}

/// Whether a `content` or `text` that is not empty begins in these bytes.
fn holds_text(bytes: &[u8]) -> bool {
    let values = [br#""content":"#.as_slice(), br#""text":"#].map(|key| values(bytes, key));
    values.into_iter().flatten().any(|value| {
        let value = value.strip_prefix(b" ").unwrap_or(value);
        value.len() > 1 && value[0] == b'"' && value[1] != b'"'
    })
}

/// What follows each occurrence of `key`.
fn values<'a>(bytes: &'a [u8], key: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let starts = bytes.windows(key.len()).enumerate().filter(move |(_, window)| *window == key);
    starts.map(move |(at, _)| &bytes[at + key.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        28;x=1\r\ndata: {\"content\":\"\"}\n\ndata: {\"content\":\"\r\n9\r\nabc\"}\n\nda\r\n10\r\nta: [DONE]\n\n: p\n\r\n1\r\n\n\r\n\
        0\r\nx-trailer: 1\r\n\r\n";

    fn read(text: &str) -> Result<ResponseReader, BadResponse> {
        let mut reader = ResponseReader::new();
        reader.push(text.as_bytes()).map(|()| reader)
    }

    #[test]
    fn where_the_bytes_are_cut_does_not_matter() {
        for cut in 0..STREAM.len() {
            let mut reader = ResponseReader::new();
            reader.push(&STREAM.as_bytes()[..cut]).unwrap();
            assert!(!reader.is_done(), "{cut}");
            reader.push(&STREAM.as_bytes()[cut..]).unwrap();
            assert!(reader.is_done() && reader.has_text(), "{cut}");
            assert_eq!((reader.status(), reader.num_events()), (200, 4), "{cut}");
            reader.reset();
            assert_eq!((reader.num_events(), reader.is_done(), reader.opening()), (0, false, &b""[..]));
        }
    }

    #[test]
    fn an_empty_text_is_no_text() {
        for (json, expected) in [
            (r#"{"content":""}"#, false),
            (r#"{"content": ""}"#, false),
            (r#"{"content": "a"}"#, true),
            (r#"{"text":" "}"#, true),
        ] {
            let reader = read(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len())).unwrap();
            assert!(reader.is_done());
            assert_eq!(reader.has_text(), expected, "{json}");
        }
    }

    #[test]
    fn an_error_keeps_its_body() {
        let reader = read("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").unwrap();
        assert_eq!((reader.status(), reader.opening(), reader.is_done()), (503, &b"busy"[..], true));
    }

    #[test]
    fn what_is_no_response_is_refused() {
        assert!(matches!(read("SSH-2.0-x\r\n\r\n"), Err(BadResponse::Head(_))));
        assert!(matches!(read("HTTP/1.1 200 OK\r\nx: y\r\n\r\n"), Err(BadResponse::Head(_))));
        assert_eq!(read(&"x".repeat(MAX_HEAD_BYTES + 1)).err(), Some(BadResponse::LongHead));
        let chunk = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", "f".repeat(40));
        assert_eq!(read(&chunk).err(), Some(BadResponse::Chunk));
    }
}
