//! Answers of a given form, whatever the model prefers: valid, complete in their budget, and ended.

mod refused;
mod schemas;
mod speed;
mod story;
mod tools;
mod writer;

use serde_json::{Value, json};
use tritone_runtime::tokenizer::{PreTokenizer, Tokenizer, VocabKind, VocabSpec};
use tritone_server::constrain::{Format, Grammars};
use writer::{MODELS, Model, Random, TASTES, Taste, allowed, write};

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

#[test]
fn tight_budgets_are_kept() {
    for seed in 0..150 {
        let mut random = Random::new(seed + 40_000);
        let schema = schemas::schema(&mut random);
        let model = &MODELS[seed as usize % MODELS.len()];
        let grammar = model.grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
        let budget = 2 + random.below(250);
        if grammar.constraint(budget).is_ok() {
            check(model, &schema, &[budget, budget + 1, budget + 9, budget + 30], seed);
        }
    }
}

/// Writes a few answers under a schema and checks each.
fn check(model: &Model, schema: &Value, budgets: &[usize], seed: u64) {
    let grammar = match model.grammars.compile(Format::JsonSchema(schema), None) {
        Ok(grammar) => grammar.unwrap(),
        Err(refused) => panic!("{refused}\n{schema}"),
    };
    let validator = validator(schema);
    for (i, &budget) in budgets.iter().enumerate() {
        let taste = TASTES[(seed as usize + i) % TASTES.len()];
        let written = write(model, &grammar, budget, taste, seed + i as u64);
        assert!(written.ended, "{taste:?} {budget} {}\n{schema}", written.text);
        let value: Value = match serde_json::from_str(&written.text) {
            Ok(value) => value,
            Err(error) => panic!("{taste:?}: {error}: {}\n{schema}", written.text),
        };
        if let Err(error) = validator.validate(&value) {
            panic!("{taste:?}: {error}: {}\n{schema}", written.text);
        }
    }
}

#[test]
fn random_schemas_are_kept() {
    for seed in 0..120 {
        let schema = schemas::schema(&mut Random::new(seed));
        let model = &MODELS[seed as usize % MODELS.len()];
        check(model, &schema, &[512, 600, 1024, 700], seed);
    }
}

#[test]
fn any_object() {
    for model in MODELS.iter() {
        let grammar = model.grammars.compile(Format::JsonObject, None).unwrap().unwrap();
        for (seed, taste) in TASTES.into_iter().enumerate() {
            for budget in [4, 10, 100, 400] {
                let written = write(model, &grammar, budget, taste, seed as u64);
                assert!(written.ended, "{taste:?} {}", written.text);
                let value: Value = serde_json::from_str(&written.text).unwrap();
                assert!(value.is_object(), "{value}");
            }
        }
    }
}

#[test]
fn text_has_no_grammar() {
    assert!(MODELS[0].grammars.compile(Format::Text, None).unwrap().is_none());
}

#[test]
fn a_budget_for_nothing_is_refused() {
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 100}}, "required": ["a"]});
    let grammar = MODELS[0].grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
    let refused = grammar.constraint(3).err().unwrap().to_string();
    assert!(refused.contains("there are 3"), "{refused}");
    // The smallest budget is enough.
    let smallest: usize = refused.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let written = write(&MODELS[0], &grammar, smallest, Taste::Endless, 1);
    assert!(written.ended && validator(&schema).is_valid(&serde_json::from_str(&written.text).unwrap()));
}

#[test]
fn long_strings_end_at_their_limit() {
    for (seed, max) in [1_000_usize, 1_001, 2_345].into_iter().enumerate() {
        let schema = json!({"type": "array", "items": {"type": "string", "maxLength": max}, "minItems": 1});
        for (model, taste) in MODELS.iter().flat_map(|model| [(model, Taste::Endless), (model, Taste::Long)]) {
            let grammar = model.grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
            let written = write(model, &grammar, 3_000, taste, seed as u64);
            let value: Value = serde_json::from_str(&written.text).unwrap();
            assert!(written.ended && validator(&schema).is_valid(&value), "{}", written.text);
            let length = value[0].as_str().unwrap().chars().count();
            assert!(length == max || written.tokens == 3_000, "{length} of {max}");
        }
    }
}

