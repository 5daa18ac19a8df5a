//! Jobs for tests, and what comes of them.

use std::path::PathBuf;
use tokio::sync::mpsc::UnboundedReceiver;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;
use tritone_runtime::tokenizer::SpecialTokens;
use tritone_server::engine::job::{Event, Failure, FinishReason, Job, Token, Usage};
use tritone_server::engine::{Engine, EngineOptions};

pub fn story() -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/story.gguf");
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
}

pub fn start(model: &Model, options: &EngineOptions) -> Engine {
    Engine::start(model.clone(), options).unwrap()
}

pub fn tokens(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().encode(text, SpecialTokens::Plain, model.tokenizer().adds_bos())
}

/// A greedy job.
pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Job {
    Job {
        prompt,
        n: 1,
        max_tokens: Some(max_tokens),
        sampler: SamplerConfig { temperature: 0.0, ..SamplerConfig::default() },
        logit_bias: Vec::new(),
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        constraint: None,
        deadline: None,
    }
}

/// All that came of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub answers: Vec<Vec<Token>>,
    pub reasons: Vec<Option<FinishReason>>,
    pub usage: Option<Usage>,
    pub failure: Option<Failure>,
}

impl Outcome {
    pub fn text(&self, answer: usize) -> String {
        self.answers[answer].iter().map(|token| token.text.as_str()).collect()
    }

    pub fn ids(&self, answer: usize) -> Vec<u32> {
        self.answers[answer].iter().map(|token| token.id).collect()
    }

    /// Takes an event, in the order that is promised.
    fn take(&mut self, event: Event) {
        assert!(self.usage.is_none() && self.failure.is_none(), "{event:?} after the end");
        match event {
            Event::Token(token) => {
                assert_eq!(self.reasons[token.answer], None, "a token after the end of its answer");
                self.answers[token.answer].push(token);
            }
            Event::Finished { answer, reason } => {
                assert_eq!(self.reasons[answer].replace(reason), None, "two ends of an answer");
            }
            Event::Done(usage) => {
                assert!(self.reasons.iter().all(Option::is_some), "the end before the end of all answers");
                assert_eq!(usage.completion_tokens, self.answers.iter().map(Vec::len).sum::<usize>());
                self.usage = Some(usage);
            }
            Event::Failed(failure) => self.failure = Some(failure),
        }
    }
}

/// Listens until the end, or until so many tokens have come; then the receiver is dropped.
pub fn listen(mut receiver: UnboundedReceiver<Event>, n: usize, most: usize) -> Outcome {
    let mut outcome = Outcome { answers: vec![Vec::new(); n], reasons: vec![None; n], usage: None, failure: None };
    while let Some(event) = receiver.blocking_recv() {
        outcome.take(event);
        if outcome.answers.iter().map(Vec::len).sum::<usize>() >= most {
            return outcome;
        }
    }
    assert!(outcome.usage.is_some() || outcome.failure.is_some(), "the events ended without an end");
    outcome
}

/// Does a job to its end.
pub fn done(engine: &Engine, job: Job) -> Outcome {
    let n = job.n;
    listen(engine.submit(job).unwrap(), n, usize::MAX)
}

/// Waits until nothing runs or waits any more.
pub fn settle(engine: &Engine) {
    let began = std::time::Instant::now();
    while engine.stats().running + engine.stats().queue > 0 {
        assert!(began.elapsed().as_secs() < 60, "{:?}", engine.stats());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
