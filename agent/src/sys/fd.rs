//! File descriptors a process was started with.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that this process inherited under a number agreed with its starter.
///
/// # Errors
/// When nothing is open under that number.
pub fn inherited(number: RawFd) -> std::io::Result<OwnedFd> {
    if number <= 2 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the borrow lasts for this one fcntl, which fails harmlessly if the number isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and only the caller, at the start of `main`, claims numbers above 2.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
