//! From the API call to a running process, against the same done straight on containerd, and against `ctr run -d`.
//!
//! The three alternate in one run, so machine noise falls on all of them alike.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, KillRequest, StartRequest,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::with_namespace;

use super::summary;
use crate::cluster::{Agent, Brain};
use crate::operator::Operator as _;
use crate::process::eventually;

const ROUNDS: usize = 25;
/// The limits that `ctr` can set.
const LIMITS: [&str; 6] = [
    "--memory-limit",
    "16777216",
    "--cpu-quota",
    "100000",
    "--cpu-period",
    "100000",
];
const CONFINED: [&str; 5] = [
    "--uidmap",
    "0:1000000:65536",
    "--gidmap",
    "0:1000000:65536",
    "--seccomp",
];

/// Milliseconds of one `ctr run -d`.
fn ctr_start(agent: &Agent, image: &str, name: &str, extra: &[&str]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut args = vec!["run", "-d"];
    args.extend(LIMITS);
    args.extend(extra);
    args.extend([image, name, "sleep", "1000000"]);
    bench_ctr(agent, &args)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    bench_ctr(agent, &["tasks", "rm", "-f", name])?;
    bench_ctr(agent, &["containers", "rm", name])?;
    Ok(took)
}

/// Measures and prints.
///
/// # Errors
/// When the cluster can't be set up or containerd refuses.
pub fn run(runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let brain = Brain::start(&dir.path().join("brain"));
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    let (client, base, token) = brain.http()?;
    let body = |name: &str, replicas: usize, networks: &[&str]| {
        serde_json::json!({
            "name": name, "networks": networks, "image": "example:1", "replicas": replicas, "command": ["sleep", "1000000"],
            "stop_grace_secs": 0,
            "resources": {"limits": {"cpu": 1000, "memory": "16MiB", "disk": "4MiB", "pids": 20}, "reserve": {"cpu": 1}},
        })
    };
    let post_on = |name: &str, replicas: usize, networks: &[&str]| -> anyhow::Result<Instant> {
        let began = Instant::now();
        let request = client
            .post(format!("{base}/v1/tenants/default/services"))
            .bearer_auth(&token)
            .json(&body(name, replicas, networks));
        runtime.block_on(async { request.send().await?.error_for_status() })?;
        Ok(began)
    };
    let post = |name: &str, replicas: usize| post_on(name, replicas, &["default"]);
    // Until the API says that they run: with the news' way back to the brain, so never too short. Asking costs the two cores
    // that start the containers, so it begins when they could be there, and is less frequent where it takes long.
    let started = |name: &str, replicas: usize| -> anyhow::Result<()> {
        let (first, pause) = if replicas == 1 { (50, 3) } else { (1_000, 20) };
        std::thread::sleep(Duration::from_millis(first));
        let url = format!("{base}/v1/tenants/default/services/{name}");
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let request = client.get(&url).bearer_auth(&token);
            let service: serde_json::Value =
                runtime.block_on(async { request.send().await?.error_for_status()?.json().await })?;
            if service["running"].as_u64() == Some(replicas as u64) {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "{name} did not start");
            std::thread::sleep(Duration::from_millis(pause));
        }
    };
    // Until only the model is left, so that its end disturbs no other measurement.
    let remove = |name: &str| -> anyhow::Result<()> {
        brain.berth(&["service", "rm", name]);
        eventually(Duration::from_secs(60), || {
            let left = brain.items(&["ps"]).len();
            (left <= 1).then_some(())
        })
        .context("it did not go")
    };
    let settle = || std::thread::sleep(Duration::from_millis(150));

    // Warm caches, and a container whose spec the raw path can use.
    post("model", 1)?;
    started("model", 1)?;
    let socket = agent.containerd.socket();
    let channel = runtime.block_on(containerd_client::connect(&socket))?;
    let id = agent
        .containerd
        .ctr(&["containers", "ls", "-q"])
        .trim()
        .to_owned();
    let model = runtime.block_on(async {
        let mut containers = ContainersClient::new(channel.clone());
        let request = GetContainerRequest { id: id.clone() };
        containers.get(with_namespace!(request, "berth")).await
    })?;
    let model = model.into_inner().container.context("no model")?;
    // Peers work in a namespace of their own: what is not berth's in berth's namespace gets deleted.
    let archive = crate::example_image().display().to_string();
    bench_ctr(&agent, &["images", "import", "--index-name", "peer:1", &archive])?;
    let image = bench_ctr(&agent, &["images", "ls", "-q"])?
        .lines()
        .next()
        .context("no image")?
        .to_owned();
    bench_ctr(&agent, &["run", "--rm", &image, "warm", "true"])?;
    let parent = bench_ctr(&agent, &["snapshots", "ls"])?
        .lines()
        .find(|line| line.contains("Committed"))
        .and_then(|line| line.split_whitespace().next())
        .context("no snapshot")?
        .to_owned();

    bench_ctr(&agent, &["leases", "create", "--id", "bench"])?;

    let (mut berth, mut raw, mut ctr, mut confined) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut alone = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("b{round}");
        settle();
        let began = post(&name, 1)?;
        started(&name, 1)?;
        berth.push(began.elapsed().as_secs_f64() * 1e3);
        remove(&name)?;

        settle();
        let name = format!("alone{round}");
        let began = post_on(&name, 1, &[])?;
        started(&name, 1)?;
        alone.push(began.elapsed().as_secs_f64() * 1e3);
        remove(&name)?;

        settle();
        raw.push(runtime.block_on(raw_start(
            &channel,
            &model,
            &parent,
            &format!("raw{}-{round}", std::process::id()),
        ))?);
        runtime.block_on(raw_delete(
            &channel,
            &format!("raw{}-{round}", std::process::id()),
        ))?;

        settle();
        ctr.push(ctr_start(&agent, &image, &format!("ctr{round}"), &[])?);
    }
    let (b, r, c, a) = (summary(berth), summary(raw), summary(ctr), summary(alone));
    println!(
        "start: API call until the API says running: p50 {:.0} ms, p99 {:.0} ms",
        b.0, b.1
    );
    println!(
        "start: straight on containerd's API: p50 {:.0} ms, p99 {:.0} ms; berth adds {:.0} ms",
        r.0,
        r.1,
        b.0 - r.0
    );
    println!(
        "start: without a network: p50 {:.0} ms; {:.0} ms more than containerd's API, and a network adds {:.0} ms",
        a.0,
        a.0 - r.0,
        b.0 - a.0
    );
    println!(
        "start: ctr run -d as it comes: p50 {:.0} ms, p99 {:.0} ms; berth / ctr = {:.2}",
        c.0,
        c.1,
        b.0 / c.0
    );

    let began = post("fifty", 50)?;
    started("fifty", 50)?;
    let fifty = began.elapsed().as_millis() as f64;
    remove("fifty")?;
    settle();
    let begun = Instant::now();
    runtime.block_on(async {
        let starts: Vec<_> = (0..50)
            .map(|n| {
                let (channel, model, parent) = (channel.clone(), model.clone(), parent.clone());
                tokio::spawn(async move {
                    raw_start(
                        &channel,
                        &model,
                        &parent,
                        &format!("raw{}-many{n}", std::process::id()),
                    )
                    .await
                })
            })
            .collect();
        for start in starts {
            start.await??;
        }
        anyhow::Ok(())
    })?;
    let raw_fifty = begun.elapsed().as_millis() as f64;
    for n in 0..50 {
        runtime.block_on(raw_delete(
            &channel,
            &format!("raw{}-many{n}", std::process::id()),
        ))?;
    }
    println!(
        "start: 50 at once: {fifty:.0} ms, raw {raw_fifty:.0} ms, ratio {:.2}",
        fifty / raw_fifty
    );
    // Afterwards, since it copies the image for its user ids and leaves the disk busy.
    for round in 0..ROUNDS / 2 {
        settle();
        confined.push(ctr_start(&agent, &image, &format!("confined{round}"), &CONFINED)?);
    }
    let u = summary(confined);
    println!(
        "start: ctr run -d with user namespace and seccomp: p50 {:.0} ms, p99 {:.0} ms; berth / ctr = {:.2}",
        u.0,
        u.1,
        b.0 / u.0
    );
    Ok(())
}

