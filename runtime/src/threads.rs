//! A persistent pool of threads with a spin-then-park barrier, in safe Rust.
//!
//! A job owns its input while it runs, hands out ranges of items, and gives the input back. Each
//! worker writes into a buffer of its own, which the caller copies to where it belongs after the
//! barrier. That costs one copy of the outputs, a few kilobytes beside megabytes of weights, and
//! buys a pool with no `unsafe` and no shared mutable memory.
//!
//! Which worker computes an item changes nothing: an item's result depends only on the item.

use crate::error::{Error, Result};
use std::ops::{Range, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a waiting thread looks before it parks: longer than the gap between two steps of a token, shorter than
/// anything a person would call busy waiting.
const SPIN: Duration = Duration::from_micros(30);

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// Waits until `done`, but not longer than [`SPIN`]; says whether it is.
///
/// There is no `pause` between the looks: in a virtual machine the processor takes many of them for a lock that is
/// held by a machine that sleeps, and leaves for the host. On two cores of a Sapphire Rapids that cost a tenth of
/// all tokens.
fn spin(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
        }
        if start.elapsed() >= SPIN {
            return false;
        }
    }
}

/// More threads than this are a mistake in the option, not a machine.
pub const MAX_THREADS: usize = 1024;

/// What threads write apart from each other, two cache lines long, since some processors fetch lines in pairs. Two of them in one
/// line would pass it from core to core with each write.
#[repr(align(128))]
struct Apart<T>(T);

trait Job: Send + Sync {
    fn work(&self, worker: usize);
}

