//! Answers of a given form, whatever the model prefers: valid, complete in their budget, and ended.

mod refused;
mod schemas;
mod speed;
mod tools;
mod writer;

use serde_json::{Value, json};
use tritone_server::constrain::Format;
use writer::{MODELS, Model, Random, TASTES, Taste, write};

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
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
