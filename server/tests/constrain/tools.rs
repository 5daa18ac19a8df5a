//! Tools: told of, called, and found again.

use crate::writer::{MODELS, Model, Random, TASTES, Taste, allowed, write};
use crate::{schemas, validator};
use serde_json::{Value, json};
use tritone_server::constrain::{Format, Piece, Tool, ToolCall, ToolChoice, Tools};

fn tool(name: &str, parameters: Value) -> Tool {
    Tool { name: name.into(), description: Some(format!("Does {name}.")), parameters: Some(parameters) }
}

fn weather() -> Vec<Tool> {
    let place = json!({"type": "object", "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 30}, "unit": {"enum": ["C", "F"]},
    }, "required": ["city"], "additionalProperties": false});
    let days = json!({"type": "object", "properties": {"days": {"type": "array", "items": {"type": "integer"}}}});
    vec![tool("get_weather", place), tool("get-days", days), Tool { parameters: None, ..tool("stop", json!({})) }]
}

fn tools(choice: ToolChoice, parallel: bool) -> Tools {
    Tools::new(weather(), choice, parallel).unwrap()
}

/// Text and calls of a whole answer.
fn read(tools: &Tools, text: &str) -> (String, Vec<ToolCall>) {
    let mut reader = tools.reader("7");
    let mut pieces = reader.push(text);
    pieces.extend(reader.finish());
    joined(pieces)
}

fn joined(pieces: Vec<Piece>) -> (String, Vec<ToolCall>) {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Content(content) => text.push_str(&content),
            Piece::Call(call) => calls.push(call),
        }
    }
    (text, calls)
}

fn check_calls(tools: &[Tool], calls: &[ToolCall]) {
    for call in calls {
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
        let tool = tools.iter().find(|tool| tool.name == call.name).unwrap();
        match &tool.parameters {
            Some(schema) => assert!(validator(schema).is_valid(&arguments), "{arguments} {schema}"),
            None => assert_eq!(arguments, json!({})),
        }
    }
}

#[test]
fn calls_that_must_be_made() {
    for (i, model) in MODELS.iter().enumerate() {
        let named = ToolChoice::Named("get_weather".into());
        for (choice, parallel) in [(ToolChoice::Required, true), (ToolChoice::Required, false), (named, true)] {
            let tools = tools(choice.clone(), parallel);
            let grammar = model.grammars.compile(Format::Text, Some(&tools)).unwrap().unwrap();
            for (j, taste) in TASTES.into_iter().enumerate() {
                let written = write(model, &grammar, 300, taste, (i * 7 + j) as u64);
                assert!(written.ended, "{}", written.text);
                let (text, calls) = read(&tools, &written.text);
                assert!(text.is_empty() && !calls.is_empty(), "{}", written.text);
                assert!(calls.len() == 1 || parallel && choice == ToolChoice::Required, "{}", written.text);
                assert!(choice != ToolChoice::Named("get_weather".into()) || calls[0].name == "get_weather");
                check_calls(&weather(), &calls);
            }
        }
    }
}

#[test]
fn random_arguments_are_valid() {
    for seed in 0..40 {
        let mut random = Random::new(seed + 10_000);
        let made: Vec<Tool> = (0..3)
            .map(|i| {
                let schema = loop {
                    let schema = schemas::schema(&mut random);
                    if schema["type"] == "object" {
                        break schema;
                    }
                };
                tool(&format!("tool_{i}"), schema)
            })
            .collect();
        let tools = Tools::new(made.clone(), ToolChoice::Required, true).unwrap();
        let model = &MODELS[seed as usize % MODELS.len()];
        let grammar = model.grammars.compile(Format::Text, Some(&tools)).unwrap().unwrap();
        let written = write(model, &grammar, 800, TASTES[seed as usize % TASTES.len()], seed);
        let (text, calls) = read(&tools, &written.text);
        assert!(written.ended && text.is_empty() && !calls.is_empty(), "{}", written.text);
        check_calls(&made, &calls);
    }
}

/// Prefers to go on to `<tool_call>` with the chance that is given, in percent, at every token.
fn write_with_calls(model: &Model, tools: &Tools, budget: usize, percent: usize, seed: u64) -> (String, bool) {
    let grammar = model.grammars.compile(Format::Text, Some(tools)).unwrap().unwrap();
    let mut constraint = grammar.constraint(budget).unwrap();
    let mut random = Random::new(seed);
    let mut text = Vec::new();
    for _ in 0..budget {
        let tokens = allowed(constraint.as_mut(), &model.tokenizer);
        let tag = b"<tool_call>";
        let begun = (0..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0);
        let onward = tokens.iter().copied().find(|&id| {
            let bytes = model.tokenizer.token_bytes(id);
            !bytes.is_empty() && tag[begun..].starts_with(bytes)
        });
        let token = match onward {
            Some(token) if random.chance(percent) => token,
            _ => *random.pick(&tokens),
        };
        constraint.accept(token).unwrap();
        if model.tokenizer.is_end(token) {
            return (String::from_utf8(text).unwrap(), true);
        }
        text.extend_from_slice(model.tokenizer.token_bytes(token));
    }
    (String::from_utf8_lossy(&text).into_owned(), false)
}

