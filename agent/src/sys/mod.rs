//! The only unsafe code of the agent: kernel calls that no well-kept crate offers safely.
//!
//! Each file wraps one facility in safe functions with std::io errors. Refuses policy: callers decide what to map,
//! mount or limit.

pub mod btrfs;
pub mod btrfs_search;
pub mod btrfs_subvolume;
pub mod ethtool;
pub mod fd;
pub mod heap;
pub mod idmap;
pub mod loop_device;
pub mod socket;
