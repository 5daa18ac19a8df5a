//! The list of kernels, the only file that names them.
//!
//! For each layout and operation the first row that a processor supports is preferred, so the
//! order is a statement about speed. Measured on one core of an AVX2 machine (Zen 3) and of one with AVX-512 and
//! AMX (Sapphire Rapids), see `benches/README.md` for the figures and the command.

use crate::format::Layout;
use crate::isa::{Isa, Level};
use crate::kernel::{Family, Kernel, Operation};
use crate::{gemm, gemv};

macro_rules! gemv {
    ($name:literal, $layout:ident, $family:ident, $level:ident, $($module:ident)::+ $(, prepare: $($preparer:ident)::+)? $(, gemm_from: $gemm_from:literal)? $(, run_asking: $asking:ident)? $(, run_cached_rows: $cached:ident)?) => {
        Kernel {
            name: $name,
            layout: Layout::$layout,
            operation: Operation::Gemv,
            family: Family::$family,
            level: Level::$level,
            prepared_lines: gemv!(@prepare $($module)::+ $(, $($preparer)::+)?; prepared_lines),
            prepare: gemv!(@prepare $($module)::+ $(, $($preparer)::+)?; prepare),
            run: gemv::$($module)::+::run,
            run_asking: gemv!(@asking $($module)::+ $(, $asking)?),
            run_rows: gemv!(@rows $layout, $($module)::+),
            run_cached_rows: gemv!(@cached $($module)::+ $(, $cached)?),
            run_listed: None,
            skips_columns: false,
            gemm_from: gemv!(@gemm_from $($gemm_from)?),
        }
    };
    (@asking $($module:ident)::+) => { None };
    (@asking $($module:ident)::+, $asking:ident) => { Some(gemv::$($module)::+::$asking) };
    (@cached $($module:ident)::+) => { None };
    (@cached $($module:ident)::+, $cached:ident) => { Some(gemv::$($module)::+::$cached) };
    (@gemm_from) => { GEMM_FROM };
    (@gemm_from $gemm_from:literal) => { $gemm_from };
    (@rows I2S, $($module:ident)::+) => { Some(gemv::$($module)::+::run_rows) };
    (@rows $layout:ident, $($module:ident)::+) => { None };
    (@prepare $($module:ident)::+; $function:ident) => { gemv::$($module)::+::$function };
    (@prepare $($module:ident)::+, $($preparer:ident)::+; $function:ident) => { gemv::$($preparer)::+::$function };
}

macro_rules! gemm {
    ($name:literal, $layout:ident, $level:ident, $module:ident $(, from: $from:literal)? $(, run_listed: $listed:ident)?) => {
        Kernel {
            name: $name,
            layout: Layout::$layout,
            operation: Operation::Gemm,
            family: Family::MultiplyAdd,
            level: Level::$level,
            prepared_lines: gemm::prepared_lines,
            prepare: gemm::prepare,
            run: gemm::$module::run,
            run_asking: None,
            run_rows: None,
            run_cached_rows: None,
            run_listed: gemm!(@listed $module $(, $listed)?),
            skips_columns: false,
            gemm_from: gemm!(@from $($from)?),
        }
    };
    (@listed $module:ident) => { None };
    (@listed $module:ident, $listed:ident) => { Some(gemm::$module::$listed) };
    (@from) => { usize::MAX };
    (@from $from:literal) => { $from };
}

macro_rules! skip_columns {
    ($name:literal, $operation:ident, $level:ident, $module:ident $(, prepare: $preparer:ident)?) => {
        Kernel {
            name: $name,
            layout: Layout::C2,
            operation: Operation::$operation,
            family: Family::MultiplyAdd,
            level: Level::$level,
            prepared_lines: gemv::c2::prepared_lines,
            prepare: skip_columns!(@prepare $($preparer)?),
            run: gemv::c2::$module::run,
            run_asking: None,
            run_rows: None,
            run_cached_rows: None,
            run_listed: None,
            skips_columns: true,
            gemm_from: GEMM_FROM,
        }
    };
    (@prepare) => { gemv::c2::prepare };
    (@prepare $preparer:ident) => { gemv::c2::$preparer::prepare };
}

/// AVX2's GEMM has 0.9 and 1.2 times the rate of its GEMV for 3 vectors (t3, t5), 1.1 and 1.7 times for 4; with I2_S 0.9 to
/// 1.1 times for 2 and 1.3 times for 3.
const GEMM_FROM: usize = 4;

