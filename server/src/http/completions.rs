//! `POST /v1/completions`: texts go on.

use super::body;
use super::deltas::{finite, token_text};
use super::jobs::{Jobs, Plan, add, usage};
use super::routes::{apart, respond};
use super::state::{State, now};
use super::stream::{Events, Writer, no_stream, stream};
use crate::api::completions::{CompletionsRequest, Prompt};
use crate::api::error::ApiError;
use crate::engine::job::{Event, FinishReason, Logprobs, Usage};
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tritone_runtime::model::Model;
use tritone_runtime::tokenizer::SpecialTokens;

/// Answers a request.
pub(super) async fn completions(
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

/// Reads a request and begins a job for each prompt.
async fn begin(state: Arc<State>, text: impl AsRef<str> + Send + 'static) -> Result<(Jobs, Answer), ApiError> {
    let deadline = state.deadline();
    apart(move || {
        let request = CompletionsRequest::decode(text.as_ref())?;
        begin_jobs(&state, request, deadline)
    })
    .await
}

fn begin_jobs(
    state: &State,
    request: CompletionsRequest,
    deadline: Option<Instant>,
) -> Result<(Jobs, Answer), ApiError> {
    let ready = state.ready_for(request.sampling.model.as_deref())?;
    let model = ready.engine()?.model();
    let mut plan = Plan::new(state, ready, &request.sampling, "prompt", deadline);
    plan.logprobs = request.logprobs;
    let most = plan.most_tokens()?;
    let (mut jobs, mut beginnings) = (Vec::new(), Vec::new());
    for prompt in request.prompts {
        let (text, tokens) = match prompt {
            Prompt::Text(text) => {
                let tokenizer = model.tokenizer();
                let tokens = tokenizer.encode_within(&text, SpecialTokens::Plain, tokenizer.adds_bos(), most);
                (text, tokens)
            }
            Prompt::Tokens(tokens) => {
                let text = if request.echo { model.tokenizer().decode(&tokens) } else { Vec::new() };
                (String::from_utf8_lossy(&text).into_owned(), Some(tokens))
            }
        };
        jobs.push(plan.job(plan.fitting(tokens)?, None)?);
        beginnings.push(if request.echo { text } else { String::new() });
    }
    let n = request.sampling.n;
    let answer = Answer {
        head: json!({
            "id": state.id("cmpl-"),
            "object": "text_completion",
            "created": now(),
            "model": state.options.name,
            "system_fingerprint": concat!("tritone-", env!("CARGO_PKG_VERSION")),
        }),
        model: model.clone(),
        n,
        choices: (0..n * jobs.len()).map(|_| Progress::default()).collect(),
        beginnings,
        streams: request.sampling.stream,
        include_usage: request.sampling.include_usage,
        usage: Usage::default(),
    };
    Ok((plan.submit(jobs)?, answer))
}

/// What the answers to a request have in common. Answer `i` to prompt `p` is choice `p * n + i`.
struct Answer {
    head: Value,
    model: Model,
    n: usize,
    /// What each prompt's answers begin with.
    beginnings: Vec<String>,
    choices: Vec<Progress>,
    streams: bool,
    include_usage: bool,
    usage: Usage,
}

/// How far a choice is.
#[derive(Default)]
struct Progress {
    /// Bytes of its tokens, and characters that begin there.
    bytes: usize,
    chars: usize,
    /// Bytes of its text that came out: some may be the beginning of what ends it, which is no part of it.
    told: usize,
    /// Tokens whose text has not come out.
    held: VecDeque<TokenLogprobs>,
}

impl Progress {
    /// The tokens of which some text has come out now.
    fn tell(&mut self, text: &str) -> Vec<TokenLogprobs> {
        self.told += text.len();
        let is_told = |one: &TokenLogprobs| one.bytes.start < self.told || one.bytes.end <= self.told;
        let n = self.held.iter().take_while(|one| is_told(one)).count();
        self.held.drain(..n).collect()
    }
}

/// One more token, or the end, of a choice.
struct Delta {
    choice: usize,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    reason: Option<&'static str>,
}

struct TokenLogprobs {
    token: String,
    logprob: f32,
    top: Value,
    /// Where its bytes lie among those of all tokens of the choice.
    bytes: Range<usize>,
    /// The character of the text that its first byte is in.
    offset: usize,
}

impl Answer {
    /// What an event adds, if it adds to a choice.
    fn delta(&mut self, job: usize, event: Event) -> Option<Delta> {
        match event {
            Event::Token(token) => {
                let choice = job * self.n + token.answer;
                let is_end = self.model.tokenizer().is_end(token.id);
                if let Some(logprobs) = token.logprobs.filter(|_| !is_end) {
                    let one = self.logprobs(choice, token.id, &logprobs);
                    self.choices[choice].held.push_back(one);
                }
                let logprobs = self.choices[choice].tell(&token.text);
                Some(Delta { choice, text: token.text, logprobs, reason: None })
            }
            Event::Finished { answer, reason } => {
                let reason = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
                let choice = job * self.n + answer;
                Some(Delta { choice, text: String::new(), logprobs: Vec::new(), reason: Some(reason) })
            }
            Event::Done(usage) => {
                add(&mut self.usage, usage);
                None
            }
            Event::Failed(_) => None,
        }
    }

    fn logprobs(&mut self, choice: usize, id: u32, logprobs: &Logprobs) -> TokenLogprobs {
        let token = token_text(&self.model, id);
        let text = self.model.tokenizer().token_bytes(id);
        let goes_on = |byte: &u8| *byte & 0xc0 == 0x80;
        let progress = &mut self.choices[choice];
        let offset = progress.chars - usize::from(progress.chars > 0 && text.first().is_some_and(goes_on));
        let bytes = progress.bytes..progress.bytes + text.len();
        progress.bytes = bytes.end;
        progress.chars += text.iter().filter(|byte| !goes_on(byte)).count();
        let mut top: Map<String, Value> = Map::new();
        // Tokens of the same text are one; the likelier counts.
        for (id, logprob) in &logprobs.top {
            top.entry(token_text(&self.model, *id)).or_insert_with(|| finite(*logprob).into());
        }
        if !logprobs.top.is_empty() {
            top.entry(token.as_str()).or_insert_with(|| finite(logprobs.chosen).into());
        }
        TokenLogprobs { token, logprob: finite(logprobs.chosen), top: top.into(), bytes, offset }
    }

    /// All choices at once.
    async fn whole(mut self, mut jobs: Jobs) -> Result<Value, ApiError> {
        let beginnings = std::mem::take(&mut self.beginnings);
        let begun = beginnings.iter().flat_map(|text| std::iter::repeat_n(text.clone(), self.n));
        let mut choices: Vec<(String, Vec<TokenLogprobs>, Option<&str>)> =
            begun.map(|text| (text, Vec::new(), None)).collect();
        while let Some((job, event)) = jobs.next().await {
            if let Event::Failed(failure) = event {
                return Err(failure.into());
            }
            if let Some(delta) = self.delta(job, event) {
                let (text, logprobs, reason) = &mut choices[delta.choice];
                text.push_str(&delta.text);
                logprobs.extend(delta.logprobs);
                *reason = delta.reason.or(*reason);
            }
        }
        let mut body = self.head;
        let values = choices.into_iter().enumerate().map(|(index, (text, tokens, reason))| {
            json!({"index": index, "text": text, "logprobs": lists(&tokens), "finish_reason": reason})
        });
        body["choices"] = values.collect();
        body["usage"] = usage(self.usage);
        Ok(body)
    }

    fn chunk(&self, choices: Value, usage: Option<Value>, out: &mut Events) {
        let mut chunk = self.head.clone();
        chunk["choices"] = choices;
        if self.include_usage {
            chunk["usage"] = usage.into();
        }
        out.data(&chunk);
    }
}

/// The older shape: lists of equal length, or nothing.
fn lists(tokens: &[TokenLogprobs]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    json!({
        "tokens": tokens.iter().map(|one| one.token.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|one| one.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(|one| &one.top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|one| one.offset).collect::<Vec<_>>(),
    })
}

impl Writer for Answer {
    fn begin(&mut self, out: &mut Events) {
        for (prompt, text) in self.beginnings.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            for index in prompt * self.n..(prompt + 1) * self.n {
                let choice = json!([{"index": index, "text": text, "logprobs": null, "finish_reason": null}]);
                self.chunk(choice, None, out);
            }
        }
    }

    fn event(&mut self, job: usize, event: Event, out: &mut Events) {
        let Some(Delta { choice, text, logprobs, reason }) = self.delta(job, event) else { return };
        if !text.is_empty() || !logprobs.is_empty() || reason.is_some() {
            let logprobs = lists(&logprobs);
            let value = json!([{"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}]);
            self.chunk(value, None, out);
        }
    }

    fn end(&mut self, out: &mut Events) {
        if self.include_usage {
            self.chunk(json!([]), Some(usage(self.usage)), out);
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.body());
    }
}
