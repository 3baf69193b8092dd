//! This host's pool of volumes: made or mounted beside everything else, and looked at from time to time.
//!
//! A host that can't have volumes says why in its warnings, and runs everything else. What was missing may come (a program is
//! installed, a disk is mounted), so it is tried again.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{NodeId, VolumeId};
use berth_common::model::PoolFacts;
use berth_common::protocol::VolumePlace;
use berth_common::units::Bytes;
use tokio::sync::watch;

use crate::join::NodeFiles;
use crate::peers::{Admission, Peers, Rate};
use crate::reconcile::Board;
use crate::reconcile::apply::chain;
use crate::volume::keeper::{Access, Keeper, Report};
use crate::volume::pool::Settings;
use crate::volume::pool_error::PoolError;
use crate::volume::{BtrfsPool, Meta, Pool, VolumeError, pool_apply};

/// Pause between looks, and between attempts.
const EVERY: Duration = Duration::from_secs(60);

/// A pool, and what is told of it.
pub struct Opened {
    /// It.
    pub pool: Arc<dyn Pool>,
    /// What it is.
    pub facts: PoolFacts,
    /// What is not well though it works.
    pub warnings: Vec<String>,
}

/// Where a pool is from. Both block.
pub trait Pools: Send + Sync {
    /// Makes it, or finds and mounts it.
    ///
    /// # Errors
    /// Why there is none, with the cure.
    fn open(&self) -> Result<Opened, String>;

    /// Looks at it again, and changes nothing.
    ///
    /// # Errors
    /// What is wrong with it now, with the cure.
    fn look(&self) -> Result<(PoolFacts, Vec<String>), String>;

    /// What it is, if it was made before. Changes nothing, and opens nothing.
    fn remembered(&self) -> Option<PoolFacts>;
}

/// What is known of the pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// What the node has for volumes.
    pub facts: Option<PoolFacts>,
    /// For the node's warnings.
    pub warnings: Vec<String>,
}

/// The pool of these settings.
#[derive(Debug, Clone)]
pub struct BtrfsPools(pub Settings);

fn facts(shape: pool_apply::Shape) -> PoolFacts {
    PoolFacts {
        capacity: shape.capacity,
        kind: shape.kind,
        port: None,
    }
}

fn why(error: &PoolError) -> String {
    format!("{}; {}", error.found(), error.cure())
}

impl Pools for BtrfsPools {
    fn open(&self) -> Result<Opened, String> {
        let ready = pool_apply::ensure(&self.0).map_err(|error| why(&error))?;
        let opened = BtrfsPool::open(&ready.root);
        let (pool, troubles) =
            opened.map_err(|error: VolumeError| format!("the volumes can't be opened: {}", chain(&error)))?;
        for trouble in troubles {
            tracing::warn!(trouble, "a volume is not as it should be");
        }
        Ok(Opened {
            pool: Arc::new(pool),
            facts: facts(ready.shape),
            warnings: ready.warnings.iter().map(ToString::to_string).collect(),
        })
    }

    fn look(&self) -> Result<(PoolFacts, Vec<String>), String> {
        let ready = pool_apply::look(&self.0).map_err(|error| why(&error))?;
        let warnings = ready.warnings.iter().map(ToString::to_string).collect();
        Ok((facts(ready.shape), warnings))
    }

    fn remembered(&self) -> Option<PoolFacts> {
        let seen = pool_apply::observe(&self.0).ok()?;
        seen.marker?;
        Some(self.look().ok()?.0)
    }
}

/// How other nodes' agents reach this one.
#[derive(Debug, Clone)]
pub struct Line {
    /// UDP port.
    pub port: u16,
    /// How fast all that is sent may go, bytes a second; 0: no limit.
    pub rate: Bytes,
    /// Its certificate, which is renewed there.
    pub files: NodeFiles,
}

/// What this node's orders say of arriving volumes.
struct Orders(Arc<Board>, Arc<Keeper>);

impl Admission for Orders {
    fn arrival(&self, from: NodeId, volume: VolumeId) -> Option<Meta> {
        let orders = self.0.volumes().borrow().clone()?;
        let want = orders.volume(volume)?;
        (want.place == VolumePlace::Arriving { from }).then_some(Meta {
            id: want.id,
            tenant: want.tenant,
            size: want.size,
            epoch: want.epoch,
        })
    }

    fn arrived(&self, _: VolumeId) {
        self.1.look();
    }
}