struct Shared {
    /// Number of the current job; the pool's threads wait for it to change.
    epoch: Apart<AtomicUsize>,
    job: Apart<Mutex<Option<Arc<dyn Job>>>>,
    /// Workers that have not finished the current job; the caller waits for it to become 0.
    pending: Apart<AtomicUsize>,
    parked: Vec<AtomicBool>,
    /// The caller that parked last, and whether it is parked or about to be.
    caller: Mutex<Option<Thread>>,
    caller_parks: AtomicBool,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Threads that wait for work; the caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A worker's outputs.
pub(crate) struct Output<O> {
    /// Which items, one after the other, and where each range's values end.
    pub(crate) ranges: Vec<(Range<usize>, usize)>,
    pub(crate) values: Vec<O>,
}

struct RangeJob<T, O, F> {
    input: T,
    work: F,
    grain: usize,
    /// Each worker's own contiguous section, `next` counting up: neighbouring weights stay with
    /// one thread, and whoever is done early helps with the other sections.
    sections: Vec<Apart<(AtomicUsize, usize)>>,
    slots: Vec<Apart<Mutex<Output<O>>>>,
}

impl<T, O, F> Job for RangeJob<T, O, F>
where
    T: Send + Sync,
    O: Send,
    F: Fn(&T, Range<usize>, &mut Vec<O>) + Send + Sync,
{
    fn work(&self, worker: usize) {
        let mut slot = self.slots[worker].0.lock().unwrap_or_else(PoisonError::into_inner);
        let Output { ranges, values } = &mut *slot;
        for turn in 0..self.sections.len() {
            let Apart((next, end)) = &self.sections[(worker + turn) % self.sections.len()];
            loop {
                let start = next.fetch_add(self.grain, Ordering::Relaxed);
                if start >= *end {
                    break;
                }
                let range = start..(start + self.grain).min(*end);
                (self.work)(&self.input, range.clone(), values);
                ranges.push((range, values.len()));
            }
        }
    }
}

impl Pool {
    /// A pool in which `n_threads` threads work, the caller included.
    ///
    /// # Errors
    /// `n_threads` is 0 or more than [`MAX_THREADS`], or the system refuses a thread.
    pub fn new(n_threads: usize) -> Result<Pool> {
        if n_threads == 0 || n_threads > MAX_THREADS {
            return Err(Error::Threads {
                threads: n_threads,
                why: format!("the number of threads must be from 1 to {MAX_THREADS}"),
            });
        }
        let shared = Arc::new(Shared {
            epoch: Apart(AtomicUsize::new(0)),
            job: Apart(Mutex::new(None)),
            pending: Apart(AtomicUsize::new(0)),
            parked: (1..n_threads).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_parks: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(n_threads - 1) };
        for worker in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new()
                .name(format!("tritone-{worker}"))
                .spawn(move || wait_for_jobs(&shared, worker))
                .map_err(|error| Error::Threads {
                    threads: n_threads,
                    why: format!("the system refused to start thread {worker} ({error}); ask for fewer"),
                })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// How many threads work, the caller included.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(&input, range, values)` for ranges of at most `grain` items that together cover
    /// `0..n_items` once; `work` appends the range's results to `values`. Then calls
    /// `collect(range, values of that range)` on the calling thread, in no particular order, and
    /// returns the input.
    ///
    /// # Panics
    /// `grain` is 0, or `work` panicked.
    pub fn run<T, O, F, C>(&mut self, input: T, n_items: usize, grain: usize, work: F, collect: C) -> T
    where
        T: Send + Sync + 'static,
        O: Send + 'static,
        F: Fn(&T, Range<usize>, &mut Vec<O>) + Send + Sync + 'static,
        C: FnMut(Range<usize>, &[O]),
    {
        let buffers = (0..self.n_threads()).map(|_| Vec::new()).collect();
        self.run_in(buffers, input, n_items, grain, work, collect).0
    }

    /// The same, with a buffer for each thread's results, which come back.
    ///
    /// # Panics
    /// As [`Pool::run`], or there are fewer buffers than threads.
    pub(crate) fn run_in<T, O, F, C>(
        &mut self,
        buffers: Vec<Vec<O>>,
        input: T,
        n_items: usize,
        grain: usize,
        work: F,
        mut collect: C,
    ) -> (T, Vec<Vec<O>>)
    where
        T: Send + Sync + 'static,
        O: Send + 'static,
        F: Fn(&T, Range<usize>, &mut Vec<O>) + Send + Sync + 'static,
        C: FnMut(Range<usize>, &[O]),
    {
        let (input, outputs) = self.run_kept(buffers, input, n_items, grain, work);
        let mut buffers = Vec::with_capacity(outputs.len());
        for output in outputs {
            let mut start = 0;
            for (range, end) in output.ranges {
                collect(range, &output.values[start..end]);
                start = end;
            }
            buffers.push(output.values);
        }
        (input, buffers)
    }

    /// The same, and the results stay where each thread has put them.
    ///
    /// # Panics
    /// As [`Pool::run_in`].
    pub(crate) fn run_kept<T, O, F>(
        &mut self,
        buffers: Vec<Vec<O>>,
        input: T,
        n_items: usize,
        grain: usize,
        work: F,
    ) -> (T, Vec<Output<O>>)
    where
        T: Send + Sync + 'static,
        O: Send + 'static,
        F: Fn(&T, Range<usize>, &mut Vec<O>) + Send + Sync + 'static,
    {
        assert!(buffers.len() >= self.n_threads(), "a buffer for each thread");
        assert!(grain > 0, "a range holds at least one item");
        let n = self.n_threads().min(n_items.div_ceil(grain)).max(1);
        let per_section = n_items.div_ceil(grain).div_ceil(n) * grain;
        let job = Arc::new(RangeJob {
            input,
            work,
            grain,
            sections: (0..n)
                .map(|i| {
                    let start = (i * per_section).min(n_items);
                    Apart((AtomicUsize::new(start), (start + per_section).min(n_items)))
                })
                .collect(),
            slots: buffers
                .into_iter()
                .map(|mut values| {
                    values.clear();
                    Apart(Mutex::new(Output { ranges: Vec::new(), values }))
                })
                .collect(),
        });
        if n == 1 {
            job.work(0);
        } else {
            let shared_job: Arc<dyn Job> = job.clone();
            self.fork_join(shared_job);
        }
        let Ok(job) = Arc::try_unwrap(job) else {
            unreachable!("every worker drops its share of the job before the barrier");
        };
        let outputs = job.slots.into_iter().map(|slot| slot.0.into_inner().unwrap_or_else(PoisonError::into_inner));
        (job.input, outputs.collect())
    }

    fn fork_join(&mut self, job: Arc<dyn Job>) {
        let shared = &*self.shared;
        *shared.job.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&job));
        shared.pending.0.store(self.workers.len(), Ordering::SeqCst);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job.work(0)));
        drop(job);
        let done = || shared.pending.0.load(Ordering::SeqCst) == 0;
        if !spin(done) {
            *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
            // A swap, for the reason in `wait_for_jobs`.
            shared.caller_parks.swap(true, Ordering::SeqCst);
            // Looked at again after the flag is up: whoever finishes after this sees the flag.
            while !done() {
                // The last worker unparks the caller; a token left over from an earlier job only
                // makes this loop look once more.
                thread::park();
            }
            shared.caller_parks.store(false, Ordering::SeqCst);
        }
        *shared.job.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let worker_panicked = shared.panicked.swap(false, Ordering::SeqCst);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!worker_panicked, "a worker thread panicked; its message is above");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panic was reported where it happened.
            let _ = worker.join();
        }
    }
}

