//! Simulated agents: the real protocol, reconciler and ledger over fakes, a thousand in one process.
//!
//! Owns the parts that only a crowd needs: [`node`] makes one agent, [`wave`] its load (pure), [`outage`] judges how the
//! crowd comes back after the brain was away (pure). Refuses to take shortcuts on the wire: the brain can't tell.

pub mod node;
pub mod outage;
pub mod wave;

#[cfg(test)]
mod crowd_tests;
