//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// Lists in lists; deeper ones come only from a template gone wrong.
const MAX_NESTING: usize = 200;

/// JSON as the template sees it. Order of keys is kept.
pub fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value)))),
    }
}

/// `str(value)`; an undefined value prints as nothing.
pub fn str(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        _ => match value.as_str() {
            Some(text) => out.push_str(text),
            None => repr(value, &mut out, 0)?,
        },
    }
    Ok(out)
}

fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out, ["nan", "inf", "-inf"]),
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if is_tuple { '(' } else { '[' });
            let mut num_items = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if num_items > 0 { ", " } else { "" });
                repr(&item?, out, depth + 1)?;
                num_items += 1;
            }
            out.push_str(if is_tuple && num_items == 1 { "," } else { "" });
            out.push(if is_tuple { ')' } else { ']' });
        }
        _ => write!(out, "{value}")?,
    }
    Ok(())
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_NESTING {
        let message = format!("a value nested deeper than {MAX_NESTING} cannot be written");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// An int, or a float spelled as Python does; `special` spells what is not finite.
fn number(value: &Value, out: &mut String, special: [&str; 3]) {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => out.push_str(&float_text(float, special)),
        _ => out.push_str(&value.to_string()),
    }
}

/// Shortest digits that read back the same; scientific from 1e16 up and below 1e-4, as `repr(float)`.
fn float_text(float: f64, [nan, infinity, minus_infinity]: [&str; 3]) -> String {
    if float.is_nan() {
        return nan.into();
    }
    if float.is_infinite() {
        return if float > 0.0 { infinity } else { minus_infinity }.into();
    }
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = float.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if letter == quote => {
                out.push('\\');
                out.push(letter);
            }
            letter if is_printable(letter) => out.push(letter),
            letter => push_escape(letter, out),
        }
    }
    out.push(quote);
}

fn push_escape(letter: char, out: &mut String) {
    let code = letter as u32;
    out.push_str(&match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    });
}

/// `str.isprintable`. Rust's `escape_debug` goes by the same categories, but escapes a combining mark that starts a string.
fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return !letter.is_ascii_control();
    }
    let text = ['a', letter].iter().collect::<String>();
    text.escape_debug().nth(1) == Some(letter)
}

/// The arguments of `json.dumps`.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// Text of one level of indentation; none writes everything on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
}

impl Default for JsonStyle {
    fn default() -> Self {
        JsonStyle {
            ensure_ascii: false,
            sort_keys: false,
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
        }
    }
}

pub fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    json(value, style, &mut out, 0)?;
    Ok(out)
}

fn json(value: &Value, style: &JsonStyle, out: &mut String, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => json_scalar(value, out),
        ValueKind::String => json_str(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()?.checked() {
                let key = key?;
                pairs.push((json_key(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                pairs.sort_by(|left, right| left.0.cmp(&right.0));
            }
            json_items(style, out, depth, ['{', '}'], pairs, |(key, item), out| {
                json_str(&key, style, out);
                out.push_str(&style.key_separator);
                json(&item, style, out, depth + 1)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
            json_items(style, out, depth, ['[', ']'], items, |item, out| json(&item, style, out, depth + 1))?;
        }
        kind => {
            let message = format!("tojson: a value of type {kind} has no JSON form");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

fn json_items<T>(
    style: &JsonStyle,
    out: &mut String,
    depth: usize,
    [open, close]: [char; 2],
    items: Vec<T>,
    mut write: impl FnMut(T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, level: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    };
    let is_empty = items.is_empty();
    out.push(open);
    for (index, item) in items.into_iter().enumerate() {
        out.push_str(if index > 0 { &style.item_separator } else { "" });
        new_line(out, depth + 1);
        write(item, out)?;
    }
    if !is_empty {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn json_scalar(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        _ => number(value, out, ["NaN", "Infinity", "-Infinity"]),
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    let mut text = String::new();
    match key.kind() {
        ValueKind::String => text.push_str(key.as_str().unwrap_or_default()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number => json_scalar(key, &mut text),
        kind => {
            let message = format!("tojson: a value of type {kind} cannot be a key");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(text)
}

fn json_str(text: &str, style: &JsonStyle, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            letter if letter < ' ' => out.push_str(&format!("\\u{:04x}", letter as u32)),
            letter if style.ensure_ascii && !(' '..='~').contains(&letter) => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}