fn bench_ctr(agent: &Agent, args: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("ctr")
        .arg("--address")
        .arg(agent.containerd.socket())
        .args(["--namespace", "bench"])
        .args(args)
        .output()?;
    anyhow::ensure!(
        out.status.success(),
        "ctr {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Snapshot, container, task, start, with the very spec that berth made; only what must differ does. Milliseconds.
async fn raw_start(channel: &Channel, model: &Container, parent: &str, id: &str) -> anyhow::Result<f64> {
    let mut spec = model.spec.clone().context("no spec")?;
    let mut json: serde_json::Value = serde_json::from_slice(&spec.value)?;
    json["linux"]["cgroupsPath"] = format!("/berth-bench/{id}").into();
    // Without berth's mapped root file system the raw container runs unmapped, which is the cheaper case.
    if let Some(namespaces) = json["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|n| n["type"] != "user");
    }
    for key in ["uidMappings", "gidMappings"] {
        json["linux"].as_object_mut().context("no linux")?.remove(key);
    }
    spec.value = serde_json::to_vec(&json)?;

    let began = Instant::now();
    let request = PrepareSnapshotRequest {
        snapshotter: model.snapshotter.clone(),
        key: id.to_owned(),
        parent: parent.to_owned(),
        ..Default::default()
    };
    let mounts = SnapshotsClient::new(channel.clone())
        .prepare(leased(request))
        .await?
        .into_inner()
        .mounts;
    let container = Container {
        id: id.to_owned(),
        runtime: Some(Runtime {
            name: "io.containerd.runc.v2".into(),
            options: None,
        }),
        spec: Some(spec),
        snapshotter: model.snapshotter.clone(),
        snapshot_key: id.to_owned(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        container: Some(container),
    };
    ContainersClient::new(channel.clone())
        .create(leased(request))
        .await?;
    // With the logger that every container of berth has.
    let logs = std::env::temp_dir().join("berth-bench-logs").join(id);
    std::fs::create_dir_all(&logs)?;
    let logger = format!(
        "binary://{}?dir={}&uid=0&gid=0&max_size=10485760&max_files=5&rate=16777216",
        crate::program("berth-log").display(),
        logs.display()
    );
    let request = CreateTaskRequest {
        container_id: id.to_owned(),
        rootfs: mounts,
        stdout: logger.clone(),
        stderr: logger,
        ..Default::default()
    };
    TasksClient::new(channel.clone()).create(leased(request)).await?;
    let request = StartRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    TasksClient::new(channel.clone()).start(leased(request)).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A request in the bench's namespace whose snapshots the bench's lease keeps from garbage collection.
fn leased<T>(body: T) -> Request<T> {
    let mut request = Request::new(body);
    let headers = request.metadata_mut();
    headers.insert("containerd-namespace", "bench".parse().expect("ASCII"));
    headers.insert("containerd-lease", "bench".parse().expect("ASCII"));
    request
}

async fn raw_delete(channel: &Channel, id: &str) -> anyhow::Result<()> {
    let mut tasks = TasksClient::new(channel.clone());
    let request = KillRequest {
        container_id: id.to_owned(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    tasks.kill(leased(request)).await?;
    for _ in 0..100 {
        let request = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        if tasks.delete(leased(request)).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let request = DeleteContainerRequest { id: id.to_owned() };
    ContainersClient::new(channel.clone())
        .delete(leased(request))
        .await?;
    let request = RemoveSnapshotRequest {
        snapshotter: "overlayfs".into(),
        key: id.to_owned(),
    };
    SnapshotsClient::new(channel.clone())
        .remove(leased(request))
        .await?;
    Ok(())
}
