use std::sync::Arc;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Generation, Revision, TenantId};
use berth_common::model::{ContainerSpec, NodeKind, Quota, TenantRecord, UnixMillis};
use berth_common::units::{Bytes, Millicores};

use super::{Change, Cluster, ClusterSettings, Connection, State};
use crate::controllers::Now;
use crate::controllers::fixtures::{self, service_id};
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;

fn tenant(name: &str) -> TenantRecord {
    TenantRecord {
        id: TenantId::random(),
        name: name.parse().unwrap(),
        quota: Quota::default(),
        cpu_weight: 100,
        privileged: false,
        max_priority: 0,
        created_at: UnixMillis(1),
        revision: Revision(0),
    }
}

async fn add(cluster: &Cluster, name: String) -> Result<(), Problem> {
    cluster
        .write(move |state, _| {
            let record = tenant(&name);
            if state.tenant(&record.name).is_some() {
                return Err(Problem::new(ErrorKind::AlreadyExists, name));
            }
            Ok((vec![Change::PutTenant(record)], vec![], ()))
        })
        .await
        .map(|_| ())
}

async fn memory() -> (Arc<MemoryStore>, Cluster) {
    let store = Arc::new(MemoryStore::new());
    let cluster = Cluster::open(Arc::clone(&store) as _, ClusterSettings::default())
        .await
        .unwrap();
    (store, cluster)
}

#[tokio::test]
async fn r5_an_acknowledged_write_is_in_a_reopened_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.db");
    let open = async || {
        Cluster::open(
            Arc::new(SqliteStore::open(&path).unwrap()),
            ClusterSettings::default(),
        )
        .await
    };
    let cluster = open().await.unwrap();
    for n in 0..20 {
        add(&cluster, format!("t{n}")).await.unwrap();
    }
    let revision = cluster.snapshot().revision;
    // The old one is not closed: as after kill −9, nothing but the file counts.
    let again = open().await.unwrap();
    assert_eq!(again.snapshot().tenants.len(), 20);
    assert_eq!(again.snapshot().revision, revision);
    // Watchers resume over the restart without a gap.
    let mut watch = again.watch(Revision(revision.0 - 3)).unwrap();
    for n in 1..=3 {
        assert_eq!(watch.next().await.unwrap().revision, Revision(revision.0 - 3 + n));
    }
}

#[tokio::test]
async fn r5_a_failed_commit_is_never_visible_and_says_so() {
    let (store, cluster) = memory().await;
    add(&cluster, "a".into()).await.unwrap();
    store.fail_writes(1);
    let problem = add(&cluster, "b".into()).await.unwrap_err();
    assert_eq!(problem.kind, ErrorKind::Unavailable);
    assert!(problem.cure.is_some());
    assert_eq!(cluster.snapshot().tenants.len(), 1);
    add(&cluster, "b".into()).await.unwrap();
    assert_eq!(cluster.snapshot().tenants.len(), 2);
}

#[tokio::test]
async fn many_writers_share_transactions_and_one_refusal_harms_nobody() {
    let (_store, cluster) = memory().await;
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let cluster = cluster.clone();
            // Every tenth name is taken by its neighbour.
            tokio::spawn(async move { add(&cluster, format!("t{}", n - n % 10 % 2)).await })
        })
        .collect();
    let mut refused = 0;
    for task in tasks {
        refused += usize::from(task.await.unwrap().is_err());
    }
    let state = cluster.snapshot();
    assert_eq!(state.tenants.len() + refused, 200);
    assert!(refused > 0);
    assert!(
        state.revision.0 < 200,
        "writes were grouped: {} transactions",
        state.revision
    );
}

#[tokio::test]
async fn a_watch_misses_nothing_and_says_when_it_would() {
    let (_store, cluster) = memory().await;
    let from = cluster.snapshot().revision;
    let mut watch = cluster.watch(from).unwrap();
    for n in 0..50 {
        add(&cluster, format!("t{n}")).await.unwrap();
    }
    let mut seen = 0;
    while seen < 50 {
        let batch = watch.next().await.unwrap();
        seen += batch
            .changes
            .iter()
            .filter(|c| matches!(c, Change::PutTenant(_)))
            .count();
    }
    assert_eq!(
        cluster.watch(Revision(1_000_000)).err().unwrap().kind,
        ErrorKind::Compacted
    );
}

