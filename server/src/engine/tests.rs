//! The loop, turn by turn: what runs when, what is kept, what is left.

use super::inbox::{Inbox, Request};
use super::job::{Constraint, Event, Failure, Job, Usage};
use super::limits::Limits;
use super::masks::Masks;
use super::options::EngineOptions;
use super::scheduler::Scheduler;
use crate::metrics::{Metrics, Stats};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tritone_runtime::batch::{Batch, PAGE_TOKENS};
use tritone_runtime::error::Error;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;

/// A small one: 768 tokens, a context of 512, pages of 256.
pub(super) fn model() -> Model {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf");
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
}

/// An engine whose turns the test takes.
struct Bench {
    scheduler: Scheduler,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    limits: Limits,
}

impl Bench {
    /// With so many pages.
    fn new(pages: usize, options: &EngineOptions) -> Bench {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf");
        let options_of_model = LoadOptions { threads: Some(1), ..LoadOptions::default() };
        let model = Model::load(Source::File(path), &options_of_model, &mut |_| {}).unwrap();
        let batch = Batch::new(&model).unwrap();
        let page_bytes = batch.sequence().page_bytes();
        let options = EngineOptions { cache_bytes: Some(pages * page_bytes), ..options.clone() };
        let limits = options.limits(&model, page_bytes).unwrap();
        let metrics = Arc::new(Metrics::new(pages, page_bytes));
        let inbox = Arc::new(Inbox::new(limits.parallel, limits.max_queue, Arc::clone(&metrics)));
        let scheduler = Scheduler::new(
            model,
            batch,
            limits.clone(),
            Arc::clone(&inbox),
            Arc::clone(&metrics),
            Masks::start().unwrap(),
        );
        Bench { scheduler, inbox, metrics, limits }
    }

    fn submit(&self, job: Job) -> UnboundedReceiver<Event> {
        let stop = self.limits.check(&job).unwrap();
        let (events, receiver) = mpsc::unbounded_channel();
        self.inbox.put(vec![Request::new(job, events, stop)]).unwrap();
        receiver
    }

    fn turn(&mut self) -> Stats {
        assert!(self.scheduler.turn().is_continue());
        self.metrics.stats()
    }

    /// Takes turns until nothing is left to do; returns how many.
    fn finish(&mut self) -> usize {
        let mut turns = 0;
        while self.metrics.stats().running + self.metrics.stats().queue > 0 {
            self.turn();
            turns += 1;
            assert!(turns < 20_000, "{:?}", self.metrics.stats());
        }
        turns
    }
}

fn options(parallel: usize, chunk: usize) -> EngineOptions {
    EngineOptions { parallel, chunk, ..EngineOptions::default() }
}

fn text(seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 3 + i * 17 + seed * 101 + 7) % 768) as u32).collect()
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Job {
    Job {
        prompt,
        n: 1,
        max_tokens: Some(max_tokens),
        sampler: SamplerConfig { temperature: 0.0, ..SamplerConfig::default() },
        logit_bias: Vec::new(),
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        constraint: None,
        deadline: None,
    }
}

/// Tokens that have come by now.
fn ids(receiver: &mut UnboundedReceiver<Event>) -> Vec<u32> {
    let events = std::iter::from_fn(|| receiver.try_recv().ok());
    events.filter_map(|event| if let Event::Token(token) = event { Some(token.id) } else { None }).collect()
}

/// The end of a job that has ended by now.
fn end(receiver: &mut UnboundedReceiver<Event>) -> Result<Usage, Failure> {
    match std::iter::from_fn(|| receiver.try_recv().ok()).last() {
        Some(Event::Done(usage)) => Ok(usage),
        Some(Event::Failed(failure)) => Err(failure),
        other => panic!("not an end: {other:?}"),
    }
}

#[test]
fn short_prompts_overtake_long_ones_which_get_on_all_the_same() {
    let mut bench = Bench::new(16, &options(8, 16));
    let mut long = bench.submit(greedy(text(1, 400), 2));
    bench.turn();
    let mut short = bench.submit(greedy(text(2, 12), 3));
    bench.turn();
    assert_eq!(ids(&mut short).len(), 1, "12 tokens fit beside the long prompt's quarter");
    // A short prompt comes at each turn, and the long one has a quarter of each still: less than 100 turns for 400 tokens.
    let mut others = Vec::new();
    let mut turns = 2;
    while ids(&mut long).is_empty() {
        others.push(bench.submit(greedy(text(turns + 3, 12), 1)));
        bench.turn();
        turns += 1;
    }
    assert!((60..=100).contains(&turns), "{turns}");
    assert!(others.iter_mut().rev().skip(1).all(|other| end(other).is_ok()));
}

