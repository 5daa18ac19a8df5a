//! Every kernel that this processor can run gives the sums of the definition: any shape, any packed
//! bytes, any activations, any range of tiles, any alignment of the weights.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use tritone_kernels::format::{Geometry, Layout};
use tritone_kernels::isa::Isa;
use tritone_kernels::kernel::Kernel;
use tritone_kernels::testing::{Random, any_bytes, check_kernel, pack, runnable_kernels};

#[derive(Debug, Arbitrary)]
enum Weights {
    AnyBytes(u64),
    Trits(u64),
    All(bool),
}

#[derive(Debug)]
struct Input {
    geometry: Geometry,
    weights: Weights,
    offset: usize,
    tiles: (usize, usize),
    vectors: Vec<Vec<i8>>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Input> {
        let layout = *u.choose(&Layout::ALL)?;
        let rows = u.int_in_range(1..=100)?;
        let (cols, block) = if layout == Layout::I2S {
            let cols = 128 * u.int_in_range(1..=12)?;
            (cols, cols)
        } else if layout == Layout::C2 {
            let cols = u.int_in_range(1..=700)?;
            (cols, cols)
        } else {
            let block = u.int_in_range(1..=700)?;
            (block * u.int_in_range(1..=3)?, block)
        };
        let geometry = Geometry::new(layout, rows, cols, block).expect("a shape made to fit");
        let weights = Weights::arbitrary(u)?;
        let offset = u.int_in_range(0..=63)?;
        let end = u.int_in_range(0..=geometry.n_tiles())?;
        let tiles = (u.int_in_range(0..=end)?, end);
        // Seldom more than kernels for few vectors take, which costs time.
        let n_vectors = if u.ratio(1, 8)? { u.int_in_range(4..=52)? } else { u.int_in_range(1..=3)? };
        let mut vectors = Vec::new();
        for _ in 0..n_vectors {
            let pattern = u.bytes(u.len().min(256))?;
            let pattern = pattern.iter().map(|byte| byte.cast_signed());
            vectors.push(pattern.chain([-128]).cycle().take(cols).collect());
        }
        Ok(Input { geometry, weights, offset, tiles, vectors })
    }
}

fuzz_target!(|input: Input| {
    static KERNELS: OnceLock<Vec<&'static Kernel>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(runnable_kernels);
    let Input { geometry, weights, offset, tiles, vectors } = input;
    let n_weights = geometry.rows * geometry.cols;
    let data = match weights {
        Weights::AnyBytes(seed) => any_bytes(&geometry, &mut Random::new(seed)),
        Weights::Trits(seed) => pack(&geometry, &Random::new(seed).trits(n_weights)),
        Weights::All(sign) => pack(&geometry, &vec![if sign { 1 } else { -1 }; n_weights]),
    };
    // Weights come from mapped files, which promise no alignment.
    let mut shifted = vec![0; offset];
    shifted.extend_from_slice(&data);
    for kernel in kernels.iter().filter(|kernel| kernel.layout == geometry.layout) {
        let data = &shifted[offset..];
        check_kernel(kernel, Isa::detect(), &geometry, data, tiles.0..tiles.1, &vectors);
    }
});
