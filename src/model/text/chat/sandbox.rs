//! The Jinja environment transformers sets up, and the limits it runs under here.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::{filters, methods, python};

/// Template instructions in one rendering; a message costs a few dozen to a few hundred.
pub const MAX_STEPS: u64 = 10_000_000;
/// Far above what fits any model's context.
pub const MAX_OUTPUT_BYTES: usize = 32 << 20;
/// Frames; a macro call takes four. Keeps the deepest template within a 2 MiB thread stack.
const MAX_DEPTH: usize = 200;

pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the delimiters are the standard ones"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&python::str(value)?)?),
    });
    environment.set_unknown_method_callback(methods::call);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(MAX_DEPTH);
    // Names the undefined variable in an error message.
    environment.set_debug(true);
    environment.remove_global("debug");
    environment.add_function("raise_exception", raise_exception);
    filters::install(&mut environment);
    environment
}

/// Carries a template's own refusal through the engine's error type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(python::str(message)?);
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised").with_source(raised))
}

pub fn raised_message(error: &Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        next = error.source();
    }
    None
}

/// `strftime_now(format)`, at the moment the caller gave: Python's `datetime.now().strftime` in the C locale.
pub fn strftime_now(now: jiff::civil::DateTime) -> Value {
    Value::from_function(move |format: &str| {
        jiff::fmt::strtime::format(spelled_out(format, now), now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    })
}

/// Replaces the directives that Python writes in its own way. A time without a zone has no name or offset of one.
fn spelled_out(format: &str, now: jiff::civil::DateTime) -> String {
    let mut out = String::with_capacity(format.len());
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('c') => out.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => out.push_str("%m/%d/%y"),
            Some('X') => out.push_str("%H:%M:%S"),
            Some('f') => out.push_str(&format!("{:06}", now.subsec_nanosecond() / 1000)),
            Some('Z' | 'z') => {}
            other => out.extend(['%'].into_iter().chain(other)),
        }
    }
    out
}

/// Collects a rendering and refuses to grow past the limit.
#[derive(Default)]
pub struct BoundedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl BoundedOutput {
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    pub fn into_text(self) -> String {
        String::from_utf8(self.bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
