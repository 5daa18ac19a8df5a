//! The loop of the engine's thread.
//!
//! A step takes one token of each answer under way and at most a chunk of prompt tokens, so that no answer waits longer
//! than a chunk takes. Of the chunk the oldest prompt gets a quarter, so that it gets on whatever comes; the rest goes
//! to the prompts that are nearest to their end, so that a short one need not wait for a long one.
//!
//! Jobs begin in the order in which they came, when there are places for their answers and all pages that they may need
//! at most; what is kept of earlier jobs makes way, oldest first. Only a job that begins like a prompt which is on its
//! way through the model lets others pass: it waits until it can begin from there.
//!
//! An answer whose constraint takes long to say what may come next sits out of steps (`masks.rs`).

use super::answer::World;
use super::inbox::{Inbox, Request};
use super::job::{Event, Failure};
use super::limits::{Limits, common};
use super::masks::{Masks, Seen};
use super::pages::{Held, Idle, Ledger};
use super::prefixes::{Prefixes, WORTH_KEEPING};
use super::running::Running;
use crate::metrics::{Metrics, Outcome};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tritone_runtime::batch::{Batch, Logits};
use tritone_runtime::error::Result as RuntimeResult;
use tritone_runtime::model::Model;

/// A prompt waits for another if that saves it as many tokens.
const WORTH_WAITING: usize = 32;

/// While all answers wait for their constraints, arrivals and ends are looked at so often.
const LOOK_UP: Duration = Duration::from_millis(5);

/// What the panic of a step or of a job's own parts is called.
const PANIC: &str = "the engine failed while it worked on this request; the server's log has the reason";

/// What comes of a step, for each who wants logits.
pub(super) type StepLogits = Vec<RuntimeResult<Logits>>;

/// A job without a place.
struct Waiting {
    request: Request,
    /// The running job whose prompt it waits for, and how many tokens of it.
    behind: Option<(u64, usize)>,
    /// The count of ends when there were not enough pages for it.
    tried: Option<u64>,
}

/// Where a job can begin.
enum Place {
    /// With this beginning of its prompt.
    Here(Held),
    /// Once this running job has fed so many tokens.
    Behind(u64, usize),
    /// When another answer has ended.
    Nowhere,
}

/// All that the engine's thread has.
pub(super) struct Scheduler {
    model: Model,
    batch: Batch,
    limits: Limits,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    ledger: Ledger,
    waiting: VecDeque<Waiting>,
    /// In the order in which they began.
    running: Vec<Running>,
    prefixes: Prefixes,
    masks: Masks,
    n_begun: u64,
    /// How many times an answer or a job ended.
    n_ends: u64,
    /// What the next step does instead.
    #[cfg(test)]
    pub(super) fault: Option<fn() -> RuntimeResult<StepLogits>>,
}

impl Scheduler {
    pub(super) fn new(
        model: Model,
        batch: Batch,
        limits: Limits,
        inbox: Arc<Inbox>,
        metrics: Arc<Metrics>,
        masks: Masks,
    ) -> Scheduler {
        Scheduler {
            model,
            batch,
            limits,
            inbox,
            metrics,
            ledger: Ledger::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            masks,
            n_begun: 0,
            n_ends: 0,
            #[cfg(test)]
            fault: None,
        }
    }

    /// Works until the inbox is closed and all has ended, or until nothing can go on.
    pub(super) fn run(mut self) {
        let mut turn = ControlFlow::Continue(());
        while turn.is_continue() {
            turn = catch_unwind(AssertUnwindSafe(|| self.turn())).unwrap_or_else(|_| self.recover());
        }
    }

    /// Takes in what came, drops what is over, begins what can begin, takes a step.
    pub(super) fn turn(&mut self) -> ControlFlow<()> {
        let closing = self.take_in();
        let now = Instant::now();
        self.sweep(now);
        if let Some(until) = closing {
            // What came before the end and has a place is under way for those who asked.
            if now < until {
                self.admit();
            }
            self.fail_waiting(&Failure::ShuttingDown);
            if now >= until {
                self.fail_running(&Failure::ShuttingDown);
            }
            if self.running.is_empty() {
                self.publish();
                return ControlFlow::Break(());
            }
        }
        self.admit();
        let seen = self.masks.settle();
        self.take_back(seen);
        self.publish();
        let turn = self.step();
        self.publish();
        turn
    }