#[test]
fn answers_get_a_token_at_each_turn_whatever_is_read() {
    let mut bench = Bench::new(16, &options(8, 16));
    let mut answer = bench.submit(greedy(text(1, 10), 40));
    bench.turn();
    assert_eq!(ids(&mut answer).len(), 1);
    let _reading: Vec<_> = (0..4).map(|i| bench.submit(greedy(text(i + 5, 150), 5))).collect();
    for _ in 0..30 {
        bench.turn();
        assert_eq!(ids(&mut answer).len(), 1);
    }
}

#[test]
fn a_prompt_that_comes_twice_is_read_once() {
    let mut bench = Bench::new(32, &options(8, 16));
    let mut receivers: Vec<_> = (0..4).map(|_| bench.submit(greedy(text(1, 160), 3))).collect();
    let mut other = bench.submit(greedy([text(1, 120), text(9, 40)].concat(), 3));
    // Not alike: it need not wait.
    let mut third = bench.submit(greedy(text(3, 10), 3));
    bench.turn();
    assert_eq!(ids(&mut third).len(), 1, "it passes those that wait");
    let turns = 1 + bench.finish();
    let usages: Vec<Usage> = receivers.iter_mut().map(|receiver| end(receiver).unwrap()).collect();
    assert_eq!(usages.iter().map(|usage| usage.cached_tokens).collect::<Vec<_>>(), [0, 159, 159, 159]);
    assert_eq!(end(&mut other).unwrap().cached_tokens, 120);
    assert!(turns < 20, "{turns} turns; 160 + 40 tokens are 13 chunks");
}

#[test]
fn jobs_wait_for_pages_in_order_and_what_is_kept_makes_way() {
    // Three pages: one answer of two pages and one of one page.
    let mut bench = Bench::new(3, &options(8, 512));
    let mut kept = bench.submit(greedy(text(1, 30), 2));
    bench.finish();
    assert!(end(&mut kept).is_ok());
    assert_eq!((bench.metrics.stats().idle_pages, bench.metrics.stats().running_pages), (1, 0));
    // It takes two pages at most, of which it has one: what is kept can stay.
    let mut first = bench.submit(greedy(text(2, 200), 100));
    let stats = bench.turn();
    assert_eq!((stats.running, stats.running_pages, stats.idle_pages), (1, 1, 1));
    // Two pages are not free now. What comes after it waits as well, though it would fit.
    let mut second = bench.submit(greedy(text(3, 250), 20));
    let mut third = bench.submit(greedy(text(4, 20), 20));
    let stats = bench.turn();
    assert_eq!((stats.running, stats.queue, stats.idle_pages), (1, 2, 1));
    while end_is_not_near(&mut first) {
        assert_eq!(bench.turn().queue, 2);
    }
    bench.turn();
    let stats = bench.turn();
    // The first one's pages made way for the second one, and the third one begins as well.
    assert_eq!((stats.running, stats.queue), (2, 0), "{stats:?}");
    bench.finish();
    assert!(end(&mut second).is_ok() && end(&mut third).is_ok());
    // The oldest went first.
    let mut again = bench.submit(greedy(text(1, 30), 1));
    bench.finish();
    assert_eq!(end(&mut again).unwrap().cached_tokens, 0);
    let mut again = bench.submit(greedy(text(4, 20), 1));
    bench.finish();
    assert_eq!(end(&mut again).unwrap().cached_tokens, 19);
}

/// Whether the job has not said that it is done.
fn end_is_not_near(receiver: &mut UnboundedReceiver<Event>) -> bool {
    !std::iter::from_fn(|| receiver.try_recv().ok()).any(|event| matches!(event, Event::Done(_)))
}

#[test]
fn a_job_that_takes_all_pages_fits_whatever_is_kept_and_shared() {
    let mut bench = Bench::new(2, &options(4, 64));
    // Each leaves a page that is not full, with which the next one begins and of which it needs a copy.
    for round in 0..4 {
        let prompt = [text(1, 100 + 20 * round), text(round + 7, 20)].concat();
        let n = 1 + round % 2;
        let most = if n == 1 { 512 } else { PAGE_TOKENS };
        let max_tokens = most - prompt.len() + 1;
        let mut receiver = bench.submit(Job { n, ..greedy(prompt, max_tokens) });
        bench.finish();
        assert_eq!(end(&mut receiver).unwrap().completion_tokens, n * max_tokens);
        assert!(bench.metrics.stats().idle_pages <= 2);
    }
    assert!(bench.metrics.stats().cached_tokens > 0, "{:?}", bench.metrics.stats());
}