static KERNELS: &[Kernel] = &[
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-t5-avx512vbmi", T5, Lookup, Avx512Vbmi, t5::avx512vbmi, gemm_from: 8),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-t5-avx2", T5, Lookup, Avx2, t5::avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemv!("gemv-t5-neon", T5, Lookup, Neon, t5::neon),
    gemv!("gemv-t5-scalar", T5, Lookup, Scalar, t5::scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-t3-avx512", T3, Lookup, Avx512, t3::avx512, gemm_from: 5),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-t3-avx2", T3, Lookup, Avx2, t3::avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemv!("gemv-t3-neon", T3, Lookup, Neon, t3::neon),
    gemv!("gemv-t3-scalar", T3, Lookup, Scalar, t3::scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-i2s-avx512vnni", I2S, MultiplyAdd, Avx512Vnni, i2s::avx512vnni, prepare: i2s::avx512, gemm_from: 96, run_asking: run_asking, run_cached_rows: run_cached_rows),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-i2s-avxvnni", I2S, MultiplyAdd, AvxVnni, i2s::avxvnni, prepare: i2s::scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-i2s-avx512", I2S, MultiplyAdd, Avx512, i2s::avx512),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemv!("gemv-i2s-avx2", I2S, MultiplyAdd, Avx2, i2s::avx2, prepare: i2s::scalar, gemm_from: 3),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemv!("gemv-i2s-neon-dotprod", I2S, MultiplyAdd, NeonDotprod, i2s::neon_dotprod, prepare: i2s::scalar),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemv!("gemv-i2s-neon", I2S, MultiplyAdd, Neon, i2s::neon, prepare: i2s::scalar),
    gemv!("gemv-i2s-scalar", I2S, MultiplyAdd, Scalar, i2s::scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    skip_columns!("gemv-c2-avx512vnni", Gemv, Avx512Vnni, avx512vnni, prepare: avx512vnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    skip_columns!("gemv-c2-avx2", Gemv, Avx2, avx2, prepare: avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    skip_columns!("gemv-c2-neon", Gemv, Neon, neon),
    skip_columns!("gemv-c2-scalar", Gemv, Scalar, scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-c2-amx", C2, Amx, amx),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-c2-avx512vnni", C2, Avx512Vnni, avx512vnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-c2-avxvnni", C2, AvxVnni, avxvnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-c2-avx2", C2, Avx2, avx2),
    // Each vector has columns of its own to skip, so many vectors are taken one after the other; a
    // tile's lines stay in the cache between them.
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    skip_columns!("gemm-c2-neon", Gemm, Neon, neon),
    skip_columns!("gemm-c2-scalar", Gemm, Scalar, scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t5-amx", T5, Amx, amx, from: 12),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t5-avx512vbmi", T5, Avx512Vbmi, avx512vbmi),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t5-avx512vnni", T5, Avx512Vnni, avx512vnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t5-avxvnni", T5, AvxVnni, avxvnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t5-avx2", T5, Avx2, avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-t5-neon-dotprod", T5, NeonDotprod, neon_dotprod),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-t5-neon", T5, Neon, neon),
    gemm!("gemm-t5-scalar", T5, Scalar, scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t3-amx", T3, Amx, amx, from: 12),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t3-avx512vnni", T3, Avx512Vnni, avx512vnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t3-avxvnni", T3, AvxVnni, avxvnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-t3-avx2", T3, Avx2, avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-t3-neon-dotprod", T3, NeonDotprod, neon_dotprod),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-t3-neon", T3, Neon, neon),
    gemm!("gemm-t3-scalar", T3, Scalar, scalar),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-i2s-amx", I2S, Amx, amx, from: 12),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-i2s-avx512vnni", I2S, Avx512Vnni, avx512vnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-i2s-avxvnni", I2S, AvxVnni, avxvnni),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    gemm!("gemm-i2s-avx2", I2S, Avx2, avx2, run_listed: run_listed),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-i2s-neon-dotprod", I2S, NeonDotprod, neon_dotprod),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    gemm!("gemm-i2s-neon", I2S, Neon, neon),
    gemm!("gemm-i2s-scalar", I2S, Scalar, scalar, run_listed: run_listed),
];

/// All kernels of this build, of whatever level.
#[must_use]
pub fn all() -> &'static [Kernel] {
    KERNELS
}

/// The preferred kernel that `isa` allows.
#[must_use]
pub fn select(isa: Isa, layout: Layout, operation: Operation) -> &'static Kernel {
    KERNELS
        .iter()
        .find(|kernel| kernel.layout == layout && kernel.operation == operation && isa.supports(kernel.level))
        .expect("every layout and operation has a scalar kernel")
}

/// The kernel of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// The layout that is fastest to decode from on `isa`, for weights that have to be packed anew anyway. With
/// `one_scale` for the tensor, and columns that fit it, that may be I2_S.
///
/// * With `vpermi2b` and little memory bandwidth for each core, bytes a weight decide, and T5 has the fewest: from memory, one
///   core of a Sapphire Rapids (16 GB/s), 6912 x 2560, T5 multiplied 66 to 72 G weights a second, T3 49 and I2_S 46 to 55.
/// * A Zen 5 (35 GB/s) decodes faster from I2_S: 2B-4T without skipping, 51 tokens/s on one core and 88 on two, with T5 46
///   and 76. Nothing tells the two kinds apart for certain; AMX is what processors of the first kind have.
/// * With AVX2 alone the lookups cost more than the bytes they save: from memory, one core of a
///   Zen 3, 6912 x 2560, I2_S multiplied 39 to 44 G weights a second and T3 33 to 37.
#[must_use]
pub fn preferred_layout(isa: Isa, one_scale: bool) -> Layout {
    let bytes_decide = isa.supports(Level::Amx) || !one_scale;
    let multiplies_fast =
        isa.supports(Level::Avx512Vnni) || (isa.supports(Level::Avx2) && !isa.supports(Level::Avx512));
    if isa.supports(Level::Avx512Vbmi) && bytes_decide {
        Layout::T5
    } else if multiplies_fast && one_scale {
        Layout::I2S
    } else {
        Layout::T3
    }
}

/// How many tokens of a prompt should go through the layers at once.
///
/// Decoded weights are used more often the more there are, and activations stay in the caches the fewer there are. A Zen 5 with
/// VNNI read 512 tokens of 2B-4T at 454 tokens/s with 64 at once and at 405 with all, with AVX2 at 197 and 206; with AVX2 on a Zen 3
/// 64 to 512 were within 5%. AMX, which multiplies faster than weights are decoded, was measured with 512.
#[must_use]
pub fn prompt_chunk(isa: Isa) -> usize {
    if isa.supports(Level::Avx512Vnni) && !isa.supports(Level::Amx) { 64 } else { 512 }
}

/// What a GEMM that `isa` has costs for each vector, as a share of a GEMV of the same matrix with AVX2, and what it
/// costs besides to decode the weights.
///
/// From the rates of 6912 x 2560 in `benches/README.md`: AVX2 on a Zen 3 and a Sapphire Rapids, AMX on the
/// latter; AVX-512 VNNI from steps of 4 to 64 vectors on a Zen 5; AVX-VNNI computed from the rate of its instruction.
const fn gemm_cost(isa: Isa) -> (f64, f64) {
    if isa.supports(Level::Amx) {
        (0.05, 2.3)
    } else if isa.supports(Level::Avx512Vnni) {
        (0.3, 2.8)
    } else if isa.supports(Level::AvxVnni) {
        (0.2, 1.8)
    } else if isa.supports(Level::Avx2) {
        (0.4, 1.8)
    } else {
        (1.0, 0.0)
    }
}

/// From so many vectors on rows should list those that want them, where a kernel takes lists. With AVX2 on a Zen 3 and 15% of the gates
/// positive gate and up took a tenth longer like that with 4 and 6 tokens, as long with 8, a tenth less with 12 and 16, and a sixth
/// less with 512.
pub const LISTED_FROM: usize = 12;

/// The share of I2_S's pairs of a row and one of several vectors below which it is faster to multiply only these pairs, rows of
/// their own for each of `n_vectors` vectors, than all of them with what `operation` has on `isa`.
///
/// With AVX-512 VNNI from steps of 2 to 8 vectors on a Zen 5 (GEMV) and the rates of 6912 x 2560 in `benches/README.md`, a vector
/// alone against one of 512 (GEMM), a Zen 5 and an Emerald Rapids with AMX. With AVX2 from steps of 2 to 512 vectors on a Zen 3
/// with 15% and 50% of the gates positive, lists of vectors ([`crate::matrix::MatrixPlan::listed_sums`]) from [`LISTED_FROM`] on. Else
/// as [`skipping_columns_pays_below`].
#[must_use]
pub fn skipping_rows_pays_below(isa: Isa, operation: Operation, n_vectors: usize) -> f64 {
    let shared_work = isa.supports(Level::Avx512Vnni);
    let with_avx2 = isa.supports(Level::Avx2) && !isa.supports(Level::AvxVnni) && !shared_work;
    match operation {
        // Two to four vectors leave memory little time to bring rows that lie apart, and four share all work; what is above
        // four shares less of it until eight do.
        Operation::Gemv if shared_work => match n_vectors {
            ..=3 => 0.3,
            4 => 0.12,
            _ => 0.45,
        },
        Operation::Gemv if with_avx2 => 0.4,
        Operation::Gemm if with_avx2 && n_vectors < LISTED_FROM => 0.32,
        Operation::Gemm if with_avx2 => 0.55,
        // Several vectors share little of the work.
        Operation::Gemv => 0.9,
        Operation::Gemm => {
            let (each, decoding) = match gemm_cost(isa) {
                _ if isa.supports(Level::Amx) => (0.07, 2.0),
                _ if shared_work => (0.3, 2.0),
                cost => cost,
            };
            each + decoding / n_vectors as f64
        }
    }
}

/// The share of C2's columns whose activation is not 0 below which it is faster to skip the others, for each of
/// `n_vectors`, than to multiply all with the GEMM that `isa` has.
#[must_use]
pub fn skipping_columns_pays_below(isa: Isa, n_vectors: usize) -> f64 {
    let (each, decoding) = gemm_cost(isa);
    each + decoding / n_vectors as f64
}
