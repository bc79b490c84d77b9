//! Public ids: made here, sorted by time (UUID version 7, RFC 9562), and the check of those that clients bring.
//!
//! Owns the prefixes and the rule for `X-Request-Id`. The engine's own request numbers are elsewhere.

use uuid::Uuid;

/// The longest `X-Request-Id` that is taken over.
pub const MAX_CLIENT_ID_LEN: usize = 128;

/// What an id is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request, in headers, errors and logs.
    Request,
    ChatCompletion,
    Completion,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Kind::Request => "req_",
            Kind::ChatCompletion => "chatcmpl-",
            Kind::Completion => "cmpl-",
        }
    }
}

/// A fresh id: the kind's prefix and 32 hexadecimal digits.
pub fn new(kind: Kind) -> String {
    format!("{}{}", kind.prefix(), Uuid::now_v7().simple())
}

/// The request's id: the client's when it is fit to be echoed and logged, otherwise a fresh one.
pub fn request_id(from_client: Option<&str>) -> String {
    match from_client {
        Some(id) if is_valid(id) => id.to_owned(),
        _ => new(Kind::Request),
    }
}

/// Whether a client's id may be echoed in a header and written to a log: 1 to [`MAX_CLIENT_ID_LEN`] of the characters
/// `A-Z a-z 0-9 . _ : / + = -`, none of which can end a line or a quoted string.
pub fn is_valid(id: &str) -> bool {
    (1..=MAX_CLIENT_ID_LEN).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/+=-".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_carry_their_kind_and_sort_by_time() {
        let (a, b) = (new(Kind::ChatCompletion), new(Kind::ChatCompletion));
        assert!(a.starts_with("chatcmpl-") && a.len() == "chatcmpl-".len() + 32);
        assert!(a < b, "{a} {b}");
        assert!(new(Kind::Completion).starts_with("cmpl-") && new(Kind::Request).starts_with("req_"));
    }

    #[test]
    fn a_good_client_id_is_kept_and_a_bad_one_replaced() {
        assert_eq!(request_id(Some("trace-01:a/b")), "trace-01:a/b");
        for bad in ["", "two words", "line\nbreak", "quote\"", "naïve", &"x".repeat(MAX_CLIENT_ID_LEN + 1)] {
            assert!(request_id(Some(bad)).starts_with("req_"), "{bad:?}");
        }
        assert!(request_id(None).starts_with("req_"));
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_id_is_fit_for_a_header(text in "\\PC{0,200}|[ -~]{0,140}") {
            prop_assert!(is_valid(&request_id(Some(&text))));
        }
    }
}
