use serde_json::{Map, Value as Json, json};

use super::*;

fn fixtures() -> Vec<(String, Json)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let mut fixtures: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        })
        .collect();
    fixtures.sort_by(|left, right| left.0.cmp(&right.0));
    fixtures
}

fn render_case(template: &ChatTemplate, fixture: &Json, case: &Json) -> Result<String, ChatError> {
    let now = case["now"].as_str().unwrap_or("2026-11-21");
    let no_kwargs = Map::new();
    template.render(&ChatInput {
        messages: &case["messages"],
        tools: Some(&case["tools"]).filter(|tools| !tools.is_null()),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        kwargs: case["kwargs"].as_object().unwrap_or(&no_kwargs),
        bos_token: fixture["bos_token"].as_str().unwrap(),
        eos_token: fixture["eos_token"].as_str().unwrap(),
        now: now.parse::<jiff::civil::Date>().unwrap().to_datetime(jiff::civil::Time::midnight()),
    })
}

#[test]
fn goldens_render_byte_for_byte() {
    let (mut num_rendered, mut num_raised, mut wrong) = (0, 0, vec![]);
    for (name, fixture) in fixtures() {
        let template = match ChatTemplate::parse(fixture["template"].as_str().unwrap(), None) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (index, case) in fixture["cases"].as_array().unwrap().iter().enumerate() {
            let result = render_case(&template, &fixture, case);
            let expected = match case.get("error") {
                Some(message) => {
                    num_raised += 1;
                    Err(ChatError::Raised(message.as_str().unwrap().into()))
                }
                None => {
                    num_rendered += 1;
                    Ok(case["expected"].as_str().unwrap().to_owned())
                }
            };
            if result != expected {
                wrong.push(format!("{name}, case {index}:\n     got {result:?}\nexpected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(num_rendered >= 250 && num_raised >= 10, "{num_rendered} rendered, {num_raised} raised");
}

/// Some three hundred small templates that Jinja2 itself rendered (`tests/fixtures/jinja/make.py`): what prints alike,
/// what fails alike.
#[test]
fn the_language_is_jinja2s() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jinja/cases.json");
    let recorded: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let variables = recorded["data"].as_object().unwrap();
    let mut wrong = vec![];
    for case in recorded["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let result = ChatTemplate::parse(source, None).and_then(|template| {
            template.render(&ChatInput {
                messages: &Json::Null,
                tools: None,
                add_generation_prompt: false,
                kwargs: variables,
                bos_token: "",
                eos_token: "",
                now: jiff::civil::DateTime::constant(2026, 11, 21, 8, 5, 9, 0),
            })
        });
        let expected = case.get("expected").map(|text| text.as_str().unwrap());
        if result.as_deref().ok() != expected {
            wrong.push(format!("{source:?}\n     got {result:?}\nexpected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn render(source: &str, variables: Json) -> Result<String, ChatError> {
    render_with(&ChatTemplate::parse(source, None)?, variables, None)
}

fn render_with(template: &ChatTemplate, variables: Json, tools: Option<&Json>) -> Result<String, ChatError> {
    template.render(&ChatInput {
        messages: &json!([{"role": "user", "content": "hi"}]),
        tools,
        add_generation_prompt: true,
        kwargs: variables.as_object().unwrap(),
        bos_token: "<s>",
        eos_token: "",
        now: jiff::civil::DateTime::default(),
    })
}

#[test]
fn variables_are_those_of_transformers() {
    let source = "{{ messages[0].content }} {{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} \
        {{ bos_token }} {{ eos_token is defined }} {{ x }}";
    let kwargs = json!({"x": 1, "messages": "no", "add_generation_prompt": "no", "bos_token": "<b>"});
    assert_eq!(render(source, kwargs).unwrap(), "hi True True True <b> False 1");
}

#[test]
fn a_refusal_is_the_templates_own_words() {
    for source in
        ["{{ raise_exception('no ' ~ 1.5) }}", "{% macro m() %}{{ raise_exception('no 1.5') }}{% endmacro %}{{ m() }}"]
    {
        assert_eq!(render(source, json!({})), Err(ChatError::Raised("no 1.5".into())));
        assert_eq!(render(source, json!({})).unwrap_err().to_string(), "no 1.5");
    }
}

#[test]
fn other_failures_say_where_and_what() {
    let text = |source| render(source, json!({})).unwrap_err().to_string();
    assert_eq!(
        text("a\n\n{{ messages[0].tool.name }}"),
        "chat template, line 3: undefined value: `messages[0].tool` is undefined"
    );
    assert!(text("\n{{ 1 + 'a' }}").starts_with("chat template, line 2: invalid operation"));
    assert!(text("\n{% if %}").starts_with("chat template, line 2: syntax error"));
    assert!(text("{% include 'chat template' %}").contains("line 1"));
    assert!(matches!(render("{% endfor %}", json!({})), Err(ChatError::Syntax { line: 1, .. })));
}

#[test]
fn steps_output_and_depth_are_bounded() {
    let loops = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a }}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops, json!({})), Err(ChatError::Limit { what: "its limit of steps", .. })));
    let output = "{% for a in range(100) %}{{ 'x' * 1000000 }}{% endfor %}";
    assert!(matches!(render(output, json!({})), Err(ChatError::Limit { what: "its limit of output bytes", .. })));
    for source in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{{ [1]|tojson(indent=100000000) }}",
        "{{ 'a'.ljust(100000000) }}",
    ] {
        // The stack of a worker thread.
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let result = thread.spawn(move || render(source, json!({}))).unwrap().join().unwrap();
        assert!(matches!(result, Err(ChatError::Template { .. })), "{source}: {result:?}");
    }
}