#[test]
fn depth_is_limited() {
    let schema = json!({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "object", "properties": {"a": {"$ref": "#"}}}]});
    for model in MODELS.iter() {
        for (schema, seed) in [(&schema, 1), (&json!({}), 2), (&json!({"type": "array"}), 3)] {
            let grammar = model.grammars.compile(Format::JsonSchema(schema), None).unwrap().unwrap();
            let written = write(model, &grammar, 2_000, Taste::Opening, seed);
            // The parser gives up at 128 values within each other.
            let value = serde_json::from_str(&written.text).map_err(|error| format!("{error}: {}", written.text));
            assert!(written.ended && validator(schema).is_valid(&value.unwrap()));
        }
    }
}

#[test]
fn forks_go_their_own_ways() {
    let schema = json!({"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 30, "maxItems": 40});
    for model in MODELS.iter() {
        let grammar = model.grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
        let mut first = grammar.constraint(600).unwrap();
        let mut random = Random::new(5);
        for _ in 0..20 {
            let tokens = allowed(first.as_mut(), &model.tokenizer);
            first.accept(*random.pick(&tokens)).unwrap();
        }
        let before = allowed(first.as_mut(), &model.tokenizer);
        let mut second = first.fork();
        assert_eq!(allowed(second.as_mut(), &model.tokenizer), before);
        // One goes on to its end, and the other is where it was, in its form and its budget.
        let mut steps = 0;
        loop {
            let tokens = allowed(second.as_mut(), &model.tokenizer);
            steps += 1;
            let token = *random.pick(&tokens);
            second.accept(token).unwrap();
            if model.tokenizer.is_end(token) {
                break;
            }
        }
        assert!(steps <= 580);
        assert!(allowed(second.as_mut(), &model.tokenizer).is_empty());
        assert_eq!(allowed(first.as_mut(), &model.tokenizer), before);
        let fork = allowed(first.fork().as_mut(), &model.tokenizer);
        assert_eq!(fork, before);
    }
}

/// A vocabulary of bytes, in both kinds, without end tokens.
fn without_ends(kind: VocabKind) -> Model {
    let mut words: Vec<String> = match kind {
        VocabKind::Spm => (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect(),
        VocabKind::Bpe(_) => {
            let alphabet: Vec<char> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').collect();
            let others = (0..256 - alphabet.len() as u32).filter_map(|i| char::from_u32(256 + i));
            alphabet.iter().copied().chain(others).map(String::from).collect()
        }
    };
    if kind == VocabKind::Spm {
        words.extend(["{", "}", "▁{", "▁\"", "\":", "ab", "▁12"].map(str::to_owned));
    }
    let mut spec = VocabSpec::new(kind);
    spec.tokens = words.iter().map(String::as_bytes).collect();
    spec.scores = if kind == VocabKind::Spm { vec![0.0; words.len()] } else { Vec::new() };
    Model::new(Tokenizer::new(&spec).unwrap())
}

#[test]
fn without_end_tokens_nothing_follows() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    for kind in [VocabKind::Spm, VocabKind::Bpe(PreTokenizer::Gpt2)] {
        let model = without_ends(kind);
        let grammar = model.grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
        for budget in [8, 30] {
            let mut constraint = grammar.constraint(budget).unwrap();
            let (mut text, mut random) = (Vec::new(), Random::new(budget as u64));
            let mut tokens = 0;
            loop {
                let choices = allowed(constraint.as_mut(), &model.tokenizer);
                if choices.is_empty() {
                    break;
                }
                let token = *random.pick(&choices);
                constraint.accept(token).unwrap();
                text.extend_from_slice(model.tokenizer.token_bytes(token));
                tokens += 1;
            }
            assert!(tokens <= budget);
            assert!(validator(&schema).is_valid(&serde_json::from_slice(&text).unwrap()));
        }
        assert!(grammar.constraint(5).is_err());
    }
}

#[test]
fn a_vocabulary_that_is_too_large_is_refused() {
    let mut words: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    words.extend((0..25_000).map(|i| format!("{i:0>200}")));
    // Tokens that no answer has count for nothing.
    words.push("=".repeat(5 << 20));
    let mut spec = VocabSpec::new(VocabKind::Spm);
    spec.tokens = words.iter().map(String::as_bytes).collect();
    spec.scores = vec![0.0; words.len()];
    let refused = Grammars::new(&Tokenizer::new(&spec).unwrap()).err().unwrap().to_string();
    assert!(refused.contains("have 5000255 bytes"), "{refused}");
}
