//! Loop devices: a file as a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";
/// The device goes by itself when nothing has it open or mounted.
const AUTO_CLEAR: u32 = 4;
/// Past the page cache of the file system beneath: nothing is cached twice, and writing back can't wait for itself.
const DIRECT_IO: u32 = 16;
/// btrfs reads and writes no less than this, and direct IO works on disks with such sectors too.
const BLOCK: u32 = 4096;
/// Others take free devices at the same moment; each lost race costs one try.
const TRIES: u32 = 32;

#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 128],
    key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

mod ioctls {
    nix::ioctl_none_bad!(free, 0x4C82);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, super::Config);
    nix::ioctl_none_bad!(set_capacity, 0x4C07);
}

/// An attached file. The device goes when this is dropped, unless it is mounted by then: then with the last mount.
#[derive(Debug)]
pub struct Attached {
    /// Its device.
    pub device: PathBuf,
    /// Whether it reads and writes past the page cache beneath.
    pub direct: bool,
    _open: File,
}

fn configure(device: &File, file: &File, direct: bool) -> io::Result<()> {
    let config = Config {
        file: file.as_raw_fd() as u32,
        block_size: BLOCK,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTO_CLEAR | if direct { DIRECT_IO } else { 0 },
            names: [0; 128],
            key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the argument has the kernel's layout and outlives the call, as does the file's descriptor within it.
    unsafe { ioctls::configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// Attaches the file at `path` to a free loop device, with direct IO where the file system beneath can.
///
/// # Errors
/// `ENOENT` or `ENODEV` without loop devices, `EBUSY` if none was free; else as open(2).
pub fn attach(path: &Path) -> io::Result<Attached> {
    let file = File::options().read(true).write(true).open(path)?;
    let control = File::options().read(true).write(true).open(CONTROL)?;
    for _ in 0..TRIES {
        // SAFETY: takes no argument.
        let number = unsafe { ioctls::free(control.as_raw_fd()) }?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let open = File::options().read(true).write(true).open(&device)?;
        for direct in [true, false] {
            match configure(&open, &file, direct) {
                Ok(()) => {
                    return Ok(Attached {
                        device,
                        direct,
                        _open: open,
                    });
                }
                // Somebody else took it: the next one.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Tells the device that its file has grown.
///
/// # Errors
/// `ENXIO` if nothing is attached; else as open(2).
pub fn set_capacity(device: &Path) -> io::Result<()> {
    let device = File::options().read(true).write(true).open(device)?;
    // SAFETY: takes no argument.
    unsafe { ioctls::set_capacity(device.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_lives_as_long_as_its_owner_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let attached = attach(&path).unwrap();
        let name = attached.device.file_name().unwrap().to_str().unwrap().to_owned();
        let read = |what: &str| std::fs::read_to_string(format!("/sys/block/{name}/{what}"));
        assert_eq!(read("size").unwrap().trim(), "2048");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        set_capacity(&attached.device).unwrap();
        assert_eq!(read("size").unwrap().trim(), "4096");
        assert_eq!(read("loop/backing_file").unwrap().trim(), path.to_str().unwrap());
        drop(attached);
        // Cleared when the last one closes it, which may be the system's device manager.
        let still = || read("loop/backing_file").is_ok_and(|file| file.trim() == path.to_str().unwrap());
        for _ in 0..100 {
            if still() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert!(!still());
    }
}
