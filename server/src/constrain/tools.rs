//! Tools: how a model is told of them, how it writes a call, and how calls are found in what it wrote.
//!
//! A call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the form that many open models are trained on.
//! Text comes before calls, never between or after them. Whatever the chat template, tools are told of in a system
//! message of our own.

use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;

use super::Refused;

/// Before a call.
pub(super) const OPEN: &str = "<tool_call>";
/// After a call.
pub(super) const CLOSE: &str = "</tool_call>";
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The schema of its arguments, which are an object; `None`: it has none.
    pub parameters: Option<Value>,
}

/// Whether tools are called. Where they must not be, there are none to speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// At least one call, and no text.
    Required,
    /// One call of this tool, and no text.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    pub(super) tools: Arc<[Tool]>,
    pub(super) choice: ToolChoice,
    /// Whether there may be more than one call.
    pub(super) parallel: bool,
}

impl Tools {
    /// Checks names; schemas are checked when a grammar is made.
    ///
    /// # Errors
    /// No tools or more than 128, a name that is malformed or given twice, and a choice that is none of them.
    pub fn new(tools: Vec<Tool>, choice: ToolChoice, parallel: bool) -> Result<Self, Refused> {
        if tools.is_empty() || tools.len() > MAX_TOOLS {
            let count = tools.len();
            return Err(Refused::new(format!("`tools` has {count} entries; it must have 1 to {MAX_TOOLS}")));
        }
        for (i, tool) in tools.iter().enumerate() {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if tool.name.is_empty() || tool.name.len() > MAX_NAME || !tool.name.chars().all(fits) {
                return Err(Refused::new(format!(
                    "the name of tool {i} must have 1 to {MAX_NAME} letters, digits, `_` and `-`"
                )));
            }
            if tools[..i].iter().any(|other| other.name == tool.name) {
                return Err(Refused::new(format!("two tools are called `{}`; give each a name of its own", tool.name)));
            }
        }
        if let ToolChoice::Named(name) = &choice
            && !tools.iter().any(|tool| tool.name == *name)
        {
            let name: String = name.chars().take(MAX_NAME).collect();
            return Err(Refused::new(format!("`tool_choice` names `{name}`, which is not among `tools`")));
        }
        Ok(Self { tools: tools.into(), choice, parallel })
    }

    /// Tells a model of the tools: for a system message, after what it says otherwise.
    pub fn system_text(&self) -> String {
        let mut text = String::from(
            "You can use the tools below. Each line describes one: its name, what it does, and the JSON schema of its \
             arguments.\n\n",
        );
        for tool in self.tools.iter() {
            let mut line = json!({"name": tool.name});
            if let Some(description) = &tool.description {
                line["description"] = json!(description);
            }
            line["parameters"] = tool.parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        }
        let _ = write!(
            text,
            "\nTo use a tool, write a line of this form:\n{OPEN}{{\"name\": \"the name of the tool\", \"arguments\": \
             {{its arguments}}}}{CLOSE}\nWhat the tool answers will be shown to you between <tool_response> and \
             </tool_response>."
        );
        if !self.parallel {
            text.push_str(" Use at most one tool at a time.");
        }
        match &self.choice {
            ToolChoice::Auto => text.push_str(" If no tool helps, answer without one."),
            ToolChoice::Required => text.push_str(" Use a tool now, and write nothing else."),
            ToolChoice::Named(name) => {
                let _ = write!(text, " Use the tool {name} now, and write nothing else.");
            }
        }
        text
    }

    /// A call of an earlier turn, as the model wrote it. `arguments` are JSON.
    pub fn call_text(name: &str, arguments: &str) -> String {
        format!("{OPEN}{{\"name\": {}, \"arguments\": {arguments}}}{CLOSE}", json!(name))
    }

    /// What a tool answered, for a message of the user.
    pub fn response_text(content: &str) -> String {
        format!("<tool_response>{content}</tool_response>")
    }

    /// Finds the calls in an answer. `answer` becomes part of their ids, which must differ from those of other answers.
    pub fn reader(&self, answer: &str) -> ToolReader {
        ToolReader {
            tools: Arc::clone(&self.tools),
            answer: answer.to_owned(),
            held: String::new(),
            tried: None,
            calls: 0,
        }
    }
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// `call_`, the answer and a number.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Content(String),
    /// A whole call.
    Call(ToolCall),
}

/// Takes the text of an answer apart, however it is cut. Calls come whole, so none is ever seen that is not valid.
#[derive(Clone, Debug)]
pub struct ToolReader {
    tools: Arc<[Tool]>,
    answer: String,
    /// Text that may belong to a call.
    held: String,
    /// Within a call: how much of `held` has been searched for its end.
    tried: Option<usize>,
    calls: usize,
}

#[derive(Deserialize)]
struct Written {
    name: String,
    arguments: serde_json::Map<String, Value>,
}

impl ToolReader {
    /// Takes more text and returns what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        loop {
            match self.tried {
                None => {
                    if let Some(start) = self.held.find(OPEN) {
                        self.content(start, &mut pieces);
                        self.held.drain(..OPEN.len());
                        self.tried = Some(0);
                    } else {
                        self.content(self.held.len() - undecided(&self.held), &mut pieces);
                        return pieces;
                    }
                }
                Some(from) => {
                    let Some(end) = self.held[from..].find(CLOSE).map(|found| from + found) else {
                        // The end may have begun.
                        let from = self.held.len().saturating_sub(CLOSE.len() - 1).max(from);
                        self.tried = Some(self.held.floor_char_boundary(from));
                        return pieces;
                    };
                    // The words may also stand in a string, where the object is not complete.
                    match self.call(end) {
                        Some(call) => {
                            pieces.push(Piece::Call(call));
                            self.held.drain(..end + CLOSE.len());
                            self.tried = None;
                        }
                        None => self.tried = Some(end + 1),
                    }
                }
            }
        }
    }

    /// Ends the answer. A call that was cut off is left out.
    pub fn finish(self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.tried.is_none() && !(self.calls > 0 && self.held.trim().is_empty()) && !self.held.is_empty() {
            pieces.push(Piece::Content(self.held));
        }
        pieces
    }

    /// Moves `held[..end]` to the pieces, without space before a call.
    fn content(&mut self, end: usize, pieces: &mut Vec<Piece>) {
        let text: String = self.held.drain(..end).collect();
        let text = text.trim_end();
        if !text.is_empty() {
            pieces.push(Piece::Content(text.to_owned()));
        }
    }

    /// The call in `held[..end]`, if that is one.
    fn call(&mut self, end: usize) -> Option<ToolCall> {
        let call: Written = serde_json::from_str(&self.held[..end]).ok()?;
        if !self.tools.iter().any(|tool| tool.name == call.name) {
            return None;
        }
        let id = format!("call_{}_{}", self.answer, self.calls);
        self.calls += 1;
        Some(ToolCall { id, name: call.name, arguments: Value::Object(call.arguments).to_string() })
    }
}

/// How many bytes at the end of `text` may belong to a call: space, and the beginning of [`OPEN`].
fn undecided(text: &str) -> usize {
    let tag = (0..OPEN.len()).rev().find(|&n| text.ends_with(&OPEN[..n])).unwrap_or(0);
    text.len() - text[..text.len() - tag].trim_end().len()
}
