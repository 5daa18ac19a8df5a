//! Schemas that are refused, each with a sentence that says what and where; and hostile ones, quickly.

use crate::writer::{MODELS, Random, TASTES, write};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use tritone_server::constrain::Format;

/// What is said about a schema; nothing if it is taken.
fn refusal(schema: &Value) -> Option<String> {
    let refused = MODELS[0].grammars.compile(Format::JsonSchema(schema), None).err()?.to_string();
    assert!(!refused.contains('\n') && refused.len() < 400, "{refused}");
    Some(refused)
}

fn under(keyword: &str, value: Value) -> Value {
    json!({"type": "object", "properties": {"a": {"type": ["object", "array", "string", "number"], keyword: value}}})
}

#[test]
fn what_is_not_supported_is_named() {
    let object = || json!({"type": "object"});
    let unsupported = [
        ("not", object()),
        ("if", object()),
        ("then", object()),
        ("else", object()),
        ("patternProperties", json!({"^a": true})),
        ("propertyNames", object()),
        ("dependencies", json!({})),
        ("dependentRequired", json!({})),
        ("dependentSchemas", json!({})),
        ("contains", object()),
        ("minContains", json!(1)),
        ("maxContains", json!(1)),
        ("unevaluatedItems", json!(false)),
        ("unevaluatedProperties", json!(false)),
        ("$dynamicRef", json!("#a")),
        ("$recursiveRef", json!("#")),
        ("uniqueItems", json!(true)),
        ("items", json!([true])),
        ("multipleOf", json!(0.01)),
        ("format", json!("idn-email")),
        ("format", json!("regex")),
        ("pattern", json!("(?=a)b")),
        ("pattern", json!("(a")),
        ("pattern", json!("\\ba")),
        ("pattern", json!("a".repeat(2000))),
        ("$ref", json!("https://example.com/schema")),
        ("$ref", json!("#/$defs/none")),
        ("$ref", json!("#anchor")),
        ("minLength", json!(100_000)),
        ("oneOf", json!([{"type": "string"}, {"type": "string", "minLength": 3}])),
        ("minProperties", json!(2)),
    ];
    for (keyword, value) in unsupported {
        let schema = under(keyword, value);
        let refused = refusal(&schema).unwrap_or_else(|| panic!("{schema} is taken"));
        assert!(refused.contains(&format!("`{keyword}`")), "{keyword}: {refused}");
        assert!(refused.contains("#/properties/a"), "{keyword}: {refused}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let wrong = [
        ("type", json!("text")),
        ("type", json!([1])),
        ("enum", json!("a")),
        ("enum", json!([])),
        ("properties", json!([])),
        ("required", json!("a")),
        ("required", json!([1])),
        ("minLength", json!(-1)),
        ("maxLength", json!(1.5)),
        ("maxItems", json!("1")),
        ("minimum", json!("1")),
        ("exclusiveMaximum", json!("1")),
        ("multipleOf", json!(0)),
        ("pattern", json!(1)),
        ("anyOf", json!({})),
        ("allOf", json!([])),
        ("uniqueItems", json!(1)),
        ("$ref", json!(1)),
    ];
    for (keyword, value) in wrong {
        let mut schema = under("title", json!("-"));
        schema["properties"]["a"][keyword] = value;
        let refused = refusal(&schema).unwrap_or_else(|| panic!("{schema} is taken"));
        assert!(refused.contains(&format!("`{keyword}`")), "{keyword}: {refused}");
        assert!(refused.contains("#/properties/a"), "{keyword}: {refused}");
    }
    for schema in [json!(1), json!([]), json!("a"), json!({"items": 3})] {
        assert!(refusal(&schema).unwrap().contains("must be an object"));
    }
}

#[test]
fn what_says_nothing_is_taken() {
    let notes = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/a", "$comment": "-",
        "title": "-", "description": "-", "default": 3, "examples": [1], "deprecated": true, "readOnly": true,
        "x-order": 3, "discriminator": {"propertyName": "kind"}, "nullable": false, "uniqueItems": false,
        "type": "object",
        "properties": {"path": {"type": "string", "format": "path"}, "n": {"type": "integer", "format": "int32"}},
    });
    assert_eq!(refusal(&notes), None);
    assert_eq!(refusal(&json!({})), None);
    assert_eq!(refusal(&json!(true)), None);
}

