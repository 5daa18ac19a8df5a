//! Levels of instruction sets, and the proof that a processor has one.

use crate::cpu::Features;
use core::fmt;
use core::str::FromStr;

/// An instruction-set level; each names everything that kernels of that level may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Portable Rust.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with 256-bit `vpdpbusd`.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with `vpdpbusd`.
    Avx512Vnni,
    /// AVX-512 with `vpdpbusd` and `vpermi2b`.
    Avx512Vbmi,
    /// All of that with tiles of AMX-INT8, once [`crate::cpu::request_amx`] has asked for them.
    Amx,
    /// Advanced SIMD of AArch64.
    Neon,
    /// Advanced SIMD with `sdot`.
    NeonDotprod,
}

impl Level {
    /// All levels, lowest first within each processor family.
    pub const ALL: [Level; 9] = [
        Level::Scalar,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Avx512Vnni,
        Level::Avx512Vbmi,
        Level::Amx,
        Level::Neon,
        Level::NeonDotprod,
    ];

    /// The features this level stands for.
    #[must_use]
    pub const fn features(self) -> Features {
        match self {
            Level::Scalar => Features::NONE,
            Level::Avx2 => Features::AVX2,
            Level::AvxVnni => Features::AVX2.union(Features::AVX_VNNI),
            Level::Avx512 => Features::AVX2.union(Features::AVX512),
            Level::Avx512Vnni => Level::Avx512.features().union(Features::AVX512_VNNI),
            Level::Avx512Vbmi => Level::Avx512Vnni.features().union(Features::AVX512_VBMI),
            Level::Amx => Level::Avx512Vbmi.features().union(Features::AMX),
            Level::Neon => Features::NEON,
            Level::NeonDotprod => Features::NEON.union(Features::DOTPROD),
        }
    }

    /// The name in options, logs and kernel names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512",
            Level::Avx512Vnni => "avx512vnni",
            Level::Avx512Vbmi => "avx512vbmi",
            Level::Amx => "amx",
            Level::Neon => "neon",
            Level::NeonDotprod => "neon-dotprod",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no level's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownLevel;

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an instruction-set level; there are")?;
        for level in Level::ALL {
            write!(f, " {level}")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownLevel {}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Level, UnknownLevel> {
        Level::ALL.into_iter().find(|level| level.name() == name).ok_or(UnknownLevel)
    }
}

/// A level that this processor lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedLevel {
    /// What was asked for.
    pub level: Level,
    /// What the processor has.
    pub features: Features,
}

impl fmt::Display for UnsupportedLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this processor can't run '{}'; it can run", self.level)?;
        for level in Level::ALL.into_iter().filter(|level| self.features.contains(level.features())) {
            write!(f, " {level}")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnsupportedLevel {}

/// The proof that this processor can run a level: holding the value is the permission to call
/// that level's functions. It can only be made from the processor's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    level: Level,
}

impl Isa {
    /// The best level of this processor, as far as [`Features::detect`] can tell.
    #[must_use]
    pub fn detect() -> Isa {
        Isa::best(Detected::here())
    }

    /// Portable code only.
    #[must_use]
    pub const fn scalar() -> Isa {
        Isa { level: Level::Scalar }
    }

    /// The best level that `detected` allows.
    #[must_use]
    pub fn best(detected: Detected) -> Isa {
        let level = Level::ALL.into_iter().rfind(|level| detected.0.contains(level.features()));
        Isa { level: level.unwrap_or(Level::Scalar) }
    }

    /// A level chosen by the user.
    ///
    /// # Errors
    /// The processor lacks it.
    pub fn with_level(level: Level, detected: Detected) -> Result<Isa, UnsupportedLevel> {
        if detected.0.contains(level.features()) {
            Ok(Isa { level })
        } else {
            Err(UnsupportedLevel { level, features: detected.0 })
        }
    }

    /// The level.
    #[must_use]
    pub const fn level(self) -> Level {
        self.level
    }

    /// Whether a kernel of `level` may run.
    #[must_use]
    pub const fn supports(self, level: Level) -> bool {
        self.level.features().contains(level.features())
    }
}

/// Features that were read from this processor, and so may be relied on. Safe code can't make one
/// up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detected(Features);

impl Detected {
    /// Reads the processor's registers, or what the system says of them.
    #[must_use]
    pub fn here() -> Detected {
        Detected(Features::detect())
    }

    /// The features.
    #[must_use]
    pub const fn features(self) -> Features {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert_eq!("AVX2".parse::<Level>(), Err(UnknownLevel));
    }

    #[test]
    fn a_higher_level_runs_the_lower_ones_kernels_and_not_the_reverse() {
        let vbmi = Isa { level: Level::Avx512Vbmi };
        for level in [Level::Scalar, Level::Avx2, Level::Avx512, Level::Avx512Vnni] {
            assert!(vbmi.supports(level));
            assert!(!Isa { level }.supports(Level::Avx512Vbmi));
        }
        assert!(!vbmi.supports(Level::AvxVnni));
        assert!(!vbmi.supports(Level::Amx));
        assert!(Isa { level: Level::Amx }.supports(Level::Avx512Vbmi));
        assert!(!vbmi.supports(Level::Neon));
    }

    #[test]
    fn the_best_level_of_features() {
        let best = |features| Isa::best(Detected(features)).level();
        assert_eq!(best(Features::NONE), Level::Scalar);
        assert_eq!(best(Level::AvxVnni.features()), Level::AvxVnni);
        let both = Level::AvxVnni.features().union(Level::Avx512Vbmi.features());
        assert_eq!(best(both), Level::Avx512Vbmi);
        assert_eq!(best(Level::NeonDotprod.features()), Level::NeonDotprod);
    }

    #[test]
    fn an_impossible_level_is_refused_with_what_is_possible() {
        let refused = Isa::with_level(Level::Neon, Detected(Features::AVX2)).unwrap_err();
        let mut text = [0u8; 128];
        let length = {
            struct Cursor<'a>(&'a mut [u8], usize);
            impl fmt::Write for Cursor<'_> {
                fn write_str(&mut self, s: &str) -> fmt::Result {
                    self.0[self.1..self.1 + s.len()].copy_from_slice(s.as_bytes());
                    self.1 += s.len();
                    Ok(())
                }
            }
            let mut cursor = Cursor(&mut text, 0);
            fmt::write(&mut cursor, format_args!("{refused}")).unwrap();
            cursor.1
        };
        assert_eq!(&text[..length], b"this processor can't run 'neon'; it can run scalar avx2");
    }
}
