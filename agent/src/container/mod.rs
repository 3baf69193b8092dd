//! Containers on this host: their OCI spec, their life in containerd, their output.

pub mod runtime;