#[test]
fn calls_that_may_be_made() {
    let tools = tools(ToolChoice::Auto, true);
    let (mut with_calls, mut without) = (0, 0);
    for seed in 0..60 {
        let model = &MODELS[seed as usize % MODELS.len()];
        let (written, ended) = write_with_calls(model, &tools, 40 + 5 * seed as usize, 60 + seed as usize % 40, seed);
        let (text, calls) = read(&tools, &written);
        check_calls(&weather(), &calls);
        if written.contains("<tool_call>") {
            // Whoever begins a call can end it.
            with_calls += 1;
            assert!(ended && !calls.is_empty(), "{written}");
            assert_eq!(text, written[..written.find("<tool_call>").unwrap()].trim_end());
        } else {
            without += 1;
            assert_eq!(text, written);
        }
    }
    assert!(with_calls > 10 && without > 3, "{with_calls} {without}");
}

#[test]
fn text_fills_a_small_budget() {
    let tools = tools(ToolChoice::Auto, true);
    for model in MODELS.iter() {
        let grammar = model.grammars.compile(Format::Text, Some(&tools)).unwrap().unwrap();
        // Too few tokens for a call: text goes on to the last of them but the end.
        let written = write(model, &grammar, 6, Taste::Endless, 3);
        assert!(written.tokens == 6 && written.text.len() >= 3, "{}", written.text);
    }
}

#[test]
fn an_answer_in_json_or_calls() {
    let tools = tools(ToolChoice::Auto, true);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let mut kinds = [0, 0];
    for seed in 0..24 {
        let model = &MODELS[seed as usize % MODELS.len()];
        let grammar = model.grammars.compile(Format::JsonSchema(&schema), Some(&tools)).unwrap().unwrap();
        let written = write(model, &grammar, 200, TASTES[seed as usize / 6], seed);
        let (text, calls) = read(&tools, &written.text);
        assert!(written.ended);
        kinds[usize::from(calls.is_empty())] += 1;
        if calls.is_empty() {
            assert!(validator(&schema).is_valid(&serde_json::from_str(&text).unwrap()), "{text}");
        } else {
            assert_eq!(text, "");
            check_calls(&weather(), &calls);
        }
    }
    assert!(kinds.iter().all(|&kind| kind > 2), "{kinds:?}");
}

#[test]
fn reading_does_not_depend_on_cuts() {
    let tools = tools(ToolChoice::Auto, true);
    let call = Tools::call_text("get_weather", r#"{"city": "a </tool_call> \"<tool_call>\" ü"}"#);
    let texts = [
        format!("Let me look.\n\n{call}\n{}\n", Tools::call_text("stop", "{}")),
        format!("{call}{call}"),
        format!("  {call}  "),
        format!("é <tool_cal {call}"),
        "no call < <tool <tool_call\n ".to_owned(),
        " \n ".to_owned(),
        "cut <tool_call>{\"name\": \"stop\", \"argu".to_owned(),
        "other <tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>".to_owned(),
        String::new(),
    ];
    for text in &texts {
        let whole = read(&tools, text);
        for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            let mut reader = tools.reader("7");
            let mut pieces = reader.push(&text[..cut]);
            pieces.extend(reader.push(&text[cut..]));
            pieces.extend(reader.finish());
            assert_eq!(joined(pieces), whole, "{text} cut at {cut}");
        }
        let mut reader = tools.reader("7");
        let mut pieces: Vec<Piece> = text.chars().flat_map(|c| reader.push(&c.to_string())).collect();
        pieces.extend(reader.finish());
        assert_eq!(joined(pieces), whole, "{text}");
    }
    let (text, calls) = read(&tools, &texts[0]);
    assert_eq!((text.as_str(), calls.len()), ("Let me look.", 2));
    assert_eq!((calls[0].id.as_str(), calls[1].id.as_str()), ("call_7_0", "call_7_1"));
    assert_eq!(calls[0].arguments, r#"{"city":"a </tool_call> \"<tool_call>\" ü"}"#);
    assert_eq!(read(&tools, &texts[3]).0, "é <tool_cal");
    assert_eq!(read(&tools, &texts[4]), (texts[4].clone(), vec![]));
    assert_eq!(read(&tools, &texts[6]), ("cut".to_owned(), vec![]));
    assert_eq!(read(&tools, &texts[7]), ("other".to_owned(), vec![]));
}

#[test]
fn tools_that_are_refused() {
    let refused = |tools, choice| Tools::new(tools, choice, true).unwrap_err().to_string();
    assert!(refused(vec![], ToolChoice::Auto).contains("0 entries"));
    assert!(refused(vec![tool("a b", json!({}))], ToolChoice::Auto).contains("name of tool 0"));
    assert!(refused([weather(), weather()].concat(), ToolChoice::Auto).contains("two tools are called `get_weather`"));
    assert!(refused(weather(), ToolChoice::Named("x".into())).contains("names `x`"));
    let list = Tools::new(vec![tool("list", json!({"type": "array"}))], ToolChoice::Auto, true).unwrap();
    let refused = MODELS[0].grammars.compile(Format::Text, Some(&list));
    let refused = refused.err().map(|refused| refused.to_string()).unwrap_or_default();
    assert!(refused.contains("tools[0]"), "{refused}");
}

#[test]
fn a_model_is_told() {
    let text = tools(ToolChoice::Auto, true).system_text();
    for tool in weather() {
        assert!(
            text.contains(&format!("{{\"name\":\"{}\",\"description\":\"Does {}.\"", tool.name, tool.name)),
            "{text}"
        );
    }
    assert!(text.contains("<tool_call>{\"name\"") && text.ends_with("answer without one."));
    assert!(tools(ToolChoice::Required, false).system_text().contains("at most one tool"));
    assert_eq!(Tools::response_text("20 C"), "<tool_response>20 C</tool_response>");
}
