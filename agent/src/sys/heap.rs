//! The allocator's appetite.

/// Arenas of glibc's allocator. It makes up to eight a core, one for each thread that contends, and each keeps what it ever
/// needed; two serve the worker and those that block (mallopt(3)).
const ARENAS: libc::c_int = 2;

/// Bounds the memory that the allocator keeps for threads. To be called before the first thread is made; whether it took
/// effect matters to nobody but the memory's reader.
pub fn bound_arenas() {
    // SAFETY: mallopt takes two integers and no pointer; called while this process has one thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}