    /// Takes what came into the queue, and waits for something if there is nothing to do. Returns when all is to end, if
    /// it is.
    pub(super) fn take_in(&mut self) -> Option<Instant> {
        let idle = self.waiting.is_empty() && self.running.is_empty();
        let mail = self.inbox.take(idle);
        let arrived = mail.arrived.into_iter();
        self.waiting.extend(arrived.map(|request| Waiting { request, behind: None, tried: None }));
        mail.closing
    }

    /// Drops jobs whose client is gone or whose time is up.
    fn sweep(&mut self, now: Instant) {
        for i in (0..self.waiting.len()).rev() {
            if let Some(failure) = self.waiting[i].request.over(now)
                && let Some(waiting) = self.waiting.remove(i)
            {
                self.end(&waiting.request, failure);
            }
        }
        for i in (0..self.running.len()).rev() {
            if let Some(failure) = self.running[i].request.over(now) {
                self.retire(i, failure);
            }
        }
    }

    /// Ends a running job early; what it has computed is kept.
    fn retire(&mut self, i: usize, failure: Option<Failure>) {
        let request = self.running.remove(i).retire(&mut self.prefixes);
        self.end(&request, failure);
    }

    /// Ends a job early: it failed, or nobody listens.
    fn end(&mut self, request: &Request, failure: Option<Failure>) {
        self.n_ends += 1;
        self.metrics.ended(if failure.is_some() { Outcome::Failed } else { Outcome::Cancelled });
        if let Some(failure) = failure {
            request.say(Event::Failed(failure));
        }
    }

    fn fail_waiting(&mut self, failure: &Failure) {
        while let Some(waiting) = self.waiting.pop_front() {
            self.end(&waiting.request, Some(failure.clone()));
        }
    }

    fn fail_running(&mut self, failure: &Failure) {
        while let Some(running) = self.running.pop() {
            self.end(&running.request, Some(failure.clone()));
        }
    }

    /// Begins jobs, in the order in which they came, while there is room for them.
    fn admit(&mut self) {
        let mut i = 0;
        // Places of those that let others pass.
        let mut spoken_for = 0;
        while let Some(waiting) = self.waiting.get(i) {
            let n = waiting.request.job.n;
            if n > self.free().saturating_sub(spoken_for) || waiting.tried == Some(self.n_ends) {
                break;
            }
            let behind = waiting.behind.filter(|(id, n_tokens)| self.is_ahead(*id, *n_tokens));
            let place = match behind {
                Some((id, n_tokens)) => Place::Behind(id, n_tokens),
                None => self.place(i),
            };
            match place {
                Place::Here(held) => {
                    if let Some(waiting) = self.waiting.remove(i) {
                        self.begin(waiting.request, held);
                    }
                }
                Place::Behind(id, n_tokens) => {
                    self.waiting[i].behind = Some((id, n_tokens));
                    spoken_for += n;
                    i += 1;
                }
                Place::Nowhere => {
                    self.waiting[i].tried = Some(self.n_ends);
                    break;
                }
            }
        }
    }

    /// Whether a running job has yet to feed the first `n` tokens of its prompt.
    fn is_ahead(&self, id: u64, n: usize) -> bool {
        let leader = self.running.iter().find(|running| running.id() == id && running.prompt_ready() > 0);
        leader.is_some_and(|leader| leader.request.job.prompt.len() - leader.prompt_left() < n)
    }

    /// Where a waiting job can begin. Makes room for it if it can begin now.
    fn place(&mut self, i: usize) -> Place {
        let job = &self.waiting[i].request.job;
        // The last token must be fed, for the logits after it.
        let prompt = &job.prompt[..job.prompt.len() - 1];
        let kept = self.prefixes.longest(prompt);
        let helds = self.running.iter().flat_map(Running::helds);
        let shared = helds.map(|held| (held, common(held.sequence.tokens(), prompt))).max_by_key(|(_, n)| *n);
        let n_kept = kept.as_ref().map_or(0, |(_, n)| *n);
        let n_shared = shared.as_ref().map_or(0, |(_, n)| *n);
        let reading = self.running.iter().filter(|running| running.prompt_ready() > 0);
        let coming = reading.map(|other| (other.id(), common(&other.request.job.prompt, prompt)));
        if let Some((id, n)) = coming.max_by_key(|(_, n)| *n)
            && n >= n_kept.max(n_shared) + WORTH_WAITING
        {
            return Place::Behind(id, n);
        }
        let held = match (kept, shared) {
            (Some((tokens, n)), _) if n >= WORTH_KEEPING && n >= n_shared => self.prefixes.fork(&tokens, n),
            (_, Some((held, n))) if n >= WORTH_KEEPING => Some(held.fork(n)),
            _ => None,
        };
        let held = held.unwrap_or_else(|| Held::new(self.batch.sequence(), &self.ledger));
        let pages = self.limits.pages_of(job);
        if self.make_room(pages, &held) { Place::Here(held) } else { Place::Nowhere }
    }

