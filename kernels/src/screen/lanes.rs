//! The loops of both products, written once for all instruction sets.

use super::{BLOCK, BLOCK_LINES, GROUP, GROUP_LINES, STEP, Shape, TILE, nearest};
use crate::ask::{Ask, Nothing};
use core::marker::PhantomData;

/// 64 bytes of nibbles.
pub(super) type Nibbles = [u8; 64];

/// Steps of a group of blocks.
const GROUP_STEPS: usize = GROUP / 2;

/// How many bytes of wanted rows are asked for ahead of the one in use, where rows lie apart.
const ROWS_AHEAD: usize = 10 << 10;

/// How many rows ahead their lines are read from where [`Ask::GATHER`] says so.
const TOUCHED: usize = 2;

/// 128 activations as products read them. Lane `i` has columns `8 i` to `8 i + 7`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Step {
    /// Digits of columns `8 i` to `8 i + 3`, which meet the low halves of bytes.
    pub(super) low: Digits,
    /// Digits of columns `8 i + 4` to `8 i + 7`, which meet the high halves.
    pub(super) high: Digits,
    /// `-15` times the sum of the lane's activations.
    pub(super) less: [i32; 16],
    /// The activations in eight bits, for tiles.
    pub(super) short: Short,
}

/// Activations are `scale * digit`, the scale that of their block.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Short {
    /// Digits of columns `8 i` to `8 i + 3`, which meet the low halves of bytes.
    pub(super) low: [[i8; 4]; 16],
    /// Digits of columns `8 i + 4` to `8 i + 7`, which meet the high halves.
    pub(super) high: [[i8; 4]; 16],
    /// `-15` times the sum of each block's digits.
    pub(super) less: [i32; 2],
    /// Of each block.
    pub(super) scale: [f32; 2],
    /// To a whole line.
    rest: [i32; 12],
}

/// Activations are `256 * coarse + fine`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Digits {
    pub(super) coarse: [[i8; 4]; 16],
    pub(super) fine: [[i8; 4]; 16],
}

impl Step {
    /// A step of zeros.
    pub const ZERO: Step = Step {
        low: Digits { coarse: [[0; 4]; 16], fine: [[0; 4]; 16] },
        high: Digits { coarse: [[0; 4]; 16], fine: [[0; 4]; 16] },
        less: [0; 16],
        short: Short { low: [[0; 4]; 16], high: [[0; 4]; 16], less: [0; 2], scale: [0.0; 2], rest: [0; 12] },
    };

    /// At most 128 activations, each within the limit.
    pub(super) fn new(codes: &[i16]) -> Step {
        let mut step = Step::ZERO;
        for (lane, codes) in codes.chunks(8).enumerate() {
            for (i, code) in codes.iter().enumerate() {
                let digits = if i < 4 { &mut step.low } else { &mut step.high };
                let fine = *code as i8;
                digits.fine[lane][i % 4] = fine;
                digits.coarse[lane][i % 4] = ((code - i16::from(fine)) >> 8) as i8;
                step.less[lane] -= 15 * i32::from(*code);
            }
        }
        for (block, codes) in codes.chunks(BLOCK).enumerate() {
            let largest = codes.iter().fold(0, |largest, code| largest.max(code.unsigned_abs()));
            if largest == 0 {
                continue;
            }
            step.short.scale[block] = f32::from(largest) / SHORT_LIMIT;
            let inverse = SHORT_LIMIT / f32::from(largest);
            for (lane, codes) in (block * (BLOCK / 8)..).zip(codes.chunks(8)) {
                for (i, code) in codes.iter().enumerate() {
                    // At most the limit and a rounding.
                    let digit = nearest(f64::from(f32::from(*code) * inverse)) as i8;
                    let digits = if i < 4 { &mut step.short.low } else { &mut step.short.high };
                    digits[lane][i % 4] = digit;
                    step.short.less[block] -= 15 * i32::from(digit);
                }
            }
        }
        step
    }

    /// What tiles are multiplied with instead of the activations.
    #[must_use]
    pub fn short(&self) -> [f64; STEP] {
        let mut out = [0.0; STEP];
        for (lane, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = f64::from(self.short.scale[lane / (BLOCK / 8)]);
            for i in 0..4 {
                out[i] = scale * f64::from(self.short.low[lane][i]);
                out[4 + i] = scale * f64::from(self.short.high[lane][i]);
            }
        }
        out
    }
}

/// The largest magnitude of digits in eight bits.
const SHORT_LIMIT: f32 = 127.0;

/// Sixteen lanes of integers and of floats. Holding the value proves that the CPU has what they need.
pub(super) trait Simd: Copy {
    /// Sixteen `i32`.
    type Ints: Copy;

    /// Sixteen `f32`.
    type Floats: Copy;

    /// How many bytes of tiles are asked for ahead of those in use. Measured.
    const TILES_AHEAD: usize = 192 * 64;