#[test]
fn what_has_no_values_is_refused() {
    let endless = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
    let itself = json!({"anyOf": [{"$ref": "#"}, {"type": "string"}]});
    let schemas = [
        json!(false),
        endless,
        itself,
        json!({"type": "string", "minLength": 3, "maxLength": 2}),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3}),
        json!({"type": "integer", "minimum": 1e30}),
        json!({"type": "array", "minItems": 2, "maxItems": 1}),
        json!({"type": "array", "items": false, "minItems": 1}),
        json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
        json!({"type": "object", "required": ["a"], "additionalProperties": false}),
        json!({"type": "string", "enum": [1, 2]}),
        json!({"const": 1, "enum": [2]}),
        json!({"type": "string", "pattern": "^a$", "format": "date"}),
        json!({"allOf": [{"type": "string"}, {"type": "null"}]}),
        json!({"type": "array", "items": {"type": "string", "minLength": 2000}, "minItems": 1000}),
    ];
    for schema in &schemas {
        let refused = refusal(schema).unwrap_or_else(|| panic!("{schema} is taken"));
        assert!(refused.contains("the schema cannot be used"), "{refused}");
    }
    // Where there is another way, it is taken.
    assert_eq!(
        refusal(&json!({"anyOf": [false, {"type": "integer", "minimum": 3, "maximum": 2}, {"const": 1}]})),
        None
    );
    assert_eq!(refusal(&json!({"type": "object", "properties": {"a": false, "b": {"$ref": "#"}}})), None);
}

/// Nests `inner` in `depth` objects of one keyword.
fn nested(keyword: &str, depth: usize, inner: Value) -> Value {
    (0..depth).fold(inner, |inner, _| match keyword {
        "properties" => json!({"properties": {"a": inner}, "required": ["a"]}),
        "allOf" | "anyOf" | "oneOf" => json!({keyword: [inner]}),
        _ => json!({keyword: inner}),
    })
}

