//! `POST /v1/responses`: the same as a chat, in the newer shape. Nothing is kept.

use super::body;
use super::jobs::{self, Jobs, Plan, grammar, has_grammar};
use super::routes::{apart, respond};
use super::state::{State, now};
use super::stream::{Events, Writer, no_stream, stream};
use crate::api::error::ApiError;
use crate::api::responses::ResponsesRequest;
use crate::engine::job::{Event, FinishReason, Usage};
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Answers a request.
pub(super) async fn responses(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read(&state, request).await?;
    let ping = state.options.limits.ping_time;
    let (jobs, answer) = begin(state, text).await?;
    if answer.streams { Ok(stream(jobs, answer, ping)) } else { Ok(respond(&answer.whole(jobs).await?)) }
}

/// Answers a body that came without a connection.
pub(super) async fn at_once(state: Arc<State>, text: String) -> Result<Value, ApiError> {
    let (jobs, answer) = begin(state, text).await?;
    if answer.streams { Err(no_stream()) } else { answer.whole(jobs).await }
}

/// Reads a request and begins its job.
async fn begin(state: Arc<State>, text: impl AsRef<str> + Send + 'static) -> Result<(Jobs, Answer), ApiError> {
    let deadline = state.deadline();
    // The text keeps its place until the job is made.
    let (request, text) = apart(move || Ok((ResponsesRequest::decode(text.as_ref())?, text))).await?;
    let with_grammar = has_grammar(&request.format, None);
    let shared = Arc::clone(&state);
    jobs::begin(&shared, deadline, with_grammar, move || {
        let _text = text;
        begin_job(&state, &request, deadline)
    })
    .await
}

fn begin_job(state: &State, request: &ResponsesRequest, deadline: Option<Instant>) -> Result<(Jobs, Answer), ApiError> {
    let sampling = &request.sampling;
    let ready = state.ready_for(sampling.model.as_deref())?;
    let model = ready.engine()?.model();
    let plan = Plan::new(state, ready, sampling, "input", deadline);
    let prompt = model.chat_tokens_within(&request.messages, true, plan.most_tokens()?);
    let prompt = prompt.map_err(|error| ApiError::field("input", error.to_string()))?;
    let prompt = plan.fitting(prompt)?;
    let grammar = grammar(ready, &request.format, None, "text.format")?;
    let mut job = plan.job(prompt, grammar.as_ref())?;
    job.stop.extend(model.chat_template().stop_strings().iter().map(|&text| text.to_owned()));
    let echo = &request.echo;
    let head = json!({
        "id": state.id("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": request.instructions,
        "max_output_tokens": sampling.max_tokens,
        "metadata": echo.metadata,
        "model": state.options.name,
        "output": [],
        "parallel_tool_calls": echo.parallel_tool_calls,
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "store": false,
        "temperature": sampling.sampler.temperature,
        "text": {"format": echo.format},
        "tool_choice": echo.tool_choice,
        "tools": [],
        "top_p": sampling.sampler.top_p,
        "truncation": "disabled",
        "usage": null,
        "user": echo.user,
    });
    let answer = Answer {
        head,
        item: state.id("msg_"),
        streams: sampling.stream,
        text: String::new(),
        reason: FinishReason::Stop,
        usage: Usage::default(),
        sequence: 0,
    };
    Ok((plan.submit(vec![job])?, answer))
}

/// The answer as far as it is known.
struct Answer {
    head: Value,
    /// The name of the only message.
    item: String,
    streams: bool,
    text: String,
    reason: FinishReason,
    usage: Usage,
    /// The number of the next event.
    sequence: u64,
}

impl Answer {
    /// The answer at once.
    async fn whole(mut self, mut jobs: Jobs) -> Result<Value, ApiError> {
        while let Some((_, event)) = jobs.next().await {
            if let Event::Failed(failure) = event {
                return Err(failure.into());
            }
            self.take(event);
        }
        Ok(self.response())
    }

    /// Takes an event in; returns what it adds to the text.
    fn take(&mut self, event: Event) -> String {
        match event {
            Event::Token(token) => {
                self.text.push_str(&token.text);
                return token.text;
            }
            Event::Finished { reason, .. } => self.reason = reason,
            Event::Done(usage) => self.usage = usage,
            Event::Failed(_) => {}
        }
        String::new()
    }

    fn status(&self) -> &'static str {
        if self.reason == FinishReason::Stop { "completed" } else { "incomplete" }
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
    }

    fn message(&self) -> Value {
        json!({
            "type": "message",
            "id": self.item,
            "status": self.status(),
            "role": "assistant",
            "content": [self.part()],
        })
    }

    /// The whole response at its end.
    fn response(&self) -> Value {
        let mut response = self.head.clone();
        response["status"] = json!(self.status());
        if self.reason == FinishReason::Length {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = json!([self.message()]);
        let usage = self.usage;
        response["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        response
    }

    /// Sends an event; it gets its name and number here.
    fn say(&mut self, kind: &str, mut data: Value, out: &mut Events) {
        data["type"] = json!(kind);
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        out.named(kind, &data);
    }
}

impl Writer for Answer {
    fn begin(&mut self, out: &mut Events) {
        self.say("response.created", json!({"response": self.head}), out);
        self.say("response.in_progress", json!({"response": self.head}), out);
        let item = json!({
            "type": "message", "id": self.item, "status": "in_progress", "role": "assistant", "content": [],
        });
        self.say("response.output_item.added", json!({"output_index": 0, "item": item}), out);
        let data = json!({"item_id": self.item, "output_index": 0, "content_index": 0, "part": self.part()});
        self.say("response.content_part.added", data, out);
    }

    fn event(&mut self, _: usize, event: Event, out: &mut Events) {
        let delta = self.take(event);
        if !delta.is_empty() {
            let data = json!({
                "item_id": self.item, "output_index": 0, "content_index": 0, "delta": delta, "logprobs": [],
            });
            self.say("response.output_text.delta", data, out);
        }
    }

    fn end(&mut self, out: &mut Events) {
        let data = json!({
            "item_id": self.item, "output_index": 0, "content_index": 0, "text": self.text, "logprobs": [],
        });
        self.say("response.output_text.done", data, out);
        let data = json!({"item_id": self.item, "output_index": 0, "content_index": 0, "part": self.part()});
        self.say("response.content_part.done", data, out);
        self.say("response.output_item.done", json!({"output_index": 0, "item": self.message()}), out);
        let kind = format!("response.{}", self.status());
        self.say(&kind, json!({"response": self.response()}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        let data = json!({"code": error.code, "message": error.message, "param": error.param});
        self.say("error", data, out);
    }
}
