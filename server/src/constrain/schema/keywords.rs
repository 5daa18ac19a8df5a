//! The keywords of one schema object, checked.

use serde_json::{Map, Number, Value};
use std::rc::Rc;

use super::super::Refused;
use super::number::Bound;
use super::text::{MAX_MIN_LENGTH, format_regex};

/// What a value can be; of numbers, those without fraction are told from the others.
pub(super) type Types = u8;
pub(super) const NULL: Types = 1;
pub(super) const BOOLEAN: Types = 2;
pub(super) const INTEGER: Types = 4;
pub(super) const FRACTION: Types = 8;
pub(super) const STRING: Types = 16;
pub(super) const ARRAY: Types = 32;
pub(super) const OBJECT: Types = 64;
pub(super) const ALL: Types = 127;

/// A schema and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) schema: &'a Value,
    /// The whole document, which references are into.
    pub(super) document: &'a Value,
    pub(super) at: Rc<str>,
}

impl<'a> Place<'a> {
    /// What stands under `step`.
    pub(super) fn below(&self, schema: &'a Value, step: impl std::fmt::Display) -> Self {
        Self { schema, document: self.document, at: format!("{}/{step}", self.at).into() }
    }
}

/// A schema object.
#[derive(Debug)]
pub(super) struct Keywords<'a> {
    pub(super) place: Place<'a>,
    pub(super) types: Types,
    /// Whether `type` is given.
    pub(super) typed: bool,
    /// The types that other keywords speak of.
    pub(super) spoken_of: Types,
    /// Of `enum`, `const`.
    pub(super) values: Option<Vec<&'a Value>>,
    pub(super) reference: Option<&'a str>,
    pub(super) all_of: &'a [Value],
    pub(super) any_of: Option<&'a [Value]>,
    pub(super) one_of: Option<&'a [Value]>,
    pub(super) properties: Option<&'a Map<String, Value>>,
    pub(super) required: Vec<&'a str>,
    pub(super) additional: Option<&'a Value>,
    pub(super) min_properties: u64,
    pub(super) max_properties: Option<u64>,
    pub(super) prefix: &'a [Value],
    pub(super) items: Option<&'a Value>,
    pub(super) min_items: u64,
    pub(super) max_items: Option<u64>,
    pub(super) min_length: u64,
    pub(super) max_length: Option<u64>,
    pub(super) pattern: Option<&'a str>,
    pub(super) format: Option<&'static str>,
    pub(super) lower: Vec<Bound>,
    pub(super) upper: Vec<Bound>,
    pub(super) divisor: Option<u32>,
}

/// Formats that can be written.
const FORMATS: [&str; 10] =
    ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Formats that JSON Schema defines and that cannot. Other names are notes for people.
const OTHER_FORMATS: [&str; 9] = [
    "idn-email",
    "idn-hostname",
    "iri",
    "iri-reference",
    "uri-reference",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
];
const UNSUPPORTED: [&str; 16] = [
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "contains",
    "minContains",
    "maxContains",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];

fn refused(place: &Place, what: impl std::fmt::Display) -> Refused {
    Refused::new(format!("the schema cannot be used: {what}, at {}", place.at))
}

impl<'a> Keywords<'a> {
    /// # Errors
    /// A keyword that is not supported, and one whose value is of the wrong kind.
    pub(super) fn read(place: Place<'a>) -> Result<Self, Refused> {
        let wrong = |keyword: &str, what: &str| refused(&place, format!("`{keyword}` must be {what}"));
        let Value::Object(map) = place.schema else {
            return Err(refused(&place, "a schema must be an object, true or false"));
        };
        if let Some(keyword) = UNSUPPORTED.into_iter().find(|&keyword| map.contains_key(keyword)) {
            return Err(refused(&place, format!("`{keyword}` is not supported")));
        }
        let flag = |keyword: &str| match map.get(keyword) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(keyword, "true or false")),
        };
        if flag("uniqueItems")? {
            return Err(refused(&place, "`uniqueItems` is not supported"));
        }
        let list = |keyword: &str| match map.get(keyword) {
            None => Ok(None),
            Some(Value::Array(list)) if !list.is_empty() => Ok(Some(list.as_slice())),
            Some(_) => Err(wrong(keyword, "a list that is not empty")),
        };
        let text = |keyword: &str| match map.get(keyword) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| wrong(keyword, "a string")),
        };
        let count = |keyword: &str| match map.get(keyword) {
            None => Ok(None),
            Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
                (Some(count), _) => Ok(Some(count)),
                (None, Some(count)) if count >= 0.0 && count.fract() == 0.0 => Ok(Some(count as u64)),
                _ => Err(wrong(keyword, "a whole number, 0 or more")),
            },
            Some(_) => Err(wrong(keyword, "a whole number, 0 or more")),
        };
        let properties = match map.get("properties") {
            None => None,
            Some(value) => Some(value.as_object().ok_or_else(|| wrong("properties", "an object"))?),
        };
        let required = match map.get("required") {
            None => Vec::new(),
            Some(value) => {
                let names = value.as_array().and_then(|names| names.iter().map(Value::as_str).collect());
                names.ok_or_else(|| wrong("required", "a list of strings"))?
            }
        };
        let items = match map.get("items") {
            Some(Value::Array(_)) => {
                return Err(refused(&place, "`items` is a list, which is not supported; use `prefixItems`"));
            }
            items => items,
        };
        let min_length = count("minLength")?.unwrap_or(0);
        if min_length > MAX_MIN_LENGTH {
            return Err(refused(&place, format!("`minLength` is above {MAX_MIN_LENGTH}")));
        }
        let format = match text("format")? {
            Some(name) if OTHER_FORMATS.contains(&name) => {
                return Err(refused(&place, format!("`format` \"{name}\" is not supported; use `pattern`")));
            }
            name => name.and_then(|name| FORMATS.into_iter().find(|&format| format == name)),
        };
        debug_assert!(format.is_none_or(|format| format_regex(format).is_some()));
        let (types, typed) = types(&place, map.get("type"))?;
        let bound = |keyword: &str, exclusive: &str| bounds(&place, map, keyword, exclusive);
        let (lower, upper) = (bound("minimum", "exclusiveMinimum")?, bound("maximum", "exclusiveMaximum")?);
        let divisor = divisor(&place, map.get("multipleOf"))?;
        let reference = text("$ref")?;
        let spoken_of = SPEAK_OF.iter().filter(|(keyword, _)| map.contains_key(*keyword)).map(|(_, types)| types);
        Ok(Self {
            types,
            typed,
            spoken_of: spoken_of.fold(0, |all, types| all | types),
            values: values(map, list("enum")?),
            reference,
            all_of: list("allOf")?.unwrap_or_default(),
            any_of: list("anyOf")?,
            one_of: list("oneOf")?,
            properties,
            required,
            additional: map.get("additionalProperties"),
            min_properties: count("minProperties")?.unwrap_or(0),
            max_properties: count("maxProperties")?,
            prefix: list("prefixItems")?.unwrap_or_default(),
            items,
            min_items: count("minItems")?.unwrap_or(0),
            max_items: count("maxItems")?,
            min_length,
            max_length: count("maxLength")?,
            pattern: text("pattern")?,
            format,
            lower,
            upper,
            divisor,
            place,
        })
    }

    /// Whether a value is among those of `enum` and `const`.
    pub(super) fn lists(&self, value: &Value) -> bool {
        self.values.as_ref().is_none_or(|values| values.iter().any(|other| same(other, value)))
    }

    /// Whether it says anything but `allOf`, `anyOf`, `oneOf` and `$ref`.
    pub(super) fn says_something(&self) -> bool {
        self.typed || self.values.is_some() || self.spoken_of != 0
    }
}