/// Each definition has two ways to the next.
fn doubling(keyword: &str, depth: usize) -> Value {
    let mut definitions = Map::new();
    for i in 0..depth {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        definitions.insert(format!("d{i}"), json!({keyword: [next, {"allOf": [next], "minLength": i}]}));
    }
    definitions.insert(format!("d{depth}"), json!({"type": "string"}));
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

#[test]
fn hostile_schemas_end_quickly() {
    let many = |count: usize, value: &dyn Fn(usize) -> Value| (0..count).map(value).collect::<Vec<_>>();
    let named = |count: usize, value: &dyn Fn(usize) -> Value| {
        (0..count).map(|i| (format!("property_{i}"), value(i))).collect::<Map<_, _>>()
    };
    let mut schemas = vec![
        ("deep properties", nested("properties", 60, json!({"type": "string"}))),
        ("deep items", nested("items", 120, json!({"type": "string"}))),
        ("too deep", nested("items", 400, json!({"type": "string"}))),
        ("deep allOf", nested("allOf", 60, json!({"type": "string"}))),
        ("deep anyOf", nested("anyOf", 60, json!({"type": "string"}))),
        ("deep oneOf", nested("oneOf", 60, json!({"type": "string"}))),
        ("long enum", json!({"enum": many(10_000, &|i| json!(format!("value {i}")))})),
        ("huge enum", json!({"enum": many(100_000, &|i| json!(i))})),
        ("large enum values", json!({"enum": many(20, &|i| json!(format!("{i}").repeat(10_000)))})),
        (
            "enum with pattern",
            json!({"enum": many(15_000, &|i| json!(i.to_string())), "type": "string", "pattern": "^.*7.*$"}),
        ),
        ("many properties", json!({"properties": named(3_000, &|_| json!({"type": "integer"}))})),
        ("many optional", json!({"properties": named(1_000, &|_| json!({"type": "integer"}))})),
        ("wider anyOf", json!({"anyOf": many(2_000, &|i| json!({"const": i}))})),
        (
            "many required",
            json!({"properties": named(900, &|_| json!({"type": "integer"})),
            "required": many(900, &|i| json!(format!("property_{i}")))}),
        ),
        (
            "wide anyOf",
            json!({"anyOf": many(256, &|i| json!({"properties": {"kind": {"const": i}}, "required": ["kind"]}))}),
        ),
        (
            "wide oneOf",
            json!({"oneOf": many(256, &|i| json!({"properties": {"kind": {"const": i}}, "required": ["kind"]}))}),
        ),
        (
            "alike anyOf",
            json!({"type": "array", "items": {"anyOf": many(256, &|i| json!({"type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": i}}}))}}),
        ),
        (
            "many references",
            json!({"$defs": named(2_000, &|i| json!({"items": {"$ref": format!("#/$defs/property_{}", (i + 1) % 2_000)}})),
            "$ref": "#/$defs/property_0"}),
        ),
        (
            "product of anyOf",
            json!({"allOf": many(12, &|i| json!({"anyOf": [{"minLength": i}, {"maxLength": 100 - i}, {"minLength": 2 * i}]}))}),
        ),
        ("exponential pattern", json!({"type": "string", "pattern": "^(a|b)*a(a|b){40}$"})),
        ("counted pattern", json!({"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"})),
        ("nested counts", json!({"type": "string", "pattern": "^(((x{1,1000}){1,1000}){1,1000}){1,1000}$"})),
        ("classes", json!({"type": "string", "pattern": "^[\\p{L}\\p{N}]{0,500}$"})),
        ("many patterns", json!({"allOf": many(40, &|i| json!({"type": "string", "pattern": format!("a.{{{i}}}b")}))})),
        ("long bounds", json!({"type": "string", "minLength": 1_999, "maxLength": 2_000})),
        (
            "endless bounds",
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 90_000, "maxItems": u64::MAX}),
        ),
        ("large bounds", json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000})),
        ("nested bounds", nested_bounds(12)),
        ("divisors", json!({"allOf": many(40, &|i| json!({"type": "integer", "multipleOf": 961 + i}))})),
        ("long names", json!({"properties": named(20, &|_| json!({"properties": {"a".repeat(10_000): true}}))})),
        (
            "recursion",
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}], "properties": {"x": {"$ref": "#/$defs/b"}}},
            "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "properties": {"x": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}),
        ),
        (
            "additional names",
            json!({"properties": named(500, &|_| json!({"type": "null"})), "additionalProperties": true}),
        ),
    ];
    for keyword in ["anyOf", "oneOf", "allOf"] {
        schemas.push(("doubling", doubling(keyword, 60)));
    }
    for (name, schema) in &schemas {
        let began = Instant::now();
        let refused = refusal(schema);
        let taken = began.elapsed();
        println!("{name}: {taken:.0?}: {}", refused.as_deref().unwrap_or("taken"));
        assert!(taken < Duration::from_secs(20), "{name}: {taken:?}");
        if refused.is_none() {
            let grammar = MODELS[1].grammars.compile(Format::JsonSchema(schema), None).unwrap().unwrap();
            for taste in TASTES {
                let began = Instant::now();
                let answer = write(&MODELS[1], &grammar, 20_000, taste, 5);
                println!("   {taste:?}: {} tokens, {:.0?}", answer.tokens, began.elapsed());
                assert!(answer.ended && serde_json::from_str::<Value>(&answer.text).is_ok(), "{name}: {}", answer.text);
            }
        }
    }
}

fn nested_bounds(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "integer"}), |items, _| json!({"type": "array", "items": items, "maxItems": 1_000}))
}

