//! Lines of a batch: requests in a file, and the answers to them in another one.
//!
//! The format is that of OpenAI's Batch API. A line asks with `{"custom_id", "method", "url", "body"}`, and its answer is
//! `{"id", "custom_id", "response", "error"}`. What a line asks for is judged by whoever answers its body; here it is only
//! found out which endpoint that is.

use super::error::ApiError;
use super::fields::{Fields, sentence};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The longest line.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// What every file of answers begins with.
pub const FIRST_BYTES: &[u8] = br#"{"id":"batch_req_1","#;

/// What a body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/responses`.
    Responses,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLine {
    /// What the request is called.
    pub custom_id: String,
    /// What its body is for.
    pub endpoint: Endpoint,
    /// The body as it stands in the line.
    pub body: String,
}

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// What the request is called, as far as that can be read.
    pub custom_id: Option<String>,
    /// What is wrong, for programs.
    pub code: &'static str,
    /// The same in a sentence.
    pub message: String,
}

impl BadLine {
    /// A line that cannot be read at all.
    fn unreadable(message: String) -> BadLine {
        BadLine { custom_id: None, code: "invalid_json_line", message }
    }

    /// A line of more than [`MAX_LINE_BYTES`].
    #[must_use]
    pub fn too_long() -> BadLine {
        let message = format!("the line has more than {MAX_LINE_BYTES} bytes");
        BadLine { custom_id: None, code: "line_too_long", message }
    }

    /// A line that is called like an earlier one.
    #[must_use]
    pub fn duplicate(custom_id: String) -> BadLine {
        let message = "an earlier line has the same `custom_id`".to_owned();
        BadLine { custom_id: Some(custom_id), code: "duplicate_custom_id", message }
    }

    /// The line in the file of answers that stands for this one, the `number`-th from 1.
    #[must_use]
    pub fn record(&self, number: u64) -> String {
        let BadLine { custom_id, code, message } = self;
        let (id, error) = (json!(custom_id), json!({"code": code, "message": message}));
        format!(r#"{{"id":"batch_req_{number}","custom_id":{id},"response":null,"error":{error}}}"#)
    }
}

impl BatchLine {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it. The body is not looked into.
    pub fn decode(line: &[u8]) -> Result<BatchLine, BadLine> {
        if line.len() > MAX_LINE_BYTES {
            return Err(BadLine::too_long());
        }
        let text = std::str::from_utf8(line).map_err(|error| {
            BadLine::unreadable(format!("the line is not UTF-8 at byte {}; JSON must be", error.valid_up_to()))
        })?;
        let mut fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
            let (column, what) = (error.column(), sentence(&error));
            BadLine::unreadable(format!("the line is no JSON object that can be read: {what} at column {column}"))
        })?;
        let named = fields.take::<String>("custom_id");
        let wrong = |code, message: String| {
            // The sentences of refusals have a limit; those here may quote the line, too.
            let message = ApiError::invalid(message).message;
            Err(BadLine { custom_id: named.as_ref().ok().cloned().flatten(), code, message })
        };
        let custom_id = match &named {
            Ok(Some(custom_id)) => custom_id.clone(),
            Ok(None) => return wrong("missing_required_parameter", "`custom_id` is missing".to_owned()),
            Err(error) => return wrong("invalid_type", error.message.clone()),
        };
        match fields.take::<String>("method") {
            Ok(None) => {}
            Ok(Some(method)) if method == "POST" => {}
            Ok(Some(_)) => return wrong("invalid_method", "`method` must be \"POST\"".to_owned()),
            Err(error) => return wrong("invalid_type", error.message),
        }
        let endpoint = match fields.take::<String>("url").map(|url| url.as_deref().map(endpoint)) {
            Ok(None) => Endpoint::Chat,
            Ok(Some(Some(endpoint))) => endpoint,
            Ok(Some(None)) => {
                let rule = "`url` must be /v1/chat/completions, /v1/completions, /v1/embeddings or /v1/responses";
                return wrong("invalid_url", rule.to_owned());
            }
            Err(error) => return wrong("invalid_type", error.message),
        };
        let Some(body) = fields.raw("body").map(str::to_owned) else {
            return wrong("missing_required_parameter", "`body` is missing: the request".to_owned());
        };
        if let Err(error) = fields.finish(&[]) {
            return wrong("unknown_parameter", error.message);
        }
        Ok(BatchLine { custom_id, endpoint, body })
    }
}

impl Endpoint {
    /// The path that such bodies are sent to.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Responses => "/v1/responses",
        }
    }
}

fn endpoint(url: &str) -> Option<Endpoint> {
    let all = [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings, Endpoint::Responses];
    all.into_iter().find(|endpoint| endpoint.path() == url)
}

/// The answer to a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status that HTTP would have.
    pub status: u16,
    /// The answer, or the refusal, as JSON.
    pub body: String,
    /// Tokens that were read.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub completion_tokens: u64,
}

impl From<Result<Value, ApiError>> for Reply {
    fn from(result: Result<Value, ApiError>) -> Reply {
        let (status, body) = match result {
            Ok(body) => (200, body),
            Err(error) => (error.status, error.body()),
        };
        // The newer protocol has other names for the same.
        let count = |names: [&str; 2]| names.iter().find_map(|name| body["usage"][name].as_u64()).unwrap_or(0);
        Reply {
            status,
            prompt_tokens: count(["prompt_tokens", "input_tokens"]),
            completion_tokens: count(["completion_tokens", "output_tokens"]),
            body: body.to_string(),
        }
    }
}

