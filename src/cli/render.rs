//! `garrick render`: the prompt text that a chat request becomes, without a server or weights.
//!
//! A model's messages are prepared as the server prepares them (text parts joined where the template reads only strings,
//! arguments of earlier tool calls parsed). A bare template gets them untouched, as transformers would give them.
//!
//! Owns the input's form. Prints the prompt as it is, with nothing after it, so that outputs can be compared.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use jiff::civil::{Date, DateTime, Time};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::args::RenderArgs;
use super::{Exit, Failure};
use crate::model::source::ChatSource;
use crate::model::text::{ChatInput, ChatTemplate, flatten_text_parts, parse_tool_arguments, read_chat_source};

/// Larger than any context is long.
const MAX_INPUT_BYTES: u64 = 64 << 20;
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// What `--input` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    messages: Json,
    tools: Option<Json>,
    #[serde(default = "generate")]
    add_generation_prompt: bool,
    /// As `chat_template_kwargs` of a request.
    kwargs: Option<Map<String, Json>>,
    /// Instead of the model's.
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// As `2026-11-21` or `2026-11-21T08:00:00`; the clock's when left out.
    now: Option<String>,
}

fn generate() -> bool {
    true
}

/// Runs the command.
pub fn run(args: RenderArgs) -> Result<(), Failure> {
    let source = match (&args.model, &args.chat_template) {
        (Some(model), _) => model_source(model)?,
        (None, Some(file)) => {
            ChatSource { template: Some(read_text(file, MAX_TEMPLATE_BYTES)?), ..ChatSource::default() }
        }
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "--model or --chat-template must say where the template is"));
        }
    };
    let input = read_text(&args.input, MAX_INPUT_BYTES)?;
    let prompt = render(&source, &input, args.model.is_some(), jiff::Zoned::now().datetime())
        .map_err(|e| Failure::new(Exit::Usage, format!("{}: {e}", args.input.display())))?;
    let mut out = std::io::stdout();
    out.write_all(prompt.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::new(Exit::Internal, format!("cannot write the output: {e}")))
}

/// Renders at `now`, unless the input says another time; `as_served` prepares the messages first.
fn render(source: &ChatSource, input: &str, as_served: bool, now: DateTime) -> Result<String, String> {
    let mut input: Input = serde_json::from_str(input).map_err(|e| e.to_string())?;
    if !input.messages.is_array() {
        return Err("messages must be a list".into());
    }
    let template = ChatTemplate::from_source(source)
        .map_err(|e| e.to_string())?
        .ok_or("the model has no chat template; --chat-template FILE names one")?;
    if as_served {
        parse_tool_arguments(&mut input.messages);
        if !template.takes_parts() {
            flatten_text_parts(&mut input.messages);
        }
    }
    let now = input.now.as_deref().map_or(Ok(now), parse_time)?;
    let rendered = template.render(&ChatInput {
        messages: &input.messages,
        tools: input.tools.as_ref(),
        add_generation_prompt: input.add_generation_prompt,
        kwargs: &input.kwargs.unwrap_or_default(),
        bos_token: input.bos_token.as_deref().unwrap_or(&source.bos_token),
        eos_token: input.eos_token.as_deref().unwrap_or(&source.eos_token),
        now,
    });
    rendered.map_err(|e| e.to_string())
}

fn parse_time(text: &str) -> Result<DateTime, String> {
    // A datetime's parser takes a bare date too, but names the wrong thing when neither fits.
    text.parse::<Date>()
        .map(|date| date.to_datetime(Time::midnight()))
        .or_else(|_| text.parse::<DateTime>())
        .map_err(|_| "now must be a date as 2026-11-21 or a time as 2026-11-21T08:00:00".into())
}

fn model_source(path: &Path) -> Result<ChatSource, Failure> {
    if !path.is_dir() {
        return Err(Failure::new(Exit::NoInput, format!("{}: is not a checkpoint folder", path.display())));
    }
    read_chat_source(path).map_err(|e| Failure::new(Exit::NoInput, e))
}

