//! Placeholder until wiring.
fn main() {}
