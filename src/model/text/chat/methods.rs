//! Methods of Python's `str`, `dict` and `list` that templates call. Most come with minijinja-contrib; here are the ones
//! it lacks. What would change a value (`append`, `update`, `pop`) stays unknown: transformers' sandbox refuses it too.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::source::SLICE_METHOD;

pub fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == SLICE_METHOD {
        return slice(value, args);
    }
    let own = match (value.kind(), value.as_str()) {
        (_, Some(text)) => of_str(text, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        (ValueKind::Seq | ValueKind::Iterable, _) => of_list(value, method, args)?,
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn of_str(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = separated(separator, text.split_once(separator))?.unwrap_or((text, ""));
            let middle = if head.len() < text.len() { separator } else { "" };
            Value::from((head, middle, tail))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = separated(separator, text.rsplit_once(separator))?.unwrap_or(("", text));
            let middle = if tail.len() < text.len() { separator } else { "" };
            Value::from((head, middle, tail))
        }
        "rsplit" => rsplit(text, args)?,
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).ok_or_else(|| invalid("index: substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let num_zeros = padding(text, width)?;
            Value::from(format!("{sign}{}{digits}", "0".repeat(num_zeros)))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let count = padding(text, width)?;
            // Python's own rounding: the odd space goes left where the width is odd, else right.
            let left = match method {
                "ljust" => 0,
                "rjust" => count,
                _ => count / 2 + (count & width & 1),
            };
            let fill = fill.unwrap_or(" ");
            Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(count - left)))
        }
        _ => return Ok(None),
    }))
}

fn separated<'a>(separator: &str, parts: Option<(&'a str, &'a str)>) -> Result<Option<(&'a str, &'a str)>, Error> {
    if separator.is_empty() { Err(invalid("empty separator")) } else { Ok(parts) }
}

fn padding(text: &str, width: usize) -> Result<usize, Error> {
    const MAX_WIDTH: usize = 4096;
    if width > MAX_WIDTH {
        return Err(invalid(format!("a width above {MAX_WIDTH} is not allowed")));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, max_splits): (Option<&str>, Option<i64>) = from_args(args)?;
    let max_parts = match max_splits {
        Some(count) if count >= 0 => count as usize + 1,
        _ => usize::MAX,
    };
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => text.rsplitn(max_parts, separator).collect(),
        None => {
            let mut rest = text.trim_end();
            let mut parts = vec![];
            while parts.len() + 1 < max_parts
                && let Some((head, tail)) = rest.rsplit_once(char::is_whitespace)
            {
                parts.push(tail);
                rest = head.trim_end();
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = items(value)?.iter().position(|item| item == wanted);
            at.map(|at| Some(Value::from(at))).ok_or_else(|| invalid("index: value not in list"))
        }
        "count" if value.downcast_object_ref::<Tuple>().is_none() && value.kind() == ValueKind::Iterable => {
            let (wanted,): (&Value,) = from_args(args)?;
            Ok(Some(Value::from(items(value)?.iter().filter(|item| *item == wanted).count())))
        }
        _ => Ok(None),
    }
}

/// `value[start:stop:step]` by Python's rules.
fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => {
            let letters: Vec<char> = text.chars().collect();
            let picked: String = indices(letters.len(), start, stop, step).map(|at| letters[at]).collect();
            Ok(Value::from(picked))
        }
        (ValueKind::Seq | ValueKind::Iterable, _) => {
            let items = items(value)?;
            let picked = indices(items.len(), start, stop, step).map(|at| items[at].clone());
            match value.downcast_object_ref::<Tuple>() {
                Some(_) => Ok(Value::from(Tuple::from(picked.collect::<Vec<_>>()))),
                None => Ok(Value::from(picked.collect::<Vec<_>>())),
            }
        }
        (ValueKind::Undefined, _) => Err(ErrorKind::UndefinedError.into()),
        _ => Ok(Value::UNDEFINED),
    }
}

/// The places a slice of `len` items names, in its order; every one is below `len`.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |bound: i64| if bound < 0 { bound.saturating_add(len).max(lowest) } else { bound.min(highest) };
    let first = start.map_or(if step > 0 { lowest } else { highest }, place);
    let end = stop.map_or(if step > 0 { highest } else { lowest }, place);
    let has_more = move |at: &i64| if step > 0 { *at < end } else { *at > end };
    std::iter::successors(Some(first), move |at| at.checked_add(step)).take_while(has_more).map(|at| at as usize)
}

fn items(value: &Value) -> Result<Vec<Value>, Error> {
    value.try_iter()?.checked().collect()
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
