//! `POST /v1/chat/completions`: a conversation goes on.

use super::body;
use super::deltas::{Delta, Deltas};
use super::jobs::{self, Jobs, Plan, grammar, has_grammar, usage};
use super::routes::{apart, respond};
use super::state::{State, now};
use super::stream::{Events, Writer, no_stream, stream};
use crate::api::chat::ChatRequest;
use crate::api::error::ApiError;
use crate::constrain::ToolCall;
use crate::engine::job::{Event, Usage};
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Answers a request.
pub(super) async fn chat(
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
    let (request, text) = apart(move || Ok((ChatRequest::decode(text.as_ref())?, text))).await?;
    let with_grammar = has_grammar(&request.format, request.tools.as_ref());
    let shared = Arc::clone(&state);
    jobs::begin(&shared, deadline, with_grammar, move || {
        let _text = text;
        begin_job(&state, &request, deadline)
    })
    .await
}

fn begin_job(state: &State, request: &ChatRequest, deadline: Option<Instant>) -> Result<(Jobs, Answer), ApiError> {
    let ready = state.ready_for(request.sampling.model.as_deref())?;
    let model = ready.engine()?.model();
    let mut plan = Plan::new(state, ready, &request.sampling, "messages", deadline);
    plan.logprobs = request.logprobs;
    let prompt = model.chat_tokens_within(&request.messages, true, plan.most_tokens()?);
    let prompt = prompt.map_err(|error| ApiError::field("messages", error.to_string()))?;
    let prompt = plan.fitting(prompt)?;
    let grammar = grammar(ready, &request.format, request.tools.as_ref(), "response_format")?;
    let mut job = plan.job(prompt, grammar.as_ref())?;
    job.stop.extend(model.chat_template().stop_strings().iter().map(|&text| text.to_owned()));
    let id = state.id("chatcmpl-");
    let deltas = Deltas::new(model.clone(), job.n, request.tools.as_ref(), &id["chatcmpl-".len()..]);
    let answer = Answer {
        head: json!({
            "id": id,
            "created": now(),
            "model": state.options.name,
            "system_fingerprint": concat!("tritone-", env!("CARGO_PKG_VERSION")),
        }),
        deltas,
        n: job.n,
        calls: vec![0; job.n],
        streams: request.sampling.stream,
        include_usage: request.sampling.include_usage,
        usage: Usage::default(),
    };
    Ok((plan.submit(vec![job])?, answer))
}

/// What the answers to a request have in common.
struct Answer {
    head: Value,
    deltas: Deltas,
    n: usize,
    /// How many calls each has made.
    calls: Vec<usize>,
    streams: bool,
    include_usage: bool,
    usage: Usage,
}

impl Answer {
    /// All answers at once.
    async fn whole(mut self, mut jobs: Jobs) -> Result<Value, ApiError> {
        let mut choices: Vec<Choice> = (0..self.n).map(|_| Choice::default()).collect();
        while let Some((_, event)) = jobs.next().await {
            match event {
                Event::Token(token) => {
                    let answer = token.answer;
                    choices[answer].add(self.deltas.token(token));
                }
                Event::Finished { answer, reason } => choices[answer].add(self.deltas.finished(answer, reason)),
                Event::Done(usage) => self.usage = usage,
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
        let mut body = self.head;
        body["object"] = json!("chat.completion");
        body["choices"] = choices.into_iter().enumerate().map(|(i, choice)| choice.value(i)).collect();
        body["usage"] = usage(self.usage);
        Ok(body)
    }

    fn chunk(&self, choices: Value, out: &mut Events) {
        let mut chunk = self.head.clone();
        chunk["object"] = json!("chat.completion.chunk");
        chunk["choices"] = choices;
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        out.data(&chunk);
    }

    /// Says what an event adds.
    fn say(&mut self, answer: usize, delta: Delta, out: &mut Events) {
        let Delta { text, calls, logprobs, reason } = delta;
        let logprobs = logprobs.map(|one| json!({"content": [one], "refusal": null}));
        if !text.is_empty() || logprobs.is_some() {
            let choice = json!([{
                "index": answer, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null,
            }]);
            self.chunk(choice, out);
        }
        for call in calls {
            let mut call = tool_call(&call);
            call["index"] = json!(self.calls[answer]);
            self.calls[answer] += 1;
            let choice = json!([{
                "index": answer, "delta": {"tool_calls": [call]}, "logprobs": null, "finish_reason": null,
            }]);
            self.chunk(choice, out);
        }
        if reason.is_some() {
            let choice = json!([{"index": answer, "delta": {}, "logprobs": null, "finish_reason": reason}]);
            self.chunk(choice, out);
        }
    }
}

impl Writer for Answer {
    fn begin(&mut self, out: &mut Events) {
        for answer in 0..self.n {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            let choice = json!([{"index": answer, "delta": delta, "logprobs": null, "finish_reason": null}]);
            self.chunk(choice, out);
        }
    }

    fn event(&mut self, _: usize, event: Event, out: &mut Events) {
        match event {
            Event::Token(token) => {
                let answer = token.answer;
                let delta = self.deltas.token(token);
                self.say(answer, delta, out);
            }
            Event::Finished { answer, reason } => {
                let delta = self.deltas.finished(answer, reason);
                self.say(answer, delta, out);
            }
            Event::Done(usage) => self.usage = usage,
            Event::Failed(failure) => self.fail(&failure.into(), out),
        }
    }

    fn end(&mut self, out: &mut Events) {
        if self.include_usage {
            let mut chunk = self.head.clone();
            chunk["object"] = json!("chat.completion.chunk");
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(self.usage);
            out.data(&chunk);
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.body());
    }
}

/// One answer as a whole.
#[derive(Default)]
struct Choice {
    text: String,
    calls: Vec<Value>,
    logprobs: Option<Vec<Value>>,
    reason: Option<&'static str>,
}

impl Choice {
    fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.calls.extend(delta.calls.iter().map(tool_call));
        if let Some(one) = delta.logprobs {
            self.logprobs.get_or_insert_default().push(one);
        }
        self.reason = delta.reason.or(self.reason);
    }

    fn value(self, index: usize) -> Value {
        let only_calls = self.text.is_empty() && !self.calls.is_empty();
        let content = if only_calls { Value::Null } else { Value::String(self.text) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.into();
        }
        let logprobs = self.logprobs.map(|tokens| json!({"content": tokens, "refusal": null}));
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.reason})
    }
}

fn tool_call(call: &ToolCall) -> Value {
    let ToolCall { id, name, arguments } = call;
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}
