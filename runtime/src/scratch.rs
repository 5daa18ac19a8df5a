//! Memory for intermediate results, kept from step to step.
//!
//! The results of a chunk of a prompt are megabytes. Memory of that size which is freed goes back to the
//! system, and has to be cleared page by page when it is asked for again: a sixth of the time of a
//! prompt where AMX multiplies.

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    free: Vec<Vec<f32>>,
}

/// Buffers that are kept.
const MAX_KEPT: usize = 16;

/// Floats of a buffer that is kept when single tokens are all that is to come.
const SMALL: usize = 1 << 18;

impl Scratch {
    /// A buffer of `len` floats, whatever they are: for what is overwritten as a whole.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.fitting(len);
        buffer.resize(len, 0.0);
        buffer
    }

    /// A copy in such a buffer.
    pub(crate) fn copy(&mut self, from: &[f32]) -> Vec<f32> {
        let mut buffer = self.take(from.len());
        buffer.copy_from_slice(from);
        buffer
    }

    /// An empty buffer, large if there is one.
    pub(crate) fn take_empty(&mut self) -> Vec<f32> {
        let mut buffer = self.fitting(usize::MAX);
        buffer.clear();
        buffer
    }

    /// The smallest buffer that has room for `len` floats, or the largest.
    fn fitting(&mut self, len: usize) -> Vec<f32> {
        let key = |i: &usize| {
            let capacity = self.free[*i].capacity();
            if capacity >= len { (0, capacity) } else { (1, usize::MAX - capacity) }
        };
        let best = (0..self.free.len()).min_by_key(key);
        best.map(|i| self.free.swap_remove(i)).unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        if self.free.len() < MAX_KEPT {
            self.free.push(buffer);
        }
    }

    /// Gives large buffers back to the system.
    pub(crate) fn keep_small(&mut self) {
        self.free.retain(|buffer| buffer.capacity() <= SMALL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_taken_and_large_ones_go() {
        let mut scratch = Scratch::default();
        assert_eq!(scratch.take(3), [0.0; 3]);
        for capacity in [10, SMALL + 1, 100] {
            scratch.give(Vec::with_capacity(capacity));
        }
        let (fits, large) = (scratch.take(20), scratch.take_empty());
        assert!((100..=SMALL).contains(&fits.capacity()) && fits.len() == 20);
        assert!(large.capacity() > SMALL && large.is_empty());
        // Nothing fits, so what is left grows.
        assert_eq!(scratch.take(1000).len(), 1000);
        scratch.give(large);
        scratch.keep_small();
        assert_eq!(scratch.take_empty().capacity(), 0);
    }
}