    /// Forgets what was kept, oldest first, until all pages are free that those that run can come to hold, and a job that
    /// can come to hold `pages` in all and holds some already; does nothing if that would not do.
    fn make_room(&mut self, pages: usize, held: &Held) -> bool {
        let Scheduler { limits, running, prefixes, ledger, .. } = self;
        let to_come = |idle| {
            let others: usize = running.iter().map(|running| running.pages_to_come(limits, idle)).sum();
            others + pages - held.pages() + held.copies(idle)
        };
        if ledger.running() + to_come(Idle::Gone) > limits.pages {
            return false;
        }
        while ledger.all() + to_come(Idle::Counts) > limits.pages {
            if !prefixes.forget_oldest() {
                return false;
            }
        }
        true
    }

    fn begin(&mut self, request: Request, held: Held) {
        self.n_begun += 1;
        let mut running = Running::new(self.n_begun, request, held);
        if let Err(failure) = guarded(|| running.start(self.limits.vocab, &self.masks)) {
            return self.end(&running.request, Some(failure));
        }
        let usage = running.usage();
        self.metrics.begun(usage.prompt_tokens, usage.cached_tokens);
        self.running.push(running);
        self.finish_if_done(self.running.len() - 1);
    }

    /// Takes one step with all that runs.
    fn step(&mut self) -> ControlFlow<()> {
        let left: Vec<usize> = self.running.iter().map(Running::prompt_ready).collect();
        let shares = shares(&left, self.limits.chunk.get());
        let (mut feeds, mut fed) = (Vec::new(), Vec::with_capacity(shares.len()));
        for (running, share) in self.running.iter_mut().zip(shares) {
            let before = feeds.len();
            let wanted = running.feed(share, &mut feeds);
            fed.push((feeds.len() > before).then_some(wanted));
        }
        if feeds.is_empty() {
            let seen = self.masks.wait(LOOK_UP);
            self.take_back(seen);
            return ControlFlow::Continue(());
        }
        let batch = &mut self.batch;
        #[cfg(test)]
        let fault = self.fault.take();
        let step = || {
            #[cfg(test)]
            if let Some(fault) = fault {
                return fault();
            }
            batch.step(&mut feeds)
        };
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(logits)) => {
                self.digest(&fed, logits);
                let seen = self.masks.settle();
                self.take_back(seen);
                ControlFlow::Continue(())
            }
            Ok(Err(error)) => {
                self.fail_fed(&fed, &Failure::Internal(error.to_string()));
                ControlFlow::Continue(())
            }
            Err(_) => {
                self.fail_fed(&fed, &Failure::Internal(PANIC.to_owned()));
                self.renew()
            }
        }
    }

    /// Gives each job that was fed the logits that it wanted.
    fn digest(&mut self, fed: &[Option<usize>], logits: StepLogits) {
        let Scheduler { model, batch, limits, metrics, running, prefixes, ledger, .. } = self;
        let world = World { model, batch, metrics, context: limits.context };
        let mut logits = logits.into_iter();
        let mut failures = Vec::new();
        for (i, (running, fed)) in running.iter_mut().zip(fed).enumerate() {
            let Some(wanted) = *fed else { continue };
            let logits = logits.by_ref().take(wanted).collect();
            let n_answers = running.n_answers();
            match guarded(|| running.take(&world, logits, prefixes)) {
                Ok(()) => self.n_ends += (n_answers - running.n_answers()) as u64,
                Err(failure) => failures.push((i, failure)),
            }
        }
        debug_assert!(ledger.all() <= limits.pages, "{} of {} pages", ledger.all(), limits.pages);
        for (i, failure) in failures.into_iter().rev() {
            let running = self.running.remove(i);
            self.end(&running.request, Some(failure));
        }
        for i in (0..self.running.len()).rev() {
            self.finish_if_done(i);
        }
    }

    /// Gives answers the constraints that have come back.
    fn take_back(&mut self, seen: Vec<Seen>) {
        for Seen { job, first, constraints } in seen {
            let Some(i) = self.running.iter().position(|running| running.id() == job) else { continue };
            let Scheduler { running, metrics, prefixes, .. } = self;
            let n_answers = running[i].n_answers();
            let taken = guarded(|| constraints.map(|all| running[i].take_back(first, all, metrics, prefixes)));
            match taken {
                Ok(()) => {
                    self.n_ends += (n_answers - self.running[i].n_answers()) as u64;
                    self.finish_if_done(i);
                }
                Err(failure) => {
                    let running = self.running.remove(i);
                    self.end(&running.request, Some(failure));
                }
            }
        }
    }

    /// Ends a running job if its answers have ended.
    fn finish_if_done(&mut self, i: usize) {
        if self.running[i].n_answers() == 0 {
            let running = self.running.remove(i);
            running.request.say(Event::Done(running.usage()));
            self.metrics.ended(Outcome::Done);
            self.n_ends += 1;
        }
    }

    /// Fails the jobs that took part in a step, and drops their sequences: nobody knows what state they are in.
    fn fail_fed(&mut self, fed: &[Option<usize>], failure: &Failure) {
        for i in (0..fed.len()).rev().filter(|i| fed[*i].is_some()) {
            let running = self.running.remove(i);
            self.end(&running.request, Some(failure.clone()));
        }
    }

    /// After a panic of the loop itself: fails what runs, or what waits if nothing runs, and begins anew.
    pub(super) fn recover(&mut self) -> ControlFlow<()> {
        let failure = Failure::Internal(PANIC.to_owned());
        if self.running.is_empty() {
            self.fail_waiting(&failure);
        }
        self.fail_running(&failure);
        self.prefixes = Prefixes::default();
        let turn = self.renew();
        self.publish();
        turn
    }

    /// Replaces the threads after a panic; without them the engine ends.
    fn renew(&mut self) -> ControlFlow<()> {
        match Batch::new(&self.model) {
            Ok(batch) => {
                self.batch = batch;
                ControlFlow::Continue(())
            }
            Err(error) => {
                let failure = Failure::Internal(error.to_string());
                self.fail_running(&failure);
                self.fail_waiting(&failure);
                ControlFlow::Break(())
            }
        }
    }

    /// Forgets all that is kept; returns how many pages are held then.
    #[cfg(test)]
    pub(super) fn forget_all(&mut self) -> usize {
        while self.prefixes.forget_oldest() {}
        self.ledger.all()
    }

    /// Places for answers that nobody has.
    fn free(&self) -> usize {
        self.limits.parallel - self.running.iter().map(Running::n_answers).sum::<usize>()
    }

    /// Tells others how things stand; in an order in which a job that moves on is never in none of the numbers.
    fn publish(&self) {
        let free = self.free();
        let running = self.ledger.running();
        self.metrics.set_pages(running, self.ledger.all() - running);
        self.metrics.set_running(self.limits.parallel - free);
        self.inbox.publish(self.waiting.len(), free);
    }
}