/// A client's own nesting, as deep as JSON parsing lets it be, goes through the macros that real templates walk it with.
#[test]
fn deeply_nested_input_is_rendered_or_refused() {
    let mut schema = json!({"type": "string"});
    for _ in 0..120 {
        schema = json!({"type": "array", "items": schema});
    }
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "", "parameters":
        {"type": "object", "properties": {"a": schema}, "required": []}}}]);
    for (name, fixture) in fixtures() {
        let tools = tools.clone();
        let template = ChatTemplate::parse(fixture["template"].as_str().unwrap(), None).unwrap();
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let result = thread.spawn(move || render_with(&template, json!({}), Some(&tools))).unwrap().join().unwrap();
        assert!(matches!(result, Ok(_) | Err(ChatError::Template { .. } | ChatError::Raised(_))), "{name}: {result:?}");
    }
}

#[test]
fn tools_choose_the_tool_template() {
    let template = ChatTemplate::parse("plain", Some("with {{ tools|length }}")).unwrap();
    assert_eq!(render_with(&template, json!({}), None).unwrap(), "plain");
    assert_eq!(render_with(&template, json!({}), Some(&json!([1]))).unwrap(), "with 1");
    let source = ChatSource { template: Some("t".into()), ..ChatSource::default() };
    assert!(ChatTemplate::from_source(&source).unwrap().is_some());
    assert!(ChatTemplate::from_source(&ChatSource::default()).unwrap().is_none());
    let error = ChatTemplate::parse("fine", Some("{% if %}")).unwrap_err().to_string();
    assert!(error.starts_with("tool_use template, line 1"), "{error}");
}

#[test]
fn templates_that_read_parts_are_told_from_those_that_do_not() {
    for (source, expected) in [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", false),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", false),
        ("{% for m in messages %}{{ m.content|tojson }}{% endfor %}", false),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", false),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}\
             {% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}",
            true,
        ),
        ("{{ raise_exception('always') }}", false),
        ("nothing at all", true),
    ] {
        assert_eq!(ChatTemplate::parse(source, None).unwrap().takes_parts(), expected, "{source}");
    }
    let reads: Vec<String> = fixtures()
        .into_iter()
        .filter(|(_, fixture)| ChatTemplate::parse(fixture["template"].as_str().unwrap(), None).unwrap().takes_parts())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(reads, ["GLM-4.6", "Kimi-K2-Instruct", "MiniMax-M2", "Mistral-Small-3.2-24B-Instruct-2506"]);
}

#[test]
fn text_parts_become_strings_and_arguments_objects() {
    let mut messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": "a"},
        {"role": "user", "content": []},
        {"role": "assistant", "content": null, "tool_calls": [
            {"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}},
            {"function": {"name": "f", "arguments": "[1]"}}, {"function": {"name": "f", "arguments": "{"}}, 5]},
        7
    ]);
    let mut expected = messages.clone();
    expected[0]["content"] = json!("a\nb");
    expected[3]["content"] = json!("");
    flatten_text_parts(&mut messages);
    assert_eq!(messages, expected);
    expected[4]["tool_calls"][0]["function"]["arguments"] = json!({"b": 1, "a": [2]});
    parse_tool_arguments(&mut messages);
    assert_eq!(messages, expected);
    for mut other in [json!(null), json!({"content": []}), json!([[]])] {
        let before = other.clone();
        flatten_text_parts(&mut other);
        parse_tool_arguments(&mut other);
        assert_eq!(other, before);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever the source and whatever the messages: an answer or an error.
    #[test]
    fn any_template_is_survived(
        source in "(\\{\\{|\\}\\}|\\{%|%\\}|\\[|\\]|:|-1|0|x| |\\||join|first|if|for|in|endif|endfor|set|'a'|\\(|\\)|,|messages|\\.|~){0,24}"
    ) {
        for x in [json!([]), json!({}), json!(null), json!(""), json!([[1], "é"]), json!(-3)] {
            let _ = render(&source, json!({"x": x}));
        }
    }
}