#[test]
fn r5_a_network_is_read_as_it_was_written_with_numbers_that_rest() {
    use crate::allocate::Hosts;
    use crate::cluster::{Network, keys};
    use crate::controllers::endpoints::make;
    let now = berth_common::model::UnixMillis(1_000);
    let tenant = crate::controllers::fixtures::tenant_id(1);
    let record = make(
        &State::default(),
        |_| false,
        tenant,
        "back".parse().unwrap(),
        None,
        now,
    )
    .unwrap();
    let mut hosts = Hosts::default();
    let one = hosts.take(record.subnets.hosts(), |_| false, now).unwrap();
    hosts.give_back(one, now);
    let addresses = [("web".parse().unwrap(), berth_common::model::HostNumber(7))].into();
    let network = Network {
        record,
        hosts,
        addresses,
    };
    let change = Change::PutNetwork(network.clone());
    let Some(crate::store::Op::Put(key, value)) = keys::op(&change).unwrap() else {
        panic!()
    };
    let entry = |value| crate::store::Entry {
        key: key.clone(),
        value,
        revision: Revision(1),
    };
    let mut state = State::default();
    state.restore(keys::read(&entry(Some(value))).unwrap().unwrap());
    assert_eq!(*state.networks[&network.record.vni], network);
    assert!(state.network(tenant, &"back".parse().unwrap()).is_some());
    assert_eq!(state.names[&network.record.vni].len(), 1);
    let gone = keys::change(&entry(None)).unwrap();
    assert!(
        matches!(gone, Change::DeleteNetwork(vni) if vni == network.record.vni),
        "{gone:?}"
    );
    state.apply(vec![gone], Revision(2));
    assert!(state.names.is_empty() && state.network_names.is_empty());
}

/// One node, and a service of three on it that use nearly all of their limit for ten minutes.
async fn busy(cluster: &Cluster) -> ContainerSpec {
    let node = fixtures::node(1, NodeKind::Shared, 16, 64);
    let mut service = fixtures::service(1, 1, "web:1", 3, Bytes::mib(64));
    service.spec.resources.limits.cpu = Some(Millicores(1_000));
    let connection = Connection {
        serial: 1,
        address: String::new(),
        synced: true,
        applied: Generation(0),
    };
    cluster.heard(node.id);
    let id = node.id;
    let changes = vec![
        Change::PutTenant(fixtures::tenant(1)),
        Change::PutNode(node),
        Change::Connected(id, connection),
        Change::PutService(service),
    ];
    let put = move |_: &State, _: Now| Ok((changes, vec![], ()));
    let ((), state) = cluster.write(put).await.unwrap();
    let on: Vec<_> = state.containers_on(id).collect();
    assert_eq!(on.len(), 3);
    let used = [Some(950.0), Some(3e7), None, None];
    for at in 1..70 {
        let containers = on.iter().map(|record| (record.id, used)).collect();
        let foreign = [Some(0.0), Some(0.0), None, None];
        cluster
            .shared
            .outlook
            .record(id, 1_000 + at * 10, (foreign, containers));
    }
    (*on[0].spec).clone()
}

#[tokio::test]
async fn what_was_learned_of_a_service_is_known_to_the_next_brain_and_goes_with_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.db");
    let open = async || {
        let store = Arc::new(SqliteStore::open(&path).unwrap());
        Cluster::open(store, ClusterSettings::default()).await.unwrap()
    };
    let cluster = open().await;
    let spec = busy(&cluster).await;
    let known = cluster.outlook().newcomer(service_id(1), &spec);
    assert!(known[0].mean > 600.0, "{known:?}");
    assert_eq!(cluster.keep_estimates().await.unwrap(), 1);
    let revision = cluster.snapshot().revision;
    assert_eq!(
        cluster.keep_estimates().await.unwrap(),
        0,
        "nothing else was learned"
    );
    assert_eq!(cluster.snapshot().revision, revision);
    // As after kill -9.
    let again = open().await;
    assert_eq!(again.outlook().newcomer(service_id(1), &spec), known);
    assert_eq!(again.keep_estimates().await.unwrap(), 0);
    let gone = |_: &State, _: Now| Ok((vec![Change::DeleteService(service_id(1))], vec![], ()));
    again.write(gone).await.unwrap();
    assert_eq!(again.keep_estimates().await.unwrap(), 0);
    assert!(open().await.snapshot().estimates.is_empty());
}

#[tokio::test]
async fn what_can_not_be_written_down_now_is_the_next_time() {
    let (store, cluster) = memory().await;
    busy(&cluster).await;
    store.fail_writes(1);
    let problem = cluster.keep_estimates().await.unwrap_err();
    assert_eq!(problem.kind, ErrorKind::Unavailable);
    assert!(cluster.snapshot().estimates.is_empty());
    assert_eq!(cluster.keep_estimates().await.unwrap(), 1);
}
