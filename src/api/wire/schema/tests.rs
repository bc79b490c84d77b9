//! The schemas against the parsers: each accepts what the other does, at every limit, and knows the same names.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::openapi;
use crate::api::wire::chat::{ChatRequest, RenderRequest};
use crate::api::wire::completion::CompletionRequest;
use crate::api::wire::fields::asked;
use crate::api::wire::tokenize::{DetokenizeRequest, TokenizeRequest};

/// Every token id of the schema is one of this model's.
const VOCAB: u32 = u32::MAX;
/// Longer lists are bounded by the body's size first.
const MAX_TRIED: usize = 5000;

struct Request {
    name: String,
    accepts: fn(&[u8]) -> bool,
}

fn requests() -> Vec<Request> {
    fn of<T: ToSchema>(accepts: fn(&[u8]) -> bool) -> Request {
        Request { name: T::name().into_owned(), accepts }
    }
    vec![
        of::<ChatRequest>(|body| ChatRequest::parse(body, VOCAB).is_ok()),
        of::<RenderRequest>(|body| RenderRequest::parse(body, VOCAB).is_ok()),
        of::<CompletionRequest>(|body| CompletionRequest::parse(body, VOCAB).is_ok()),
        of::<TokenizeRequest>(|body| TokenizeRequest::parse(body).is_ok()),
        of::<DetokenizeRequest>(|body| DetokenizeRequest::parse(body, VOCAB).is_ok()),
    ]
}

/// The schemas of the document, and what they say of values.
struct Schemas(Value);

impl Schemas {
    fn new() -> Self {
        let mut document = serde_json::to_value(openapi::document()).unwrap();
        Self(document["components"]["schemas"].take())
    }