/// What a schema without `type` speaks of.
const SPEAK_OF: [(&str, Types); 18] = [
    ("properties", OBJECT),
    ("required", OBJECT),
    ("additionalProperties", OBJECT),
    ("minProperties", OBJECT),
    ("maxProperties", OBJECT),
    ("prefixItems", ARRAY),
    ("items", ARRAY),
    ("minItems", ARRAY),
    ("maxItems", ARRAY),
    ("minLength", STRING),
    ("maxLength", STRING),
    ("pattern", STRING),
    ("format", STRING),
    ("minimum", INTEGER | FRACTION),
    ("maximum", INTEGER | FRACTION),
    ("exclusiveMinimum", INTEGER | FRACTION),
    ("exclusiveMaximum", INTEGER | FRACTION),
    ("multipleOf", INTEGER | FRACTION),
];

fn types(place: &Place, value: Option<&Value>) -> Result<(Types, bool), Refused> {
    let one = |value: &Value| match value.as_str() {
        Some("null") => Ok(NULL),
        Some("boolean") => Ok(BOOLEAN),
        Some("integer") => Ok(INTEGER),
        Some("number") => Ok(INTEGER | FRACTION),
        Some("string") => Ok(STRING),
        Some("array") => Ok(ARRAY),
        Some("object") => Ok(OBJECT),
        _ => Err(refused(place, "`type` must be null, boolean, integer, number, string, array or object")),
    };
    match value {
        None => Ok((ALL, false)),
        Some(Value::Array(list)) => {
            let types = list.iter().map(one).try_fold(0, |all, types| Ok(all | types?))?;
            Ok((types, true))
        }
        Some(value) => Ok((one(value)?, true)),
    }
}

fn values<'a>(map: &'a Map<String, Value>, list: Option<&'a [Value]>) -> Option<Vec<&'a Value>> {
    let listed = list.map(|list| list.iter().collect::<Vec<_>>());
    match (map.get("const"), listed) {
        (None, listed) => listed,
        (Some(value), None) => Some(vec![value]),
        (Some(value), Some(listed)) => Some(listed.into_iter().filter(|other| same(other, value)).collect()),
    }
}

fn bounds(place: &Place, map: &Map<String, Value>, inclusive: &str, exclusive: &str) -> Result<Vec<Bound>, Refused> {
    let number = |keyword: &str, value: &Value| -> Result<Number, Refused> {
        value.as_number().cloned().ok_or_else(|| refused(place, format!("`{keyword}` must be a number")))
    };
    let mut all = Vec::new();
    if let Some(value) = map.get(inclusive) {
        // In an old draft the exclusive keyword says how the other is meant.
        let strict = map.get(exclusive).and_then(Value::as_bool) == Some(true);
        all.push(Bound { number: number(inclusive, value)?, strict });
    }
    match map.get(exclusive) {
        None | Some(Value::Bool(_)) => {}
        Some(value) => all.push(Bound { number: number(exclusive, value)?, strict: true }),
    }
    Ok(all)
}

fn divisor(place: &Place, value: Option<&Value>) -> Result<Option<u32>, Refused> {
    let Some(value) = value else {
        return Ok(None);
    };
    // Whether 0.3 is a multiple of 0.1 depends on who divides.
    let whole = value.as_f64().filter(|number| *number >= 1.0 && number.fract() == 0.0 && *number <= 1000.0);
    let whole = whole.ok_or_else(|| refused(place, "`multipleOf` must be a whole number from 1 to 1000"))?;
    Ok(Some(whole as u32))
}

/// Equality of JSON: numbers are equal by value, objects whatever their order.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}
