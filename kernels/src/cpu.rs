//! What the processor can do: cpuid and xgetbv on x86, HWCAP on Arm.
//!
//! Reading the registers and decoding them are apart, so that the decoding is tested on hand-made
//! dumps. Facts from the Intel SDM, volume 2A (CPUID), and the Linux `HWCAP` definitions.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
mod amx;
#[cfg_attr(not(all(target_arch = "x86_64", target_feature = "sse2")), allow(dead_code, reason = "there is no cpuid"))]
mod processor;

#[cfg(any(test, feature = "testing"))]
pub(crate) use processor::on_each;
pub(crate) use processor::{Processor, processor};

/// A set of instruction-set features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u32);

impl Features {
    /// No SIMD at all.
    pub const NONE: Features = Features(0);
    /// AVX2, FMA and F16C, with the operating system saving the 256-bit registers.
    pub const AVX2: Features = Features(1);
    /// `vpdpbusd` on 256-bit registers in VEX encoding.
    pub const AVX_VNNI: Features = Features(1 << 1);
    /// AVX-512 F, BW, DQ and VL, with the operating system saving the 512-bit registers.
    pub const AVX512: Features = Features(1 << 2);
    /// `vpdpbusd` on 512-bit registers.
    pub const AVX512_VNNI: Features = Features(1 << 3);
    /// `vpermi2b`.
    pub const AVX512_VBMI: Features = Features(1 << 4);
    /// Advanced SIMD.
    pub const NEON: Features = Features(1 << 5);
    /// `sdot`.
    pub const DOTPROD: Features = Features(1 << 6);
    /// AMX-TILE and AMX-INT8, with the permission to use them ([`request_amx`]).
    pub const AMX: Features = Features(1 << 7);

    /// All features of both sets.
    #[must_use]
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Whether every feature of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// What this processor can do.
    #[must_use]
    pub fn detect() -> Features {
        detect()
    }

    /// Decodes Linux's `AT_HWCAP` of an AArch64 process; NEON is part of every such target.
    #[must_use]
    pub fn from_hwcap(hwcap: u64) -> Features {
        const ASIMD: u64 = 1 << 1;
        const ASIMDDP: u64 = 1 << 20;
        let mut features = Features::NONE;
        if hwcap & ASIMD != 0 {
            features = features.union(Features::NEON);
            if hwcap & ASIMDDP != 0 {
                features = features.union(Features::DOTPROD);
            }
        }
        features
    }
}

/// The x86 registers that decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// ECX of leaf 1.
    pub leaf1_ecx: u32,
    /// EBX of leaf 7, subleaf 0; 0 if there is no such leaf.
    pub leaf7_ebx: u32,
    /// ECX of leaf 7, subleaf 0.
    pub leaf7_ecx: u32,
    /// EDX of leaf 7, subleaf 0.
    pub leaf7_edx: u32,
    /// EAX of leaf 7, subleaf 1; 0 if there is no such subleaf.
    pub leaf7_1_eax: u32,
    /// Low half of XCR0; 0 unless OSXSAVE (bit 27 of leaf 1's ECX) is set.
    pub xcr0: u32,
    /// Whether the system lets this process use tiles of AMX.
    pub tiles_permitted: bool,
}