/// Schemas of random keywords with random values, and patterns of random pieces: no panic, and soon an answer. What is
/// taken is kept.
#[test]
fn random_nonsense_ends_quickly() {
    let (mut taken, mut written) = (0, 0);
    for seed in 0..400 {
        let mut random = Random::new(seed + 77);
        let schema = nonsense(&mut random, 4);
        let began = Instant::now();
        let refused = refusal(&schema);
        assert!(began.elapsed() < Duration::from_secs(20), "{schema}");
        if refused.is_some() {
            continue;
        }
        taken += 1;
        let model = &MODELS[seed as usize % MODELS.len()];
        let grammar = model.grammars.compile(Format::JsonSchema(&schema), None).unwrap().unwrap();
        let Ok(validator) = jsonschema::options().should_validate_formats(true).build(&schema) else { continue };
        if grammar.constraint(300).is_err() {
            continue;
        }
        let answer = write(model, &grammar, 300, TASTES[seed as usize / 4 % TASTES.len()], seed);
        assert!(answer.ended, "{}\n{schema}", answer.text);
        let value: Value = serde_json::from_str(&answer.text).unwrap();
        assert!(validator.is_valid(&value), "{value}\n{schema}");
        written += 1;
    }
    assert!(taken > 40 && written > 30, "{taken} {written}");
}

fn nonsense(random: &mut Random, depth: usize) -> Value {
    const KEYWORDS: [&str; 31] = [
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "anyOf",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "minProperties",
        "maxProperties",
        "title",
        "not",
        "uniqueItems",
        "$defs",
    ];
    let mut made = Map::new();
    for _ in 0..random.below(5) {
        let keyword = *random.pick(&KEYWORDS);
        let value = if random.chance(3) { plain(random) } else { fitting(random, keyword, depth) };
        made.insert(keyword.into(), value);
    }
    Value::Object(made)
}

/// Any value.
fn plain(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(-1),
        json!(1e308),
        json!(3.5),
        json!("#"),
        json!([]),
        json!({}),
        json!(u64::MAX),
        json!(true),
    ];
    random.pick(&values).clone()
}

/// A value that a keyword may have.
fn fitting(random: &mut Random, keyword: &str, depth: usize) -> Value {
    let schema = |random: &mut Random| match depth {
        0 => json!({"type": *random.pick(&["string", "integer", "null", "object"])}),
        _ => nonsense(random, depth - 1),
    };
    let names = ["a", "b", "kind", "\u{0}\"\\"];
    let kinds = ["string", "integer", "number", "null", "boolean", "array", "object"];
    let count = random.below(5);
    match keyword {
        "type" => json!(random.pick(&kinds)),
        "enum" => (0..=count).map(|_| plain(random)).collect(),
        "const" => plain(random),
        "properties" | "$defs" => {
            (0..count).map(|i| (names[i % 4].to_owned(), schema(random))).collect::<Map<_, _>>().into()
        }
        "required" => json!(names[..count.min(4)]),
        "additionalProperties" | "items" | "not" => schema(random),
        "prefixItems" | "anyOf" | "oneOf" | "allOf" => (0..=count).map(|_| schema(random)).collect(),
        "pattern" => json!(pattern(random)),
        "format" => json!(random.pick(&["date", "ipv6", "uri", "email", "int32"])),
        "$ref" => json!(random.pick(&["#", "#/$defs/a", "#/properties/b", "#/items"])),
        "title" => json!("-"),
        "uniqueItems" => json!(random.chance(20)),
        "multipleOf" => json!(1 + random.below(1000)),
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
            json!(random.below(2000) as f64 / 4.0 - 250.0)
        }
        _ => json!(random.below(40)),
    }
}

fn pattern(random: &mut Random) -> String {
    const PIECES: [&str; 26] = [
        "a", "b", "ab", "[a-z]", "[^x]", ".", "\\d", "\\w", "\\s", "\\S", "\\W", "(", ")", "|", "*", "+", "?", "{3}",
        "{2,50}", "{0,300}", "^", "$", "ü", "\\.", "\\p{L}", "\\n",
    ];
    let mut pattern = String::new();
    let mut open = 0;
    for _ in 0..random.below(14) {
        let piece = *random.pick(&PIECES);
        match piece {
            "(" => open += 1,
            ")" if open == 0 => continue,
            ")" => open -= 1,
            _ => {}
        }
        pattern.push_str(piece);
    }
    pattern + &")".repeat(open)
}
