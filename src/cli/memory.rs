//! Memory the server no longer needs, back to the system.

/// Bytes from which on memory is the system's again as soon as it is freed.
///
/// # Source
/// `cargo bench --bench serving -- mixed` with the server stopped for 0.8 s every four seconds: 216 MB before the first stop and 248 to 283
/// after it; at the library's own size, with 64 MB less in the scratch pool, 242 to 280 MB before and 358 to 434 after.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const RETURNED_FROM: libc::c_int = 1 << 20;

/// Has the C library give large memory back when it is freed.
///
/// The GNU library raises the size from which it does so with each such piece that is freed, to 32 MB. Pixels, bodies and scratch memory
/// of ever other sizes then share its heaps with what is small and stays, and after every rush the process is larger than after the last.
/// Other libraries do without being asked.
pub(super) fn return_large() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(
        unsafe_code,
        reason = "no crate in use wraps this function of the C library"
    )]
    // SAFETY: it takes numbers only, and may be called at any time.
    unsafe {
        // Where it refuses, nothing has changed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_FROM);
    }
}