impl Reply {
    /// Whether it is an answer, and not a refusal.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.status == 200
    }

    /// The line in the file of answers: the `number`-th from 1, to the request called `custom_id`. `digest` tells what was
    /// asked and of whom; it becomes a part of the name that OpenAI's format has for a request.
    #[must_use]
    pub fn record(&self, number: u64, custom_id: &str, digest: &str) -> String {
        let Reply { status, body, .. } = self;
        let id = json!(custom_id);
        format!(
            r#"{{"id":"batch_req_{number}","custom_id":{id},"response":{{"status_code":{status},"request_id":"req_{number}_{digest}","body":{body}}},"error":null}}"#
        )
    }
}

/// What matters of a line in a file of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the request is called.
    pub custom_id: Option<String>,
    /// What came of it; nothing where the line was no request.
    pub reply: Option<RecordedReply>,
}

/// What matters of a reply in a file of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedReply {
    /// Whether it is an answer, and not a refusal.
    pub is_answer: bool,
    /// What was asked and of whom; nothing where an older version did not write it.
    pub digest: Option<String>,
}

#[derive(Deserialize)]
struct WrittenRecord<'a> {
    id: String,
    custom_id: Option<String>,
    #[serde(borrow)]
    response: Option<WrittenResponse<'a>>,
    #[serde(rename = "error")]
    _error: IgnoredAny,
}

#[derive(Deserialize)]
struct WrittenResponse<'a> {
    status_code: u16,
    request_id: String,
    #[serde(borrow, rename = "body")]
    _body: &'a RawValue,
}

impl Record {
    /// Reads the `number`-th line from 1; nothing if it is not what was written there.
    #[must_use]
    pub fn decode(line: &[u8], number: u64) -> Option<Record> {
        let WrittenRecord { id, custom_id, response, .. } = serde_json::from_slice(line).ok()?;
        let reply = response.map(|response| RecordedReply {
            is_answer: response.status_code == 200,
            digest: response.request_id.strip_prefix(&format!("req_{number}_")).map(str::to_owned),
        });
        (id == format!("batch_req_{number}")).then_some(Record { custom_id, reply })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> (Option<String>, &'static str) {
        let bad = BatchLine::decode(line.as_bytes()).unwrap_err();
        (bad.custom_id, bad.code)
    }

    #[test]
    fn method_and_url_may_be_left_out() {
        let short = BatchLine::decode(br#"{"custom_id":"a","body":{"x": 1}}"#).unwrap();
        assert_eq!(short, BatchLine { custom_id: "a".into(), endpoint: Endpoint::Chat, body: r#"{"x": 1}"#.into() });
        let long = br#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{}}"#;
        assert_eq!(BatchLine::decode(long).unwrap().endpoint, Endpoint::Embeddings);
    }

    #[test]
    fn bad_lines_keep_their_name_where_they_have_one() {
        for line in ["", "{", "[]", "1 2", r#"{"custom_id":"a","custom_id":"b","body":{}}"#] {
            assert_eq!(code(line), (None, "invalid_json_line"), "{line}");
        }
        assert_eq!(BatchLine::decode(b"\xff{}").unwrap_err().code, "invalid_json_line");
        assert_eq!(code(r#"{"body":{}}"#), (None, "missing_required_parameter"));
        assert_eq!(code(r#"{"custom_id":7,"body":{}}"#), (None, "invalid_type"));
        let a = || Some("a".to_owned());
        assert_eq!(code(r#"{"custom_id":"a"}"#), (a(), "missing_required_parameter"));
        assert_eq!(code(r#"{"custom_id":"a","body":{},"method":"GET"}"#), (a(), "invalid_method"));
        assert_eq!(code(r#"{"custom_id":"a","body":{},"url":"/v1/files"}"#), (a(), "invalid_url"));
        assert_eq!(code(r#"{"custom_id":"a","body":{},"url":["x"]}"#), (a(), "invalid_type"));
        assert_eq!(code(r#"{"custom_id":"a","body":{},"seed":1}"#), (a(), "unknown_parameter"));
        assert_eq!(code(&" ".repeat(MAX_LINE_BYTES + 1)), (None, "line_too_long"));
    }

    #[test]
    fn records_are_read_back() {
        let reply = Reply::from(Ok(json!({"text": "\n", "usage": {"input_tokens": 3, "output_tokens": 4}})));
        assert_eq!((reply.status, reply.prompt_tokens, reply.completion_tokens), (200, 3, 4));
        let record = reply.record(1, "a \"name\"", "d1");
        assert!(record.as_bytes().starts_with(FIRST_BYTES) && !record.contains('\n'), "{record}");
        let name = Some("a \"name\"".to_owned());
        let reply = |is_answer, digest: &str| Some(RecordedReply { is_answer, digest: Some(digest.to_owned()) });
        let decoded = Record::decode(record.as_bytes(), 1);
        assert_eq!(decoded, Some(Record { custom_id: name.clone(), reply: reply(true, "d1") }));
        let older = record.replace("req_1_d1", "req_1");
        let without = Some(RecordedReply { is_answer: true, digest: None });
        assert_eq!(Record::decode(older.as_bytes(), 1), Some(Record { custom_id: name, reply: without }));
        assert_eq!(Record::decode(record.as_bytes(), 2), None);
        assert_eq!(Record::decode(&record.as_bytes()[..record.len() - 1], 1), None);

        let refusal = Reply::from(Err(ApiError::field("n", "no"))).record(2, "b", "d2");
        assert!(refusal.contains(r#""status_code":400"#) && refusal.contains(r#""param":"n""#), "{refusal}");
        assert_eq!(Record::decode(refusal.as_bytes(), 2).map(|record| record.reply), Some(reply(false, "d2")));
        let bad = BadLine::too_long().record(3);
        assert_eq!(Record::decode(bad.as_bytes(), 3), Some(Record { custom_id: None, reply: None }));
        assert!(BadLine::too_long().record(1).as_bytes().starts_with(FIRST_BYTES));
    }
}
