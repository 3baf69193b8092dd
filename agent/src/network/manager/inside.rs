//! Containers' own namespaces: where services' addresses lead there, and kept so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_common::id::{ContainerId, Name};
use berth_common::model::Vni;
use berth_common::protocol::Neighbours;
use futures::StreamExt as _;

use super::{AT_ONCE, Networks, namespace_of};
use crate::network::filters::Filters;
use crate::network::ruleset::{IN_CONTAINER, without};
use crate::network::services::Guard;
use crate::network::{Namespace, services};

/// Of how many containers one is held against what was loaded, at each look. A container can't change its own without rights
/// that it has to be given, and nobody else's `nft flush` reaches it: so what is undone there may last that much longer.
const LOOKS: usize = 4;

/// What was loaded into one container's namespace.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// The process whose namespace it is.
    pid: Option<u32>,
    filters: Filters,
}

/// Tables of one round, by the networks that they are for and whom they let in: replicas of a service share theirs.
pub(super) type Cache = HashMap<(Vec<Vni>, Option<Vec<Name>>), Option<Arc<str>>>;

impl Networks {
    /// The table that a container should have; none while nobody has said what services there are. One that begins then and is not
    /// open to all lets nobody in yet.
    pub(super) fn table(&self, container: ContainerId, cache: &mut Cache, begins: bool) -> Option<Arc<str>> {
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
        let neighbours = self.known.lock();
        let nothing = Neighbours::default();
        let known = neighbours
            .all()
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
        inside.keep(pid, namespace, &table).await
    }

    /// Brings running containers' tables up to date; `look`: some of them also where they are believed to be.
    pub(super) async fn lead(&self, look: bool) {
        let running: BTreeMap<_, _> = self
            .board
            .running()
            .into_iter()
            .map(|one| (one.id, one.pid))
            .collect();
        let (mut all, mut gone) = (Vec::new(), Vec::new());
        for (id, inside) in self.insides.lock().iter() {
            // One that is being started is not running yet, and has its table: what is news meanwhile must not pass it by.
            let begins = Arc::strong_count(inside) > 1 || !self.wanted.lock().of(*id).is_empty();
            match begins || running.contains_key(id) {
                true => all.push(*id),
                false => gone.push(*id),
            }
        }
        for id in gone {
            self.insides.lock().remove(&id);
            self.tell(&about(id), None);
        }
        all.extend(running.keys());
        all.sort_unstable();
        all.dedup();
        let turn = match look {
            true => self.turn.fetch_add(1, Ordering::Relaxed) % LOOKS,
            false => LOOKS,
        };
        let mut cache = Cache::new();
        let mut due = Vec::new();
        for (nth, id) in all.into_iter().enumerate() {
            if let Some(table) = self.table(id, &mut cache, false) {
                due.push((id, running.get(&id).copied(), table, nth % LOOKS == turn));
            }
        }
        let work = futures::stream::iter(due).for_each_concurrent(AT_ONCE, |(id, pid, table, look)| async move {
            let problem = self.lead_one(id, pid, &table, look).await.err();
            let problem = problem.map(|why| format!("container {id} doesn't reach services at their addresses: {why}; this is tried again every few seconds"));
            self.tell(&about(id), problem);
        });
        work.await;
    }

    /// `pid`: its process, where it is known to run.
    async fn lead_one(
        &self,
        id: ContainerId,
        pid: Option<u32>,
        table: &str,
        look: bool,
    ) -> Result<(), String> {
        let inside = self.inside(id);
        let mut inside = inside.lock().await;
        let Some(pid) = pid.or(inside.pid) else {
            return Ok(());
        };
        if inside.has(pid, table) && !look {
            return Ok(());
        }
        // A start that went on meanwhile may have loaded something newer.
        let (table, namespace) = (self.table(id, &mut Cache::new(), false), namespace_of(id, pid));
        match (table, namespace) {
            (Some(table), Some(namespace)) => inside.keep(pid, namespace, &table).await,
            _ => Ok(()),
        }
    }
}

/// What a problem with a container's table is told under.
fn about(container: ContainerId) -> String {
    format!("services of {container}")
}

impl Inside {
    /// Whether this is in force in a process's namespace: it was loaded, and nobody touched any table there since.
    pub(super) fn in_force(&self, pid: u32, namespace: &Namespace, table: &str) -> bool {
        self.has(pid, table) && self.filters.untouched(namespace)
    }

    fn has(&self, pid: u32, table: &str) -> bool {
        self.pid == Some(pid) && self.filters.has(IN_CONTAINER, table)
    }

    /// Loads a table unless it is in force and nobody touched any in that namespace since.
    async fn keep(&mut self, pid: u32, namespace: Namespace, table: &str) -> Result<(), String> {
        if self.pid != Some(pid) {
            (self.pid, self.filters) = (Some(pid), Filters::alone());
        }
        let script = (IN_CONTAINER, table.to_owned());
        self.filters.keep(namespace, vec![script]).await
    }
}
