//! What is really used: by the node, by its containers, and by everything else.
//!
//! Owns sampling, windows over the last minute, and which of it is reported. Refuses to invent: a value that can't be
//! read, or a rate whose counter was reset in between, is absent and never zero. [`sampler`] reads, the rest is pure.

mod proc;
pub mod rate;
pub mod report;
pub mod sampler;
pub mod window;

pub use report::Reporter;
pub use sampler::{Sample, SampledContainer, Sampler, Sources};
