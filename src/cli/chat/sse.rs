//! An incremental reader of Server-Sent Events (WHATWG HTML, section 9.2.6): bytes in, the `data` of events out.

/// A longer line or event is no answer of ours.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// An event or a line grew beyond the limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {MAX_EVENT_BYTES} bytes")]
pub struct TooLarge;

/// Bytes may be cut anywhere, also inside a character or a line end.
#[derive(Debug, Default)]
pub struct SseReader {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    /// The last byte was a carriage return: a line feed that follows belongs to the same line end.
    after_cr: bool,
    /// The stream's first line is behind: only there may a byte order mark stand.
    begun: bool,
}

impl SseReader {
    /// Takes the next bytes and returns the data of the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLarge> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_half = std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n';
            match byte {
                _ if second_half => {}
                b'\r' | b'\n' => events.extend(self.end_line()?),
                _ if self.line.len() >= MAX_EVENT_BYTES => return Err(TooLarge),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<String>, TooLarge> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = if self.begun { &*line } else { line.strip_prefix('\u{feff}').unwrap_or(&line) };
        self.begun = true;
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Ok(std::mem::take(&mut self.has_data).then_some(data));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            if self.data.len() + value.len() >= MAX_EVENT_BYTES {
                return Err(TooLarge);
            }
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(value);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<String> {
        SseReader::default().push(bytes).unwrap()
    }

    #[test]
    fn events_end_at_an_empty_line() {
        assert_eq!(
            read(b"id: 1\ndata: {\"a\":1}\n\n: beat\n\ndata:x\ndata: y\n\ndata: unfinished"),
            ["{\"a\":1}", "x\ny"]
        );
        assert_eq!(read(b"\xef\xbb\xbfdata: a\r\n\r\ndata\r\rdata:  b\n\nevent: end\n\n"), ["a", "", " b"]);
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut reader = SseReader::default();
        assert_eq!(reader.push(&vec![b'x'; MAX_EVENT_BYTES + 1]), Err(TooLarge));
        let mut reader = SseReader::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..2000).any(|_| reader.push(line.as_bytes()) == Err(TooLarge)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            text in "(data: ?[a-zé😀]{0,4}|:x|id: 3|[\\PC]{0,3}|\r\n|\r|\n|\n\n){0,24}", cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let whole = read(text.as_bytes());
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut reader = SseReader::default();
            let mut parts = Vec::new();
            for pair in cuts.windows(2) {
                parts.extend(reader.push(&text.as_bytes()[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn what_was_written_is_read(events in prop::collection::vec("[^\r\n]{0,12}", 0..8)) {
            let text: String = events.iter().enumerate().map(|(i, e)| format!("id: {i}\ndata: {e}\n\n")).collect();
            prop_assert_eq!(read(text.as_bytes()), events);
        }
    }
}