#[test]
fn a_step_that_fails_fails_those_in_it_and_the_next_one_works() {
    let expected = {
        let mut bench = Bench::new(8, &options(2, 64));
        let mut receiver = bench.submit(greedy(text(5, 40), 6));
        bench.finish();
        ids(&mut receiver)
    };
    for panics in [false, true] {
        let mut bench = Bench::new(8, &options(2, 64));
        let mut first = bench.submit(greedy(text(1, 30), 10));
        bench.turn();
        let mut second = bench.submit(greedy(text(2, 30), 10));
        let mut third = bench.submit(greedy(text(5, 40), 6));
        bench.scheduler.fault = Some(if panics {
            || panic!("on purpose")
        } else {
            || Err(Error::Memory { what: "a test".to_owned(), bytes: 1 })
        });
        let stats = bench.turn();
        assert_eq!((stats.running, stats.queue, stats.running_pages, stats.failed_jobs), (0, 1, 0, 2));
        for receiver in [&mut first, &mut second] {
            let failure = end(receiver).unwrap_err();
            let sentence = if panics { "the engine failed while" } else { "not enough memory for a test" };
            assert!(matches!(&failure, Failure::Internal(why) if why.contains(sentence)), "{failure:?}");
        }
        bench.finish();
        assert_eq!(ids(&mut third), expected);
    }
}

/// Panics where nothing of a job can be at fault.
#[test]
fn a_panic_of_the_loop_ends_what_runs_and_nothing_else() {
    let mut bench = Bench::new(8, &options(1, 64));
    let mut first = bench.submit(greedy(text(1, 30), 10));
    let mut second = bench.submit(greedy(text(2, 30), 10));
    bench.turn();
    assert!(bench.scheduler.recover().is_continue());
    assert!(matches!(end(&mut first), Err(Failure::Internal(_))));
    bench.finish();
    assert_eq!(end(&mut second).unwrap().completion_tokens, 10);
    // Nothing runs: then it is a job that waits.
    let mut third = bench.submit(greedy(text(3, 30), 10));
    bench.scheduler.take_in();
    assert!(bench.scheduler.recover().is_continue());
    assert!(matches!(end(&mut third), Err(Failure::Internal(_))));
}

/// Allows everything, but each time not before it is let.
struct Gated(Arc<Mutex<Receiver<()>>>);

impl Constraint for Gated {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Gated(Arc::clone(&self.0)))
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        // At the end of the test nobody holds it back.
        let _ = self.0.lock().unwrap().recv();
        mask.fill(u32::MAX);
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

/// A constraint that waits, and what lets it go on.
fn gated() -> (Sender<()>, Option<Box<dyn Constraint>>) {
    let (let_go, gate) = channel();
    (let_go, Some(Box::new(Gated(Arc::new(Mutex::new(gate))))))
}

/// One that does not wait.
fn open() -> Option<Box<dyn Constraint>> {
    gated().1
}

#[test]
fn a_slow_constraint_holds_up_nobody_else() {
    let mut bench = Bench::new(32, &options(8, 16));
    let mut plain = bench.submit(Job { n: 3, ..greedy(text(2, 40), 4) });
    bench.finish();
    let mut expected = ids(&mut plain);
    let mut answer = bench.submit(greedy(text(1, 10), 500));
    bench.turn();
    assert_eq!(ids(&mut answer).len(), 1);
    let (let_go, constraint) = gated();
    let mut slow = bench.submit(Job { n: 3, constraint, ..greedy(text(2, 40), 4) });
    // First the beginning of the three is in work, then one of them while the others wait behind it.
    for round in 0..2 {
        let mut quick = bench.submit(Job { constraint: open(), ..greedy(text(3 + round, 10), 8) });
        let mut turns = 0;
        while end_is_not_near(&mut quick) {
            bench.turn();
            assert_eq!(ids(&mut answer).len(), 1, "each step has its token");
            turns += 1;
            assert!(turns < 200, "a quick one gets on");
        }
        assert!(ids(&mut slow).is_empty());
        let_go.send(()).unwrap();
        for _ in 0..10 {
            bench.turn();
            assert_eq!(ids(&mut answer).len(), 1);
        }
    }
    drop(let_go);
    bench.finish();
    let mut found = ids(&mut slow);
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "the same tokens, whenever they come");
}

