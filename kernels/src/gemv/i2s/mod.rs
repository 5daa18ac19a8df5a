//! GEMV on the `i2s` layout.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod ahead;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512vnni;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avxvnni;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon_dotprod;
pub(crate) mod scalar;
