//! Writers against the bytes of the formats' own quantisers, and against the readers.

use proptest::prelude::*;
use std::path::Path;
use tritone_runtime::checkpoint::{Bytes, TensorType, dequantize_row, t5};
use tritone_runtime::error::Place;
use tritone_runtime::gguf::{Gguf, Writer};
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat, quantize_row};

fn block_vectors(name: &str) -> (Vec<u8>, Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/blocks");
    let bytes = std::fs::read(folder.join(format!("{name}.bin"))).unwrap();
    let values = std::fs::read(folder.join(format!("{name}.f32"))).unwrap();
    (bytes, values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Trits of a block and their common magnitude.
fn ternary(values: &[f32]) -> (Vec<i8>, f32) {
    let scale = values.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    (values.iter().map(|value| value.partial_cmp(&0.0).unwrap() as i8).collect(), scale)
}

fn encode(format: TernaryFormat, cols: usize, grid: ScaleGrid, trits: &[i8], scales: &[f32]) -> Vec<u8> {
    let rows = trits.len() / cols;
    let mut encoder = TernaryEncoder::new(format, rows, cols, grid, Place::default()).unwrap();
    let mut out = Vec::new();
    let n = grid.per_row(cols);
    for (row, trits) in trits.chunks_exact(cols).enumerate() {
        let scales = if grid == ScaleGrid::Tensor { &scales[..1] } else { &scales[row * n..][..n] };
        encoder.push_row(trits, scales, &mut out).unwrap();
    }
    let len = encoder.len();
    encoder.finish(&mut out);
    assert_eq!(out.len(), len);
    out
}

#[test]
fn ternary_blocks_are_the_reference_quantisers_bytes() {
    let (bytes, values) = block_vectors("i2_s");
    let (trits, scale) = ternary(&values);
    assert!(encode(TernaryFormat::I2S, 1024, ScaleGrid::Tensor, &trits, &[scale]) == bytes, "i2_s");
    for (name, format) in [("tq1_0", TernaryFormat::Tq1_0), ("tq2_0", TernaryFormat::Tq2_0)] {
        let (bytes, values) = block_vectors(name);
        let (trits, scales): (Vec<_>, Vec<_>) = values.chunks_exact(256).map(ternary).unzip();
        assert!(encode(format, 1024, ScaleGrid::Blocks(256), &trits.concat(), &scales) == bytes, "{name}");
    }
}

#[test]
fn q8_0_of_its_own_values_is_the_reference_quantisers_bytes() {
    let (bytes, values) = block_vectors("q8_0");
    let mut out = Vec::new();
    quantize_row(TensorType::Q8_0, &values, &mut out);
    assert!(out == bytes);
}

/// Squared error relative to the values' own squares.
fn error(ty: TensorType, values: &[f32]) -> f64 {
    let mut bytes = Vec::new();
    quantize_row(ty, values, &mut bytes);
    let mut back = vec![f32::NAN; values.len()];
    dequantize_row(ty, &bytes, &mut back);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = values.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
    error / values.iter().map(|&x| square(x)).sum::<f64>()
}

/// A bell-shaped sample: sums of four uniform numbers.
fn bell(n: usize, mut state: u64) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

#[test]
fn floats_come_back_with_small_errors() {
    let values = bell(256 * 64, 7);
    // The largest of 16 such numbers is 1.77 deviations on average and gets the code 32, and rounding
    // to steps of h costs h^2 / 12: 2.6e-4 of the variance. With 32 numbers and the code 127: 2.2e-5.
    let q6 = error(TensorType::Q6K, &values);
    assert!(q6 < 3.0e-4, "{q6}");
    let q8 = error(TensorType::Q8_0, &values);
    assert!(q8 < 3.0e-5, "{q8}");
    assert!(error(TensorType::F16, &values) < 1e-7);
    assert_eq!(error(TensorType::F32, &values), 0.0);
    // Values that Q6_K can express come back almost as they are.
    let (_, exact) = block_vectors("q6_K");
    let again = error(TensorType::Q6K, &exact);
    assert!(again < 3e-6, "{again}");
}

#[test]
fn extreme_values_do_not_break_blocks() {
    let mut blocks = vec![[0.0f32; 256], [1e-45; 256], [1e-30; 256], [-65504.0; 256], [1e9; 256]];
    blocks.push(std::array::from_fn(|i| if i == 200 { 1000.0 } else { 1e-4 }));
    for block in blocks {
        for ty in [TensorType::Q8_0, TensorType::Q6K, TensorType::F16] {
            let mut bytes = Vec::new();
            quantize_row(ty, &block, &mut bytes);
            let mut back = [f32::NAN; 256];
            dequantize_row(ty, &bytes, &mut back);
            assert!(back.iter().all(|x| x.is_finite()), "{} {}", ty.name(), block[0]);
            let max = block.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            if (1e-2..6e4).contains(&max) {
                for (a, b) in block.iter().zip(&back) {
                    assert!((a - b).abs() <= max / 31.0, "{} {a} {b}", ty.name());
                }
            }
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_a_way_out() {
    let refused =
        |format, cols, grid| TernaryEncoder::new(format, 4, cols, grid, Place::default()).unwrap_err().to_string();
    assert!(refused(TernaryFormat::I2S, 64, ScaleGrid::Tensor).contains("t5"));
    assert!(refused(TernaryFormat::Tq1_0, 128, ScaleGrid::Tensor).contains("i2_s"));
    assert!(refused(TernaryFormat::T5, 128, ScaleGrid::Blocks(32)).contains("i2_s"));

    let push = |format, grid, scales: &[f32]| {
        let mut encoder = TernaryEncoder::new(format, 1, 256, grid, Place::default()).unwrap();
        encoder.push_row(&[0; 256], scales, &mut Vec::new()).err().map(|error| error.to_string())
    };
    let two = [1.0, 2.0];
    assert!(push(TernaryFormat::I2S, ScaleGrid::Blocks(128), &two).unwrap().contains("t5"));
    assert!(push(TernaryFormat::Tq2_0, ScaleGrid::Blocks(128), &two).unwrap().contains("t5"));
    assert_eq!(push(TernaryFormat::T5, ScaleGrid::Blocks(128), &two), None);
    assert_eq!(push(TernaryFormat::I2S, ScaleGrid::Blocks(128), &[2.0, 2.0]), None);
    assert_eq!(push(TernaryFormat::Tq1_0, ScaleGrid::Blocks(128), &[2.0, 2.0]), None);
    assert!(push(TernaryFormat::T5, ScaleGrid::Blocks(256), &[0.1]).unwrap().contains("exact"));
    for scale in [1e-7, 1e6, f32::NAN, f32::INFINITY] {
        assert!(push(TernaryFormat::Tq1_0, ScaleGrid::Tensor, &[scale]).is_some(), "{scale}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn trits_and_scales_come_back(
        rows in 1usize..5,
        blocks in 1usize..5,
        format in prop::sample::select(vec![TernaryFormat::I2S, TernaryFormat::Tq1_0, TernaryFormat::Tq2_0]),
        seed in any::<u64>(),
    ) {
        let cols = blocks * if format == TernaryFormat::I2S { 128 } else { 256 };
        let trits: Vec<i8> = bell(rows * cols, seed).iter().map(|x| (x * 1.9).round().clamp(-1.0, 1.0) as i8).collect();
        let scale = 0.75;
        let bytes = encode(format, cols, ScaleGrid::Tensor, &trits, &[scale]);
        let gguf = file_of(format, rows, cols, &bytes).unwrap();
        let ternary = gguf.tensor("x").unwrap().ternary().unwrap();
        let mut row = vec![9; cols];
        for (r, expected) in trits.chunks_exact(cols).enumerate() {
            ternary.row_trits(r, &mut row).unwrap();
            prop_assert_eq!(&row, expected);
            for block in 0..ternary.blocks_per_row() {
                prop_assert_eq!(ternary.scale(r, block).unwrap(), scale);
            }
        }
        let some = 1.min(rows - 1)..rows;
        let published = encode(TernaryFormat::I2S, cols, ScaleGrid::Tensor, &trits, &[scale]);
        match ternary.i2s_rows(some.clone()).unwrap() {
            Some(bytes) => prop_assert!(*bytes == published[some.start * cols / 4..some.end * cols / 4]),
            None => prop_assert_eq!(format, TernaryFormat::Tq1_0),
        }
    }
}

/// A file in memory with one tensor.
fn file_of(format: TernaryFormat, rows: usize, cols: usize, bytes: &[u8]) -> tritone_runtime::error::Result<Gguf> {
    let mut writer = Writer::new();
    writer.align(format.alignment()).tensor("x", &[cols, rows], format.type_id(), bytes.len());
    let mut out = writer.begin(Vec::new()).unwrap();
    out.write(bytes).unwrap();
    Gguf::from_bytes(Bytes::from(out.finish().unwrap()), "memory")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn t5_comes_back_and_maps_in_place(
        rows in 1usize..140,
        (block, blocks) in prop_oneof![(Just(0usize), 1usize..90), (prop::sample::select(t5::BLOCKS.to_vec()), 1usize..4)],
        seed in any::<u64>(),
    ) {
        // With one scale any number of columns will do.
        let (cols, grid) = match block {
            0 => (blocks, ScaleGrid::Tensor),
            block => (blocks * block, ScaleGrid::Blocks(block)),
        };
        let trits: Vec<i8> = bell(rows * cols, seed).iter().map(|x| (x * 1.9).round().clamp(-1.0, 1.0) as i8).collect();
        let n = grid.per_row(cols);
        let scales: Vec<f32> = (0..rows * n).map(|i| (i % 2000) as f32 / 1024.0).collect();
        let bytes = encode(TernaryFormat::T5, cols, grid, &trits, &scales);
        let gguf = file_of(TernaryFormat::T5, rows, cols, &bytes).unwrap();
        let ternary = gguf.tensor("x").unwrap().ternary().unwrap();
        ternary.check().unwrap();
        prop_assert_eq!(ternary.tensor_scale(), (block == 0).then_some(scales[0]));
        let mut row = vec![9; cols];
        for (r, expected) in trits.chunks_exact(cols).enumerate() {
            ternary.row_trits(r, &mut row).unwrap();
            prop_assert_eq!(&row, expected);
            for b in 0..ternary.blocks_per_row() {
                let expected = if block == 0 { scales[0] } else { scales[r * n + b] };
                prop_assert_eq!(ternary.scale(r, b).unwrap(), expected);
            }
        }
        let packed = ternary.t5().unwrap();
        prop_assert_eq!(packed.as_ptr() as usize - gguf.data().as_ptr() as usize, gguf.tensor("x").unwrap().offset() as usize + 64);
    }
}

#[test]
fn scales_that_matter_are_found_to_be_common() {
    let (rows, cols) = (3, 512);
    let nothing = [0; 256];
    let something: Vec<i8> = (0..256).map(|i| (i % 3) as i8 - 1).collect();
    // Which of the blocks hold something, their scales, and what they have in common.
    for (blocks, scales, common) in [
        ([1, 1, 1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5], Some(0.5)),
        ([0, 1, 1, 0, 1, 1], [0.0, 0.5, 0.5, 2.0, 0.5, 0.5], Some(0.5)),
        ([1, 1, 1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.5, 0.25], None),
        ([0, 1, 1, 0, 1, 1], [0.0, 0.5, 0.5, 2.0, 0.5, -0.5], None),
        ([0, 0, 0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5, 0.5, 0.25], Some(0.25)),
        ([0, 0, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.25], Some(0.0)),
    ] {
        let trits = blocks.map(|block| if block == 0 { &nothing[..] } else { &something }).concat();
        for format in [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0, TernaryFormat::T5] {
            let gguf =
                file_of(format, rows, cols, &encode(format, cols, ScaleGrid::Blocks(256), &trits, &scales)).unwrap();
            let ternary = gguf.tensor("x").unwrap().ternary().unwrap();
            assert_eq!(ternary.tensor_scale(), None);
            assert_eq!(ternary.common_scale().unwrap(), common, "{} {blocks:?} {scales:?}", format.name());
        }
    }
    // A code that is no trit is found on the way to I2_S.
    let mut bytes = encode(TernaryFormat::Tq2_0, 256, ScaleGrid::Blocks(256), &something, &[0.5]);
    bytes[63] |= 0xc0;
    let gguf = file_of(TernaryFormat::Tq2_0, 1, 256, &bytes).unwrap();
    let ternary = gguf.tensor("x").unwrap().ternary().unwrap();
    assert!(ternary.i2s_rows(0..1).unwrap_err().to_string().contains("code 3"));
}

#[test]
fn damaged_t5_tensors_are_refused() {
    let (rows, cols) = (70, 128);
    let trits: Vec<i8> = (0..rows * cols).map(|i| (i % 3) as i8 - 1).collect();
    let sound = encode(TernaryFormat::T5, cols, ScaleGrid::Blocks(64), &trits, &vec![0.5; rows * 2]);
    let header = t5::Header::new(rows, cols, 64).unwrap();
    let first = t5::HEADER_BYTES;
    let counts = first + header.geometry().trailer_offset();
    // 13 groups of a block; the last has four trits, so 41 is too much for it.
    let last_group = first + 12 * 64;
    for (at, byte, says) in [
        (first, 0x80, "row 0"),
        (first + 5, 122, "row 5"),
        (last_group + 3, 41, "row 3"),
        (counts + 2 * 9, 200, "row 9"),
        (header.scales_offset() + 1, 0x7e, "row 0"),
    ] {
        let mut damaged = sound.clone();
        damaged[at] = byte;
        let gguf = file_of(TernaryFormat::T5, rows, cols, &damaged).unwrap();
        let error = gguf.tensor("x").unwrap().ternary().unwrap().check().unwrap_err().to_string();
        assert!(error.contains(says), "{at}: {error}");
    }
    for (at, byte) in [(0, b'x'), (8, 2), (12, 32), (16, 71), (48, 0)] {
        let mut damaged = sound.clone();
        damaged[at] = byte;
        assert!(file_of(TernaryFormat::T5, rows, cols, &damaged).is_err(), "{at}");
    }
    assert!(file_of(TernaryFormat::T5, rows, cols, &sound[..sound.len() - 200]).is_err());
    assert!(file_of(TernaryFormat::T5, rows, cols, &sound[..40]).is_err());
}
