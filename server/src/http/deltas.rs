//! What events add to the answers of a chat: text, calls of tools, log-probabilities, a reason for the end.

use crate::constrain::{Piece, ToolCall, ToolReader, Tools};
use crate::engine::job::{FinishReason, Logprobs, Token};
use serde_json::{Value, json};
use tritone_runtime::model::Model;

/// Stands for the logarithm of nothing, which JSON cannot say.
const LEAST_LOGPROB: f32 = -9999.0;

/// What an event adds to an answer.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    /// Of one token.
    pub(super) logprobs: Option<Value>,
    pub(super) reason: Option<&'static str>,
}

/// Takes the answers of one job apart.
pub(super) struct Deltas {
    model: Model,
    readers: Vec<Option<ToolReader>>,
    /// Whether an answer has called something.
    called: Vec<bool>,
}

impl Deltas {
    /// For `n` answers to a request called `id`.
    pub(super) fn new(model: Model, n: usize, tools: Option<&Tools>, id: &str) -> Deltas {
        let name = |answer: usize| if n == 1 { id.to_owned() } else { format!("{id}_{answer}") };
        let readers = (0..n).map(|answer| tools.map(|tools| tools.reader(&name(answer)))).collect();
        Deltas { model, readers, called: vec![false; n] }
    }

    /// A token of an answer.
    pub(super) fn token(&mut self, token: Token) -> Delta {
        let mut delta = Delta::default();
        // The token that ends a turn is no part of what is said.
        if let Some(logprobs) = &token.logprobs
            && !self.model.tokenizer().is_end(token.id)
        {
            delta.logprobs = Some(chat_logprobs(&self.model, token.id, logprobs));
        }
        match &mut self.readers[token.answer] {
            Some(reader) => {
                let pieces = reader.push(&token.text);
                self.take(token.answer, pieces, &mut delta);
            }
            None => delta.text = token.text,
        }
        delta
    }

    /// The end of an answer.
    pub(super) fn finished(&mut self, answer: usize, reason: FinishReason) -> Delta {
        let mut delta = Delta::default();
        if let Some(reader) = self.readers[answer].take() {
            self.take(answer, reader.finish(), &mut delta);
        }
        delta.reason = Some(match reason {
            FinishReason::Length => "length",
            FinishReason::Stop if self.called[answer] => "tool_calls",
            FinishReason::Stop => "stop",
        });
        delta
    }

    fn take(&mut self, answer: usize, pieces: Vec<Piece>, delta: &mut Delta) {
        for piece in pieces {
            match piece {
                Piece::Content(text) => delta.text.push_str(&text),
                Piece::Call(call) => {
                    self.called[answer] = true;
                    delta.calls.push(call);
                }
            }
        }
    }
}

/// What a token says, as far as it is text of its own.
pub(super) fn token_text(model: &Model, id: u32) -> String {
    String::from_utf8_lossy(model.tokenizer().token_bytes(id)).into_owned()
}

/// A logarithm that JSON can say.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST_LOGPROB)
}

fn chat_logprobs(model: &Model, id: u32, logprobs: &Logprobs) -> Value {
    let one = |id: u32, logprob: f32| {
        let bytes = model.tokenizer().token_bytes(id);
        json!({"token": token_text(model, id), "logprob": finite(logprob), "bytes": bytes})
    };
    let mut value = one(id, logprobs.chosen);
    value["top_logprobs"] = logprobs.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
    value
}