    /// Whether a state alone takes tiles so fast that they are best asked for as [`Ask::Foreseen`] says.
    const FORESEEN: bool = false;

    /// Of each lane and state `2 * (nibbles . activations) + less`: a block of a tile, lanes are rows. `half` says which
    /// block of the step.
    fn tile_block<const N: usize>(self, block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [Self::Ints; N];

    /// Whether there are registers for two tiles at a time.
    const PAIRS: bool = false;

    /// The same for several tiles, and asks for what is `ahead` bytes behind each line.
    #[inline(always)]
    fn tile_blocks<A: Ask, const T: usize, const N: usize>(
        self,
        blocks: [&[Nibbles; 8]; T],
        states: [&Short; N],
        half: usize,
        ahead: usize,
    ) -> [[Self::Ints; N]; T] {
        for block in blocks {
            for line in block {
                A::ask(line.as_ptr().wrapping_add(ahead));
            }
        }
        let mut out = [self.tile_block(blocks[0], states, half); T];
        for t in 1..T {
            out[t] = self.tile_block(blocks[t], states, half);
        }
        out
    }

    /// Of each lane `2 * (nibbles . activations) + less`: a step of a row, lanes are columns.
    fn row_step(self, line: &Nibbles, state: &Step) -> Self::Ints;

    /// Lanes of zeros.
    fn zeros(self) -> Self::Floats;

    /// Bytes as floats.
    fn widen(self, bytes: &[u8; 16]) -> Self::Floats;

    /// The first byte in the first eight lanes, the second in the others.
    fn widen_two(self, bytes: [u8; 2]) -> Self::Floats;

    /// `scales * factor`
    fn times(self, scales: Self::Floats, factor: f32) -> Self::Floats;

    /// `sums + scales * products`, rounded once.
    fn add(self, sums: Self::Floats, products: Self::Ints, scales: Self::Floats) -> Self::Floats;

    /// Reads from each of some lines, where [`Ask::GATHER`] makes sense.
    #[inline(always)]
    fn touch(self, _: &[Nibbles]) {}

    /// To memory.
    fn store(self, lanes: Self::Floats) -> [f32; 16];
}

/// An operation with its arguments, ready to be compiled for any instruction set.
pub(super) trait Operation {
    /// What it returns.
    type Output;

    /// Runs it. Implementations are `#[inline(always)]`, so that they take on the target features
    /// of the function they are called in.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// See [`super::tiles`].
pub(super) struct Tiles<'a, A> {
    pub(super) shape: Shape,
    pub(super) tiles: &'a [u8],
    pub(super) states: &'a [Step],
    pub(super) out: &'a mut [f32],
    pub(super) way: PhantomData<A>,
}

impl<A: Ask> Operation for Tiles<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        // Some tiles meet all states before the next ones are read, so memory is read once and all the time.
        let n_states = self.states.len() / self.shape.n_steps();
        let n_tiles = self.tiles.len() / self.shape.tile_bytes();
        let mut t = 0;
        // Few states are not held up by their own loads, and take the next tile's memory evenly.
        while S::PAIRS && n_states >= 4 && t + 2 <= n_tiles {
            self.all_states::<S, 2>(simd, t);
            t += 2;
        }
        for t in t..n_tiles {
            self.all_states::<S, 1>(simd, t);
        }
    }
}

