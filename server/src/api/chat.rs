//! `POST /v1/chat/completions`.

use super::content::Content;
use super::error::ApiError;
use super::fields::{Fields, sentence};
use super::sampling::{HARMLESS, MAX_TOP_LOGPROBS, Sampling};
use crate::constrain::{Format, Tool, ToolChoice, Tools};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use tritone_runtime::template::Message;

/// The longest conversation.
pub const MAX_MESSAGES: usize = 4096;
/// The longest schema, and all tools together, as text.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// A conversation and how it is to go on.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// At least one message.
    pub messages: Vec<Message>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Whether tokens come with log-probabilities, and with so many alternatives.
    pub logprobs: Option<usize>,
    /// What the answer must be.
    pub format: AnswerFormat,
    /// What may be called; the messages speak of it already.
    pub tools: Option<Tools>,
}

/// What an answer must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum AnswerFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that is valid under this schema.
    JsonSchema(Value),
}

impl AnswerFormat {
    /// As the grammars take it.
    #[must_use]
    pub fn as_format(&self) -> Format<'_> {
        match self {
            AnswerFormat::Text => Format::Text,
            AnswerFormat::JsonObject => Format::JsonObject,
            AnswerFormat::JsonSchema(schema) => Format::JsonSchema(schema),
        }
    }
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and in which field.
    pub fn decode(body: &str) -> Result<ChatRequest, ApiError> {
        let mut fields = Fields::of(body)?;
        let mut messages = messages(&mut fields)?;
        let sampling = Sampling::take(&mut fields, &["max_tokens", "max_completion_tokens"], 1)?;
        let with_logprobs = fields.take("logprobs")?.unwrap_or(false);
        let top = fields.count("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
        if top.is_some() && !with_logprobs {
            return Err(ApiError::field("top_logprobs", "`top_logprobs` is only for answers with `logprobs`"));
        }
        let logprobs = with_logprobs.then(|| top.unwrap_or(0));
        let format = response_format(&mut fields)?;
        let tools = tools(&mut fields)?;
        if let Some(tools) = &tools {
            tell(tools, &mut messages);
        }
        text_only(&mut fields)?;
        fields.finish(&HARMLESS)?;
        Ok(ChatRequest { messages, sampling, logprobs, format, tools })
    }
}

/// Tells the model of tools, at the end of what the system says first.
fn tell(tools: &Tools, messages: &mut Vec<Message>) {
    let text = tools.system_text();
    match messages.first_mut().filter(|message| message.role == "system") {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => messages.insert(0, Message::new("system", text)),
    }
}

