//! The fields of a JSON object, to be read one by one.

use super::error::ApiError;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;

/// No request has as many fields.
const MAX_FIELDS: usize = 256;

/// Fields that nobody has read yet, as text.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    raw: BTreeMap<String, &'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut raw = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if raw.len() == MAX_FIELDS {
                        return Err(A::Error::custom(format_args!("more than {MAX_FIELDS} fields")));
                    }
                    let value: &'de RawValue = map.next_value()?;
                    if raw.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("the field `{name}` is there twice")));
                    }
                    raw.insert(name, value);
                }
                Ok(Fields { raw })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'a> Fields<'a> {
    /// The fields of a body.
    pub(super) fn of(body: &'a str) -> Result<Fields<'a>, ApiError> {
        serde_json::from_str(body)
            .map_err(|error| ApiError::invalid(format!("the body is not what it must be: {error}")))
    }

    /// Takes a field out; nothing if it is absent or null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.raw.remove(name) else { return Ok(None) };
        serde_json::from_str(raw.get())
            .map_err(|error| ApiError::field(name, format!("`{name}`: {}", sentence(&error))))
    }

    /// Takes a number out that must lie in a range, ends included.
    pub(super) fn number(&mut self, name: &str, least: f32, most: f32) -> Result<Option<f32>, ApiError> {
        let Some(number) = self.take::<f64>(name)? else { return Ok(None) };
        let number = number as f32;
        if (least..=most).contains(&number) {
            return Ok(Some(number));
        }
        Err(ApiError::field(name, format!("`{name}` is {number}; it must be from {least} to {most}")))
    }

    /// Takes a count out that must lie in a range, ends included.
    pub(super) fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        match self.take::<usize>(name)? {
            Some(count) if !(least..=most).contains(&count) => {
                Err(ApiError::field(name, format!("`{name}` is {count}; it must be from {least} to {most}")))
            }
            count => Ok(count),
        }
    }

    /// Takes the text of a field out as it stands.
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a str> {
        self.raw.remove(name).map(RawValue::get).filter(|text| *text != "null")
    }

    /// Refuses what is left, except what is null and what is `harmless`.
    pub(super) fn finish(self, harmless: &[&str]) -> Result<(), ApiError> {
        match self.raw.into_iter().find(|(name, raw)| raw.get() != "null" && !harmless.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(ApiError::unsupported(name))
            }
        }
    }
}

/// An error of the JSON reader without its place, which counts from the beginning of a field.
pub(super) fn sentence(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(sentence, _)| sentence).to_owned()
}

/// One thing, or a list of such things.
#[derive(Debug, Default)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}