fn wait_for_jobs(shared: &Shared, worker: usize) {
    let parked = &shared.parked[worker - 1];
    let mut seen = 0;
    loop {
        let posted = || shared.epoch.0.load(Ordering::SeqCst) != seen;
        if !spin(posted) {
            // A store would do by the rules of the language, but QEMU's Arm lets the load below overtake it: nobody would wake this
            // thread. A swap costs no more here.
            parked.swap(true, Ordering::SeqCst);
            // Looked at again after the flag is up: whoever posts a job after this sees the flag.
            while !posted() {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
        seen = shared.epoch.0.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = shared.job.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| job.work(worker))).is_err()
        {
            shared.panicked.store(true, Ordering::SeqCst);
        }
        if shared.pending.0.fetch_sub(1, Ordering::SeqCst) == 1
            && shared.caller_parks.load(Ordering::SeqCst)
            && let Some(caller) = &*shared.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

/// The number of physical cores this process may use; hyper-threads share the units that the
/// kernels keep busy.
#[must_use]
pub fn default_threads() -> usize {
    let logical = thread::available_parallelism().map_or(1, usize::from);
    let read = std::fs::read_to_string;
    let cores = read("/proc/cpuinfo").ok().and_then(|cpuinfo| {
        let status = read("/proc/self/status").unwrap_or_default();
        physical_cores(&cpuinfo, &status)
    });
    cores.map_or(logical, |cores| cores.min(logical)).max(1)
}

/// Counts distinct (package, core) pairs of `/proc/cpuinfo` among the processors that `Cpus_allowed_list` of
/// `/proc/self/status` names, all where it names none; `None` where the first does not say.
fn physical_cores(cpuinfo: &str, status: &str) -> Option<usize> {
    let allowed: Option<Vec<RangeInclusive<usize>>> = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(|list| list.trim().split(',').map(processors).collect());
    let mut cores = std::collections::BTreeSet::new();
    for processor in cpuinfo.split("\n\n") {
        let field = |name: &str| {
            processor
                .lines()
                .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
                .map(|(_, value)| value.trim().to_owned())
        };
        let number = field("processor").and_then(|number| number.parse().ok());
        let usable = match (&allowed, number) {
            (Some(allowed), Some(number)) => allowed.iter().any(|some| some.contains(&number)),
            _ => true,
        };
        if let Some(core) = field("core id").filter(|_| usable) {
            cores.insert((field("physical id"), core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// `3` or `4-7`.
fn processors(range: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two packages of two cores with two threads each.
    #[test]
    fn cores_that_may_be_used() {
        let cpuinfo: Vec<String> = (0..8)
            .map(|n| format!("processor\t: {n}\nphysical id\t: {}\ncore id\t\t: {}\nflags\t: a b\n", n / 4, n / 2 % 2))
            .collect();
        let cpuinfo = cpuinfo.join("\n");
        for (list, expected) in
            [("0-7", 4), ("0-3", 2), ("0-1", 1), ("0,2", 2), ("1-2,4-5,7", 4), ("5", 1), ("", 4), ("many", 4)]
        {
            let status = format!("Name:\ttritone\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nSeccomp:\t0\n");
            assert_eq!(physical_cores(&cpuinfo, &status), Some(expected), "{list}");
        }
        assert_eq!(physical_cores(&cpuinfo, ""), Some(4));
        assert_eq!(physical_cores("processor\t: 0\n", ""), None);
    }

    #[test]
    fn every_item_is_done_once_and_the_input_comes_back() {
        for n_threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(n_threads).unwrap();
            for n_items in [0, 1, 2, 7, 64, 1000] {
                for grain in [1, 3, 64] {
                    let mut seen = vec![0u32; n_items];
                    let input = pool.run(
                        vec![3usize; n_items],
                        n_items,
                        grain,
                        |input, range, values| values.extend(range.map(|i| i * input[i])),
                        |range, values| {
                            assert_eq!(range.len(), values.len());
                            for (i, value) in range.zip(values) {
                                assert_eq!(*value, 3 * i);
                                seen[i] += 1;
                            }
                        },
                    );
                    assert_eq!(input.len(), n_items);
                    assert!(seen.iter().all(|&times| times == 1));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run((), 100, 1, |(), range, _: &mut Vec<u8>| assert!(range.start != 57, "on purpose"), |_, _| {});
            }));
            assert!(caught.is_err());
        }
        let mut sum = 0;
        pool.run((), 10, 1, |(), range, out| out.push(range.start), |_, values| sum += values[0]);
        assert_eq!(sum, 45);
    }

    #[test]
    fn workers_wake_from_sleep() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            thread::sleep(std::time::Duration::from_millis(2));
            let mut n = 0;
            pool.run((), 2, 1, |(), _, out| out.push(1), |_, values| n += values.len());
            assert_eq!(n, 2);
        }
    }

    #[test]
    fn impossible_numbers_of_threads_are_refused() {
        for n in [0, MAX_THREADS + 1, usize::MAX] {
            let message = Pool::new(n).err().unwrap().to_string();
            assert!(message.contains("from 1 to 1024"), "{message}");
        }
    }
}
