//! Continuous batching: one thread takes steps with all answers that are under way.
//!
//! [`Engine::submit`] checks a job and hands it to the thread (`inbox.rs`), which takes turns (`scheduler.rs`): it
//! takes in what came, drops whom nobody listens to, admits jobs for which there is room, and takes one step through the
//! model with a token of each answer and a chunk of the prompts (`running.rs`), from which each answer chooses its next
//! token (`answer.rs`); what a constraint allows is found on threads of its own (`masks.rs`). Keys and values that answers leave behind are kept while there is room, and jobs that begin
//! alike begin from them (`prefixes.rs`, `pages.rs`).
//!
//! Who else is served changes no answer: every token is treated alone, and a prefix has the bits that computing it
//! again would give.

mod answer;
mod inbox;
pub mod job;
mod limits;
mod masks;
mod options;
mod pages;
mod prefixes;
mod running;
mod scheduler;
#[cfg(test)]
mod tests;

pub use options::{EngineOptions, StartError};

use crate::metrics::{Metrics, Stats};
use inbox::{Inbox, Reader, Request};
use job::{Event, Failure, FinishReason, Job, Usage};
use limits::Limits;
use masks::Masks;
use scheduler::Scheduler;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;
use tritone_runtime::batch::Batch;
use tritone_runtime::model::Model;

/// A model at work. Cloning copies a pointer; when the last one is dropped, all jobs end with
/// [`Failure::ShuttingDown`].
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

struct Handle {
    model: Model,
    limits: Limits,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    /// Closed when the thread has ended.
    ended: watch::Receiver<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.close(Instant::now());
    }
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// Options that cannot be, or the system refuses a thread.
    pub fn start(model: Model, options: &EngineOptions) -> Result<Engine, StartError> {
        let batch = Batch::new(&model)?;
        let page_bytes = batch.sequence().page_bytes();
        let limits = options.limits(&model, page_bytes)?;
        let metrics = Arc::new(Metrics::new(limits.pages, page_bytes));
        let inbox = Arc::new(Inbox::new(limits.parallel, limits.max_queue, Arc::clone(&metrics)));
        let masks = Masks::start().map_err(StartError::Thread)?;
        let (alive, ended) = watch::channel(());
        let reader = Reader::new(Arc::clone(&inbox), alive);
        let parts = (model.clone(), limits.clone(), Arc::clone(&inbox), Arc::clone(&metrics));
        std::thread::Builder::new()
            .name("tritone-engine".to_owned())
            .spawn(move || {
                // Goes last, when the scheduler's threads have ended.
                let _reader = reader;
                let (model, limits, inbox, metrics) = parts;
                Scheduler::new(model, batch, limits, inbox, metrics, masks).run();
            })
            .map_err(StartError::Thread)?;
        Ok(Engine { handle: Arc::new(Handle { model, limits, inbox, metrics, ended }) })
    }

    /// Begins a job, or puts it in the queue. What happens to it comes out of the receiver; dropping that ends the job.
    ///
    /// # Errors
    /// The job asks for what cannot be, too many are waiting, or the engine is about to end.
    pub fn submit(&self, job: Job) -> Result<UnboundedReceiver<Event>, Failure> {
        let mut receivers = self.submit_all(vec![job])?;
        Ok(receivers.pop().expect("a job has a receiver"))
    }

    /// As [`Engine::submit`], with several jobs of which all begin or none.
    ///
    /// # Errors
    /// As [`Engine::submit`]; also more jobs than an engine that has nothing to do takes.
    pub fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<UnboundedReceiver<Event>>, Failure> {
        let Handle { limits, inbox, .. } = &*self.handle;
        limits.check_count(jobs.len())?;
        let (mut requests, mut receivers) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            let stop = limits.check(&job)?;
            let (events, receiver) = mpsc::unbounded_channel();
            receivers.push(receiver);
            if job.max_tokens == Some(0) {
                // Nothing to compute; the receiver is here still, so that nothing can fail.
                let ends = (0..job.n).map(|answer| Event::Finished { answer, reason: FinishReason::Length });
                let usage = Usage { prompt_tokens: job.prompt.len(), ..Usage::default() };
                ends.chain([Event::Done(usage)]).for_each(|event| drop(events.send(event)));
            } else {
                requests.push(Request::new(job, events, stop));
            }
        }
        inbox.put(requests)?;
        Ok(receivers)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.handle.model
    }

    /// How many tokens a prompt and its answer can have.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.handle.limits.context
    }

    /// How many answers run at once at most.
    #[must_use]
    pub fn parallel(&self) -> usize {
        self.handle.limits.parallel
    }

    /// How it is going.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.handle.metrics.stats()
    }

    /// What is measured.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.handle.metrics
    }

    /// Whether the engine's thread runs. It ends after [`Engine::shutdown`], and when a failure leaves nothing to go on
    /// with.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.handle.ended.has_changed().is_ok()
    }

    /// Takes no more jobs, fails those that wait for a place, lets the others finish within `grace`, fails what is left with
    /// [`Failure::ShuttingDown`], and returns when the threads have ended. Of several calls the shortest grace counts.
    pub async fn shutdown(&self, grace: Duration) {
        // A grace beyond what the clock can say is none that ends.
        let now = Instant::now();
        self.handle.inbox.close(now.checked_add(grace).unwrap_or(now + Duration::from_secs(1 << 30)));
        let mut ended = self.handle.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}
