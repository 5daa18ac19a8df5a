//! The one order of every float sum, and the two traits that carry it to every instruction set.
//!
//! **Order.** A long sum over elements `i` runs in 32 virtual lanes: lane `j` adds the elements
//! with `i % 32 == j`, in order, starting from `+0.0`; then lane `j` adds lane `j + 16`, then
//! `j + 8`, `+ 4`, `+ 2`, `+ 1`, and lane 0 is the sum. 32 lanes are four AVX2, two AVX-512 or
//! eight NEON registers: enough independent chains to hide the latency of an addition.
//!
//! **Products are fused.** `sums + a * b` is rounded once, as every processor with AVX2 or NEON does in
//! one instruction, at twice the rate of a product and a sum. The portable instance computes the same
//! bits from `f64` ([`fused`](super::fused)). A lone product or sum is never contracted.
//!
//! **A tail is padded** with `+0.0` to a whole group of lanes. That is part of the definition: it can
//! only turn a lane that is `-0.0`, from products too small to be told from 0, into `+0.0`.
//!
//! **Why all instruction sets agree.** Every operation is written once, generic over [`Simd`], and
//! is compiled several times inside functions with different `#[target_feature]`s. Loops over single elements need no
//! care at all, since Rust never contracts or reorders float arithmetic, so that the compiler may
//! only vectorise across elements. Exempt are NaNs: whether a result is NaN is defined, its sign
//! and payload are not.

/// Virtual lanes of a long sum.
pub(super) const LANES: usize = 32;

/// Values in one vector of [`Simd`]; two of them fill the lanes.
pub(super) const UNIT: usize = 16;

/// Sixteen values in memory.
pub(super) type Unit = [f32; UNIT];

/// Sixteen halves or bfloat16 in memory, little-endian.
pub(super) type HalfUnit = [u8; 2 * UNIT];

/// Vectors of sixteen `f32`. Holding the value proves that the CPU has what they need.
///
/// Conversions follow IEEE 754 with round to nearest even; NaNs keep their sign and the upper bits
/// of their payload and become quiet.
pub(super) trait Simd: Copy {
    /// Sixteen values in registers.
    type Vector: Copy;

    /// Whether sixteen vectors of sums fit the registers beside what is added to them.
    const MANY_SUMS: bool = false;

    /// From memory.
    fn load(self, values: &Unit) -> Self::Vector;

    /// To memory.
    fn store(self, vector: Self::Vector) -> Unit;

    /// Sixteen halves as `f32`, exact.
    fn widen_f16(self, halves: &HalfUnit) -> Self::Vector;

    /// Sixteen bfloat16 as `f32`: the bits shifted left by 16.
    fn widen_bf16(self, halves: &HalfUnit) -> Self::Vector;

    /// Sixteen values rounded to halves.
    fn narrow_f16(self, vector: Self::Vector) -> HalfUnit;

    /// The same value sixteen times.
    fn splat(self, value: f32) -> Self::Vector;

    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `candidate` where it is greater than `max`, else `max`; NaN candidates are passed over.
    fn larger(self, max: Self::Vector, candidate: Self::Vector) -> Self::Vector;

    /// The sign bit cleared.
    fn abs(self, a: Self::Vector) -> Self::Vector;

    /// The last four steps of the tree for each of sixteen vectors.
    #[inline(always)]
    fn fold_each(self, vectors: [Self::Vector; UNIT]) -> Unit {
        let mut sums = [0.0; UNIT];
        for i in 0..UNIT {
            sums[i] = tree(self.store(vectors[i]));
        }
        sums
    }

    /// Writes `first` plus the index of each positive value, rising; returns how many there are. The rest of `out` is
    /// anything.
    #[inline(always)]
    fn positive(self, values: &Unit, first: u32, out: &mut [u32; UNIT]) -> usize {
        let mut n = 0;
        for (i, value) in (first..).zip(values) {
            out[n % UNIT] = i;
            n += usize::from(*value > 0.0);
        }
        n
    }

