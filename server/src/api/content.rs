//! What a message says: a text, or parts that are texts.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// The text of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content(pub(super) String);

/// A part of a message. What else it says (marks for caches, places of quotations) is about other servers.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut whole = String::new();
                while let Some(part) = parts.next_element::<Part>()? {
                    let text = match part.kind.as_str() {
                        "text" | "input_text" | "output_text" => part.text,
                        "refusal" => part.refusal,
                        other => {
                            return Err(A::Error::custom(format_args!(
                                "a part of the type `{}` cannot be read; this model takes text",
                                other.escape_debug()
                            )));
                        }
                    };
                    let text = text.ok_or_else(|| A::Error::custom("a part of a message has no text"))?;
                    whole.push_str(&text);
                }
                Ok(Content(whole))
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}
