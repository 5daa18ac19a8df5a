//! Which values are valid, and which schemas exclude each other.

use serde_json::Value;
use std::rc::Rc;

use super::super::Refused;
use super::containers::{others_are_written, property_places};
use super::keywords::{ARRAY, BOOLEAN, FRACTION, INTEGER, Keywords, NULL, OBJECT, STRING, Types};
use super::number::Bound;
use super::{Part, Place, Schemas, referred, written_types};

/// How deep `oneOf` is looked into.
const MAX_DEPTH: usize = 6;
/// How much of schemas is looked at for one value.
const MAX_WORK: usize = 400;

impl<'a> Schemas<'a, '_> {
    /// Refuses a `oneOf` of which two members might hold at once.
    pub(super) fn check_exclusive(&mut self, parts: &[Part<'a>], choice: usize) -> Result<(), Refused> {
        let options = self.options(parts, choice)?;
        for (i, a) in options.iter().enumerate() {
            for (j, b) in options.iter().enumerate() {
                let (Some(a), Some(b)) = (a, b) else { continue };
                if i != j && !self.excludes(a, b, 0)? {
                    return Err(Refused::new(format!(
                        "the schema cannot be used: members {} and {} of `oneOf` may both hold, at {}; use `anyOf`, or \
                         give them a required property with different constants",
                        i.min(j),
                        i.max(j),
                        parts[choice].keywords.place.at
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether what is written for `a` is known not to be valid under `b`.
    fn excludes(&mut self, a: &[Part<'a>], b: &[Part<'a>], depth: usize) -> Result<bool, Refused> {
        if depth > MAX_DEPTH {
            return Ok(false);
        }
        for (parts, first) in [(a, true), (b, false)] {
            let Some(choice) = parts.iter().position(|part| part.any_of || part.one_of) else { continue };
            for option in self.options(parts, choice)?.into_iter().flatten() {
                let excludes =
                    if first { self.excludes(&option, b, depth + 1)? } else { self.excludes(a, &option, depth + 1)? };
                if !excludes {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        self.pay(1, a.first().map_or("", |part| &part.keywords.place.at))?;
        if let Some(values) = self.listed(a)? {
            return Ok(values
                .iter()
                .all(|value| b.iter().any(|part| !part.keywords.lists(value) || !holds(&part.keywords, value))));
        }
        let common = written_types(a) & b.iter().fold(u8::MAX, |types, part| types & part.keywords.types);
        Ok(common == 0 || common == OBJECT && self.objects_exclude(a, b, depth)?)
    }

    fn objects_exclude(&mut self, a: &[Part<'a>], b: &[Part<'a>], depth: usize) -> Result<bool, Refused> {
        let needs = |parts: &[Part<'a>]| -> Vec<&'a str> {
            parts.iter().flat_map(|part| part.keywords.required.iter().copied()).collect()
        };
        let names = |parts: &[Part<'a>], name: &str| {
            parts.iter().any(|part| part.keywords.properties.is_some_and(|properties| properties.contains_key(name)))
        };
        // What is always written, and cannot be in b.
        for name in needs(a) {
            let (Some(in_a), Some(in_b)) =
                (self.expand(property_places(a, Some(name)))?, self.expand(property_places(b, Some(name)))?)
            else {
                return Ok(true);
            };
            if self.excludes(&in_a, &in_b, depth + 1)? {
                return Ok(true);
            }
        }
        // What b needs, and is written otherwise or never.
        for name in needs(b) {
            if !names(a, name) && !others_are_written(a) {
                return Ok(true);
            }
            let (Some(in_a), Some(in_b)) =
                (self.expand(property_places(a, Some(name)))?, self.expand(property_places(b, Some(name)))?)
            else {
                return Ok(true);
            };
            if self.excludes(&in_a, &in_b, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a value is valid under one schema object, but for its lists of values and of schemas, and its `$ref`.
pub(super) fn holds(keywords: &Keywords, value: &Value) -> bool {
    holds_but_listed(keywords, value, &mut MAX_WORK.clone())
}

fn types_of(value: &Value) -> Types {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => BOOLEAN,
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => INTEGER,
        Value::Number(_) => FRACTION,
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::Object(_) => OBJECT,
    }
}

fn holds_but_listed(keywords: &Keywords, value: &Value, work: &mut usize) -> bool {
    let rest = match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let bound = |bound: &Bound| bound.number.as_f64().unwrap_or(f64::NAN);
            keywords.lower.iter().all(|b| number > bound(b) || !b.strict && number == bound(b))
                && keywords.upper.iter().all(|b| number < bound(b) || !b.strict && number == bound(b))
                && keywords.divisor.is_none_or(|divisor| number % f64::from(divisor) == 0.0)
        }
        Value::String(text) => {
            let length = text.chars().count() as u64;
            length >= keywords.min_length
                && keywords.max_length.is_none_or(|max| length <= max)
                && super::text::fits(text, keywords.pattern, keywords.format)
        }
        Value::Array(items) => {
            let length = items.len() as u64;
            length >= keywords.min_items
                && keywords.max_items.is_none_or(|max| length <= max)
                && items.iter().enumerate().all(|(i, item)| match (keywords.prefix.get(i), keywords.items) {
                    (Some(schema), _) | (None, Some(schema)) => valid(keywords.place.below(schema, i), item, work),
                    (None, None) => true,
                })
        }
        Value::Object(members) => {
            let count = members.len() as u64;
            count >= keywords.min_properties
                && keywords.max_properties.is_none_or(|max| count <= max)
                && keywords.required.iter().all(|&name| members.contains_key(name))
                && members.iter().all(|(name, member)| {
                    let schema = keywords.properties.and_then(|properties| properties.get(name));
                    schema
                        .or(keywords.additional)
                        .is_none_or(|schema| valid(keywords.place.below(schema, name), member, work))
                })
        }
        _ => true,
    };
    keywords.types & types_of(value) != 0 && rest
}

/// Whether a value is valid under a schema; not, if that takes too much work to say.
fn valid(place: Place, value: &Value, work: &mut usize) -> bool {
    match place.schema {
        Value::Bool(valid) => return *valid,
        _ if *work == 0 => return false,
        _ => *work -= 1,
    }
    let Ok(keywords) = Keywords::read(place).map(Rc::new) else {
        return false;
    };
    let place = &keywords.place;
    let mut one = |schema| valid(place.below(schema, ""), value, work);
    keywords.all_of.iter().all(&mut one)
        && keywords.any_of.is_none_or(|members| members.iter().any(&mut one))
        && keywords.one_of.is_none_or(|members| members.iter().filter(|member| one(member)).count() == 1)
        && keywords.reference.is_none_or(|reference| referred(place, reference).is_ok_and(|to| valid(to, value, work)))
        && keywords.lists(value)
        && holds_but_listed(&keywords, value, work)
}