/// The whole text of a file, or of standard input for `-`.
fn read_text(path: &Path, max_bytes: u64) -> Result<String, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("{}: {e}", path.display()));
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).map_err(|e| failed(&e))?)
    };
    let mut text = String::new();
    reader.take(max_bytes + 1).read_to_string(&mut text).map_err(|e| failed(&e))?;
    if text.len() as u64 > max_bytes {
        return Err(failed(&format!("larger than the limit of {max_bytes} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn source(template: &str) -> ChatSource {
        ChatSource {
            template: Some(template.into()),
            tool_template: None,
            bos_token: "<s>".into(),
            eos_token: "</s>".into(),
        }
    }

    const TURNS: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}\
                         {% if add_generation_prompt %}>{% endif %}{{ mood }}{{ strftime_now('%d.%m.%Y') }}";

    fn at() -> DateTime {
        jiff::civil::date(2024, 7, 26).at(12, 0, 0, 0)
    }

    #[test]
    fn left_out_fields_come_from_the_model_and_the_clock() {
        let prompt = render(&source(TURNS), r#"{"messages":[{"role":"user","content":"Hi"}]}"#, true, at()).unwrap();
        assert_eq!(prompt, "<s>user:Hi</s>>26.07.2024");
    }

    #[test]
    fn given_fields_win() {
        let input = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "tools": null, "add_generation_prompt": false, "kwargs": {"mood": "!"},
            "bos_token": "", "eos_token": "|", "now": "2026-11-21",
        });
        assert_eq!(render(&source(TURNS), &input.to_string(), true, at()).unwrap(), "user:a\nb|!21.11.2026");
    }

    #[test]
    fn a_bare_template_gets_messages_as_they_are() {
        let input = r#"{"messages":[{"tool_calls":[{"function":{"arguments":"{\"a\": 1}"}}]}]}"#;
        let template = source("{{ messages[0].tool_calls[0].function.arguments }}");
        assert_eq!(render(&template, input, false, at()).unwrap(), r#"{"a": 1}"#);
        assert_eq!(render(&template, input, true, at()).unwrap(), "{'a': 1}");
    }

    #[test]
    fn mistakes_name_what_is_wrong() {
        let long = "{{ raise_exception('roles must alternate') }}";
        for (template, input, part) in [
            (TURNS, "{", "EOF"),
            (TURNS, "{}", "missing field `messages`"),
            (TURNS, r#"{"messages":"Hi"}"#, "messages must be a list"),
            (TURNS, r#"{"messages":[],"tool":1}"#, "unknown field `tool`"),
            (TURNS, r#"{"messages":[],"now":"tomorrow"}"#, "now must be a date as 2026-11-21"),
            ("{% if %}", r#"{"messages":[]}"#, "line 1"),
            (long, r#"{"messages":[]}"#, "roles must alternate"),
        ] {
            let message = render(&source(template), input, true, at()).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let none = ChatSource::default();
        assert!(render(&none, r#"{"messages":[]}"#, true, at()).unwrap_err().contains("no chat template"));
    }

    /// Every golden, given to the command as its input says, becomes what transformers made of it.
    #[test]
    fn goldens_become_the_same_prompts() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
        let mut num_cases = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let golden: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let mut source = source(golden["template"].as_str().unwrap());
            (source.bos_token, source.eos_token) = Default::default();
            for case in golden["cases"].as_array().unwrap() {
                let mut input = case.clone();
                let input = input.as_object_mut().unwrap();
                let expected = input.remove("expected").map(|text| text.as_str().unwrap().to_owned());
                let error = input.remove("error").map(|text| text.as_str().unwrap().to_owned());
                input.insert("bos_token".into(), golden["bos_token"].clone());
                input.insert("eos_token".into(), golden["eos_token"].clone());
                let rendered = render(&source, &serde_json::to_string(input).unwrap(), false, at());
                assert_eq!(rendered, expected.ok_or_else(|| error.unwrap()), "{}", path.display());
                num_cases += 1;
            }
        }
        assert!(num_cases >= 250, "{num_cases}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_input_and_no_template_panic(
            template in "([{][{%] ?(if|for m in|set x|messages|m.content|endfor|end|[|]|'|1)? ?[%}][}]|\\PC){0,6}", input in "\\PC{0,60}", content in "\\PC{0,20}",
        ) {
            let messages = json!({"messages": [{"role": "user", "content": content}]}).to_string();
            let _ = render(&source(&template), &input, true, at());
            let _ = render(&source(&template), &messages, true, at());
        }
    }
}
