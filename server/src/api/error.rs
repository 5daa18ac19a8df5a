//! Refusals in the shape that clients of OpenAI expect.

use crate::engine::job::Failure;
use serde_json::{Value, json};

/// A refusal: a status and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// One sentence.
    pub message: String,
    /// The kind of mistake.
    pub kind: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

/// The longest message; parts of requests are quoted in some.
const MAX_MESSAGE: usize = 400;

impl ApiError {
    /// Any refusal.
    pub fn new(status: u16, kind: &'static str, message: impl Into<String>) -> ApiError {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        ApiError { status, message, kind, param: None, code: None, retry_after: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "invalid_request_error", message)
    }

    /// A field is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::invalid(message).at(param)
    }

    /// A field asks for what there is not.
    pub fn unsupported(param: impl Into<String>) -> ApiError {
        let param = param.into();
        ApiError::field(param.as_str(), format!("`{param}` is not supported by this server; leave it out"))
            .coded("unsupported_parameter")
    }

    /// There is no such model.
    pub fn no_model(name: &str) -> ApiError {
        let name: String = name.chars().take(100).collect();
        let message = format!("the model `{name}` does not exist here; GET /v1/models lists what does");
        ApiError::new(404, "invalid_request_error", message).at("model").coded("model_not_found")
    }

    /// It cannot be done now.
    pub fn unavailable(message: impl Into<String>, retry_after: u32) -> ApiError {
        ApiError { retry_after: Some(retry_after), ..ApiError::new(503, "server_error", message) }
    }

    /// The same with the field that is wrong, if none is named yet.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> ApiError {
        self.param.get_or_insert_with(|| param.into());
        self
    }

    /// The same with a code for programs.
    #[must_use]
    pub fn coded(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// The body of the answer.
    #[must_use]
    pub fn body(&self) -> Value {
        let ApiError { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        let message = failure.to_string();
        match failure {
            Failure::Invalid(_) => ApiError::invalid(message),
            Failure::QueueFull { .. } => ApiError {
                retry_after: Some(1),
                ..ApiError::new(429, "rate_limit_error", message).coded("rate_limit_exceeded")
            },
            Failure::TimedOut => ApiError::new(504, "server_error", message).coded("timeout"),
            Failure::ShuttingDown => ApiError::unavailable(message, 1),
            Failure::Internal(_) => ApiError::new(500, "server_error", message),
        }
    }
}