    fn get<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(path) => &self.0[path.rsplit('/').next().unwrap()],
            None => schema,
        }
    }

    /// What `anyOf` offers, or the one schema.
    fn branches<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.get(schema);
        match schema["anyOf"].as_array() {
            Some(branches) => branches.iter().map(|branch| self.get(branch)).collect(),
            None => vec![schema],
        }
    }

    fn allows(&self, schema: &Value, value: &Value) -> bool {
        self.branches(schema).iter().any(|branch| self.one_allows(branch, value))
    }

    /// The keywords that the requests' schemas use, as JSON Schema 2020-12 defines them.
    fn one_allows(&self, schema: &Value, value: &Value) -> bool {
        let kinds = match &schema["type"] {
            Value::String(kind) => vec![kind.as_str()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => return true,
        };
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() || !kinds.contains(&"integer") => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let number = |keyword: &str| schema[keyword].as_f64();
        let count = |keyword: &str| schema[keyword].as_u64().map(|n| n as usize);
        let within = |num: usize, min: &str, max: &str| {
            count(min).is_none_or(|min| num >= min) && count(max).is_none_or(|max| num <= max)
        };
        kinds.contains(&kind)
            && schema["enum"].as_array().is_none_or(|words| words.contains(value))
            && match value {
                Value::Number(n) => {
                    let n = n.as_f64().unwrap();
                    number("minimum").is_none_or(|min| n >= min)
                        && number("maximum").is_none_or(|max| n <= max)
                        && number("exclusiveMinimum").is_none_or(|min| n > min)
                }
                Value::String(text) => within(text.len(), "minLength", "maxLength"),
                Value::Array(items) => {
                    let all = items.iter().all(|item| self.allows(&schema["items"], item));
                    all && within(items.len(), "minItems", "maxItems")
                }
                Value::Object(fields) => {
                    self.allows_fields(schema, fields) && within(fields.len(), "", "maxProperties")
                }
                _ => true,
            }
    }

    fn allows_fields(&self, schema: &Value, fields: &Map<String, Value>) -> bool {
        let required = schema["required"].as_array().into_iter().flatten();
        let name_fits = |name: &String| match schema["propertyNames"]["pattern"].is_string() {
            true => name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0')),
            false => self.allows(&schema["propertyNames"], &json!(name)),
        };
        required.filter_map(Value::as_str).all(|name| fields.contains_key(name))
            && fields.iter().all(|(name, value)| match schema["properties"].get(name) {
                Some(property) => self.allows(property, value),
                None => match &schema["additionalProperties"] {
                    Value::Bool(any) => *any,
                    values => name_fits(name) && self.allows(values, value),
                },
            })
    }

    /// Values at both sides of each limit, and one of each kind.
    fn values(&self, schema: &Value) -> Vec<Value> {
        let kinds = [json!(null), json!(true), json!(false), json!(7), json!(0.5), json!("?"), json!([]), json!({})];
        let mut values = kinds.to_vec();
        for branch in self.branches(schema) {
            values.extend(branch["enum"].as_array().into_iter().flatten().cloned());
            for limit in ["minimum", "maximum", "exclusiveMinimum"].iter().filter_map(|name| branch.get(*name)) {
                values.push(limit.clone());
                match limit.as_i64() {
                    Some(n) if branch["type"].to_string().contains("integer") => {
                        values.extend([n.checked_sub(1), n.checked_add(1)].into_iter().flatten().map(Value::from));
                    }
                    _ => values.extend([-0.01, 0.01].map(|step| json!(limit.as_f64().unwrap() + step))),
                }
            }
            for num in around(branch, &["minLength", "maxLength"]) {
                values.push("x".repeat(num).into());
            }
            if let Some(items) = branch.get("items") {
                let item = self.least(items);
                values.extend(around(branch, &["minItems", "maxItems"]).map(|num| vec![item.clone(); num].into()));
                values.extend(self.values(items).into_iter().map(|item| json!([item])));
            }
            values.extend(self.objects(branch));
        }
        values
    }

    /// Objects with one entry more or less than the least one, or one entry of another value.
    fn objects(&self, schema: &Value) -> Vec<Value> {
        let mut objects = Vec::new();
        let least = self.least(schema);
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            objects.extend(self.values(property).into_iter().map(|value| with(&least, name, value)));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut fields = least.as_object().unwrap().clone();
            fields.remove(name);
            objects.push(fields.into());
        }
        if schema["properties"].is_object() {
            objects.extend([least.clone(), with(&least, "colour", json!("red"))]);
        } else if let Some(values) = schema.get("additionalProperties") {
            let value = self.least(values);
            let many = |num: usize| (0..num).map(|i| (i.to_string(), value.clone())).collect::<Map<_, _>>().into();
            objects.extend(around(schema, &["maxProperties"]).map(many));
            // A null counts as absent in the client's own objects too, which a schema has no need to say.
            objects.extend(self.values(values).into_iter().filter(|v| !v.is_null()).map(|v| json!({"5": v})));
            let names = ["x", "05", "+5"].map(str::to_owned).into_iter();
            let names = names.chain(around(&schema["propertyNames"], &["maxLength"]).map(|num| "x".repeat(num)));
            objects.extend(names.map(|name| with(&json!({}), &name, value.clone())));
        }
        objects
    }

    /// The smallest value of a schema.
    fn least(&self, schema: &Value) -> Value {
        let schema = self.branches(schema)[0];
        if let Some(words) = schema["enum"].as_array() {
            return words[0].clone();
        }
        match schema["type"].as_str().or(schema["type"][0].as_str()) {
            Some("boolean") => json!(false),
            Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
            Some("string") => "x".repeat(schema["minLength"].as_u64().unwrap_or(0) as usize).into(),
            Some("array") => {
                vec![self.least(&schema["items"]); schema["minItems"].as_u64().unwrap_or(0) as usize].into()
            }
            Some("object") => {
                let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                names
                    .map(|name| (name.to_owned(), self.least(&schema["properties"][name])))
                    .collect::<Map<_, _>>()
                    .into()
            }
            // Anything.
            _ => json!(0),
        }
    }

    /// The objects that may stand at `path`, as `messages[0].tool_calls[0]`.
    fn at<'a>(&'a self, schema: &'a Value, path: &str) -> Vec<&'a Value> {
        let mut here = self.branches(schema);
        for step in path.split('.').filter(|step| !step.is_empty()) {
            let (name, is_item) = step.split_once('[').map_or((step, false), |(name, _)| (name, true));
            let inside = here.into_iter().filter_map(|object| object["properties"].get(name));
            let values: Vec<&Value> = inside.flat_map(|value| self.branches(value)).collect();
            here = match is_item {
                true => {
                    values.iter().filter_map(|list| list.get("items")).flat_map(|item| self.branches(item)).collect()
                }
                false => values,
            };
        }
        here
    }
}

