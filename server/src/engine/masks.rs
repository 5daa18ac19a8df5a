//! What constraints allow, worked out beside the engine's thread.
//!
//! A grammar can need seconds for one token, and nobody else shall wait for it. So an answer hands its constraint to the
//! threads here, with the token that it has chosen, and sits out of steps until what may come next is known. Most
//! grammars need much less than a step takes: those are waited for ([`Masks::settle`]), and their answers miss none.
//!
//! A job has one constraint in work at a time, and of those that have something to do the one that has used least time
//! is next: many answers of one job take nothing from another. One thread is for jobs that were not slow so far, so that
//! slow ones hold up each other only.

use super::job::{Constraint, Failure};
use super::scheduler::guarded;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a step waits for the next of the constraints that were handed over since the last one, and for all of them.
const PATIENCE: Duration = Duration::from_millis(2);
const PATIENCE_FOR_ALL: Duration = Duration::from_millis(10);

/// A job is slow if it has used more than the first, and the second for each time that it was looked at.
const CREDIT: Duration = Duration::from_millis(20);
const CREDIT_A_LOOK: Duration = Duration::from_millis(2);

/// A constraint and what it allows next.
pub(super) struct Constrained {
    constraint: Box<dyn Constraint>,
    /// A bit for each token.
    mask: Vec<u32>,
}

impl Constrained {
    /// A constraint that was not asked yet.
    pub(super) fn new(constraint: Box<dyn Constraint>, vocab: usize) -> Constrained {
        Constrained { constraint, mask: vec![0; vocab.div_ceil(32)] }
    }

    pub(super) fn allows(&self, token: u32) -> bool {
        self.mask[token as usize / 32] >> (token % 32) & 1 == 1
    }

    /// Whether nothing may come next.
    pub(super) fn is_over(&self) -> bool {
        self.mask.iter().all(|word| *word == 0)
    }

    /// Takes the token that was chosen, and asks what may come next.
    fn look(&mut self, token: Option<u32>) -> Result<(), Failure> {
        if let Some(token) = token {
            self.constraint.accept(token).map_err(Failure::Invalid)?;
        }
        self.mask.fill(0);
        self.constraint.allow(&mut self.mask).map_err(Failure::Invalid)
    }

    fn fork(&self) -> Constrained {
        Constrained { constraint: self.constraint.fork(), mask: self.mask.clone() }
    }
}

/// A constraint that comes back.
pub(super) struct Seen {
    pub(super) job: u64,
    /// Of which answer; the next ones belong to the answers after it.
    pub(super) first: usize,
    pub(super) constraints: Result<Vec<Constrained>, Failure>,
}

/// What is to be done with a constraint.
struct Task {
    first: usize,
    /// For how many answers that are at the same place.
    n: usize,
    constrained: Constrained,
    token: Option<u32>,
    /// The count of settlements when it came.
    round: u64,
}

/// What is to be done for a job, and what was done.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Whether a thread is at work for it.
    busy: bool,
    /// How many of its tasks a step waits for.
    fresh: usize,
    n_looks: u32,
    spent: Duration,
}

impl Queue {
    fn is_slow(&self) -> bool {
        self.spent > CREDIT + CREDIT_A_LOOK.saturating_mul(self.n_looks)
    }
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<u64, Queue>,
    seen: Vec<Seen>,
    round: u64,
    closed: bool,
}

impl State {
    /// What a thread does next.
    fn next(&mut self, takes_slow: bool) -> Option<(u64, Task)> {
        let ready = self.jobs.iter_mut().filter(|(_, queue)| !queue.busy && (takes_slow || !queue.is_slow()));
        let (job, queue) = ready.filter(|(_, queue)| !queue.tasks.is_empty()).min_by_key(|(_, queue)| queue.spent)?;
        let task = queue.tasks.pop_front()?;
        queue.busy = true;
        Some((*job, task))
    }

    fn is_fresh(&self) -> bool {
        self.jobs.values().any(|queue| queue.fresh > 0)
    }

    fn is_busy(&self) -> bool {
        self.jobs.values().any(|queue| queue.busy || !queue.tasks.is_empty())
    }
}

