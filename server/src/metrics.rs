//! What a server measures, for programs that watch it.
//!
//! The engine counts; [`Metrics::render`] writes it in the OpenMetrics text format, which Prometheus reads.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Upper bounds of the classes of time to the first token, in seconds.
const FIRST_TOKEN: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0];

/// Upper bounds of the classes of time between two tokens, in seconds.
const TOKEN: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// All that is measured.
pub struct Metrics {
    registry: Registry,
    page_bytes: usize,
    page_limit: usize,
    queue: Level,
    running: Level,
    jobs: Counter,
    cancelled: Counter,
    failed: Counter,
    refused: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    running_pages: Gauge,
    idle_pages: Gauge,
    first_token: Histogram,
    token: Histogram,
}

/// A number of which the engine says how large its part is, and others by how much theirs changes.
#[derive(Default)]
struct Level {
    sum: Gauge,
    engine: AtomicI64,
}

impl Level {
    fn set(&self, n: usize) {
        let n = signed(n);
        self.sum.inc_by(n - self.engine.swap(n, Ordering::Relaxed));
    }
}

/// What there was at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Jobs that wait.
    pub queue: usize,
    /// Answers that are under way.
    pub running: usize,
    /// Jobs that ended well.
    pub done_jobs: u64,
    /// Jobs whose client went away.
    pub cancelled_jobs: u64,
    /// Jobs that failed.
    pub failed_jobs: u64,
    /// Jobs that were refused because too many waited.
    pub refused_jobs: u64,
    /// Tokens of prompts, of all jobs that have begun.
    pub prompt_tokens: u64,
    /// Those of them that were known from earlier jobs.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Pages of keys and values of answers under way.
    pub running_pages: usize,
    /// Pages that are only kept for later jobs.
    pub idle_pages: usize,
    /// How many pages there can be.
    pub page_limit: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Cancelled,
    Failed,
    /// It never began: too many waited.
    Refused,
}

impl Metrics {
    /// What [`Metrics::render`] writes, as HTTP names it.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    pub(crate) fn new(page_limit: usize, page_bytes: usize) -> Metrics {
        let metrics = Metrics {
            registry: Registry::default(),
            page_bytes,
            page_limit,
            queue: Level::default(),
            running: Level::default(),
            jobs: Counter::default(),
            cancelled: Counter::default(),
            failed: Counter::default(),
            refused: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            running_pages: Gauge::default(),
            idle_pages: Gauge::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            token: Histogram::new(TOKEN),
        };
        let mut registry = Registry::with_prefix("tritone");
        registry.register("queue_jobs", "Jobs that wait", metrics.queue.sum.clone());
        let help = "Answers under way; one for each request that gets vectors";
        registry.register("running_answers", help, metrics.running.sum.clone());
        registry.register("jobs_done", "Jobs that ended well", metrics.jobs.clone());
        registry.register("jobs_cancelled", "Jobs whose client went away", metrics.cancelled.clone());
        registry.register("jobs_failed", "Jobs that failed", metrics.failed.clone());
        let help = "Jobs refused because too many waited";
        registry.register("jobs_refused", help, metrics.refused.clone());
        registry.register("prompt_tokens", "Tokens of prompts", metrics.prompt_tokens.clone());
        let help = "Tokens of prompts that were known from earlier jobs";
        registry.register("prompt_cached_tokens", help, metrics.cached_tokens.clone());
        registry.register("completion_tokens", "Tokens of answers", metrics.completion_tokens.clone());
        let help = "Pages of keys and values of answers under way";
        registry.register("cache_running_pages", help, metrics.running_pages.clone());
        let help = "Pages of keys and values that are kept for later jobs";
        registry.register("cache_idle_pages", help, metrics.idle_pages.clone());
        let limit: Gauge = Gauge::default();
        limit.set(signed(page_limit));
        registry.register("cache_limit_pages", "Pages of keys and values that there can be", limit);
        let bytes: Gauge = Gauge::default();
        bytes.set(signed(page_bytes));
        registry.register_with_unit("cache_page", "Memory of a page of keys and values", Unit::Bytes, bytes);
        let help = "Time from a job's arrival to its first token";
        registry.register_with_unit("first_token", help, Unit::Seconds, metrics.first_token.clone());
        let help = "Time from one token of an answer to the next";
        registry.register_with_unit("token", help, Unit::Seconds, metrics.token.clone());
        Metrics { registry, ..metrics }
    }

    /// All of it as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }

    /// What there is now. Numbers that change meanwhile may be of different moments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let size = |gauge: &Gauge| usize::try_from(gauge.get()).unwrap_or(0);
        Stats {
            queue: size(&self.queue.sum),
            running: size(&self.running.sum),
            done_jobs: self.jobs.get(),
            cancelled_jobs: self.cancelled.get(),
            failed_jobs: self.failed.get(),
            refused_jobs: self.refused.get(),
            prompt_tokens: self.prompt_tokens.get(),
            cached_tokens: self.cached_tokens.get(),
            completion_tokens: self.completion_tokens.get(),
            running_pages: size(&self.running_pages),
            idle_pages: size(&self.idle_pages),
            page_limit: self.page_limit,
            page_bytes: self.page_bytes,
        }
    }

    pub(crate) fn set_queue(&self, jobs: usize) {
        self.queue.set(jobs);
    }

    pub(crate) fn set_running(&self, answers: usize) {
        self.running.set(answers);
    }

    /// A request for vectors came, or goes on from the queue.
    pub(crate) fn vectors_wait(&self, yes: bool) {
        self.queue.sum.inc_by(if yes { 1 } else { -1 });
    }

    /// Vectors of a request begin, or end.
    pub(crate) fn vectors_run(&self, yes: bool) {
        self.running.sum.inc_by(if yes { 1 } else { -1 });
    }

    pub(crate) fn set_pages(&self, running: usize, idle: usize) {
        self.running_pages.set(signed(running));
        self.idle_pages.set(signed(idle));
    }

    /// A job began.
    pub(crate) fn begun(&self, prompt_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.cached_tokens.inc_by(cached_tokens as u64);
    }

    /// A job got its first token, so long after it came.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// An answer got one more token, so long after the last one, if it was not its first.
    pub(crate) fn token(&self, after: Option<Duration>) {
        self.completion_tokens.inc();
        if let Some(after) = after {
            self.token.observe(after.as_secs_f64());
        }
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.jobs.inc(),
            Outcome::Cancelled => self.cancelled.inc(),
            Outcome::Failed => self.failed.inc(),
            Outcome::Refused => self.refused.inc(),
        };
    }
}

/// A number of things in memory.
fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
