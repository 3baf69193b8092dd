//! What the runtime costs over the same calls made straight on containerd. Prints both; the bound is generous, since
//! test machines are noisy, and `scripts/bench` holds the real one.

#[path = "containers_bench/mod.rs"]
mod containers_bench;

use std::time::{Duration, Instant};

use berth_agent::container::runtime::Runtime as _;
use berth_agent::containerd::Containerd;
use berth_tests::containerd::Version;
use containerd_client::services::v1 as api;
use containers_bench::Bench;

const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_and_start_cost_little_over_raw_containerd() {
    let bench = Bench::start(Version::System).await;
    let raw = Containerd::connect(&bench.containerd.socket(), "berth");
    let (mut ours, mut bare, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    // By turns, so that noise meets both alike.
    for _ in 0..ROUNDS {
        let request = bench.request("speed", "exec sleep 1000");
        let begin = Instant::now();
        bench.runtime.create(&request).await.unwrap();
        bench.runtime.start(request.meta.id).await.unwrap();
        ours.push(begin.elapsed());
        // The same spec under another name, by bare calls: it runs without id mapping and logger.
        let body = api::GetContainerRequest {
            id: request.meta.id.to_string(),
        };
        let made = raw
            .containers()
            .get(raw.request(body))
            .await
            .unwrap()
            .into_inner()
            .container
            .unwrap();
        let name = format!("raw-{}", request.meta.id);
        let mut oci: serde_json::Value = serde_json::from_slice(&made.spec.as_ref().unwrap().value).unwrap();
        let path = oci["linux"]["cgroupsPath"]
            .as_str()
            .unwrap()
            .replace(&request.meta.id.to_string(), &name);
        oci["linux"]["cgroupsPath"] = path.into();
        // Unmapped, its root can't make the files to bind on.
        oci["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| mount["type"] != "bind");
        let mut spec = made.spec.clone().unwrap();
        spec.value = serde_json::to_vec(&oci).unwrap();
        let begin = Instant::now();
        let body = api::snapshots::PrepareSnapshotRequest {
            snapshotter: made.snapshotter.clone(),
            key: name.clone(),
            parent: request.image.chain_id.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "1".to_owned())].into(),
        };
        let rootfs = raw
            .snapshots()
            .prepare(raw.request(body))
            .await
            .unwrap()
            .into_inner()
            .mounts;
        let container = api::Container {
            id: name.clone(),
            spec: Some(spec),
            snapshot_key: name.clone(),
            labels: Default::default(),
            extensions: Default::default(),
            ..made
        };
        let body = api::CreateContainerRequest {
            container: Some(container),
        };
        raw.containers().create(raw.request(body)).await.unwrap();
        let body = api::CreateTaskRequest {
            container_id: name.clone(),
            rootfs,
            ..Default::default()
        };
        raw.tasks().create(raw.request(body)).await.unwrap();
        let body = api::StartRequest {
            container_id: name.clone(),
            ..Default::default()
        };
        raw.tasks().start(raw.request(body)).await.unwrap();
        bare.push(begin.elapsed());
        bench.containerd.ctr(&["tasks", "rm", "-f", &name]);
        bench.containerd.ctr(&["containers", "rm", &name]);
        ids.push(request.meta.id);
    }
    let (ours, bare) = (median(ours), median(bare));
    println!("create + start: {ours:?}, raw {bare:?}, median of {ROUNDS}");
    assert!(
        ours < bare + Duration::from_millis(40),
        "{ours:?} against {bare:?}"
    );
    let left = bench
        .containerd
        .ctr(&["snapshots", "--snapshotter", "overlayfs", "ls"]);
    for line in left.lines().filter(|line| line.starts_with("raw-")) {
        let key = line.split_whitespace().next().unwrap();
        bench
            .containerd
            .ctr(&["snapshots", "--snapshotter", "overlayfs", "rm", key]);
    }
    bench.finish(&ids).await;
}
