//! What the processor says decides which kernels run: an Arm processor without the dot product
//! instructions must not be given a kernel that uses them.
#![cfg(target_arch = "aarch64")]

use tritone_kernels::isa::{Isa, Level};
use tritone_kernels::testing::runnable_kernels;

#[test]
fn dot_product_kernels_run_exactly_where_the_standard_library_finds_the_instructions() {
    let here = std::arch::is_aarch64_feature_detected!("dotprod");
    let best = if here { Level::NeonDotprod } else { Level::Neon };
    assert_eq!(Isa::detect().level(), best);
    let used = runnable_kernels().iter().filter(|kernel| kernel.level == Level::NeonDotprod).count();
    // One GEMV, and one GEMM for each layout.
    assert_eq!(used, if here { 4 } else { 0 });
    assert!(runnable_kernels().iter().any(|kernel| kernel.level == Level::Neon));
}