#[test]
fn who_waits_for_a_constraint_can_go_and_has_a_deadline() {
    let mut bench = Bench::new(16, &options(2, 16));
    let (_held, constraint) = gated();
    let gone = bench.submit(Job { constraint, ..greedy(text(1, 30), 5) });
    let stats = bench.turn();
    assert_eq!((stats.running, stats.completion_tokens), (1, 0));
    drop(gone);
    let stats = bench.turn();
    assert_eq!((stats.running, stats.running_pages, stats.cancelled_jobs), (0, 0, 1));
    let (_held, constraint) = gated();
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    let mut late = bench.submit(Job { constraint, deadline, ..greedy(text(1, 30), 5) });
    bench.finish();
    assert_eq!(end(&mut late), Err(Failure::TimedOut));
    // Both threads are held now, and the end comes all the same.
    let (_held, constraint) = gated();
    let mut last = bench.submit(Job { constraint, ..greedy(text(1, 30), 5) });
    bench.turn();
    bench.inbox.close(Instant::now());
    assert!(bench.scheduler.turn().is_break());
    assert_eq!(end(&mut last), Err(Failure::ShuttingDown));
}

/// Allows some token or another for a while; dies at one.
struct Moody(u32);

impl Constraint for Moody {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Moody(self.0))
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        mask[self.0 as usize % 20] = self.0;
        if self.0 % 97 == 13 { Err("it gave up".to_owned()) } else { Ok(()) }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(token + 1) >> 3;
        Ok(())
    }
}

#[test]
fn at_the_end_jobs_that_have_a_place_are_finished() {
    let mut bench = Bench::new(16, &options(2, 16));
    let mut running = bench.submit(greedy(text(1, 10), 5));
    bench.turn();
    let mut unseen = bench.submit(greedy(text(2, 10), 5));
    let mut too_many = bench.submit(greedy(text(3, 10), 5));
    bench.inbox.close(Instant::now() + Duration::from_secs(1000));
    while bench.scheduler.turn().is_continue() {}
    assert!(end(&mut running).is_ok() && end(&mut unseen).is_ok());
    assert!(matches!(end(&mut too_many), Err(Failure::ShuttingDown)));
    // Once the time is up nothing begins.
    let mut bench = Bench::new(16, &options(2, 16));
    let mut late = bench.submit(greedy(text(1, 10), 5));
    bench.inbox.close(Instant::now());
    assert!(bench.scheduler.turn().is_break());
    assert!(matches!(end(&mut late), Err(Failure::ShuttingDown)));
}

#[test]
fn pages_are_all_accounted_for_after_500_jobs_some_of_which_are_dropped() {
    let pages = 7;
    let mut bench = Bench::new(pages, &options(4, 48));
    let mut state = 12345u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut receivers, mut n_submitted, mut most) = (Vec::new(), 0, 0);
    while n_submitted < 500 || !receivers.is_empty() {
        for _ in 0..random(3) {
            if n_submitted == 500 || bench.metrics.stats().queue > 6 {
                break;
            }
            let longest = [250, 20, 20][random(3)];
            let (common, own) = (random(3) * 90, 1 + random(longest));
            let prompt = [text(random(2), common), text(random(40), own)].concat();
            let sampler = SamplerConfig { seed: random(1000) as u64, ..SamplerConfig::default() };
            let mut job = Job { n: 1 + random(3), sampler, ..greedy(prompt, 1 + random(30)) };
            if random(6) == 0 {
                job.constraint = Some(Box::new(Moody(random(5000) as u32)));
            }
            if random(40) == 0 {
                job.deadline = Some(std::time::Instant::now());
            }
            // How many turns the client has patience for.
            let patience = if random(3) == 0 { random(12) } else { usize::MAX };
            receivers.push((bench.submit(job), patience));
            n_submitted += 1;
        }
        if receivers.is_empty() {
            continue;
        }
        let stats = bench.turn();
        most = most.max(stats.running_pages + stats.idle_pages);
        assert!(most <= pages);
        receivers.retain_mut(|(receiver, patience)| {
            *patience = patience.saturating_sub(1);
            let ended = std::iter::from_fn(|| receiver.try_recv().ok())
                .any(|event| matches!(event, Event::Done(_) | Event::Failed(_)));
            !ended && *patience > 0
        });
    }
    bench.finish();
    let stats = bench.metrics.stats();
    assert_eq!((most, stats.running_pages), (pages, 0), "all were used and none is left running");
    assert_eq!(stats.done_jobs + stats.cancelled_jobs + stats.failed_jobs, 500);
    assert!(stats.done_jobs > 200 && stats.cancelled_jobs > 50 && stats.failed_jobs > 5 && stats.cached_tokens > 5000);
    assert_eq!(bench.scheduler.forget_all(), 0, "pages that nobody holds");
}
