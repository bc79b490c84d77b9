//! Typed reading of config.json: every getter names the field it could not read.
//!
//! `null` counts as absent, as it does for transformers.

use serde_json::{Map, Value};

use super::SpecError;

/// An object of config.json and the path to it, for error messages.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value, path: &'a str) -> Result<Self, SpecError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(SpecError::invalid(if path.is_empty() { "config" } else { path }, other, "a JSON object")),
        }
    }

    /// The field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_string() } else { format!("{}.{field}", self.path) }
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn missing(&self, field: &str, expected: &str) -> SpecError {
        SpecError::Missing { field: self.name(field), expected: expected.to_string() }
    }

    fn invalid(&self, field: &str, value: &Value, expected: impl Into<String>) -> SpecError {
        SpecError::invalid(self.name(field), value, expected)
    }

    /// An integer in `1..=max`.
    pub fn count_opt(&self, field: &str, max: usize) -> Result<Option<usize>, SpecError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        // Some exporters write whole numbers as floats.
        let number =
            value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        match number {
            Some(n) if n >= 1 && n <= max as u64 => Ok(Some(n as usize)),
            _ => Err(self.invalid(field, value, format!("an integer from 1 to {max}"))),
        }
    }

    pub fn count(&self, field: &str, max: usize) -> Result<usize, SpecError> {
        self.count_opt(field, max)?.ok_or_else(|| self.missing(field, &format!("an integer from 1 to {max}")))
    }

    /// A finite number above zero.
    pub fn positive_opt(&self, field: &str) -> Result<Option<f64>, SpecError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x > 0.0 && (x as f32).is_finite() && x as f32 > 0.0 => Ok(Some(x)),
            _ => Err(self.invalid(field, value, "a finite number above 0")),
        }
    }

    pub fn positive(&self, field: &str) -> Result<f64, SpecError> {
        self.positive_opt(field)?.ok_or_else(|| self.missing(field, "a finite number above 0"))
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, SpecError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.invalid(field, other, "true or false")),
        }
    }

    pub fn text_opt(&self, field: &str) -> Result<Option<&'a str>, SpecError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid(field, other, "a string")),
        }
    }

    pub fn object_opt(&self, field: &'a str) -> Result<Option<&'a Value>, SpecError> {
        match self.get(field) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(value)),
            Some(other) => Err(self.invalid(field, other, "an object")),
        }
    }

    pub fn list_opt(&self, field: &str) -> Result<Option<&'a [Value]>, SpecError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.invalid(field, other, "a list")),
        }
    }

    /// A list of exactly `len` values, each read by `read`.
    pub fn list_of<T>(
        &self,
        field: &str,
        len: usize,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, SpecError> {
        let Some(list) = self.list_opt(field)? else { return Ok(None) };
        if list.len() != len {
            let value = format!("a list of {} values", list.len());
            return Err(SpecError::invalid(self.name(field), value, format!("{len} values, each {expected}")));
        }
        let mut out = Vec::with_capacity(len);
        for (i, value) in list.iter().enumerate() {
            match read(value) {
                Some(x) => out.push(x),
                None => return Err(self.invalid(&format!("{field}[{i}]"), value, expected)),
            }
        }
        Ok(Some(out))
    }
}