impl Registers {
    /// The features these registers speak of.
    #[must_use]
    pub fn features(&self) -> Features {
        const OSXSAVE: u32 = 1 << 27;
        const AVX: u32 = 1 << 28;
        const FMA: u32 = 1 << 12;
        const F16C: u32 = 1 << 29;
        const AVX2: u32 = 1 << 5;
        const AVX512_F_DQ_BW_VL: u32 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
        const AVX512_VBMI: u32 = 1 << 1;
        const AVX512_VNNI: u32 = 1 << 11;
        const AVX_VNNI: u32 = 1 << 4;
        const AMX_TILE_INT8: u32 = 1 << 24 | 1 << 25;
        // XMM and YMM state; with opmask, upper halves of ZMM 0-15, and ZMM 16-31.
        const YMM: u32 = 0b110;
        const ZMM: u32 = 0b1110_0110;
        // Shapes of tiles and their contents.
        const TILES: u32 = 1 << 17 | 1 << 18;

        let has = |register: u32, bits: u32| register & bits == bits;
        let mut features = Features::NONE;
        if !has(self.leaf1_ecx, OSXSAVE | AVX | FMA | F16C) || !has(self.xcr0, YMM) || !has(self.leaf7_ebx, AVX2) {
            return features;
        }
        features = features.union(Features::AVX2);
        if has(self.leaf7_1_eax, AVX_VNNI) {
            features = features.union(Features::AVX_VNNI);
        }
        if has(self.xcr0, ZMM) && has(self.leaf7_ebx, AVX512_F_DQ_BW_VL) {
            features = features.union(Features::AVX512);
            if has(self.leaf7_ecx, AVX512_VNNI) {
                features = features.union(Features::AVX512_VNNI);
            }
            if has(self.leaf7_ecx, AVX512_VBMI) {
                features = features.union(Features::AVX512_VBMI);
            }
            if self.tiles_permitted && has(self.xcr0, TILES) && has(self.leaf7_edx, AMX_TILE_INT8) {
                features = features.union(Features::AMX);
            }
        }
        features
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
fn detect() -> Features {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    let highest = __cpuid(0).eax;
    if highest < 7 {
        return Features::NONE;
    }
    let leaf1 = __cpuid(1);
    let leaf7 = __cpuid_count(7, 0);
    let leaf7_1_eax = if leaf7.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
    let os_xsave = leaf1.ecx & 1 << 27 != 0;
    // SAFETY: xgetbv needs OSXSAVE, which the line above read from cpuid.
    let xcr0 = if os_xsave { unsafe { xcr0() } } else { 0 };
    #[target_feature(enable = "xsave")]
    unsafe fn xcr0() -> u32 {
        // SAFETY: register 0 exists wherever xgetbv does, and the caller vouches for that.
        unsafe { _xgetbv(0) as u32 }
    }
    let registers = Registers {
        leaf1_ecx: leaf1.ecx,
        leaf7_ebx: leaf7.ebx,
        leaf7_ecx: leaf7.ecx,
        leaf7_edx: leaf7.edx,
        leaf7_1_eax,
        xcr0,
        tiles_permitted: amx::permitted(),
    };
    registers.features()
}

/// Asks the system for the permission to use AMX, which Linux gives to a whole process and to the threads it starts;
/// [`Features::detect`] tells of AMX only after that. Asking again changes nothing.
///
/// Returns whether the permission is there. It never is on other systems and processors.
pub fn request_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
    return amx::request();
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
    false
}

// Under Miri there is no cpuid; what the code was compiled for is what there is.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2", miri))]
fn detect() -> Features {
    let mut features = Features::NONE;
    for (enabled, feature) in [
        (cfg!(target_feature = "avx2"), Features::AVX2),
        (cfg!(target_feature = "avxvnni"), Features::AVX_VNNI),
        (cfg!(target_feature = "avx512bw"), Features::AVX512),
        (cfg!(target_feature = "avx512vnni"), Features::AVX512_VNNI),
        (cfg!(target_feature = "avx512vbmi"), Features::AVX512_VBMI),
    ] {
        if enabled {
            features = features.union(feature);
        }
    }
    features
}

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
fn detect() -> Features {
    let compiled = if cfg!(target_feature = "dotprod") { Features::DOTPROD } else { Features::NONE };
    Features::NEON.union(compiled).union(Features::from_hwcap(hwcap()))
}

/// `AT_HWCAP` where the C library tells it; elsewhere what the code was compiled for decides
/// (every Apple processor has `sdot`, and its target says so).
#[cfg(all(target_arch = "aarch64", target_os = "linux", not(miri)))]
fn hwcap() -> u64 {
    const AT_HWCAP: core::ffi::c_ulong = 16;
    unsafe extern "C" {
        safe fn getauxval(kind: core::ffi::c_ulong) -> core::ffi::c_ulong;
    }
    getauxval(AT_HWCAP)
}

#[cfg(all(target_arch = "aarch64", any(not(target_os = "linux"), miri)))]
fn hwcap() -> u64 {
    0
}

#[cfg(not(any(
    all(target_arch = "x86_64", target_feature = "sse2"),
    all(target_arch = "aarch64", target_feature = "neon")
)))]
fn detect() -> Features {
    Features::NONE
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEN3: Registers = Registers {
        leaf1_ecx: 0x7ed8_320b | 1 << 27,
        leaf7_ebx: 0x219c_97a9,
        leaf7_ecx: 0x0040_0600,
        leaf7_edx: 0,
        leaf7_1_eax: 0,
        xcr0: 0x207,
        tiles_permitted: false,
    };

    #[test]
    fn an_avx2_machine() {
        assert_eq!(ZEN3.features(), Features::AVX2);
    }

    #[test]
    fn an_avx512_machine_and_one_whose_system_does_not_save_the_registers() {
        let mut registers = Registers {
            leaf7_ebx: ZEN3.leaf7_ebx | 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31,
            leaf7_ecx: 1 << 1 | 1 << 11,
            leaf7_1_eax: 1 << 4,
            xcr0: 0x2e7,
            ..ZEN3
        };
        let all = Features::AVX2
            .union(Features::AVX_VNNI)
            .union(Features::AVX512)
            .union(Features::AVX512_VNNI)
            .union(Features::AVX512_VBMI);
        assert_eq!(registers.features(), all);
        registers.xcr0 = 0x7;
        assert_eq!(registers.features(), Features::AVX2.union(Features::AVX_VNNI));
        registers.xcr0 = 0x3;
        assert_eq!(registers.features(), Features::NONE);
        registers.xcr0 = 0x2e7;
        registers.leaf1_ecx &= !(1 << 27);
        assert_eq!(registers.features(), Features::NONE);
    }

    #[test]
    fn amx_needs_its_bits_the_system_and_the_permission() {
        let registers = Registers {
            leaf7_ebx: ZEN3.leaf7_ebx | 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31,
            leaf7_ecx: 1 << 1 | 1 << 11,
            leaf7_edx: 1 << 24 | 1 << 25,
            xcr0: 0x0006_02e7,
            tiles_permitted: true,
            ..ZEN3
        };
        assert!(registers.features().contains(Features::AMX));
        for lacking in [
            Registers { leaf7_edx: 1 << 24, ..registers },
            Registers { leaf7_edx: 1 << 25, ..registers },
            Registers { xcr0: 0x0002_02e7, ..registers },
            Registers { xcr0: 0x0006_0007, ..registers },
            Registers { tiles_permitted: false, ..registers },
        ] {
            assert!(!lacking.features().contains(Features::AMX), "{lacking:x?}");
        }
    }

    #[test]
    fn what_was_requested_is_detected() {
        let granted = request_amx();
        assert_eq!(granted, request_amx());
        assert!(granted || !Features::detect().contains(Features::AMX));
    }

    #[test]
    fn avx2_without_fma_or_f16c_is_not_used() {
        for lacking in [1 << 12, 1 << 29] {
            let registers = Registers { leaf1_ecx: ZEN3.leaf1_ecx & !lacking, ..ZEN3 };
            assert_eq!(registers.features(), Features::NONE);
        }
    }

    #[test]
    fn half_of_avx512_is_none_of_it() {
        let registers = Registers { leaf7_ebx: ZEN3.leaf7_ebx | 1 << 16, xcr0: 0xe7, ..ZEN3 };
        assert_eq!(registers.features(), Features::AVX2);
    }

    #[test]
    fn arm_capabilities() {
        assert_eq!(Features::from_hwcap(0b11), Features::NEON);
        assert_eq!(Features::from_hwcap(0b11 | 1 << 20), Features::NEON.union(Features::DOTPROD));
        assert_eq!(Features::from_hwcap(0), Features::NONE);
    }
}
