//! Every operation on every instruction set of this machine against a plain loop that spells out
//! the defined order, bit for bit, with hostile values among the inputs. A NaN equals any NaN.

extern crate std;

mod attention;

use super::*;
use crate::isa::{Detected, Isa, Level};
use crate::testing::can_run;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// The levels that have an instance of their own.
const LEVELS: [Level; 4] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];

/// Every instance that this machine can run.
fn instances() -> Vec<FloatKernels> {
    let isas = LEVELS.map(|level| Isa::with_level(level, Detected::here()));
    isas.into_iter().flatten().map(FloatKernels::new).collect()
}

#[test]
fn levels_that_are_skipped_are_named_and_may_be_required() {
    let names: Vec<_> = instances().iter().map(FloatKernels::name).collect();
    for level in LEVELS {
        assert_eq!(names.contains(&level.name()), can_run(level), "{level}");
    }
    assert_eq!(names[0], "scalar");
    let best = FloatKernels::new(Isa::detect());
    assert_eq!(Some(&best.name()), names.last());
}

/// Lengths around the edges of lanes, key blocks and registers.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=200).chain([255, 256, 257, 287, 288, 289, 511, 512, 513, 1000])
}

#[test]
fn positive_ones_are_listed_and_counted() {
    let mut random = Random(11);
    for n in lengths() {
        let mut x = random.hostile(n);
        x.iter_mut().step_by(3).for_each(|x| *x = if x.is_sign_negative() { -0.0 } else { 0.0 });
        let expected: Vec<u32> = (0..).zip(&x).filter(|(_, x)| **x > 0.0).map(|(i, _)| i).collect();
        let nonzero = x.iter().filter(|x| **x != 0.0).count();
        for kernels in instances() {
            let mut out = vec![u32::MAX; n];
            let found = kernels.positive(&x, &mut out);
            assert_eq!(&out[..found], expected, "{}, {n} elements", kernels.name());
            assert_eq!(kernels.count_positive(&x), expected.len(), "{}, {n} elements", kernels.name());
            assert_eq!(kernels.count_nonzero(&x), nonzero, "{}, {n} elements", kernels.name());
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Values in (-4, 4).
    fn tame(&mut self, n: usize) -> Vec<f32> {
        let value = |bits: u64| (bits >> 40) as i32 as f32 / (1 << 21) as f32 - 4.0;
        (0..n).map(|_| value(self.next())).collect()
    }

    /// One value in sixteen is hostile.
    fn hostile(&mut self, n: usize) -> Vec<f32> {
        const HOSTILE: [f32; 12] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-41,
            f32::from_bits(0x7f80_0001),
            65519.996,
        ];
        let mut x = self.tame(n);
        for value in &mut x {
            let r = self.next() >> 20;
            if r.is_multiple_of(16) {
                *value = HOSTILE[(r / 16) as usize % HOSTILE.len()];
            }
        }
        x
    }

    /// Tame when `round` is even: otherwise one NaN would hide everything else.
    fn values(&mut self, n: usize, round: u64) -> Vec<f32> {
        if round.is_multiple_of(2) { self.tame(n) } else { self.hostile(n) }
    }
}

#[track_caller]
fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let same = g.to_bits() == e.to_bits() || (g.is_nan() && e.is_nan());
        assert!(same, "{what}: element {i} of {} is {g:e}, not {e:e}", got.len());
    }
}

/// Runs `check` on every instance, for every length, with tame and with hostile values.
fn for_all(mut check: impl FnMut(&FloatKernels, usize, &mut dyn FnMut(usize) -> Vec<f32>, &str)) {
    for kernels in instances() {
        for n in lengths() {
            for round in 0..2 {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (n as u64) << 8 ^ round);
                let what = std::format!("{} n={n} round={round}", kernels.name());
                check(&kernels, n, &mut |len| random.values(len, round), &what);
            }
        }
    }
}

/// The defined order of a long sum, as plainly as possible.
fn plain_sum(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (i, term) in terms.enumerate() {
        lanes[i % 32] += term;
    }
    plain_tree(lanes)
}

