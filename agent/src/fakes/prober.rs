//! Health checks that say what a test wants.

use std::collections::BTreeMap;

use async_trait::async_trait;
use berth_common::id::ContainerId;
use parking_lot::Mutex;

use crate::health::{Prober, Target};

/// Everything is well unless a test says otherwise.
#[derive(Debug, Default)]
pub struct FakeProber(Mutex<BTreeMap<ContainerId, String>>);

impl FakeProber {
    /// From now on a container's checks fail, or succeed.
    pub fn set(&self, container: ContainerId, failure: Option<&str>) {
        let mut failing = self.0.lock();
        match failure {
            Some(why) => drop(failing.insert(container, why.to_owned())),
            None => drop(failing.remove(&container)),
        }
    }
}

#[async_trait]
impl Prober for FakeProber {
    async fn probe(&self, target: &Target) -> Result<(), String> {
        match self.0.lock().get(&target.id) {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }
}
