//! What the process says of a panic: a line in the log, in the log's own shape, and a count.
//!
//! Never decides what follows; whoever owns the panicking part does.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

use super::metrics::metrics;

/// Longest text of a panic in the log.
const MAX_TEXT: usize = 300;

/// From now on panics go to the log. The default hook would write lines that no JSON reader understands.
pub fn install() {
    std::panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo) {
    metrics().panics.increment(1);
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let text = text(panic.payload());
    tracing::error!(location, thread = thread.name().unwrap_or_default(), panic = text, "a panic");
}

/// A panic that was caught. It has been logged and counted already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a panic: {0}")]
pub struct Panic(String);

/// Runs `work`; a panic in it is an error. Whatever `work` was changing must not be used afterwards, or be whole again.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panic(text(&*payload).to_owned()))
}

/// The text of a panic, short. Slicing a text at a wrong place panics with the text itself (… of `…`), which may be a
/// prompt: that part is left out, since logs have no prompts.
fn text(payload: &(dyn std::any::Any + Send)) -> &str {
    let whole = whole_text(payload);
    let end = whole.find(" of `").unwrap_or(whole.len());
    &whole[..whole.floor_char_boundary(end.min(MAX_TEXT))]
}

fn whole_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sliced_text_is_not_told() {
        let prompt = "my secret é".repeat(2);
        let panic = std::panic::catch_unwind(|| prompt[..prompt.len() - 1].len()).unwrap_err();
        let told = text(&*panic);
        assert!(!told.contains("secret") && told.contains("char boundary"), "{told}");
        assert!(whole_text(&*panic).contains("secret"), "the standard library still quotes");
    }

    #[test]
    fn every_payload_has_a_text_and_a_short_one() {
        assert_eq!(text(&"a"), "a");
        assert_eq!(text(&"b".to_owned()), "b");
        assert_eq!(text(&7), "(no message)");
        assert!(text(&"é".repeat(MAX_TEXT)).len() <= MAX_TEXT);
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("at {}", "work")).map(|()| 1).unwrap_err().to_string(), "a panic: at work");
    }
}
