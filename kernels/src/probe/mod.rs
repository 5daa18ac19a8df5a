//! What memory gives a core at most when lines are read that lie apart.
//!
//! A product that skips rows or columns reads such lines. No hardware foresees them, and memory gives them more slowly
//! than lines in order, whoever asks: this loop does nothing but read them, and asks for them as early as is of use.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;

use crate::isa::Isa;
use crate::line::Line;

/// Reads the lines that `order` names, one after the other, and returns a sum that depends on all of their bytes.
///
/// # Panics
/// A line does not exist.
#[must_use]
pub fn read_lines(isa: Isa, memory: &[Line], order: &[u32]) -> u64 {
    assert!(order.iter().all(|line| (*line as usize) < memory.len()), "lines of this memory");
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    if let Some(proof) = avx2::Proof::new(isa) {
        return avx2::read_lines(proof, memory, order);
    }
    let _ = isa;
    sum_lines(memory, order, |_| ())
}

/// The sum, with `ask` called for each line that is read some lines later.
#[inline(always)]
fn sum_lines(memory: &[Line], order: &[u32], ask: impl Fn(&Line)) -> u64 {
    let mut sums = [0u64; 8];
    for (i, line) in order.iter().enumerate() {
        if let Some(later) = order.get(i + AHEAD) {
            ask(&memory[*later as usize]);
        }
        let words = memory[*line as usize].0.as_chunks::<8>().0;
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.rotate_left(8) ^ sum)
}

/// How many lines ahead memory is asked for: of 32, 64, 128 and 256 lines 64 and 128 gave most (Zen 5).
const AHEAD: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::vec::Vec;

    #[test]
    fn every_byte_counts() {
        let mut random = Random::new(3);
        let mut memory: Vec<Line> = (0..300).map(|_| Line(core::array::from_fn(|_| random.bits() as u8))).collect();
        let order: Vec<u32> = (0..300).rev().step_by(2).collect();
        for isa in [Isa::scalar(), Isa::detect()] {
            let before = read_lines(isa, &memory, &order);
            assert_eq!(before, sum_lines(&memory, &order, |_| ()));
            for byte in 0..64 {
                memory[299 - 2 * byte].0[byte] ^= 1;
                assert_ne!(read_lines(isa, &memory, &order), before, "byte {byte}");
                memory[299 - 2 * byte].0[byte] ^= 1;
            }
            memory[0].0[0] ^= 1;
            assert_eq!(read_lines(isa, &memory, &order), before, "a line that is not named");
            memory[0].0[0] ^= 1;
        }
    }
}