/// The same for a sum of products, whose tail is padded.
fn plain_dot(w: impl Iterator<Item = f32>, x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 32];
    let padding = std::iter::repeat_n((0.0, 0.0), x.len().next_multiple_of(32) - x.len());
    for (i, (w, x)) in w.zip(x.iter().copied()).chain(padding).enumerate() {
        lanes[i % 32] = w.mul_add(x, lanes[i % 32]);
    }
    plain_tree(lanes)
}

fn plain_tree(mut lanes: [f32; 32]) -> f32 {
    for half in [16, 8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

/// `exp` is compared as a function of one value; its accuracy has a test of its own.
fn plain_exp(x: f32) -> f32 {
    let mut out = [0.0];
    FloatKernels::new(Isa::scalar()).exp(&[x], &mut out);
    out[0]
}

fn plain_max(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

fn halves(x: &[f32]) -> Vec<u16> {
    x.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect()
}

fn from_half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

#[test]
fn all_halves_widen_exactly() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    for kernels in instances() {
        let mut out = vec![0.0; bits.len()];
        kernels.widen(FloatFormat::F16, bytemuck::cast_slice(&bits), &mut out);
        for (&bits, value) in bits.iter().zip(&out) {
            let expected = from_half(bits).to_bits();
            assert_eq!(value.to_bits(), expected, "{} {bits:#06x}", kernels.name());
        }
    }
}

#[test]
fn narrowing_rounds_to_even_and_keeps_nans() {
    // Each half, the floats beside it, the midpoints to its neighbours and the floats beside
    // those; then a sweep over all floats.
    let mut values = Vec::new();
    for bits in 0..=u16::MAX {
        let centre = from_half(bits).to_bits();
        for offset in [0, 1, 0x0fff, 0x1000, 0x1001] {
            values.push(f32::from_bits(centre.wrapping_add(offset)));
            values.push(f32::from_bits(centre.wrapping_sub(offset)));
        }
        // Midpoints of subnormal halves are not at fixed offsets in the pattern.
        let next = from_half(bits.wrapping_add(1));
        let middle = (from_half(bits) + next) / 2.0;
        for offset in [0, 1, u32::MAX] {
            values.push(f32::from_bits(middle.to_bits().wrapping_add(offset)));
        }
    }
    values.extend((0..=u32::MAX).step_by(65_521).map(f32::from_bits));
    for kernels in instances() {
        let mut out = vec![0; values.len()];
        kernels.narrow_f16(&values, &mut out);
        for (value, &bits) in values.iter().zip(&out) {
            let expected = half::f16::from_f32(*value).to_bits();
            assert_eq!(bits, expected, "{} {:#010x}", kernels.name(), value.to_bits());
        }
    }
}

#[test]
fn widen_reads_every_format_at_every_length_and_alignment() {
    for_all(|kernels, n, values, what| {
        let x = values(n);
        let f16 = halves(&x);
        let bf16: Vec<u16> = x.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
        let cases: [(FloatFormat, Vec<u8>, Vec<f32>); 3] = [
            (FloatFormat::F32, bytemuck::cast_slice(&x).to_vec(), x.clone()),
            (FloatFormat::F16, bytemuck::cast_slice(&f16).to_vec(), f16.iter().map(|&b| from_half(b)).collect()),
            (
                FloatFormat::Bf16,
                bytemuck::cast_slice(&bf16).to_vec(),
                bf16.iter().map(|&b| f32::from_bits(u32::from(b) << 16)).collect(),
            ),
        ];
        for (format, mut bytes, expected) in cases {
            bytes.splice(0..0, vec![0xff; n % 5]);
            let mut out = vec![0.0; n];
            kernels.widen(format, &bytes[n % 5..], &mut out);
            assert_same(&out, &expected, what);
        }
    });
}

#[test]
fn dot_keeps_the_order_in_every_format() {
    for_all(|kernels, n, values, what| {
        let (w, x) = (values(n), values(n));
        let f16 = halves(&w);
        let bf16: Vec<u16> = w.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
        assert_same(
            &[kernels.dot_f32(&w, &x), kernels.dot_f16(&f16, &x), kernels.dot_bf16(&bf16, &x)],
            &[
                plain_dot(w.iter().copied(), &x),
                plain_dot(f16.iter().map(|&w| from_half(w)), &x),
                plain_dot(bf16.iter().map(|&w| f32::from_bits(u32::from(w) << 16)), &x),
            ],
            what,
        );
    });
}

#[test]
fn rows_and_vectors_together_are_rows_and_vectors_alone() {
    for_all(|kernels, n, values, what| {
        if n == 0 {
            return;
        }
        for (n_rows, n_vectors) in [(0, 1), (1, 1), (2, 1), (5, 1), (3, 2), (2, 3), (4, 5), (5, 9), (4, 10)] {
            let rows = halves(&values(n_rows * n));
            let vectors = values(n_vectors * n);
            let mut expected = Vec::new();
            for x in vectors.chunks(n) {
                expected.extend(rows.chunks(n).map(|row| kernels.dot_f16(row, x)));
            }
            let mut out = vec![9.0; n_rows * n_vectors];
            kernels.rows_dot_f16_multi(&rows, &vectors, n_vectors, &mut out);
            assert_same(&out, &expected, what);
            // From unaligned bytes, vector by vector.
            let mut bytes = vec![0; n % 3];
            bytes.extend_from_slice(bytemuck::cast_slice(&rows));
            let mut out = vec![9.0; n_rows];
            for (x, expected) in vectors.chunks(n).zip(expected.chunks(n_rows.max(1))) {
                kernels.rows_dot(FloatFormat::F16, &bytes[n % 3..], x, &mut out);
                assert_same(&out, expected, what);
            }
        }
    });
}

/// So many that they take the columns in parts, and some that are left.
#[test]
fn many_rows_and_vectors_are_rows_and_vectors_alone() {
    // Eight vectors, four, two and one; less than a group of columns, whole groups, and both.
    let n_vectors = 15;
    for (n_rows, n) in [(1, 20), (3, 32), (16, 96), (37, 2 * 1280 + 45)] {
        for kernels in instances() {
            let mut random = Random(7);
            let floats = random.values(n_rows * n, 0);
            let rows = halves(&floats);
            let vectors = random.values(n_vectors * n, 0);
            let (mut out, mut out_f32) = (vec![9.0; n_rows * n_vectors], vec![9.0; n_rows * n_vectors]);
            kernels.rows_dot_f16_multi(&rows, &vectors, n_vectors, &mut out);
            crate::testing::on_each_processor(|| {
                let mut again = vec![9.0; out.len()];
                kernels.rows_dot_f16_multi(&rows, &vectors, n_vectors, &mut again);
                assert_same(&again, &out, kernels.name());
            });
            let bytes = bytemuck::cast_slice(&floats);
            kernels.rows_dot_multi(FloatFormat::F32, bytes, &vectors, n_vectors, &mut out_f32);
            let outs = out.chunks(n_rows).zip(out_f32.chunks(n_rows));
            for (x, (out, out_f32)) in vectors.chunks(n).zip(outs) {
                let expected: Vec<f32> = rows.chunks(n).map(|row| kernels.dot_f16(row, x)).collect();
                assert_same(out, &expected, kernels.name());
                let expected: Vec<f32> = floats.chunks(n).map(|row| kernels.dot_f32(row, x)).collect();
                assert_same(out_f32, &expected, kernels.name());
            }
        }
    }
}

#[test]
fn sums_are_rounded_and_then_scaled() {
    let mut random = Random(3);
    for n in lengths() {
        let mut sums: Vec<i32> = random.values(n, 0).into_iter().map(|x| (x * 1e9) as i32).collect();
        // Between two floats, and the ends.
        for (sum, special) in
            sums.iter_mut().zip([(1 << 24) + 1, i32::MAX, i32::MIN, (1 << 25) + 2, 0, -((1 << 24) + 3)])
        {
            *sum = special;
        }
        let expected: Vec<f32> = sums.iter().map(|sum| *sum as f32 * 0.0137).collect();
        for kernels in instances() {
            let mut out = vec![9.0; n];
            kernels.scale(&sums, 0.0137, &mut out);
            assert_same(&out, &expected, kernels.name());
        }
    }
}

#[test]
fn rms_norm_keeps_the_order() {
    for_all(|kernels, n, values, what| {
        let (x, weight) = (values(n), values(n));
        let mean = plain_dot(x.iter().copied(), &x) / n as f32;
        let inverse = 1.0 / (mean + 1e-5).sqrt();
        let expected: Vec<f32> = x.iter().zip(&weight).map(|(x, w)| (x * inverse) * w).collect();
        let mut out = vec![0.0; n];
        kernels.rms_norm(&x, &weight, 1e-5, &mut out);
        assert_same(&out, &expected, what);
        if n > 0 {
            let second = values(n);
            let mut expected = expected;
            let mut both = x;
            both.extend_from_slice(&second);
            expected.resize(2 * n, 0.0);
            kernels.rms_norm(&second, &weight, 1e-5, &mut expected[n..]);
            kernels.rms_norm_heads(&mut both, &weight, 1e-5);
            assert_same(&both, &expected, what);
        }
    });
}

#[test]
fn exp_is_within_one_unit_in_the_last_place() {
    let x: Vec<f32> = (0..=u32::MAX).step_by(2053).map(f32::from_bits).collect();
    let mut expected = vec![0.0; x.len()];
    FloatKernels::new(Isa::scalar()).exp(&x, &mut expected);
    let mut worst = 0.0f64;
    for (&x, &y) in x.iter().zip(&expected) {
        let exact = libm::exp(f64::from(x));
        if x.is_nan() {
            assert!(y.is_nan());
        } else if exact as f32 == f32::INFINITY {
            assert_eq!(y, f32::INFINITY, "exp({x:e})");
        } else if x <= -104.0 {
            assert_eq!(y.to_bits(), 0, "exp({x:e})");
        } else {
            // The distance between floats near the exact value, not below the subnormal one.
            let exponent = (libm::floor(libm::log2(exact)) as i32).max(-126);
            let unit = libm::ldexp(1.0, exponent - 23);
            worst = worst.max((f64::from(y) - exact).abs() / unit);
        }
    }
    std::println!("largest error of exp: {worst} units in the last place");
    assert!(worst < 1.0, "{worst} units in the last place");
    for kernels in instances() {
        let mut out = vec![0.0; x.len()];
        kernels.exp(&x, &mut out);
        assert_same(&out, &expected, kernels.name());
    }
}

#[test]
fn exp_at_its_edges() {
    let cases = [
        (f32::NEG_INFINITY, 0.0),
        (-1e30, 0.0),
        (-104.0, 0.0),
        (-103.0, 1e-45),
        (-0.0, 1.0),
        (0.0, 1.0),
        (88.73, f32::INFINITY),
        (f32::MAX, f32::INFINITY),
        (f32::INFINITY, f32::INFINITY),
    ];
    for (x, y) in cases {
        assert_eq!(plain_exp(x).to_bits(), y.to_bits(), "exp({x})");
    }
    assert!(plain_exp(f32::NAN).is_nan());
}

#[test]
fn gates_follow_their_formulas() {
    for_all(|kernels, n, values, what| {
        let (gate, up) = (values(n), values(n));
        let silu: Vec<f32> = gate.iter().map(|&g| g / (1.0 + plain_exp(-g))).collect();
        let mut out = vec![9.0; n];
        kernels.silu(&gate, &mut out);
        assert_same(&out, &silu, what);
        kernels.silu_gate(&gate, &up, &mut out);
        let expected: Vec<f32> = silu.iter().zip(&up).map(|(s, u)| s * u).collect();
        assert_same(&out, &expected, what);
        // What the approximation by tanh comes to, term by term; its distance from tanh has a test of its own.
        let gelu = |x: f32| x / (1.0 + plain_exp(x * (-1.595_769_2 + -0.071_354_814 * (x * x))));
        kernels.gelu_gate(&gate, &up, &mut out);
        let expected: Vec<f32> = gate.iter().zip(&up).map(|(&g, u)| gelu(g) * u).collect();
        assert_same(&out, &expected, what);
        kernels.relu2_gate(&gate, &up, &mut out);
        let expected: Vec<f32> = gate.iter().zip(&up).map(|(&g, u)| if g > 0.0 { (g * g) * u } else { 0.0 }).collect();
        assert_same(&out, &expected, what);
        let mut sum = gate.clone();
        kernels.add_assign(&mut sum, &up);
        let expected: Vec<f32> = gate.iter().zip(&up).map(|(x, y)| x + y).collect();
        assert_same(&sum, &expected, what);
    });
}

#[test]
fn gelu_is_its_definition_by_tanh() {
    let x: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 / 10_000.0).collect();
    let one = vec![1.0; x.len()];
    let mut out = vec![0.0; x.len()];
    FloatKernels::new(Isa::scalar()).gelu_gate(&x, &one, &mut out);
    let mut worst = 0.0f64;
    for (&x, &y) in x.iter().zip(&out) {
        let wide = f64::from(x);
        let u = libm::sqrt(2.0 / std::f64::consts::PI) * (wide + 0.044_715 * wide * wide * wide);
        let exact = wide / (1.0 + libm::exp(-2.0 * u));
        // That this is the definition by tanh shows where tanh does not cancel.
        if wide > -2.0 {
            assert!((exact - 0.5 * wide * (1.0 + libm::tanh(u))).abs() < 1e-14);
        }
        // The exponent is rounded, and the result's relative error is the exponent's absolute one. Where the power of
        // e is infinite, less than 4e-38 becomes 0.
        let error = ((f64::from(y) - exact).abs() - 4e-38).max(0.0);
        worst = worst.max(error / (exact.abs() * (1.0 + 2.0 * u.abs())).max(f64::MIN_POSITIVE));
    }
    std::println!("largest error of gelu: {worst:e} of its value for each unit of the exponent");
    assert!(worst < 2.5e-7, "{worst:e}");
    for (x, y) in [(0.0, 0.0f32), (-0.0, -0.0), (-1e20, -0.0), (1e20, 1e20), (f32::INFINITY, f32::INFINITY)] {
        let mut out = [9.0];
        FloatKernels::new(Isa::scalar()).gelu_gate(&[x], &[1.0], &mut out);
        assert_eq!(out[0].to_bits(), y.to_bits(), "gelu({x})");
    }
}

#[test]
fn softmax_keeps_the_order() {
    for_all(|kernels, n, values, what| {
        let x = values(n);
        let max = plain_max(&x);
        let exponentials: Vec<f32> = x.iter().map(|&v| plain_exp(v - max)).collect();
        let sum = plain_sum(exponentials.iter().copied());
        let expected: Vec<f32> = exponentials.iter().map(|e| e / sum).collect();
        let mut out = x;
        let partial = kernels.softmax(&mut out);
        assert_same(&out, &expected, what);
        assert_same(&[partial.sum], &[sum], what);
        assert_eq!(partial.max, max, "{what}");
    });
}

#[test]
fn quantisation_rounds_half_to_even() {
    for kernels in instances() {
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -200.0, 0.49999997, f32::NAN];
        let mut codes = [9; 10];
        kernels.quantize(&x, 1.0, &mut codes);
        assert_eq!(codes, [0, 2, 2, 0, -2, 126, 127, -127, 0, -127], "{}", kernels.name());
    }
    for_all(|kernels, n, values, what| {
        let x = values(n);
        let max = x.iter().fold(0.0, |m: f32, v| if v.abs() > m { v.abs() } else { m });
        assert_eq!(kernels.absmax(&x).to_bits(), max.to_bits(), "{what}");
        for scale in [127.0 / max, 1.0, 1e9, f32::INFINITY, f32::NAN] {
            let code = |v: f32| {
                if v.is_nan() { -127 } else { v.clamp(-127.0, 127.0) as i8 }
            };
            let expected: Vec<i8> = x.iter().map(|v| code((v * scale).round_ties_even())).collect();
            let mut codes = vec![9; n];
            kernels.quantize(&x, scale, &mut codes);
            assert_eq!(codes, expected, "{what}");
        }
    });
}