    /// `sums + a * b`, rounded once.
    fn add_product(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// An operation with its arguments, ready to be compiled for any instruction set.
pub(super) trait Operation {
    /// What it returns.
    type Output;

    /// Runs it. Implementations are `#[inline(always)]`, so that they take on the target features
    /// of the function they are called in.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// `candidate` if it is greater than `max`, else `max`; a NaN candidate is passed over.
#[inline(always)]
pub(super) fn larger(max: f32, candidate: f32) -> f32 {
    if candidate > max { candidate } else { max }
}

/// Splits a slice in whole groups of lanes and a tail.
#[inline(always)]
pub(super) fn split(x: &[f32]) -> (&[[Unit; 2]], &[f32]) {
    let (units, _) = x.as_chunks::<UNIT>();
    let (lanes, _) = units.as_chunks::<2>();
    (lanes, &x[lanes.len() * LANES..])
}

/// A tail of fewer than 32 values, padded.
#[inline(always)]
pub(super) fn pad(tail: &[f32], padding: f32) -> [Unit; 2] {
    let mut lanes = [[padding; UNIT]; 2];
    lanes.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    lanes
}

/// The final tree of a sum.
#[inline(always)]
pub(super) fn fold<S: Simd>(simd: S, lanes: [S::Vector; 2]) -> f32 {
    tree(simd.store(simd.add(lanes[0], lanes[1])))
}

/// Its last four steps.
#[inline(always)]
fn tree(lanes: Unit) -> f32 {
    one_of(lanes, |a, b| a + b)
}

/// The same tree for a maximum.
#[inline(always)]
fn fold_max<S: Simd>(simd: S, lanes: [S::Vector; 2]) -> f32 {
    one_of(simd.store(simd.larger(lanes[0], lanes[1])), larger)
}

/// Halves sixteen values until one is left.
#[inline(always)]
fn one_of(lanes: Unit, both: impl Fn(f32, f32) -> f32) -> f32 {
    halved::<2, 1>(halved::<4, 2>(halved::<8, 4>(halved::<16, 8>(lanes, &both), &both), &both), &both)[0]
}

/// What `both` makes of each value of the first half and that of the second. Its length is constant, so that it is no loop.
#[inline(always)]
fn halved<const TWO: usize, const ONE: usize>(lanes: [f32; TWO], both: &impl Fn(f32, f32) -> f32) -> [f32; ONE] {
    const { assert!(TWO == 2 * ONE) };
    let mut halves = [0.0; ONE];
    for j in 0..ONE {
        halves[j] = both(lanes[j], lanes[j + ONE]);
    }
    halves
}

/// Folds `x` into 32 lanes that start as `start`; the tail is padded with `start` as well.
#[inline(always)]
fn accumulate<S: Simd>(
    simd: S,
    x: &[f32],
    start: f32,
    step: impl Fn(S, S::Vector, S::Vector) -> S::Vector,
) -> [S::Vector; 2] {
    let (mut a, mut b) = (simd.splat(start), simd.splat(start));
    let (whole, tail) = split(x);
    for [x, y] in whole {
        a = step(simd, a, simd.load(x));
        b = step(simd, b, simd.load(y));
    }
    if !tail.is_empty() {
        let [x, y] = pad(tail, start);
        a = step(simd, a, simd.load(&x));
        b = step(simd, b, simd.load(&y));
    }
    [a, b]
}

#[inline(always)]
fn add_square<S: Simd>(simd: S, sums: S::Vector, x: S::Vector) -> S::Vector {
    simd.add_product(sums, x, x)
}

#[inline(always)]
fn larger_magnitude<S: Simd>(simd: S, max: S::Vector, x: S::Vector) -> S::Vector {
    simd.larger(max, simd.abs(x))
}

/// Sum of `x` in the order of this module.
#[inline(always)]
pub(super) fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    fold(simd, accumulate(simd, x, 0.0, S::add))
}

/// Sum of squares of `x` in the order of this module.
#[inline(always)]
pub(super) fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    fold(simd, accumulate(simd, x, 0.0, add_square))
}

/// Largest element of `x`, lane by lane and then by the tree; NaNs are passed over, and
/// `-infinity` comes back when nothing else is there.
#[inline(always)]
pub(super) fn max<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let start = f32::NEG_INFINITY;
    fold_max(simd, accumulate(simd, x, start, S::larger))
}

/// Largest magnitude in `x`; NaNs are passed over, 0 comes back when nothing else is there.
#[inline(always)]
pub(super) fn max_magnitude<S: Simd>(simd: S, x: &[f32]) -> f32 {
    fold_max(simd, accumulate(simd, x, 0.0, larger_magnitude))
}
