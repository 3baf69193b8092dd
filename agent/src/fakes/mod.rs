//! Working in-memory facilities with fault injection: below the tests and below `agent-sim`.

mod cgroups;
mod facts;
mod faults;
mod images;
mod pool;
mod pool_state;
mod prober;
mod runtime;

pub use cgroups::FakeCgroups;
pub use facts::facts;
pub use faults::{Fault, Faults};
pub use images::{FakeImages, NoLoadedImages};
pub use pool::FakePool;
pub use prober::FakeProber;
pub use runtime::FakeRuntime;
