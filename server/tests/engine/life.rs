//! Refusals, ends, failures and what is left after them.

use crate::jobs::{done, greedy, listen, settle, start, story, tokens};
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tritone_runtime::model::Model;
use tritone_runtime::sampler::SamplerConfig;
use tritone_server::engine::job::{Constraint, Event, Failure, FinishReason, Job, Usage};
use tritone_server::engine::{Engine, EngineOptions};

/// A job that goes on until its context is full.
fn long(model: &Model) -> Job {
    Job { ignore_eos: true, max_tokens: None, ..greedy(tokens(model, "Once upon a time there was"), 1) }
}

fn shut_down(engine: &Engine, grace: Duration) {
    Builder::new_current_thread().build().unwrap().block_on(engine.shutdown(grace));
}

/// Fails in one of three ways at its third token.
struct Fails(&'static str, usize);

impl Constraint for Fails {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Fails(self.0, self.1))
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        mask.fill(u32::MAX);
        match (self.0, self.1) {
            ("panic", 3) => panic!("on purpose"),
            ("allow", 3) => Err("the grammar is too large".to_owned()),
            _ => Ok(()),
        }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        self.1 += 1;
        if self.0 == "accept" && self.1 == 3 { Err("the grammar took too long".to_owned()) } else { Ok(()) }
    }
}

#[test]
fn impossible_jobs_are_refused_with_a_sentence() {
    let model = story();
    let options = EngineOptions { parallel: 4, context: Some(300), ..EngineOptions::default() };
    let page = start(&model, &options).stats().page_bytes;
    let engine = start(&model, &EngineOptions { cache_bytes: Some(3 * page), ..options });
    let job = || greedy(vec![1, 2, 3], 5);
    let sampler = |temperature| SamplerConfig { temperature, ..SamplerConfig::default() };
    for (job, sentence) in [
        (greedy(vec![], 5), "the prompt is empty"),
        (greedy(vec![1, 4096], 5), "the token 4096, but this model's tokens are below 4096"),
        (greedy(vec![1; 301], 5), "has 301 tokens, but the context of this server holds 300"),
        (Job { n: 0, ..job() }, "0 answers are asked for; this server gives from 1 to 4"),
        (Job { n: 5, ..job() }, "5 answers are asked for"),
        (Job { logprobs: Some(129), ..job() }, "129 log-probabilities"),
        (Job { logit_bias: vec![(4096, 1.0)], ..job() }, "a bias is given for the token 4096"),
        (Job { logit_bias: vec![(1, f32::NAN)], ..job() }, "the bias of token 1 is NaN"),
        (Job { logit_bias: vec![(1, 101.0)], ..job() }, "it must be from -100 to 100"),
        (Job { sampler: sampler(-1.0), ..job() }, "temperature is -1"),
        (Job { stop: vec![String::new()], ..job() }, "stop string 0 is empty"),
        (Job { n: 2, max_tokens: None, ..job() }, "take 4 pages of memory, but this server has 3"),
    ] {
        let refused = engine.submit(job).err();
        assert!(matches!(&refused, Some(Failure::Invalid(why)) if why.contains(sentence)), "{refused:?} {sentence}");
    }
    assert_eq!(done(&engine, Job { n: 2, max_tokens: Some(200), ..job() }).failure, None);
    for (options, sentence) in [
        (EngineOptions { parallel: 0, ..EngineOptions::default() }, "from 1 to 1024"),
        (EngineOptions { chunk: 0, ..EngineOptions::default() }, "at least 1"),
        (EngineOptions { context: Some(1 << 20), ..EngineOptions::default() }, "what this model was made for"),
        (EngineOptions { cache_bytes: Some(1), ..EngineOptions::default() }, "allow that or a shorter context"),
    ] {
        let message = Engine::start(model.clone(), &options).err().unwrap().to_string();
        assert!(message.contains(sentence), "{message}");
    }
}

#[test]
fn ends_of_all_kinds() {
    let model = story();
    let engine = start(&model, &EngineOptions { context: Some(40), ..EngineOptions::default() });
    // No tokens at all.
    let none = done(&engine, Job { n: 2, ..greedy(vec![1, 2], 0) });
    assert_eq!(none.reasons, [Some(FinishReason::Length); 2]);
    assert_eq!(none.usage, Some(Usage { prompt_tokens: 2, ..Usage::default() }));
    // The context is full: the last token chosen need not fit. A prompt that fills it has one token.
    let full = done(&engine, long(&model));
    let n_prompt = full.usage.unwrap().prompt_tokens;
    assert_eq!((full.answers[0].len(), full.reasons[0]), (40 - n_prompt + 1, Some(FinishReason::Length)));
    let prompt = [tokens(&model, "Once upon a time there was"), full.ids(0)].concat();
    let one = done(&engine, Job { max_tokens: None, ..greedy(prompt[..40].to_vec(), 1) });
    assert_eq!((one.ids(0), one.reasons[0]), (vec![prompt[40]], Some(FinishReason::Length)));
    // A stop string is not part of the text, an end token has none.
    let stop = prompt[n_prompt..n_prompt + 6].to_vec();
    let stop = String::from_utf8(model.tokenizer().decode(&stop[4..])).unwrap();
    let stopped = done(&engine, Job { stop: vec![stop.clone()], ..long(&model) });
    assert_eq!(stopped.reasons[0], Some(FinishReason::Stop));
    assert!(!stopped.text(0).contains(&stop) && stopped.answers[0].len() <= 6);
    let end = model.tokenizer().end_tokens()[0];
    let ended = done(&engine, Job { logit_bias: vec![(end, 100.0)], ..greedy(vec![1, 2], 9) });
    assert_eq!((ended.ids(0), ended.text(0), ended.reasons[0]), (vec![end], String::new(), Some(FinishReason::Stop)));
    let job = Job { logit_bias: vec![(end, 100.0)], ignore_eos: true, ..greedy(vec![1, 2], 9) };
    assert_eq!(done(&engine, job).ids(0), vec![end; 9]);
}