impl Line {
    /// Serves other nodes and dials them.
    fn bind(&self, pool: Arc<dyn Pool>, orders: Orders) -> Result<Arc<Peers>, String> {
        let failed = |why: String| {
            format!(
                "volumes can't move to or from this node: {why}; end what uses the port, or set volume_port to another"
            )
        };
        let identity = self.files.identity().map_err(|error| failed(chain(&error)))?;
        let orders: Arc<dyn Admission> = Arc::new(orders);
        // A host without IPv6 has no such socket.
        let both = (Ipv6Addr::UNSPECIFIED, self.port).into();
        let bound = Peers::bind(both, &identity, pool.clone(), orders.clone());
        let bound = bound.or_else(|_| {
            let old = (Ipv4Addr::UNSPECIFIED, self.port).into();
            Peers::bind(old, &identity, pool, orders)
        });
        bound.map(Arc::new).map_err(|error| failed(chain(&error)))
    }

    /// Shows the certificate that there is now.
    fn renew(&self, peers: &Peers) {
        let renewed = self.files.identity().map_err(|error| chain(&error));
        let renewed = renewed.and_then(|identity| peers.renew(&identity).map_err(|error| chain(&error)));
        if let Err(why) = renewed {
            tracing::warn!(why, "other nodes are shown an old certificate");
        }
    }
}

/// Where the pool is from, how others reach it, and who is told of it.
type Opening = (Arc<dyn Pools>, Line, watch::Sender<Access>, watch::Sender<Known>);

/// The volumes of an agent.
pub(super) struct Volumes {
    keeper: Option<Arc<Keeper>>,
    board: Option<Arc<Board>>,
    opening: Option<Opening>,
}

impl Volumes {
    pub fn none() -> Self {
        Self {
            keeper: None,
            board: None,
            opening: None,
        }
    }

    /// Touches nothing before [`Self::keep`]. What was there before the agent's start is known at once: to the brain a node that says
    /// nothing of volumes has none, and what moves there is given up. Blocks.
    pub fn open(
        pools: Arc<dyn Pools>,
        line: Line,
        run_dir: &Path,
        board: &Arc<Board>,
        known: watch::Sender<Known>,
    ) -> Self {
        let (access_in, access) = watch::channel(Access::Opening);
        let facts = pools.remembered().map(|facts| PoolFacts {
            port: Some(line.port),
            ..facts
        });
        known.send_modify(|known| known.facts = facts);
        Self {
            keeper: Some(Keeper::new(board.clone(), run_dir, access, Rate::new(line.rate))),
            board: Some(board.clone()),
            opening: Some((pools, line, access_in, known)),
        }
    }

    /// Who keeps them.
    pub fn keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.clone()
    }

    /// What is to be told of them; never anything where there are none.
    pub fn report(&self) -> watch::Receiver<Option<Arc<Report>>> {
        match &self.keeper {
            Some(keeper) => keeper.report(),
            None => watch::channel(None).1,
        }
    }

    /// Opens the pool and looks after it, for ever.
    pub async fn keep(self) {
        if let (Some(keeper), Some(board), Some(opening)) = (self.keeper, self.board, self.opening) {
            tokio::join!(Arc::clone(&keeper).run(), keep(opening, board, keeper));
        }
    }
}

/// Opens the pool and looks after it for ever.
async fn keep((pools, line, access, known): Opening, board: Arc<Board>, keeper: Arc<Keeper>) {
    let (mut open, mut pool): (bool, Option<Arc<dyn Pool>>) = (false, None);
    let mut peers: Option<Arc<Peers>> = None;
    loop {
        let from = Arc::clone(&pools);
        let looked = tokio::task::spawn_blocking(move || match open {
            false => from
                .open()
                .map(|opened| (Some(opened.pool), opened.facts, opened.warnings)),
            true => from.look().map(|(facts, warnings)| (None, facts, warnings)),
        });
        let looked = looked
            .await
            .unwrap_or_else(|error| Err(format!("looking at the volumes failed: {error}")));
        let now = match looked {
            Ok((opened, mut facts, mut warnings)) => {
                let mut news = opened.is_some();
                if opened.is_some() {
                    (open, pool) = (true, opened);
                    tracing::info!(kind = facts.kind, capacity = %facts.capacity, "volumes are open");
                }
                match (&peers, &pool) {
                    (Some(peers), _) => line.renew(peers),
                    (None, Some(pool)) => {
                        match line.bind(pool.clone(), Orders(board.clone(), keeper.clone())) {
                            Ok(bound) => (peers, news) = (Some(bound), true),
                            Err(why) => warnings.push(why),
                        }
                    }
                    (None, None) => {}
                }
                facts.port = peers.as_ref().map(|_| line.port);
                if let Some(pool) = pool.as_ref().filter(|_| news) {
                    access.send_replace(Access::Open(pool.clone(), peers.clone()));
                }
                Known {
                    facts: Some(facts),
                    warnings,
                }
            }
            Err(why) => {
                if !open {
                    access.send_replace(Access::Broken(why.clone()));
                }
                Known {
                    facts: None,
                    warnings: vec![why],
                }
            }
        };
        known.send_if_modified(|held| {
            let changed = *held != now;
            *held = now;
            changed
        });
        tokio::time::sleep(EVERY).await;
    }
}
