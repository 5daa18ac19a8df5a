//! Trits come out of every layout as they went in, and packed bytes that no packing writes have one
//! meaning: packing what they unpack to gives the same weights again.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use tritone_kernels::format::{Geometry, Layout};
use tritone_kernels::testing::pack;

#[derive(Debug)]
struct Input {
    geometry: Geometry,
    /// Repeated over the matrix.
    pattern: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Input> {
        let layout = *u.choose(&Layout::ALL)?;
        let rows = u.int_in_range(1..=130)?;
        let (cols, block) = if layout == Layout::I2S {
            let cols = 128 * u.int_in_range(1..=4)?;
            (cols, cols)
        } else if layout == Layout::C2 {
            let cols = u.int_in_range(1..=700)?;
            (cols, cols)
        } else {
            let block = u.int_in_range(1..=300)?;
            (block * u.int_in_range(1..=3)?, block)
        };
        let geometry = Geometry::new(layout, rows, cols, block).expect("a shape made to fit");
        let pattern = u.bytes(u.len().min(4096))?.to_vec();
        Ok(Input { geometry, pattern })
    }
}

fn unpack(geometry: &Geometry, data: &[u8]) -> Vec<i8> {
    let mut trits = vec![0; geometry.rows * geometry.cols];
    for (row, trits) in trits.chunks_exact_mut(geometry.cols).enumerate() {
        geometry.unpack_row(data, row, trits);
    }
    trits
}

fuzz_target!(|input: Input| {
    let Input { geometry, pattern } = input;
    let bytes = || pattern.iter().copied().chain([0]).cycle();

    let trits: Vec<i8> = bytes().take(geometry.rows * geometry.cols).map(|byte| (byte % 3) as i8 - 1).collect();
    assert_eq!(unpack(&geometry, &pack(&geometry, &trits)), trits);

    let data: Vec<u8> = bytes().take(geometry.data_len()).collect();
    let mut meant = unpack(&geometry, &data);
    let highest = if matches!(geometry.layout, Layout::I2S | Layout::C2) { 2 } else { 1 };
    assert!(meant.iter().all(|weight| (-1..=highest).contains(weight)));
    // The code 3 of I2_S and C2 is no trit, so it can't be packed.
    for weight in &mut meant {
        *weight = (*weight).min(1);
    }
    assert_eq!(unpack(&geometry, &pack(&geometry, &meant)), meant);
});