/// The limits' values, and those beside them.
fn around<'a>(schema: &'a Value, limits: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
    let given = limits.iter().filter_map(|limit| schema[*limit].as_u64().map(|n| n as usize));
    given.flat_map(|n| [n.saturating_sub(1), n, n + 1]).filter(|n| *n <= MAX_TRIED)
}

fn with(object: &Value, name: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[name] = value;
    object
}

/// `base` with one field, and with what that field needs beside it, which a schema cannot say.
fn body(base: &Value, name: &str, value: &Value) -> Value {
    let body = with(base, name, value.clone());
    match name {
        "top_logprobs" => with(&body, "logprobs", json!(true)),
        "stream_options" => with(&body, "stream", json!(true)),
        "best_of" => with(&body, "n", value.clone()),
        _ => body,
    }
}

#[test]
fn parsers_accept_what_the_schemas_allow_and_nothing_else() {
    let schemas = Schemas::new();
    for request in requests() {
        let schema = &schemas.0[&request.name];
        let mut tried = [0, 0];
        let mut check = |body: Value| {
            let (allowed, shown) = (schemas.allows(schema, &body), body.to_string());
            tried[usize::from(allowed)] += 1;
            let shown: String = shown.chars().take(400).collect();
            assert_eq!((request.accepts)(body.to_string().as_bytes()), allowed, "{}: {shown}", request.name);
        };
        for branch in schemas.branches(schema) {
            let base = schemas.least(branch);
            check(base.clone());
            check(with(&base, "colour", json!("red")));
            for (name, property) in branch["properties"].as_object().unwrap() {
                schemas.values(property).iter().for_each(|value| check(body(&base, name, value)));
            }
        }
        assert!(tried[0] > 10 && tried[1] > 5, "{}: {tried:?} bodies were tried", request.name);
    }
}

/// Bodies in which every object of a request occurs.
fn rich(name: &str) -> Vec<Value> {
    let call = json!({"function": {"name": "f"}});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "x"},
    ]);
    let chat = json!({"model": "m", "messages": messages, "stream": true, "stream_options": {},
        "response_format": {"type": "text"}});
    match name {
        "ChatRequest" | "RenderRequest" => vec![chat],
        "CompletionRequest" => vec![json!({"model": "m", "prompt": "x", "stream": true, "stream_options": {}})],
        "TokenizeRequest" => vec![json!({"prompt": "x"}), json!({"messages": messages})],
        "DetokenizeRequest" => vec![json!({"tokens": []})],
        other => panic!("no body for {other}"),
    }
}

#[test]
fn parsers_know_no_field_that_the_schemas_do_not_name() {
    let schemas = Schemas::new();
    for request in requests() {
        asked::take();
        let bodies = rich(&request.name);
        for body in &bodies {
            assert!((request.accepts)(body.to_string().as_bytes()), "{body}");
        }
        let asked = asked::take();
        for (path, field) in &asked {
            let objects = schemas.at(&schemas.0[&request.name], path);
            let named = objects.iter().any(|object| object["properties"].get(field).is_some());
            // A field that is refused by name, whatever its value, is none that the request has.
            let refused = || {
                let values = [json!(true), json!(false), json!(1), json!("x"), json!("auto"), json!([]), json!({})];
                let mut bodies = bodies.iter().flat_map(|body| values.iter().map(|v| with(body, field, v.clone())));
                path.is_empty() && bodies.all(|body| !(request.accepts)(body.to_string().as_bytes()))
            };
            assert!(named || refused(), "{}: '{field}' at '{path}' is in no schema", request.name);
        }
        assert!(!asked.is_empty(), "{} asks for nothing", request.name);
    }
}