#[test]
fn rope_turns_pairs() {
    for_all(|kernels, n, values, what| {
        let head_dim = 2 * n + n % 4;
        if head_dim == 0 {
            return;
        }
        let (cos, sin) = (values(n), values(n));
        let x = values(3 * head_dim);
        for interleaved in [false, true] {
            let mut expected = x.clone();
            for head in expected.chunks_mut(head_dim) {
                for i in 0..n {
                    let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + n) };
                    let (x0, x1) = (head[a], head[b]);
                    head[a] = x0 * cos[i] - x1 * sin[i];
                    head[b] = x0 * sin[i] + x1 * cos[i];
                }
            }
            let mut out = x.clone();
            if interleaved {
                kernels.rope_interleaved(&mut out, head_dim, &cos, &sin);
            } else {
                kernels.rope_neox(&mut out, head_dim, &cos, &sin);
            }
            assert_same(&out, &expected, what);
        }
    });
}

#[test]
fn rope_table_has_the_angles_of_the_paper() {
    let (mut cos, mut sin) = ([0.0; 4], [0.0; 4]);
    rope_table(0.0, 10000.0, None, &mut cos, &mut sin);
    assert_eq!((cos, sin), ([1.0; 4], [0.0; 4]));
    let factors = [1.0, 2.0, 1.0, 4.0];
    rope_table(3.0, 10000.0, Some(&factors), &mut cos, &mut sin);
    // 10000^(-2i/8) = 10^-i.
    for (i, angle) in [3.0, 0.15, 0.03, 0.00075].iter().enumerate() {
        assert!((f64::from(cos[i]) - libm::cos(*angle)).abs() < 6e-8, "cos of {angle}");
        assert!((f64::from(sin[i]) - libm::sin(*angle)).abs() < 6e-8, "sin of {angle}");
    }
}

