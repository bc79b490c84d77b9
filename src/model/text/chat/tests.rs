use serde_json::{Map, Value as Json};

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
