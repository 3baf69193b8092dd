//! Placement policies of operators: processes of their own, asked over HTTP which nodes had better take a service's containers.
//!
//! Plans never wait for one. A plan that needs a place and has no word of the service's policy leaves the container waiting and names the
//! service; [`run`] asks, and what comes back is data in memory ([`book::Book`]), as forecasts of load are, on which the service is planned
//! again. A policy that fails, is slow or answers nonsense is as good as absent, and what follows from that is the operator's choice
//! ([`OnFailure`]). Refuses to let it overrule anything: it chooses among nodes that everything else allows.

pub mod book;
pub mod request;
pub mod run;
pub mod settings;
pub mod verdict;

#[cfg(test)]
mod cases;

pub use book::{Ask, Book, Next, Opinion};
pub use settings::{OnFailure, PolicySettings};
pub use verdict::{Verdict, Word};
