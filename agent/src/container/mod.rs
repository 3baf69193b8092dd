//! Containers on this host: their OCI spec, their life in containerd, their output.

mod bundle;
pub mod caps;
pub mod command;
pub mod containerd;
mod create;
mod events;
mod exec;
mod exec_pump;
pub mod exit;
pub mod files;
pub mod idrange;
pub mod init_binary;
mod mounts;
mod operations;
pub mod record;
mod remove;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
mod shim;
pub mod spec;
#[cfg(test)]
mod spec_tests;
mod start;
mod sweep;
mod update;
pub mod users;
pub(crate) mod volumes;

pub use containerd::{ContainerdRuntime, IoDevice, RuntimeSettings};
pub use shim::holds;
