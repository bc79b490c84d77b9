//! Filters and tests where minijinja's own differ from Jinja2's, or from transformers' (`tojson`).

use minijinja::filters as builtin;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;

/// Indentation may come from the client, and each level repeats it.
const MAX_JSON_INDENT: usize = 64;

pub fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("join", join);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment
        .add_filter("items", |value: &Value| if value.is_undefined() { Ok(empty()) } else { builtin::items(value) });
    environment.add_filter("first", |value: &Value| builtin::first(&or_empty(value)));
    environment.add_filter("last", |value: Value| builtin::last(or_empty(&value)));
    environment.add_filter("reverse", |value: &Value| builtin::reverse(&or_empty(value)));
    environment.add_filter("replace", replace);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
}

/// What is no number becomes the default, which is 0.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default_of(default, &kwargs)?.unwrap_or(Value::from(0));
    check_defined(value)?;
    builtin::int(state, &trimmed(value), Some(default), base, kwargs)
}

fn float(state: &State, value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default_of(default, &kwargs)?.unwrap_or(Value::from(0.0));
    check_defined(value)?;
    builtin::float(state, &trimmed(value), Some(default), kwargs)
}

fn check_defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(ErrorKind::UndefinedError.into()) } else { Ok(()) }
}

fn default_of(positional: Option<Value>, kwargs: &Kwargs) -> Result<Option<Value>, Error> {
    let named = kwargs.get::<Option<Value>>("default")?;
    Ok(positional.or(named))
}

fn trimmed(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| Value::from(text.trim()))
}

fn empty() -> Value {
    Value::from(Vec::<Value>::new())
}

/// Jinja2's undefined value is an empty collection as well.
fn or_empty(value: &Value) -> Value {
    if value.is_undefined() { empty() } else { value.clone() }
}

fn replace(text: &Value, old: &Value, new: &Value, count: Option<usize>) -> Result<String, Error> {
    let (text, old, new) = (python::str(text)?, python::str(old)?, python::str(new)?);
    Ok(count.map_or_else(|| text.replace(&old, &new), |count| text.replacen(&old, &new, count)))
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { builtin::length(value) }
}

fn escape(value: &Value) -> Result<String, Error> {
    let text = python::str(value)?;
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            letter => out.push(letter),
        }
    }
    Ok(out)
}

/// `join(d='', attribute=None)`, every item written as Python writes it.
fn join(
    state: &mut State,
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let named_separator = kwargs.get::<Option<Value>>("d")?;
    let named_attribute = kwargs.get::<Option<Value>>("attribute")?;
    kwargs.assert_all_used()?;
    let separator = match separator.or(named_separator) {
        Some(separator) => python::str(&separator)?,
        None => String::new(),
    };
    let items = match attribute.or(named_attribute) {
        Some(attribute) => {
            let attribute = Value::from(Kwargs::from_iter([("attribute", attribute)]));
            state.apply_filter("map", &[value.clone(), attribute])?
        }
        None => value.clone(),
    };
    let mut out = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        out.push_str(if index > 0 { &separator } else { "" });
        out.push_str(&python::str(&item?)?);
    }
    Ok(out)
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