/// What a job does on its own, a constraint's code among it: a panic fails the job and nothing else.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Failure::Internal(PANIC.to_owned())))
}

/// How many tokens of each prompt a step takes: `left` has those that are left of each, older prompts first.
fn shares(left: &[usize], chunk: usize) -> Vec<usize> {
    let mut shares = vec![0; left.len()];
    let mut rest = chunk;
    let mut order: Vec<usize> = (0..left.len()).filter(|i| left[*i] > 0).collect();
    if let Some(oldest) = order.first() {
        shares[*oldest] = left[*oldest].min(chunk.div_ceil(4));
        rest -= shares[*oldest];
    }
    // The older one of equals first.
    order.sort_by_key(|i| left[*i]);
    for i in order {
        let more = rest.min(left[i] - shares[i]);
        shares[i] += more;
        rest -= more;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn a_step_is_shared_by_age_and_by_what_is_left() {
        for (left, chunk, expected) in [
            (&[][..], 8, &[][..]),
            (&[0, 0], 8, &[0, 0]),
            (&[5], 8, &[5]),
            (&[50], 8, &[8]),
            // The oldest has a quarter, the shortest the rest, and what that does not need the next one.
            (&[50, 40, 3], 8, &[2, 3, 3]),
            (&[0, 50, 0, 20], 16, &[0, 4, 0, 12]),
            (&[3, 50, 60], 16, &[3, 13, 0]),
            (&[50, 50], 16, &[16, 0]),
            (&[9, 2], 1, &[1, 0]),
            (&[1, 2], 100, &[1, 2]),
        ] {
            assert_eq!(shares(left, chunk), expected, "{left:?} {chunk}");
        }
    }
}