/// The only thing that answers are made of.
fn text_only(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    match fields.take::<Vec<String>>("modalities")? {
        Some(kinds) if kinds != ["text"] => {
            Err(ApiError::field("modalities", "`modalities` may be [\"text\"]; this server answers in text"))
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenMessage {
    role: String,
    content: Option<Content>,
    refusal: Option<String>,
    tool_calls: Option<Vec<GivenCall>>,
    #[serde(rename = "tool_call_id")]
    _tool_call_id: Option<String>,
    #[serde(rename = "name")]
    _name: Option<String>,
    // What other servers add to their answers; it has no text.
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct GivenCall {
    function: GivenFunction,
}

#[derive(Deserialize)]
struct GivenFunction {
    name: String,
    arguments: String,
}

fn messages(fields: &mut Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let wrong = |what: String| ApiError::field("messages", what);
    let given: Vec<GivenMessage> =
        fields.take("messages")?.ok_or_else(|| wrong("`messages` is missing: it holds the conversation".to_owned()))?;
    if given.is_empty() || given.len() > MAX_MESSAGES {
        return Err(wrong(format!("`messages` has {} messages; it must have 1 to {MAX_MESSAGES}", given.len())));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(given.len());
    let mut after_tool = false;
    for (i, message) in given.into_iter().enumerate() {
        if message.audio.is_some() || message.function_call.is_some() {
            return Err(wrong(format!("message {i} has `audio` or `function_call`, which this server cannot read")));
        }
        let calls = message.tool_calls.filter(|calls| !calls.is_empty());
        if calls.is_some() && message.role != "assistant" {
            return Err(wrong(format!("message {i} has `tool_calls`, which only the assistant makes")));
        }
        let content = match (message.content, message.refusal) {
            (Some(Content(text)), _) => text,
            (None, Some(refusal)) => refusal,
            (None, None) if calls.is_some() => String::new(),
            (None, None) => return Err(wrong(format!("message {i} has no `content`"))),
        };
        let role = match message.role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            // Templates know no tools: what one said comes in a message of the user, all of a turn in one.
            "tool" => {
                let said = Tools::response_text(&content);
                match messages.last_mut().filter(|_| after_tool) {
                    Some(last) => last.content = format!("{}\n{said}", last.content),
                    None => messages.push(Message::new("user", said)),
                }
                after_tool = true;
                continue;
            }
            other => {
                let rule = "it must be system, developer, user, assistant or tool";
                return Err(wrong(format!("message {i} has the role `{}`; {rule}", other.escape_debug())));
            }
        };
        after_tool = false;
        let mut text = content;
        for call in calls.unwrap_or_default() {
            let GivenFunction { name, arguments } = call.function;
            if serde_json::from_str::<IgnoredAny>(&arguments).is_err() {
                return Err(wrong(format!("message {i} has a call whose `arguments` are not JSON")));
            }
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&Tools::call_text(&name, &arguments));
        }
        messages.push(Message::new(role, text));
    }
    Ok(messages)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<GivenSchema>,
}

/// A schema is always kept strictly.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenSchema {
    schema: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// Reads a field whose text must not be long, since its value takes many times as much memory.
pub(super) fn short<T: serde::de::DeserializeOwned>(
    fields: &mut Fields<'_>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    let Some(text) = fields.raw(name) else { return Ok(None) };
    if text.len() > MAX_SCHEMA_BYTES {
        let bytes = text.len();
        return Err(ApiError::field(name, format!("`{name}` has {bytes} bytes, the limit is {MAX_SCHEMA_BYTES}")));
    }
    let read = serde_json::from_str(text);
    read.map(Some).map_err(|error| ApiError::field(name, format!("`{name}`: {}", sentence(&error))))
}

fn response_format(fields: &mut Fields<'_>) -> Result<AnswerFormat, ApiError> {
    let Some(given) = short::<GivenFormat>(fields, "response_format")? else { return Ok(AnswerFormat::Text) };
    let schema = given.json_schema.and_then(|given| given.schema);
    format_of(&given.kind, schema).map_err(|what| ApiError::field("response_format", what))
}

/// The format of this name.
pub(super) fn format_of(kind: &str, schema: Option<Value>) -> Result<AnswerFormat, String> {
    match (kind, schema) {
        ("text", None) => Ok(AnswerFormat::Text),
        ("json_object", None) => Ok(AnswerFormat::JsonObject),
        ("json_schema", Some(schema)) => Ok(AnswerFormat::JsonSchema(schema)),
        ("json_schema", None) => Err("a format of the type `json_schema` needs a `schema`".to_owned()),
        ("text" | "json_object", Some(_)) => Err("a schema is for the type `json_schema`".to_owned()),
        (other, _) => Err(format!(
            "the format has the type `{}`; it must be text, json_object or json_schema",
            other.escape_debug()
        )),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenTool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<GivenToolFunction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenToolFunction {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenChoice {
    #[serde(rename = "type")]
    kind: String,
    function: Option<ChosenFunction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChosenFunction {
    name: String,
}

fn tools(fields: &mut Fields<'_>) -> Result<Option<Tools>, ApiError> {
    let wrong = |what: &str| ApiError::field("tools", what);
    let given: Vec<GivenTool> = short(fields, "tools")?.unwrap_or_default();
    let choice: Option<Box<RawValue>> = fields.take("tool_choice")?;
    let choice = choice.map(|choice| tool_choice(choice.get())).transpose()?;
    let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
    if given.is_empty() {
        return match choice {
            Some(Some(ToolChoice::Required | ToolChoice::Named(_))) => {
                Err(ApiError::field("tool_choice", "`tool_choice` asks for a call, but there are no `tools`"))
            }
            _ => Ok(None),
        };
    }
    let mut tools = Vec::with_capacity(given.len());
    for tool in given {
        let function = match (tool.kind.as_str(), tool.function) {
            ("function", Some(function)) => function,
            _ => return Err(wrong("a tool must have the type `function` and a `function`")),
        };
        let GivenToolFunction { name, description, parameters, .. } = function;
        tools.push(Tool { name, description, parameters });
    }
    // Names are checked even where no tool may be called.
    let checked = |choice, tools| Tools::new(tools, choice, parallel);
    let refused = |error: crate::constrain::Refused, param: &str| ApiError::field(param, error.to_string());
    let auto = checked(ToolChoice::Auto, tools.clone()).map_err(|error| refused(error, "tools"))?;
    match choice {
        None | Some(Some(ToolChoice::Auto)) => Ok(Some(auto)),
        Some(None) => Ok(None),
        Some(Some(choice)) => checked(choice, tools).map(Some).map_err(|error| refused(error, "tool_choice")),
    }
}

/// What is to be called; `None` for nothing.
fn tool_choice(text: &str) -> Result<Option<ToolChoice>, ApiError> {
    let wrong = || {
        let rule = "`tool_choice` must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";
        ApiError::field("tool_choice", rule)
    };
    if text.starts_with('"') {
        return match serde_json::from_str::<String>(text).map_err(|_| wrong())?.as_str() {
            "none" => Ok(None),
            "auto" => Ok(Some(ToolChoice::Auto)),
            "required" => Ok(Some(ToolChoice::Required)),
            _ => Err(wrong()),
        };
    }
    match serde_json::from_str::<GivenChoice>(text) {
        Ok(GivenChoice { kind, function: Some(function) }) if kind == "function" => {
            Ok(Some(ToolChoice::Named(function.name)))
        }
        _ => Err(wrong()),
    }
}
