//! The Jinja environment transformers sets up, and the limits it runs under here.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::{methods, python};

/// Template instructions in one rendering; a message costs a few dozen to a few hundred.
pub const MAX_STEPS: u64 = 20_000_000;
/// Far above what fits any model's context.
pub const MAX_OUTPUT_BYTES: usize = 32 << 20;
/// Frames; a macro call takes four. Keeps the deepest template within a 2 MiB thread stack.
const MAX_DEPTH: usize = 200;
/// `range` and string repetition are not counted by steps; indentation comes from template and client alike.
const MAX_JSON_INDENT: usize = 64;

pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks_and_lstrip();
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
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment
}

trait HuggingFaceSyntax {
    fn set_trim_blocks_and_lstrip(&mut self);
}

impl HuggingFaceSyntax for Environment<'_> {
    fn set_trim_blocks_and_lstrip(&mut self) {
        let mut builder = SyntaxConfig::builder();
        builder.trim_blocks(true).lstrip_blocks(true);
        if let Ok(syntax) = builder.build() {
            self.set_syntax(syntax);
        }
    }
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

/// `strftime_now(format)`, at the moment the caller gave.
pub fn strftime_now(now: jiff::civil::DateTime) -> Value {
    Value::from_function(move |format: &str| {
        jiff::fmt::strtime::format(format, now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    })
}

/// transformers' `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: `json.dumps`, no escapes
/// for HTML. (`sort_keys` by name only.)
fn to_json(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let argument = |positional: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional {
            Some(value) => Some(value),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none()))
    };
    let mut style = python::JsonStyle {
        ensure_ascii: argument(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true()),
        sort_keys: argument(None, "sort_keys")?.is_some_and(|value| value.is_true()),
        ..python::JsonStyle::default()
    };
    if let Some(indent) = argument(indent, "indent")? {
        style.indent = Some(indent_text(&indent)?);
        style.item_separator = ",".into();
    }
    if let Some(separators) = argument(separators, "separators")? {
        style.item_separator = python::str(&separators.get_item_by_index(0)?)?;
        style.key_separator = python::str(&separators.get_item_by_index(1)?)?;
    }
    kwargs.assert_all_used()?;
    python::to_json(value, &style)
}

fn indent_text(indent: &Value) -> Result<String, Error> {
    let text = match indent.as_str() {
        Some(text) => text.to_owned(),
        // Python takes booleans for numbers, and a negative indentation for none.
        None => " ".repeat(i64::try_from(indent.clone())?.clamp(0, MAX_JSON_INDENT as i64 + 1) as usize),
    };
    if text.len() > MAX_JSON_INDENT {
        let message = format!("tojson: an indent above {MAX_JSON_INDENT} is not allowed");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(text)
}

/// Python's notion: it has a length and items, so strings and dicts are sequences too.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
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