#[test]
fn a_full_queue_refuses() {
    let model = story();
    let engine = start(&model, &EngineOptions { parallel: 1, max_queue: 2, ..EngineOptions::default() });
    let mut running = engine.submit(long(&model)).unwrap();
    assert!(matches!(running.blocking_recv(), Some(Event::Token(_))));
    let waiting: Vec<_> = (0..2).map(|_| engine.submit(greedy(vec![1, 2, 3], 3)).unwrap()).collect();
    assert_eq!(engine.submit(greedy(vec![1], 3)).err(), Some(Failure::QueueFull { waiting: 2 }));
    let stats = engine.stats();
    assert_eq!((stats.queue, stats.running), (2, 1));
    drop(running);
    for receiver in waiting {
        assert_eq!(listen(receiver, 1, usize::MAX).answers[0].len(), 3);
    }
    settle(&engine);
    // An engine that may not queue takes what it has places for.
    let engine = start(&model, &EngineOptions { parallel: 3, max_queue: 0, ..EngineOptions::default() });
    let taken: Vec<_> = (0..3).map(|_| engine.submit(long(&model)).unwrap()).collect();
    assert!(matches!(engine.submit(long(&model)), Err(Failure::QueueFull { .. })));
    drop(taken);
}

#[test]
fn jobs_that_come_together_begin_all_or_none() {
    let model = story();
    let engine = start(&model, &EngineOptions { parallel: 1, max_queue: 2, ..EngineOptions::default() });
    let short = |n: usize| (0..n).map(|_| greedy(vec![1, 2, 3], 3)).collect::<Vec<_>>();
    let refused = engine.submit_all(short(4)).err();
    let sentence = "4 prompts come at once, but this server takes at most 3";
    assert!(matches!(&refused, Some(Failure::Invalid(why)) if why.contains(sentence)), "{refused:?}");
    let mut running = engine.submit(long(&model)).unwrap();
    assert!(matches!(running.blocking_recv(), Some(Event::Token(_))));
    // One of the three finds no room, and then none takes any.
    assert_eq!(engine.submit_all(short(3)).err(), Some(Failure::QueueFull { waiting: 0 }));
    let stats = engine.stats();
    assert_eq!((stats.queue, stats.running, stats.refused_jobs), (0, 1, 3));
    let waiting = engine.submit_all(short(2)).unwrap();
    assert_eq!(engine.stats().queue, 2);
    drop(running);
    for receiver in waiting {
        assert_eq!(listen(receiver, 1, usize::MAX).answers[0].len(), 3);
    }
}

#[test]
fn a_client_that_goes_leaves_nothing_running() {
    let model = story();
    let engine = start(&model, &EngineOptions { chunk: 8, ..EngineOptions::default() });
    assert_eq!(engine.stats().running_pages, 0);
    let long_prompt = tokens(&model, &"the old bear looked at the moon and said nothing ".repeat(30));
    let mut receivers = Vec::new();
    for i in 0..4 {
        let mut job = long(&model);
        if i % 2 == 1 {
            job = Job { n: 2, ..greedy(long_prompt.clone(), 50) };
        }
        receivers.push(engine.submit(job).unwrap());
    }
    for _ in 0..10 {
        assert!(matches!(receivers[0].blocking_recv(), Some(Event::Token(_))));
    }
    assert!(engine.stats().running_pages > 0 && engine.stats().running > 0);
    drop(receivers);
    settle(&engine);
    let stats = engine.stats();
    assert_eq!((stats.running_pages, stats.cancelled_jobs, stats.done_jobs), (0, 4, 0), "{stats:?}");
    assert!(stats.idle_pages <= stats.page_limit);
    // What they computed is of use still.
    let usage = done(&engine, greedy(long_prompt, 3)).usage.unwrap();
    assert!((16..usage.prompt_tokens).contains(&usage.cached_tokens), "{usage:?}");
}

