//! The compiled `berth` against a fake brain over real TLS.

mod cluster;
mod fake;
mod setup;
mod volumes;
mod workloads;
