//! The permission to use AMX. Tiles are 8 KiB of state that a system has to save for each thread that uses
//! them, so Linux (from 5.16 on) wants to be asked first. Source: the kernel's documentation, "Using XSTATE features in user
//! space applications" (arch/x86/xstate).

/// Whether this process was given the permission.
pub(super) fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    return linux::permitted();
    #[cfg(not(target_os = "linux"))]
    false
}

/// Asks for it; returns whether it is there.
pub(super) fn request() -> bool {
    #[cfg(target_os = "linux")]
    linux::request();
    permitted()
}

#[cfg(target_os = "linux")]
mod linux {
    use core::arch::asm;

    const ARCH_PRCTL: isize = 158;
    const ARCH_GET_XCOMP_PERM: usize = 0x1022;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    /// The number of the state component that holds the contents of tiles.
    const XTILEDATA: usize = 18;

    pub(super) fn permitted() -> bool {
        let mut components = 0u64;
        // SAFETY: the system call writes 8 bytes to its second argument, which is a `u64` of ours, and nothing
        // else.
        let result = unsafe { arch_prctl(ARCH_GET_XCOMP_PERM, (&raw mut components).expose_provenance()) };
        result == 0 && components & 1 << XTILEDATA != 0
    }

    /// A refusal needs no answer: [`permitted`] tells.
    pub(super) fn request() {
        // SAFETY: the second argument is a number; no memory is read or written.
        unsafe { arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) };
    }

    /// Returns 0, or the negative number of an error.
    ///
    /// # Safety
    /// The arguments fit each other.
    unsafe fn arch_prctl(code: usize, argument: usize) -> isize {
        let result;
        // SAFETY: a system call changes rax, rcx, r11 and what the caller vouches for.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") code,
                in("rsi") argument,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result
    }
}