#[test]
fn deadlines_hold_for_those_that_run_and_those_that_wait() {
    let model = story();
    let engine = start(&model, &EngineOptions { parallel: 1, ..EngineOptions::default() });
    let soon = || Some(Instant::now() + Duration::from_millis(40));
    let slow = |n: u64| Job { deadline: Some(Instant::now() + Duration::from_millis(n)), ..long(&model) };
    let running = engine.submit(slow(60)).unwrap();
    let waiting = engine.submit(Job { deadline: soon(), ..greedy(vec![1, 2, 3], 3) }).unwrap();
    let patient = engine.submit(greedy(vec![1, 2, 3], 3)).unwrap();
    let over = engine.submit(Job { deadline: Some(Instant::now()), ..greedy(vec![1, 2, 3], 3) }).unwrap();
    let waiting = listen(waiting, 1, usize::MAX);
    assert_eq!((waiting.failure, waiting.answers[0].len()), (Some(Failure::TimedOut), 0));
    assert_eq!(listen(over, 1, usize::MAX).failure, Some(Failure::TimedOut));
    let running = listen(running, 1, usize::MAX);
    assert_eq!(running.failure, Some(Failure::TimedOut), "{} tokens", running.answers[0].len());
    assert_eq!(listen(patient, 1, usize::MAX).failure, None);
}

#[test]
fn a_constraint_that_fails_fails_its_own_job() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let beside = engine.submit(greedy(tokens(&model, "One day a hungry fox"), 30)).unwrap();
    let job = |how| Job { constraint: Some(Box::new(Fails(how, 0))), ..greedy(vec![1, 2, 3], 9) };
    for (how, n) in [("panic", 3), ("allow", 3), ("accept", 2)] {
        let failed = done(&engine, job(how));
        assert!(failed.answers[0].len() <= n, "{how}");
        match failed.failure {
            Some(Failure::Internal(why)) if how == "panic" => assert!(why.contains("the server's log"), "{why}"),
            Some(Failure::Invalid(why)) => assert!(why.starts_with("the grammar"), "{why}"),
            other => panic!("{how}: {other:?}"),
        }
    }
    let alone = done(&start(&model, &EngineOptions::default()), greedy(tokens(&model, "One day a hungry fox"), 30));
    assert_eq!(listen(beside, 1, usize::MAX).answers, alone.answers);
    assert!(engine.healthy());
    assert_eq!(engine.stats().failed_jobs, 3);
}

#[test]
fn shutting_down_lets_answers_finish_within_the_grace() {
    let model = story();
    let options = EngineOptions { parallel: 1, ..EngineOptions::default() };
    let engine = start(&model, &options);
    let mut running = engine.submit(greedy(tokens(&model, "Once upon a time"), 20)).unwrap();
    assert!(matches!(running.blocking_recv(), Some(Event::Token(_))));
    let waiting = engine.submit(greedy(vec![1, 2, 3], 3)).unwrap();
    shut_down(&engine, Duration::from_secs(60));
    assert!(!engine.healthy());
    let events: Vec<Event> = std::iter::from_fn(|| running.blocking_recv()).collect();
    assert!(events.len() == 21 && matches!(events[20], Event::Done(usage) if usage.completion_tokens == 20));
    assert_eq!(listen(waiting, 1, usize::MAX).failure, Some(Failure::ShuttingDown));
    assert_eq!(engine.submit(greedy(vec![1], 1)).err(), Some(Failure::ShuttingDown));
    assert_eq!((engine.stats().running, engine.stats().queue, engine.stats().running_pages), (0, 0, 0));
    // Without grace.
    let engine = start(&model, &options);
    let mut running = engine.submit(long(&model)).unwrap();
    assert!(matches!(running.blocking_recv(), Some(Event::Token(_))));
    shut_down(&engine, Duration::ZERO);
    let last = std::iter::from_fn(|| running.blocking_recv()).last();
    assert_eq!(last, Some(Event::Failed(Failure::ShuttingDown)));
    // Nobody has a handle any more.
    let engine = start(&model, &options);
    let running = engine.submit(long(&model)).unwrap();
    drop(engine);
    assert_eq!(listen(running, 1, usize::MAX).failure, Some(Failure::ShuttingDown));
}

#[test]
fn what_is_measured_can_be_read() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let prompt = tokens(&model, "There was once a king who had three sons, and the youngest of them was a fool.");
    let n_prompt = prompt.len();
    for _ in 0..2 {
        done(&engine, greedy(prompt.clone(), 5));
    }
    settle(&engine);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (2 * n_prompt as u64, n_prompt as u64 - 1));
    assert_eq!((stats.completion_tokens, stats.done_jobs, stats.idle_pages), (10, 2, 1));
    let text = engine.metrics().render();
    for line in [
        "# TYPE tritone_completion_tokens counter",
        "tritone_completion_tokens_total 10",
        "tritone_jobs_done_total 2",
        "tritone_queue_jobs 0",
        "tritone_running_answers 0",
        "tritone_cache_idle_pages 1",
        "tritone_first_token_seconds_count 2",
        "tritone_token_seconds_count 8",
        "# EOF",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
}
