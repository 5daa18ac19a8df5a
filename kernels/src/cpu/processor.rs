//! Which processor this is, where that decides how fast something is and never what it computes.

use core::sync::atomic::{AtomicU8, Ordering};

/// Processors that behave differently enough to matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    /// AMD's family 19h with AVX-512.
    Zen4 = 1,
    /// Any other of AMD's.
    OtherAmd,
    /// Anybody else's.
    Other,
}

/// What [`processor`] says, or 0: cpuid takes a virtual machine tens of microseconds, so it is asked once.
static KNOWN: AtomicU8 = AtomicU8::new(0);

/// The one that this runs on.
pub(crate) fn processor() -> Processor {
    let known = KNOWN.load(Ordering::Relaxed);
    if let Some(known) = Processor::ALL.into_iter().find(|processor| *processor as u8 == known) {
        return known;
    }
    let found = detect();
    KNOWN.store(found as u8, Ordering::Relaxed);
    found
}

/// Calls `check` once for each way in which kernels ask for memory here, as if it ran on a processor that wants it so. Other threads
/// meet it meanwhile, which must not matter to them: results depend on none.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn on_each(mut check: impl FnMut()) {
    let processors: &[Processor] =
        if cfg!(target_arch = "x86_64") { &[Processor::Zen4, Processor::Other] } else { &[Processor::Other] };
    for processor in processors {
        KNOWN.store(*processor as u8, Ordering::Relaxed);
        check();
    }
    KNOWN.store(detect() as u8, Ordering::Relaxed);
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
fn detect() -> Processor {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    let leaf0 = __cpuid(0);
    let leaf7_ebx = if leaf0.eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    Processor::of([leaf0.ebx, leaf0.edx, leaf0.ecx], __cpuid(1).eax, leaf7_ebx)
}

#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
fn detect() -> Processor {
    Processor::Other
}

impl Processor {
    const ALL: [Processor; 3] = [Processor::Zen4, Processor::OtherAmd, Processor::Other];

    /// From the name of the maker (EBX, EDX, ECX of leaf 0), EAX of leaf 1 and EBX of leaf 7. Zen 3 and Zen 4 have one family, of which
    /// only Zen 4 has AVX-512 (AMD64 Architecture Programmer's Manual, volume 3, appendix E).
    fn of(maker: [u32; 3], leaf1_eax: u32, leaf7_ebx: u32) -> Processor {
        const AVX512_F: u32 = 1 << 16;
        if maker.map(u32::to_le_bytes).as_flattened() != b"AuthenticAMD" {
            return Processor::Other;
        }
        let family = (leaf1_eax >> 8 & 0xf) + (leaf1_eax >> 20 & 0xff);
        if family == 0x19 && leaf7_ebx & AVX512_F != 0 { Processor::Zen4 } else { Processor::OtherAmd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_known_processors() {
        const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
        const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
        for (name, maker, leaf1_eax, leaf7_ebx, processor) in [
            ("Zen 3, Milan", AMD, 0x00a0_0f11, 0x219c_97a9, Processor::OtherAmd),
            ("Zen 4, Genoa", AMD, 0x00a1_0f11, 0xf1bf_97a9, Processor::Zen4),
            ("Zen 4, Raphael", AMD, 0x00a6_0f12, 0xf1bf_97a9, Processor::Zen4),
            ("Zen 5, Turin", AMD, 0x00b0_0f21, 0xf1bf_97a9, Processor::OtherAmd),
            ("Sapphire Rapids", INTEL, 0x0008_06f8, 0xf1bf_07ab, Processor::Other),
            ("no AMD, its family", INTEL, 0x00a1_0f11, 0xf1bf_97a9, Processor::Other),
        ] {
            assert_eq!(Processor::of(maker, leaf1_eax, leaf7_ebx), processor, "{name}");
        }
    }

    #[test]
    fn each_way_is_taken() {
        // Other tests do the same meanwhile, so what one call sees is not certain.
        let mut calls = 0;
        on_each(|| calls += 1);
        assert_eq!(calls, if cfg!(target_arch = "x86_64") { 2 } else { 1 });
        assert!(Processor::ALL.contains(&processor()));
    }
}
