use super::integers::MAX_COLS;
use super::*;
use crate::format::{Geometry, Layout};
use crate::gemv;
use crate::isa::{Detected, Level};
use crate::kernel::{Family, Kernel, Operation};
use crate::line::Line;
use core::ops::Range;
use std::vec::Vec;

fn outcomes(isa: Isa, test: fn(Isa, &mut dyn FnMut(Outcome))) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    test(isa, &mut |outcome| outcomes.push(outcome));
    outcomes
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn this_processor_agrees_with_the_definition() {
    let mut wrong = Vec::new();
    for isa in Level::ALL.into_iter().filter_map(|level| Isa::with_level(level, Detected::here()).ok()) {
        let integers = outcomes(isa, integers);
        let supported = registry::all().iter().filter(|kernel| isa.supports(kernel.level)).count();
        assert_eq!(integers.len(), supported);
        let preferred = integers.iter().filter(|outcome| outcome.preferred).count();
        assert_eq!(preferred, 2 * Layout::ALL.len(), "one for each layout and operation");
        wrong.extend(integers.into_iter().chain(outcomes(isa, floats)).filter(|outcome| !outcome.agrees));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A thread whose stack is too small ends the process.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn the_stack_that_is_promised_is_enough() {
    let all = || {
        let mut n = 0;
        for isa in [Isa::scalar(), Isa::detect()] {
            integers(isa, &mut |_| n += 1);
            floats(isa, &mut |_| n += 1);
        }
        n
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(all).unwrap();
    assert!(thread.join().unwrap() > 2 * OPERATIONS.len());
}

/// The definition, summed in 16 bits.
fn wraps(geo: &Geometry, data: &[u8], tiles: Range<usize>, prepared: &[Line], n: usize, out: &mut [i32]) {
    let mut row = [0i8; MAX_COLS];
    let row = &mut row[..geo.cols];
    for (v, lines) in prepared.chunks_exact(prepared.len() / n).enumerate() {
        let codes: &[i8] = bytemuck::cast_slice(lines);
        for r in geo.rows_of(tiles.clone()) {
            geo.unpack_row(data, r, row);
            let products = row.iter().zip(codes).map(|(w, a)| i16::from(*w) * i16::from(*a));
            let sum = products.fold(0, i16::wrapping_add);
            out[v * tiles.len() * geo.tile_rows() + r - tiles.start * geo.tile_rows()] = i32::from(sum);
        }
    }
}

static WRAPS: Kernel = Kernel {
    name: "gemv-i2s-wraps",
    layout: Layout::I2S,
    operation: Operation::Gemv,
    family: Family::MultiplyAdd,
    level: Level::Scalar,
    prepared_lines: gemv::i2s::scalar::prepared_lines,
    prepare: gemv::i2s::scalar::prepare,
    run: wraps,
    run_asking: None,
    run_rows: None,
    run_cached_rows: None,
    run_listed: None,
    skips_columns: false,
    gemm_from: 4,
};

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn a_kernel_that_overflows_is_found() {
    assert!(!agrees(&WRAPS, Isa::scalar()));
}

/// An operation that forgets its result leaves zeros, which would agree with zeros.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn every_float_operation_has_a_result() {
    let inputs = Inputs::new();
    for (name, run) in OPERATIONS.into_iter().chain(TOGETHER.map(|(name, run, _)| (name, run))) {
        let mut out = [0.0; OUT];
        run(&FloatKernels::new(Isa::scalar()), &inputs, &mut out);
        assert!(out.iter().all(|value| value.is_finite()), "{name}");
        assert!(out.iter().filter(|value| **value != 0.0).count() >= 10, "{name}");
    }
}
