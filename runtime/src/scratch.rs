//! Memory for intermediate results, kept from step to step.
//!
//! The results of a chunk of a prompt are megabytes. Memory of that size which is freed goes back to the
//! system, and has to be cleared page by page when it is asked for again: a sixth of the time of a
//! prompt where AMX multiplies.

use tritone_kernels::line::Line;

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    floats: Shelf<f32>,
    lines: Shelf<Line>,
}

/// Buffers that are kept.
const MAX_KEPT: usize = 16;

/// Bytes of a buffer that is kept when single tokens are all that is to come.
const SMALL: usize = 1 << 20;

impl Scratch {
    /// A buffer of `len` floats, whatever they are: for what is overwritten as a whole.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        self.floats.take(len, 0.0)
    }

    /// An empty buffer, large if there is one.
    pub(crate) fn take_empty(&mut self) -> Vec<f32> {
        self.floats.take_empty()
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        self.floats.give(buffer);
    }

    /// As [`Scratch::take`], of lines.
    pub(crate) fn take_lines(&mut self, len: usize) -> Vec<Line> {
        self.lines.take(len, Line::ZERO)
    }

    /// As [`Scratch::take_empty`], of lines.
    pub(crate) fn take_empty_lines(&mut self) -> Vec<Line> {
        self.lines.take_empty()
    }

    /// Takes a buffer of lines back.
    pub(crate) fn give_lines(&mut self, buffer: Vec<Line>) {
        self.lines.give(buffer);
    }

    /// Gives large buffers back to the system.
    pub(crate) fn keep_small(&mut self) {
        self.floats.keep_small();
        self.lines.keep_small();
    }
}

/// Buffers of one kind.
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
            scratch.give(Vec::with_capacity(capacity));
        }
        let (fits, large) = (scratch.take(20), scratch.take_empty());
        assert!((100..=many).contains(&fits.capacity()) && fits.len() == 20);
        assert!(large.capacity() > many && large.is_empty());
        // Nothing fits, so what is left grows.
        assert_eq!(scratch.take(1000).len(), 1000);
        scratch.give(large);
        scratch.keep_small();
        assert_eq!(scratch.take_empty().capacity(), 0);
    }
}
