//! Memory for intermediate results, kept from step to step.
//!
//! The results of a chunk of a prompt are megabytes. Memory of that size which is freed goes back to the
//! system, and has to be cleared page by page when it is asked for again: a sixth of the time of a
//! prompt where AMX multiplies.
//!
//! Each thread has a shelf of its own. A buffer that another core wrote last is in that core's cache, from which it would be fetched
//! line by line to be overwritten.

use tritone_kernels::line::Line;

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    floats: Shelves<f32>,
    lines: Shelves<Line>,
}

/// Buffers of one kind that are kept for a thread.
const MAX_KEPT: usize = 16;

/// Bytes of a buffer that is kept when single tokens are all that is to come.
const SMALL: usize = 1 << 20;

impl Scratch {
    /// A buffer of `len` floats for the calling thread, whatever they are: for what is overwritten as a whole.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        self.floats.take(len, 0.0)
    }

    /// Empty buffers for so many threads, large where there are such.
    pub(crate) fn take_empty(&mut self, n_threads: usize) -> Vec<Vec<f32>> {
        self.floats.take_empty(n_threads)
    }

    /// Takes buffers back, those of the first thread first.
    pub(crate) fn give(&mut self, buffers: Vec<Vec<f32>>) {
        self.floats.give(buffers);
    }

    /// As [`Scratch::take`], of lines.
    pub(crate) fn take_lines(&mut self, len: usize) -> Vec<Line> {
        self.lines.take(len, Line::ZERO)
    }

    /// As [`Scratch::take_empty`], of lines.
    pub(crate) fn take_empty_lines(&mut self, n_threads: usize) -> Vec<Vec<Line>> {
        self.lines.take_empty(n_threads)
    }

    /// As [`Scratch::give`], of lines.
    pub(crate) fn give_lines(&mut self, buffers: Vec<Vec<Line>>) {
        self.lines.give(buffers);
    }

    /// Gives large buffers back to the system.
    pub(crate) fn keep_small(&mut self) {
        self.floats.keep_small();
        self.lines.keep_small();
    }
}

/// Buffers of one kind, by thread.
#[derive(Debug)]
struct Shelves<T>(Vec<Shelf<T>>);

impl<T> Default for Shelves<T> {
    fn default() -> Shelves<T> {
        Shelves(Vec::new())
    }
}

impl<T: Copy> Shelves<T> {
    fn of(&mut self, thread: usize) -> &mut Shelf<T> {
        if thread >= self.0.len() {
            self.0.resize_with(thread + 1, Shelf::default);
        }
        &mut self.0[thread]
    }

    fn take(&mut self, len: usize, filler: T) -> Vec<T> {
        self.of(0).take(len, filler)
    }

    fn take_empty(&mut self, n_threads: usize) -> Vec<Vec<T>> {
        (0..n_threads).map(|thread| self.of(thread).take_empty()).collect()
    }

    fn give(&mut self, buffers: Vec<Vec<T>>) {
        buffers.into_iter().enumerate().for_each(|(thread, buffer)| self.of(thread).give(buffer));
    }

    fn keep_small(&mut self) {
        self.0.iter_mut().for_each(Shelf::keep_small);
    }
}

/// Those of one thread.
#[derive(Debug)]
struct Shelf<T> {
    free: Vec<Vec<T>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Shelf<T> {
        Shelf { free: Vec::new() }
    }
}

impl<T: Copy> Shelf<T> {
    fn take(&mut self, len: usize, filler: T) -> Vec<T> {
        let mut buffer = self.fitting(len);
        buffer.resize(len, filler);
        buffer
    }

    fn take_empty(&mut self) -> Vec<T> {
        let mut buffer = self.fitting(usize::MAX);
        buffer.clear();
        buffer
    }

    /// The smallest buffer that has room for `len`, or the largest.
    fn fitting(&mut self, len: usize) -> Vec<T> {
        let key = |i: &usize| {
            let capacity = self.free[*i].capacity();
            if capacity >= len { (0, capacity) } else { (1, usize::MAX - capacity) }
        };
        let best = (0..self.free.len()).min_by_key(key);
        best.map(|i| self.free.swap_remove(i)).unwrap_or_default()
    }

    fn give(&mut self, buffer: Vec<T>) {
        if self.free.len() < MAX_KEPT {
            self.free.push(buffer);
        }
    }

    fn keep_small(&mut self) {
        self.free.retain(|buffer| buffer.capacity() * size_of::<T>() <= SMALL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_taken_and_large_ones_go() {
        let mut scratch = Scratch::default();
        assert_eq!(scratch.take(3), [0.0; 3]);
        let many = SMALL / size_of::<f32>();
        for capacity in [10, many + 1, 100] {
            scratch.give(vec![Vec::with_capacity(capacity)]);
        }
        let (fits, large) = (scratch.take(20), scratch.take_empty(1).remove(0));
        assert!((100..=many).contains(&fits.capacity()) && fits.len() == 20);
        assert!(large.capacity() > many && large.is_empty());
        // Nothing fits, so what is left grows.
        assert_eq!(scratch.take(1000).len(), 1000);
        scratch.give(vec![large]);
        scratch.keep_small();
        assert_eq!(scratch.take_empty(1)[0].capacity(), 0);
    }

    #[test]
    fn a_thread_gets_its_own_buffers_back() {
        let mut scratch = Scratch::default();
        let mut buffers = scratch.take_empty(2);
        buffers.iter_mut().zip([100, 1000]).for_each(|(buffer, len)| buffer.reserve_exact(len));
        scratch.give(buffers);
        let capacities: Vec<usize> = scratch.take_empty(3).iter().map(Vec::capacity).collect();
        assert_eq!(capacities, [100, 1000, 0]);
    }
}
