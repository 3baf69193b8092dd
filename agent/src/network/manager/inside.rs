//! Containers' own namespaces: where services' addresses lead there, and kept so.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use berth_common::id::{ContainerId, Name};
use berth_common::model::Vni;
use berth_common::protocol::Neighbours;
use futures::StreamExt as _;

use super::{AT_ONCE, Networks, namespace_of};
use crate::network::generation::generation;
use crate::network::ruleset::{IN_CONTAINER, without};
use crate::network::services::Guard;
use crate::network::{Namespace, nft, services};
use crate::reconcile::apply::chain;

/// Of how many containers one is held against what was loaded, at each look. A container can't change its own without rights
/// that it has to be given, and nobody else's `nft flush` reaches it: so what is undone there may last that much longer.
const LOOKS: usize = 4;

/// What was loaded into one container's namespace.
#[derive(Debug, Default)]
pub(super) struct Inside(Option<Loaded>);

#[derive(Debug)]
struct Loaded {
    /// The process whose namespace it is.
    pid: u32,
    table: Arc<str>,
    /// The namespace's count of changes after it.
    generation: Option<u32>,
}

/// Tables of one round, by the networks that they are for and whom they let in: replicas of a service share theirs.
pub(super) type Cache = HashMap<(Vec<Vni>, Option<Vec<Name>>), Option<Arc<str>>>;

impl Networks {
    /// The table that a container should have; none while nobody has said what services there are. One that begins then and is not
    /// open to all lets nobody in yet.
    fn table(&self, container: ContainerId, cache: &mut Cache, begins: bool) -> Option<Arc<str>> {
        let wanted = self.wanted.lock();
        let places = wanted.of(container);
        let lets_in = wanted.lets_in(container);
        let key = (
            places.iter().map(|place| place.vni).collect(),
            lets_in.map(<[Name]>::to_vec),
        );
        if let Some(table) = cache.get(&key) {
            return table.clone();
        }
        let neighbours = self.neighbours.lock();
        let nothing = Neighbours::default();
        let known = neighbours
            .as_ref()
            .or((begins && lets_in.is_some()).then_some(&nothing));
        let table = known.filter(|_| !places.is_empty()).map(|known| {
            let of = places.iter().filter_map(|place| {
                let names = known.names.get(&place.vni)?;
                Some(services::on_network(place.vni, &place.subnets, names))
            });
            let all: Vec<_> = of.flatten().collect();
            let guard = lets_in.map(|services| {
                let (mut guard, nobody) = (Guard::default(), BTreeSet::new());
                for place in places {
                    let names = known.names.get(&place.vni).unwrap_or(&nobody);
                    guard.add(place.subnets, names, services);
                }
                guard
            });
            match all.is_empty() && guard.is_none() {
                true => Arc::from(without(IN_CONTAINER)),
                false => Arc::from(services::in_container(&all, guard.as_ref())),
            }
        });
        cache.insert(key, table.clone());
        table
    }

    fn inside(&self, container: ContainerId) -> Arc<tokio::sync::Mutex<Inside>> {
        Arc::clone(self.insides.lock().entry(container).or_default())
    }

    /// Gives a container that is about to begin its table: nothing is in its namespace yet.
    pub(super) async fn lead_new(
        &self,
        container: ContainerId,
        pid: u32,
        namespace: &Namespace,
    ) -> Result<(), String> {
        let inside = self.inside(container);
        let mut inside = inside.lock().await;
        let Some(table) = self.table(container, &mut Cache::new(), true) else {
            return Ok(());
        };
        if *table == *without(IN_CONTAINER) {
            return Ok(());
        }
        let namespace = namespace.try_clone().map_err(|error| error.to_string())?;
        inside.load(pid, namespace, table, true).await
    }

    /// Brings running containers' tables up to date; `look`: some of them also where they are believed to be.
    pub(super) async fn lead(&self, look: bool) {
        let running = self.board.running();
        let ids: BTreeSet<ContainerId> = running.iter().map(|one| one.id).collect();
        // One that is being started is not running yet, and has its table: what is news meanwhile must not pass it by.
        let begin: Vec<ContainerId> = {
            let mut insides = self.insides.lock();
            insides.retain(|id, inside| {
                ids.contains(id) || !self.wanted.lock().of(*id).is_empty() || Arc::strong_count(inside) > 1
            });
            insides.keys().filter(|id| !ids.contains(id)).copied().collect()
        };
        let turn = match look {
            true => self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % LOOKS,
            false => LOOKS,
        };
        let mut cache = Cache::new();
        let mut due = Vec::new();
        let running = running.into_iter().map(|one| (one.id, Some(one.pid)));
        let all = running.chain(begin.into_iter().map(|id| (id, None)));
        for (nth, (id, pid)) in all.enumerate() {
            if let Some(table) = self.table(id, &mut cache, false) {
                due.push((id, pid, table, nth % LOOKS == turn));
            }
        }
        let work =
            futures::stream::iter(due).for_each_concurrent(AT_ONCE, |(id, pid, table, look)| async move {
                let inside = self.inside(id);
                let mut inside = inside.lock().await;
                let Some(pid) = pid.or(inside.0.as_ref().map(|held| held.pid)) else {
                    return;
                };
                if inside.has(pid, &table) && !look {
                    return;
                }
                // A start that went on meanwhile may have loaded something newer.
                let Some(table) = self.table(id, &mut Cache::new(), false) else {
                    return;
                };
                let Some(namespace) = namespace_of(id, pid) else {
                    return;
                };
                let kept = inside.keep(pid, namespace, table).await;
                let problem = kept
                    .err()
                    .map(|why| format!("container {id} doesn't reach services at their addresses: {why}"));
                self.tell(&format!("services of {id}"), problem);
            });
        work.await;
        self.problems.lock().retain(|about, _| {
            let id = about.strip_prefix("services of ").and_then(|id| id.parse().ok());
            id.is_none_or(|id| ids.contains(&id))
        });
    }
}

impl Inside {
    fn has(&self, pid: u32, table: &Arc<str>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|held| held.pid == pid && held.table == *table)
    }

    /// Loads a table unless it is in force and nobody touched any in that namespace since.
    async fn keep(&mut self, pid: u32, namespace: Namespace, table: Arc<str>) -> Result<(), String> {
        if self.has(pid, &table) {
            let known = self.0.as_ref().and_then(|held| held.generation);
            let space = namespace.try_clone().map_err(|error| error.to_string())?;
            let now = tokio::task::spawn_blocking(move || generation(&space).ok()).await;
            if known.is_some() && now.ok().flatten() == known {
                return Ok(());
            }
        }
        self.load(pid, namespace, table, false).await
    }

    /// Loads a table. `fresh`: into a namespace that has none, which takes a third of the time.
    async fn load(
        &mut self,
        pid: u32,
        namespace: Namespace,
        table: Arc<str>,
        fresh: bool,
    ) -> Result<(), String> {
        self.0 = None;
        let script = Arc::clone(&table);
        let loaded = tokio::task::spawn_blocking(move || {
            let first = fresh && nft::create(&namespace, IN_CONTAINER, &script).is_ok();
            if !first {
                nft::replace(&namespace, IN_CONTAINER, &script)?;
            }
            Ok(generation(&namespace).ok())
        });
        let loaded = loaded.await.map_err(|error| error.to_string())?;
        let generation = loaded.map_err(|error: nft::NftError| chain(&error))?;
        self.0 = Some(Loaded {
            pid,
            table,
            generation,
        });
        Ok(())
    }
}
