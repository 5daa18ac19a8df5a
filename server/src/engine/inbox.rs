//! Where jobs wait for the engine's thread.

use super::job::{Event, Failure, Job};
use crate::metrics::{Metrics, Outcome};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tritone_runtime::tokenizer::StopStrings;

const ENDED: &str = "the engine has ended after a failure that the server's log tells of; the server must be restarted";

/// A job that was found to be possible, and who asked for it.
pub(super) struct Request {
    pub(super) job: Job,
    pub(super) events: UnboundedSender<Event>,
    /// The job's stop strings at the beginning of a text.
    pub(super) stop: StopStrings,
    pub(super) submitted: Instant,
}

impl Request {
    pub(super) fn new(job: Job, events: UnboundedSender<Event>, stop: StopStrings) -> Request {
        Request { job, events, stop, submitted: Instant::now() }
    }

    /// Why the job need not go on: nobody listens, or the time is up. The latter is a failure.
    pub(super) fn over(&self, now: Instant) -> Option<Option<Failure>> {
        if self.events.is_closed() {
            return Some(None);
        }
        self.job.deadline.is_some_and(|deadline| now >= deadline).then_some(Some(Failure::TimedOut))
    }

    /// Tells who asked, if anyone listens still.
    pub(super) fn say(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// What callers and the engine's thread share.
pub(super) struct Inbox {
    state: Mutex<State>,
    /// Rung when there is something to look at.
    bell: Condvar,
    max_queue: usize,
    metrics: Arc<Metrics>,
}

struct State {
    /// Not seen by the thread.
    arrived: Vec<Request>,
    /// Jobs that wait, those that the thread has seen included.
    waiting: usize,
    /// Answers that could begin at once.
    free: usize,
    /// When all is to end.
    closing: Option<Instant>,
    /// Whether the thread is gone.
    ended: bool,
}

/// Held by the thread: when it is dropped, however that comes, the inbox is shut.
pub(super) struct Reader {
    inbox: Arc<Inbox>,
    /// Tells those that wait for the end.
    _alive: watch::Sender<()>,
}

impl Reader {
    pub(super) fn new(inbox: Arc<Inbox>, alive: watch::Sender<()>) -> Reader {
        Reader { inbox, _alive: alive }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inbox.end();
    }
}

/// What the thread found in the inbox.
pub(super) struct Mail {
    pub(super) arrived: Vec<Request>,
    pub(super) closing: Option<Instant>,
}

impl Inbox {
    pub(super) fn new(free: usize, max_queue: usize, metrics: Arc<Metrics>) -> Inbox {
        let state = State { arrived: Vec::new(), waiting: 0, free, closing: None, ended: false };
        Inbox { state: Mutex::new(state), bell: Condvar::new(), max_queue, metrics }
    }

    /// Puts jobs in, all or none. As many jobs as there are free places do not count as waiting: the thread has only not
    /// looked yet.
    pub(super) fn put(&self, requests: Vec<Request>) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.closing.is_some() {
            return Err(Failure::ShuttingDown);
        }
        if state.ended {
            return Err(Failure::Internal(ENDED.to_owned()));
        }
        if state.waiting.saturating_add(requests.len()) > state.free.saturating_add(self.max_queue) {
            requests.iter().for_each(|_| self.metrics.ended(Outcome::Refused));
            return Err(Failure::QueueFull { waiting: state.waiting });
        }
        state.waiting += requests.len();
        state.arrived.extend(requests);
        self.metrics.set_queue(state.waiting);
        drop(state);
        self.bell.notify_one();
        Ok(())
    }

    /// Asks for the end, at the latest at `at`.
    pub(super) fn close(&self, at: Instant) {
        let mut state = self.lock();
        state.closing = Some(state.closing.map_or(at, |other| other.min(at)));
        drop(state);
        self.bell.notify_one();
    }

    /// Lets no more jobs in, since nobody looks any more, and fails those that came last.
    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.waiting = 0;
        self.metrics.set_queue(0);
        let closing = state.closing.is_some();
        let arrived = std::mem::take(&mut state.arrived);
        drop(state);
        for request in arrived {
            let failure = if closing { Failure::ShuttingDown } else { Failure::Internal(ENDED.to_owned()) };
            request.say(Event::Failed(failure));
        }
    }

    /// Takes what has arrived; sleeps until there is something if the thread is `idle`.
    pub(super) fn take(&self, idle: bool) -> Mail {
        let state = self.lock();
        let nothing = |state: &mut State| idle && state.arrived.is_empty() && state.closing.is_none();
        let mut state = self.bell.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        Mail { arrived: std::mem::take(&mut state.arrived), closing: state.closing }
    }

    /// Tells callers how many jobs wait that the thread has seen, and how many answers could begin.
    pub(super) fn publish(&self, waiting: usize, free: usize) {
        let mut state = self.lock();
        state.waiting = waiting + state.arrived.len();
        state.free = free;
        self.metrics.set_queue(state.waiting);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete in itself, so that a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
