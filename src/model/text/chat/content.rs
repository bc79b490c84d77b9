//! OpenAI's message shapes against what templates expect. Kept apart from rendering, which changes nothing.

use serde_json::{Map, Value as Json, json};

use super::{ChatInput, ChatTemplate};

/// A word no template contains.
const PROBE: &str = "garrick-content-probe";

/// Whether a template reads content given as a list of parts. Other servers look for a loop over the content in the
/// template's syntax tree; asking the template is simpler and surer: one message is rendered with its content as a
/// string and as a list holding the same text. The template reads lists if both work, the text comes through, and no
/// more of the list's own words (`type`) does. A template that fails on the string, too, is taken not to.
pub fn takes_parts(template: &ChatTemplate) -> bool {
    let render = |content: Json| {
        let messages = json!([{"role": "user", "content": content}]);
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: false,
            kwargs: &Map::new(),
            bos_token: "<s>",
            eos_token: "</s>",
            now: jiff::civil::DateTime::default(),
        };
        template.render(&input).ok()
    };
    let (Some(text), Some(parts)) = (render(json!(PROBE)), render(json!([{"type": "text", "text": PROBE}]))) else {
        return false;
    };
    let count = |text: &str, word: &str| text.matches(word).count();
    count(&parts, PROBE) == count(&text, PROBE) && count(&parts, "type") == count(&text, "type")
}

/// Turns content that is a list of text parts into one string, a line per part (as vLLM and llama.cpp do). Lists that
/// hold anything else are left alone.
pub fn flatten_text_parts(messages: &mut Json) {
    for message in messages.as_array_mut().into_iter().flatten() {
        let Some(content) = message.get_mut("content") else { continue };
        let Some(parts) = content.as_array() else { continue };
        let texts: Option<Vec<&str>> = parts.iter().map(text_of_part).collect();
        if let Some(texts) = texts {
            *content = Json::String(texts.join("\n"));
        }
    }
}

fn text_of_part(part: &Json) -> Option<&str> {
    if part.get("type")? == "text" { part.get("text")?.as_str() } else { None }
}

/// Turns the arguments of earlier tool calls from JSON text, as OpenAI's API carries them, into the objects that
/// templates expect. What is no JSON object stays as it is.
pub fn parse_tool_arguments(messages: &mut Json) {
    let calls = messages.as_array_mut().into_iter().flatten().filter_map(|message| message.get_mut("tool_calls"));
    for call in calls.filter_map(Json::as_array_mut).flatten() {
        let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
            continue;
        };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Json>>(text).ok());
        if let Some(parsed) = parsed {
            *arguments = Json::Object(parsed);
        }
    }
}