impl<A: Ask> Tiles<'_, A> {
    /// `T` tiles from tile `t` on with all states.
    #[inline(always)]
    fn all_states<S: Simd, const T: usize>(&mut self, simd: S, t: usize) {
        let n_states = self.states.len() / self.shape.n_steps();
        if n_states == 1 {
            return self.some::<S, T, 1, true>(simd, t, 0);
        }
        let mut first = 0;
        while first + 4 <= n_states {
            self.some::<S, T, 4, false>(simd, t, first);
            first += 4;
        }
        while first + 2 <= n_states {
            self.some::<S, T, 2, false>(simd, t, first);
            first += 2;
        }
        if first < n_states {
            self.some::<S, T, 1, false>(simd, t, first);
        }
    }

    /// `T` tiles from tile `t` on with `N` states from `first` on, or with the only one there is.
    #[inline(always)]
    fn some<S: Simd, const T: usize, const N: usize, const ALONE: bool>(&mut self, simd: S, t: usize, first: usize) {
        let tile_bytes = self.shape.tile_bytes();
        let tiles = &self.tiles[t * tile_bytes..][..T * tile_bytes];
        let n_steps = self.shape.n_steps();
        let mut states: [&[Step]; N] = [&[]; N];
        for (i, state) in states.iter_mut().enumerate() {
            *state = &self.states[(first + i) * n_steps..][..n_steps];
        }
        let n_states = self.states.len() / n_steps;
        let n_rows = self.out.len() / n_states;
        // Each state asks for its share of as much as these tiles are: of what comes soon if all of them take the tiles
        // together, else of the next tiles.
        let ahead = tiles.as_ptr().wrapping_add(if N == n_states { S::TILES_AHEAD } else { tiles.len() });
        let lines = |steps: usize| tiles.len().div_ceil(64) * steps / self.states.len();
        let mut groups: [&[Nibbles]; T] = [&[]; T];
        for (groups, tile) in groups.iter_mut().zip(tiles.chunks_exact(tile_bytes)) {
            *groups = tile.as_chunks().0;
        }
        let mut sums = [[simd.zeros(); N]; T];
        for s in 0..n_steps {
            let mut step = [&Step::ZERO; N];
            for (step, state) in step.iter_mut().zip(states) {
                *step = &state[s];
            }
            let steps = first * n_steps + N * s;
            // A state alone asks line by line; several do not wait for memory, and requests between their products cost time.
            if !ALONE {
                for line in lines(steps)..lines(steps + N) {
                    A::ask(ahead.wrapping_add(64 * line));
                }
            } else if s % GROUP_STEPS == 0 {
                let scales = &groups[0][s / GROUP_STEPS * GROUP_LINES];
                let ahead = scales.as_ptr().wrapping_add(S::TILES_AHEAD);
                if S::FORESEEN { A::Foreseen::ask(ahead) } else { A::ask(ahead) }
            }
            let mut scales = [&[[0; TILE]; GROUP]; T];
            let mut nibbles = [&[[[0; 64]; BLOCK_LINES]; 2]; T];
            for t in 0..T {
                let group = &groups[t][s / GROUP_STEPS * GROUP_LINES..];
                scales[t] = bytemuck::cast_ref(&group[0]);
                nibbles[t] = &group[1..].as_chunks().0.as_chunks().0[s % GROUP_STEPS];
            }
            for half in 0..2 {
                let mut blocks = [&nibbles[0][half]; T];
                for t in 1..T {
                    blocks[t] = &nibbles[t][half];
                }
                let states = step.map(|step| &step.short);
                let products = match (ALONE, S::FORESEEN) {
                    (true, true) => simd.tile_blocks::<A::Foreseen, T, N>(blocks, states, half, S::TILES_AHEAD),
                    (true, false) => simd.tile_blocks::<A, T, N>(blocks, states, half, S::TILES_AHEAD),
                    (false, _) => simd.tile_blocks::<Nothing, T, N>(blocks, states, half, 0),
                };
                for t in 0..T {
                    let scales = simd.widen(&scales[t][s % GROUP_STEPS * 2 + half]);
                    for i in 0..N {
                        let scales = simd.times(scales, step[i].short.scale[half]);
                        sums[t][i] = simd.add(sums[t][i], products[t][i], scales);
                    }
                }
            }
        }
        for (tile, sums) in (t..).zip(sums) {
            for (i, sums) in sums.into_iter().enumerate() {
                self.out[(first + i) * n_rows + tile * TILE..][..TILE].copy_from_slice(&simd.store(sums));
            }
        }
    }
}

/// See [`super::rows`].
pub(super) struct Rows<'a, A> {
    pub(super) shape: Shape,
    pub(super) plane: &'a [u8],
    pub(super) rows: &'a [u32],
    pub(super) state: &'a [Step],
    pub(super) out: &'a mut [f32],
    pub(super) way: PhantomData<A>,
}

impl<A: Ask> Operation for Rows<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let bytes = self.shape.row_bytes();
        let row = |i: usize| &self.plane[self.rows[i] as usize * bytes..][..bytes];
        let n_ahead = (ROWS_AHEAD.max(A::BYTES_APART) / bytes).clamp(2, 32);
        for i in 0..self.rows.len().min(n_ahead) {
            for line in row(i).chunks(64) {
                A::ask(line.as_ptr());
            }
        }
        for i in 0..self.rows.len() {
            let (scales, nibbles) = row(i).split_at(self.shape.n_blocks());
            let ahead = row((i + n_ahead).min(self.rows.len() - 1)).as_ptr();
            if A::GATHER && i + TOUCHED < self.rows.len() {
                simd.touch(row(i + TOUCHED).as_chunks().0);
            }
            // What hangs over the last line of the nibbles.
            A::ask(ahead.wrapping_add(nibbles.len()));
            A::ask(ahead.wrapping_add(bytes - 1));
            let lines = nibbles.as_chunks::<64>().0;
            let scales = scales.as_chunks::<2>().0;
            let mut sums = simd.zeros();
            for (s, state) in self.state.iter().enumerate() {
                A::ask(ahead.wrapping_add(64 * s));
                let products = simd.row_step(&lines[s], state);
                sums = simd.add(sums, products, simd.widen_two(scales[s]));
            }
            let mut sums = simd.store(sums);
            for half in [8, 4, 2, 1] {
                for j in 0..half {
                    sums[j] += sums[j + half];
                }
            }
            self.out[i] = sums[0];
        }
    }
}
