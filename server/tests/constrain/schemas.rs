//! Random schemas.

use crate::writer::Random;
use serde_json::{Map, Value, json};

const NAMES: [&str; 12] =
    ["name", "age", "tags", "id", "größe", "a \"quoted\" key", "back\\slash", "x", "kind", "items", "next", "ok"];
const WORDS: [&str; 8] = ["red", "green", "", "a \"b\"", "ünï", "line\nbreak", "blue-ish", "🙂"];
const PATTERNS: [&str; 9] = [
    "^[a-z]{3,8}$",
    "^\\d{4}-\\d{2}$",
    "^(foo|bar|bazinga)+$",
    "^[A-Z][a-z]*( [A-Z][a-z]*){0,3}$",
    "ab+c",
    "^\\+?[0-9]{7,15}$",
    "^#([0-9a-f]{3}|[0-9a-f]{6})$",
    "^[^@ ]+@[^@ ]+$",
    "^\\w+\\s\\S+$",
];
const FORMATS: [&str; 10] =
    ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// A schema that has finite values.
pub fn schema(random: &mut Random) -> Value {
    let mut made = value(random, 4);
    if random.chance(60) {
        made = object(random, 4);
    }
    if let (Some(made), true) = (made.as_object_mut(), random.chance(40)) {
        // The definitions must not need each other without end.
        let node = json!({
            "type": "object",
            "properties": {
                "value": value(random, 1),
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": (if random.chance(50) { vec!["value", "next"] } else { vec!["children"] }),
            "additionalProperties": false,
        });
        made.insert("$defs".into(), json!({"node": node, "leaf": value(random, 1)}));
        if let Some(properties) = made.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert("root".into(), json!({"$ref": "#/$defs/node", "description": "a tree"}));
            properties.insert("leaf".into(), json!({"allOf": [{"$ref": "#/$defs/leaf"}], "title": "a leaf"}));
        }
    }
    made
}

fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 7 } else { 12 }) {
        0 => json!({"type": *random.pick(&["null", "boolean"])}),
        1 => number(random, "integer"),
        2 => number(random, "number"),
        3 | 4 => string(random),
        5 => {
            let mut values: Vec<Value> = (0..1 + random.below(4)).map(|_| json!(random.pick(&WORDS))).collect();
            if random.chance(30) {
                values.extend([json!(null), json!(3), json!(1.5), json!({"a": [1, {"b": null}]})]);
            }
            json!({"enum": values})
        }
        6 => json!({"const": random.pick(&[json!("fixed"), json!(-7), json!(0.25), json!([1, "x"]), json!(true)])}),
        7 | 8 => object(random, depth),
        9 | 10 => array(random, depth),
        _ => choice(random, depth),
    }
}

fn number(random: &mut Random, kind: &str) -> Value {
    let mut made = json!({"type": kind});
    let low = random.below(4000) as i64 - 2000;
    let high = low + 1 + random.below(3000) as i64;
    let scaled = |n: i64| if kind == "number" { json!(n as f64 / 8.0) } else { json!(n) };
    if random.chance(60) {
        made[*random.pick(&["minimum", "exclusiveMinimum"])] = scaled(low);
    }
    if random.chance(60) {
        made[*random.pick(&["maximum", "exclusiveMaximum"])] = scaled(high + 1);
    }
    if random.chance(20) && made.get("minimum").is_none() && made.get("exclusiveMinimum").is_none() {
        made["multipleOf"] = json!(1 + random.below(20));
    }
    made
}

fn string(random: &mut Random) -> Value {
    let mut made = json!({"type": "string"});
    match random.below(5) {
        0 => made["pattern"] = json!(random.pick(&PATTERNS)),
        1 => made["format"] = json!(random.pick(&FORMATS)),
        2 => {
            let min = random.below(6);
            made["minLength"] = json!(min);
            if random.chance(70) {
                made["maxLength"] = json!(min + random.below(30));
            }
        }
        _ => {}
    }
    made
}

fn array(random: &mut Random, depth: usize) -> Value {
    let mut made = json!({"type": "array", "items": value(random, depth - 1)});
    let min = random.below(4);
    if random.chance(40) {
        made["minItems"] = json!(min);
    }
    if random.chance(40) {
        made["maxItems"] = json!(min + random.below(30));
    }
    if random.chance(20) {
        made["prefixItems"] = json!([value(random, depth - 1), value(random, depth - 1)]);
        if random.chance(50) {
            made["items"] = json!(false);
            made.as_object_mut().unwrap().remove("minItems");
        }
    }
    made
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for _ in 0..random.below(6) {
        let name = *random.pick(&NAMES);
        properties.insert(name.into(), value(random, depth - 1));
        if random.chance(60) && !required.contains(&name) {
            required.push(name);
        }
    }
    let mut made = json!({"type": "object", "properties": properties, "required": required});
    match random.below(4) {
        0 => made["additionalProperties"] = json!(false),
        1 => made["additionalProperties"] = value(random, depth - 1),
        2 if random.chance(30) => {
            made = json!({"type": "object", "additionalProperties": value(random, depth - 1)});
            made["minProperties"] = json!(random.below(2));
            made["maxProperties"] = json!(3);
        }
        3 if required.is_empty()
            && random.chance(20)
            && made["properties"].as_object().is_some_and(|named| !named.is_empty()) =>
        {
            made["minProperties"] = json!(1)
        }
        _ => {}
    }
    made
}

fn choice(random: &mut Random, depth: usize) -> Value {
    if random.chance(30) {
        let member = |random: &mut Random, kind: &str| {
            let mut member = object(random, depth);
            member["properties"]["kind"] = json!({"const": kind});
            member["required"] = json!(["kind"]);
            member.as_object_mut().unwrap().remove("minProperties");
            member.as_object_mut().unwrap().remove("maxProperties");
            member
        };
        return json!({"oneOf": [member(random, "circle"), member(random, "square"), {"type": "integer"}]});
    }
    let members: Vec<Value> = (0..2 + random.below(3)).map(|_| value(random, depth - 1)).collect();
    json!({"anyOf": members})
}