struct Shared {
    state: Mutex<State>,
    /// Rung when there is something to do.
    work: Condvar,
    /// Rung when something was done.
    done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete in itself, so that a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads. When it is dropped they end with what they are at; nobody waits for that.
pub(super) struct Masks {
    shared: Arc<Shared>,
}

impl Masks {
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start() -> std::io::Result<Masks> {
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), done: Condvar::new() };
        let masks = Masks { shared: Arc::new(shared) };
        for takes_slow in [true, false] {
            let shared = Arc::clone(&masks.shared);
            let thread = std::thread::Builder::new().name("tritone-masks".to_owned());
            thread.spawn(move || work(&shared, takes_slow))?;
        }
        Ok(masks)
    }

    /// Where the answers of a job hand over their constraints.
    pub(super) fn open(&self, job: u64) -> Looks {
        self.shared.lock().jobs.insert(job, Queue::default());
        Looks { job, shared: Arc::clone(&self.shared) }
    }

    /// What is known now. Waits for what was handed over since the last time as long as there is hope that it comes soon.
    pub(super) fn settle(&self) -> Vec<Seen> {
        let end = Instant::now() + PATIENCE_FOR_ALL;
        let mut state = self.shared.lock();
        while state.is_fresh() {
            let n_seen = state.seen.len();
            let patience = PATIENCE.min(end.saturating_duration_since(Instant::now()));
            let nothing = |state: &mut State| state.is_fresh() && state.seen.len() == n_seen;
            let waited = self.shared.done.wait_timeout_while(state, patience, nothing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.seen.len() == n_seen {
                break;
            }
        }
        state.round += 1;
        state.jobs.values_mut().for_each(|queue| queue.fresh = 0);
        std::mem::take(&mut state.seen)
    }

    /// The same for who has nothing else to do: waits for something, at most so long.
    pub(super) fn wait(&self, most: Duration) -> Vec<Seen> {
        let state = self.shared.lock();
        let nothing = |state: &mut State| state.seen.is_empty() && state.is_busy();
        let waited = self.shared.done.wait_timeout_while(state, most, nothing);
        std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).0.seen)
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.shared.work.notify_all();
        drop(jobs);
    }
}

/// Takes the constraints of a job. When it is dropped nothing more is done for the job.
pub(super) struct Looks {
    job: u64,
    shared: Arc<Shared>,
}

impl Looks {
    /// Asks what may come first in the answers 0 to `n`.
    pub(super) fn begin(&self, constrained: Constrained, n: usize) {
        self.put(0, n, constrained, None);
    }

    /// Asks what may come in an answer after one more token.
    pub(super) fn go_on(&self, answer: usize, constrained: Constrained, token: u32) {
        self.put(answer, 1, constrained, Some(token));
    }

    fn put(&self, first: usize, n: usize, constrained: Constrained, token: Option<u32>) {
        let mut state = self.shared.lock();
        let round = state.round;
        let queue = state.jobs.entry(self.job).or_default();
        queue.tasks.push_back(Task { first, n, constrained, token, round });
        queue.fresh += 1;
        drop(state);
        // Not every thread takes every job.
        self.shared.work.notify_all();
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        let queue = self.shared.lock().jobs.remove(&self.job);
        drop(queue);
    }
}

/// A thread.
fn work(shared: &Shared, takes_slow: bool) {
    let mut state = shared.lock();
    while !state.closed {
        let Some((job, task)) = state.next(takes_slow) else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        let began = Instant::now();
        let Task { first, n, mut constrained, token, round } = task;
        let constraints = guarded(|| {
            constrained.look(token)?;
            let forks = (1..n).map(|_| constrained.fork());
            Ok(forks.collect())
        });
        let constraints = constraints.map(|mut forks: Vec<Constrained>| {
            forks.push(constrained);
            forks
        });
        let took = began.elapsed();
        state = shared.lock();
        let current = state.round == round;
        let Some(queue) = state.jobs.get_mut(&job) else {
            // The job has ended. What it has left is large, perhaps.
            drop(state);
            drop(constraints);
            state = shared.lock();
            continue;
        };
        queue.busy = false;
        queue.fresh -= usize::from(current);
        queue.n_looks += 1;
        queue.spent += took;
        state.seen.push(Seen { job, first, constraints });
        shared.done.notify_all();
        // What the job has to do yet may be for the other thread now.
        shared.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows nothing.
    struct Nothing;

    impl Constraint for Nothing {
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Nothing)
        }

        fn allow(&mut self, _: &mut [u32]) -> Result<(), String> {
            Ok(())
        }

        fn accept(&mut self, _: u32) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn jobs_take_turns_and_slow_ones_keep_to_their_thread() {
        let mut state = State::default();
        for (job, spent) in [(1, 0), (2, 900), (3, 15), (4, 500)] {
            let task = |first| Task {
                first,
                n: 1,
                constrained: Constrained::new(Box::new(Nothing), 8),
                token: None,
                round: 0,
            };
            let spent = Duration::from_millis(spent);
            state.jobs.insert(job, Queue { tasks: (0..2).map(task).collect(), spent, ..Queue::default() });
        }
        let next = |state: &mut State, takes_slow| state.next(takes_slow).map(|(job, task)| (job, task.first));
        assert_eq!(next(&mut state, false), Some((1, 0)), "who has used least");
        assert_eq!(next(&mut state, true), Some((3, 0)), "one at a time of each job");
        assert_eq!(next(&mut state, false), None, "the others are slow");
        assert_eq!(next(&mut state, true), Some((4, 0)));
        assert_eq!(next(&mut state, true), Some((2, 0)));
        assert_eq!(next(&mut state, true), None);
        let queue = state.jobs.get_mut(&1).unwrap();
        (queue.busy, queue.spent, queue.n_looks) = (false, Duration::from_millis(150), 100);
        assert_eq!(next(&mut state, false), Some((1, 1)), "not slow, for so many looks");
    }
}
