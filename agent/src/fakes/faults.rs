//! Faults to inject: what fails, and when.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

/// One injected fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The operation has no effect and fails.
    Fail {
        /// The message.
        message: String,
        /// Whether trying again can help.
        retryable: bool,
    },
    /// The operation takes effect, and its caller is told that it failed: as after a lost answer.
    FailAfter,
    /// The operation takes this much longer.
    Delay(Duration),
}

/// Faults by operation, used up in order.
#[derive(Debug, Default)]
pub struct Faults {
    next: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
    counts: Mutex<HashMap<&'static str, u64>>,
}

impl Faults {
    /// The next call of `operation` meets `fault`.
    pub fn inject(&self, operation: &'static str, fault: Fault) {
        self.next.lock().entry(operation).or_default().push_back(fault);
    }

    /// How often `operation` was called.
    pub fn calls(&self, operation: &'static str) -> u64 {
        self.counts.lock().get(operation).copied().unwrap_or(0)
    }

    /// Counts a call and takes its fault.
    pub(super) fn take(&self, operation: &'static str) -> Option<Fault> {
        *self.counts.lock().entry(operation).or_default() += 1;
        self.next.lock().get_mut(operation)?.pop_front()
    }
}
