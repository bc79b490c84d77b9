//! The conversation so far, the request for the next answer, and the reading of its parts. Pure.

use serde_json::{Value, json};

use crate::cli::args::ChatArgs;

/// Messages so far and what goes with every request.
#[derive(Debug)]
pub struct Conversation {
    model: String,
    temperature: Option<f64>,
    max_tokens: Option<u32>,
    messages: Vec<Value>,
}

/// What one event of the stream brings.
#[derive(Debug, PartialEq)]
pub enum Part {
    Text(String),
    /// Role, usage: nothing to print.
    Nothing,
    Done,
    /// The server gave up in the middle.
    Failed(String),
}

impl Conversation {
    pub fn new(args: &ChatArgs) -> Self {
        let messages = args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        Self { model: args.model.clone(), temperature: args.temperature, max_tokens: args.max_tokens, messages }
    }

    pub fn ask(&mut self, text: &str) {
        self.messages.push(json!({"role": "user", "content": text}));
    }

    /// The answer, also one that was cut short.
    pub fn answered(&mut self, text: &str) {
        self.messages.push(json!({"role": "assistant", "content": text}));
    }

    /// Forgets the question that got no answer.
    pub fn unask(&mut self) {
        self.messages.pop();
    }

    pub fn request(&self) -> Value {
        let mut body = json!({"model": self.model, "messages": self.messages, "stream": true});
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.max_tokens {
            body["max_completion_tokens"] = json!(max_tokens);
        }
        body
    }
}

/// Reads the data of one event.
pub fn part(data: &str) -> Part {
    if data == "[DONE]" {
        return Part::Done;
    }
    let Ok(event) = serde_json::from_str::<Value>(data) else {
        return Part::Failed("the server sent an event that is not JSON".into());
    };
    if let Some(message) = error_message(&event) {
        return Part::Failed(message);
    }
    match event["choices"][0]["delta"]["content"].as_str() {
        Some(text) => Part::Text(text.to_owned()),
        None => Part::Nothing,
    }
}

/// The message of a body or event that is an error in OpenAI's shape.
pub fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|e| !e.is_null())?;
    Some(error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_the_whole_conversation_and_only_what_was_asked_for() {
        let args = ChatArgs {
            url: String::new(),
            key: None,
            model: "demo".into(),
            system: Some("Be brief.".into()),
            temperature: None,
            max_tokens: Some(5),
        };
        let mut c = Conversation::new(&args);
        c.ask("Hi");
        c.answered("Hello");
        c.ask("lost");
        c.unask();
        c.ask("Bye");
        let expected = json!({
            "model": "demo",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Bye"},
            ],
            "stream": true,
            "max_completion_tokens": 5,
        });
        assert_eq!(c.request(), expected);
    }

    #[test]
    fn parts_of_a_stream() {
        assert_eq!(part("[DONE]"), Part::Done);
        assert_eq!(part(r#"{"choices":[{"delta":{"content":"é"}}]}"#), Part::Text("é".into()));
        assert_eq!(part(r#"{"choices":[{"delta":{"role":"assistant"}}]}"#), Part::Nothing);
        assert_eq!(part(r#"{"choices":[],"usage":{}}"#), Part::Nothing);
        assert_eq!(part(r#"{"error":{"message":"out of time"}}"#), Part::Failed("out of time".into()));
        assert_eq!(part(r#"{"error":"plain"}"#), Part::Failed("\"plain\"".into()));
        assert!(matches!(part("<html>"), Part::Failed(_)));
        assert_eq!(part("7"), Part::Nothing);
    }
}
