//! The compiled `berth` against a fake brain over real TLS.

mod cluster;
mod fake;
mod fake_volumes;
mod setup;
mod volumes;
mod workloads;
