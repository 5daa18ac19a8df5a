//! `POST /v1/responses`: text in and out, nothing kept.

use super::chat::{AnswerFormat, MAX_MESSAGES, format_of, short};
use super::content::Content;
use super::error::ApiError;
use super::fields::Fields;
use super::sampling::{HARMLESS, Sampling};
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::fmt;
use tritone_runtime::template::Message;

/// A conversation and how it is to go on.
#[derive(Clone, Debug)]
pub struct ResponsesRequest {
    /// At least one message; the instructions are the first.
    pub messages: Vec<Message>,
    /// What the system says before the input.
    pub instructions: Option<String>,
    /// How to choose tokens; one answer.
    pub sampling: Sampling,
    /// What the answer must be.
    pub format: AnswerFormat,
    /// What the answer repeats.
    pub echo: Echo,
}

/// Fields of a request that its answer repeats and that change nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Echo {
    /// An object.
    pub metadata: Value,
    /// Nothing, or who asks.
    pub user: Value,
    /// Whether calls may be parallel, of which there are none.
    pub parallel_tool_calls: bool,
    /// "auto" or "none".
    pub tool_choice: &'static str,
    /// The format with its name.
    pub format: Value,
}

impl ResponsesRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and in which field.
    pub fn decode(body: &str) -> Result<ResponsesRequest, ApiError> {
        let mut fields = Fields::of(body)?;
        let instructions: Option<String> = fields.take("instructions")?;
        let input: Input =
            fields.take("input")?.ok_or_else(|| ApiError::field("input", "`input` is missing: a text or messages"))?;
        if input.0.is_empty() || input.0.len() > MAX_MESSAGES {
            let n = input.0.len();
            return Err(ApiError::field("input", format!("`input` has {n} items; it must have 1 to {MAX_MESSAGES}")));
        }
        let mut messages: Vec<Message> =
            instructions.iter().map(|text| Message::new("system", text.as_str())).collect();
        messages.extend(input.0);
        let sampling = Sampling::take(&mut fields, &["max_output_tokens"], 1)?;
        if sampling.n != 1 {
            return Err(ApiError::unsupported("n"));
        }
        let (format, shown) = format(&mut fields)?;
        defaults(&mut fields)?;
        let echo = Echo {
            metadata: short(&mut fields, "metadata")?.unwrap_or_else(|| json!({})),
            user: short(&mut fields, "user")?.unwrap_or_default(),
            // Without tools there are no calls to be parallel.
            parallel_tool_calls: fields.take("parallel_tool_calls")?.unwrap_or(true),
            tool_choice: tool_choice(&mut fields)?,
            format: shown,
        };
        fields.finish(&HARMLESS)?;
        Ok(ResponsesRequest { messages, instructions, sampling, format, echo })
    }
}

/// Takes fields that may say what is so anyway.
fn defaults(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    if fields.take::<bool>("background")? == Some(true) {
        return Err(ApiError::unsupported("background"));
    }
    if fields.take::<String>("truncation")?.is_some_and(|how| how != "disabled") {
        return Err(ApiError::unsupported("truncation"));
    }
    for list in ["tools", "include"] {
        if fields.take::<Vec<IgnoredAny>>(list)?.is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::unsupported(list));
        }
    }
    Ok(())
}

fn tool_choice(fields: &mut Fields<'_>) -> Result<&'static str, ApiError> {
    match fields.raw("tool_choice") {
        None | Some("\"auto\"") => Ok("auto"),
        Some("\"none\"") => Ok("none"),
        Some(_) => Err(ApiError::unsupported("tool_choice")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<TextFormat>,
}

/// A schema is always kept strictly.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextFormat {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
    name: Option<String>,
    description: Option<String>,
    strict: Option<bool>,
}

/// The format, and how the answer shows it.
fn format(fields: &mut Fields<'_>) -> Result<(AnswerFormat, Value), ApiError> {
    let given = short::<Text>(fields, "text")?.and_then(|text| text.format);
    let Some(TextFormat { kind, schema, name, description, strict }) = given else {
        return Ok((AnswerFormat::Text, json!({"type": "text"})));
    };
    let mut shown = json!({"type": kind});
    if let Some(schema) = &schema {
        shown["schema"] = schema.clone();
        shown["name"] = name.unwrap_or_else(|| "answer".to_owned()).into();
        shown["strict"] = strict.unwrap_or(true).into();
        if let Some(description) = description {
            shown["description"] = description.into();
        }
    }
    let format = format_of(&kind, schema).map_err(|what| ApiError::field("text.format", what))?;
    Ok((format, shown))
}

/// A text of the user, or messages.
struct Input(Vec<Message>);

/// A message; what an answer had beside its text may come back with it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
    #[serde(rename = "phase")]
    _phase: Option<String>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrItems;
        impl<'de> Visitor<'de> for TextOrItems {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of messages")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input(vec![Message::new("user", text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
                let mut messages = Vec::new();
                while let Some(item) = items.next_element::<Item>()? {
                    if let Some(kind) = item.kind.filter(|kind| kind != "message") {
                        let kind = kind.escape_debug();
                        return Err(A::Error::custom(format_args!("an item of the type `{kind}` cannot be read")));
                    }
                    let role = match item.role.as_deref() {
                        Some("system" | "developer") => "system",
                        Some("user") => "user",
                        Some("assistant") => "assistant",
                        _ => return Err(A::Error::custom("a message has no role, or none that is known")),
                    };
                    let content = item.content.ok_or_else(|| A::Error::custom("a message has no `content`"))?;
                    messages.push(Message::new(role, content.0));
                }
                Ok(Input(messages))
            }
        }
        deserializer.deserialize_any(TextOrItems)
    }
}