#[test]
fn hostile_shapes_panic_instead_of_reading_past_the_end() {
    let kernels = FloatKernels::new(Isa::scalar());
    let refuses = |f: &dyn Fn()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err());
    };
    refuses(&|| _ = kernels.dot_f16(&[0; 3], &[0.0; 4]));
    refuses(&|| kernels.rows_dot_f16(&[0; 7], &[0.0; 4], &mut [0.0; 2]));
    refuses(&|| kernels.rows_dot_f16(&[], &[], &mut [0.0; 2]));
    refuses(&|| kernels.rope_neox(&mut [0.0; 8], 4, &[1.0; 3], &[0.0; 3]));
    refuses(&|| kernels.rms_norm_heads(&mut [0.0; 8], &[], 1e-5));
    refuses(&|| kernels.store_key(&[0.0; 2], 32, &mut [0u16; 64]));
    for (keys, values, first_key, n_keys) in
        [(64, 2, 0, 0), (64, 600, 0, 257), (63, 2, 0, 1), (64, 3, 0, 2), (64, 2, 1, 1)]
    {
        let (keys, values) = (vec![0u16; keys], vec![0u16; values]);
        refuses(&|| {
            let block = CachedBlock { keys: &keys, values: &values, first_key, n_keys, n_positions: 1, next: [&[]; 2] };
            let (mut out, mut partials) = ([0.0; 2], [Partial::default()]);
            kernels.attention_block(&[0.0; 2], 1.0, block, &mut out, &mut partials);
        });
    }
}

proptest! {
    #[test]
    fn any_bits_give_the_same_on_every_instance(
        bits in proptest::collection::vec(any::<(u32, u16)>(), 1..100),
    ) {
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(b.0)).collect();
        let row: Vec<u16> = bits.iter().map(|b| b.1).collect();
        let results: Vec<Vec<f32>> = instances()
            .iter()
            .map(|kernels| {
                let mut out = x.clone();
                kernels.softmax(&mut out);
                let mut normed = vec![0.0; x.len()];
                kernels.rms_norm(&x, &x, 1e-5, &mut normed);
                out.extend(normed);
                out.push(kernels.dot_f16(&row, &x));
                out.push(kernels.absmax(&x));
                out
            })
            .collect();
        for result in &results[1..] {
            assert_same(result, &results[0], "against scalar");
        }
    }
}
