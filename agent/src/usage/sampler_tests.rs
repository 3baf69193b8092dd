//! Tests of the sampler on a host made of plain files.

use std::fs;
use std::path::Path;

use super::*;
use crate::cgroup::v2::V2;
use crate::cgroup::{DEFAULT_PARENT, Kernel, container_path};

struct Host {
    dir: tempfile::TempDir,
    cgroups: Arc<V2>,
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        put(
            &dir.path().join("cgroup/cgroup.controllers"),
            "cpu io memory pids\n",
        );
        let kernel = Kernel {
            page: 4096,
            pid_max: 32_768,
        };
        let cgroups =
            Arc::new(V2::new(dir.path().join("cgroup"), kernel, DEFAULT_PARENT.to_owned()).unwrap());
        let host = Self { dir, cgroups };
        put(&host.path("sys/class/net/eth0/device/x"), "");
        put(&host.path("sys/class/net/veth1/x"), "");
        put(&host.path("sys/block/sda/device/x"), "");
        put(&host.path("sys/block/loop0/x"), "");
        put(&host.path("proc/self/ns/net"), "");
        host.node(1_000, 1_000_000, 5_000);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sampler(&self) -> Sampler {
        let sources = Sources {
            proc: self.path("proc"),
            sys: self.path("sys"),
            layers: self.dir.path().to_path_buf(),
        };
        Sampler::new(sources, self.cgroups.clone())
    }

    fn node(&self, ticks: u64, available_kb: u64, bytes: u64) {
        put(
            &self.path("proc/stat"),
            &format!(
                "cpu  {ticks} 0 0 900 0 0 0 7 0 0\ncpu0 {ticks} 0 0 900 0 0 0 7 0 0\nctxt 1\nbtime 1\nprocesses 1\n"
            ),
        );
        // procfs wants every line that all kernels print.
        let mut info = fs::read_to_string("/proc/meminfo").unwrap();
        info = info
            .lines()
            .map(|line| match line.split_once(':') {
                Some(("MemTotal", _)) => "MemTotal: 2000000 kB\n".to_owned(),
                Some(("MemAvailable", _)) => format!("MemAvailable: {available_kb} kB\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        put(&self.path("proc/meminfo"), &info);
        let sectors = bytes / 512;
        put(
            &self.path("proc/diskstats"),
            &format!(
                "7 0 loop0 1 1 {0} 1 1 1 {0} 1 1 1 1\n8 0 sda 1 1 {sectors} 1 1 1 {sectors} 1 1 1 1\n8 1 sda1 1 1 9 1 1 1 9 1 1 1 1\n",
                bytes * 7
            ),
        );
        put(
            &self.path("proc/net/dev"),
            &net_dev(&[("lo", 9, 9), ("eth0", bytes, bytes * 2), ("veth1", bytes * 9, 1)]),
        );
        for name in ["cpu", "memory", "io"] {
            put(
                &self.path(&format!("proc/pressure/{name}")),
                "some avg10=1.50 avg60=0 avg300=0 total=1\nfull avg10=0.50 avg60=0 avg300=0 total=1\n",
            );
        }
    }

    fn container(&self, container: &SampledContainer, cpu_us: u64, memory: u64, io: u64) {
        let path = container_path(DEFAULT_PARENT, container.tenant, container.id);
        let dir = self.path("cgroup").join(path.trim_start_matches('/'));
        put(
            &dir.join("cpu.stat"),
            &format!(
                "usage_usec {cpu_us}\nnr_periods {}\nnr_throttled {}\n",
                cpu_us / 100,
                cpu_us / 400
            ),
        );
        put(&dir.join("memory.current"), &memory.to_string());
        put(&dir.join("memory.stat"), "inactive_file 1000\n");
        put(&dir.join("memory.events"), "oom_kill 0\n");
        put(&dir.join("pids.current"), "2\n");
        put(&dir.join("io.stat"), &format!("8:0 rbytes={io} wbytes={io}\n"));
        let pid = container.pid.unwrap();
        put(&self.path(&format!("proc/{pid}/ns/net")), "");
        put(
            &self.path(&format!("proc/{pid}/net/dev")),
            &net_dev(&[("lo", cpu_us, 1), ("eth0", io, io * 3)]),
        );
    }
}

fn net_dev(rows: &[(&str, u64, u64)]) -> String {
    let mut text = "Inter-|  Receive\n face |bytes\n".to_owned();
    for (name, received, sent) in rows {
        text += &format!("{name:>6}: {received} 0 0 0 0 0 0 0 {sent} 0 0 0 0 0 0 0\n");
    }
    text
}

fn named(id: u8) -> SampledContainer {
    SampledContainer {
        id: ContainerId::from_bytes([id; 10]),
        tenant: TenantId::from_bytes([9; 10]),
        pid: Some(100 + u32::from(id)),
        disk: Some(77),
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn rates_sums_and_the_foreign_rest() {
    let host = Host::new();
    let mut sampler = host.sampler();
    let (a, b) = (named(1), named(2));
    host.container(&a, 1_000_000, 5_000, 100);
    host.container(&b, 0, 2_000, 0);
    let start = Instant::now();
    let first = sampler.sample(UnixMillis(1), start, &[a, b]);
    assert_eq!(
        (first.node.cpu, first.node.cpu_foreign, first.containers[0].cpu),
        (None, None, None)
    );
    assert_eq!(first.node.memory_containers, Some(5_000));
    let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
    host.node(1_000 + 2_400_000_000 / tick_ns, 900_000, 5_000 + 102_400);
    host.container(&a, 1_600_000, 5_000, 20_100);
    host.container(&b, 200_000, 2_000, 0);
    let second = sampler.sample(UnixMillis(2), start + 2 * SECOND, &[a, b]);
    let node = &second.node;
    assert_eq!(
        (node.cpu, node.cpu_containers, node.cpu_foreign),
        (Some(1_200), Some(400), Some(800))
    );
    assert_eq!(node.memory, Some(1_100_000 * 1024));
    assert_eq!(node.memory_foreign, Some(1_100_000 * 1024 - 5_000));
    assert_eq!(
        (node.disk_read_bps, node.net_rx_bps, node.net_tx_bps),
        (Some(51_200), Some(51_200), Some(102_400))
    );
    assert_eq!(node.psi_io, Some(Pressure { some: 150, full: 50 }));
    assert_eq!(node.cpu_minute, Some([1_200; 4]));
    assert!(node.disk.is_some());
    let usage = &second.containers[0];
    assert_eq!(
        (usage.cpu, usage.memory, usage.pids, usage.disk),
        (Some(300), Some(4_000), Some(2), Some(77))
    );
    assert_eq!(
        (usage.read_bps, usage.net_rx_bps, usage.net_tx_bps),
        (Some(10_000), Some(10_000), Some(30_000))
    );
    assert_eq!(
        (usage.throttled, usage.memory_minute_max),
        (Some(2_500), Some(4_000))
    );
}

#[test]
fn no_sample_may_be_invented_when_a_read_fails() {
    let host = Host::new();
    let a = named(1);
    host.container(&a, 1_000, 5_000, 100);
    let whole = [
        "stat",
        "meminfo",
        "diskstats",
        "net/dev",
        "pressure/cpu",
        "pressure/memory",
        "pressure/io",
    ];
    for broken in [None, Some("rubbish"), Some("")] {
        let mut sampler = host.sampler();
        let start = Instant::now();
        sampler.sample(UnixMillis(1), start, &[a]);
        for name in whole {
            let path = host.path("proc").join(name);
            match broken {
                Some(text) => fs::write(path, text).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        let node = sampler.sample(UnixMillis(2), start + SECOND, &[a]).node;
        let want = NodeUsage {
            cpu_containers: Some(0),
            memory_containers: Some(4_000),
            disk: node.disk,
            ..NodeUsage::default()
        };
        assert_eq!(node, want);
        host.node(50_000, 1_000_000, 999_999_744);
        let node = sampler.sample(UnixMillis(3), start + 2 * SECOND, &[a]).node;
        assert_eq!(
            (node.cpu, node.net_rx_bps, node.disk_read_bps),
            (None, None, None),
            "no reading to compare with"
        );
        let node = sampler.sample(UnixMillis(4), start + 3 * SECOND, &[a]).node;
        assert_eq!(
            (node.cpu, node.net_rx_bps, node.disk_read_bps),
            (Some(0), Some(0), Some(0))
        );
    }
}

#[test]
fn a_container_that_cannot_be_read_has_no_load_and_takes_the_sums_with_it() {
    let host = Host::new();
    let (a, b) = (named(1), named(2));
    host.container(&a, 1_000, 5_000, 100);
    let mut sampler = host.sampler();
    let start = Instant::now();
    sampler.sample(UnixMillis(1), start, &[a, b]);
    let sample = sampler.sample(UnixMillis(2), start + SECOND, &[a, b]);
    assert_eq!(sample.containers[0].cpu, Some(0));
    let mut want = sample.containers[1].clone();
    assert_eq!(want.disk, Some(77));
    want.disk = None;
    let text = serde_json::to_string(&want).unwrap();
    assert_eq!(
        text,
        format!("{{\"id\":\"{}\",\"at\":2}}", b.id),
        "everything else is absent"
    );
    let node = sample.node;
    assert_eq!(
        (
            node.cpu_containers,
            node.cpu_foreign,
            node.memory_containers,
            node.memory_foreign
        ),
        (None, None, None, None)
    );
    assert_eq!(node.cpu, Some(0));
    let stopped = SampledContainer { pid: None, ..b };
    let node = sampler
        .sample(UnixMillis(3), start + 2 * SECOND, &[a, stopped])
        .node;
    assert_eq!((node.cpu_containers, node.cpu_foreign), (Some(0), Some(0)));
}

#[test]
fn a_restart_gives_no_rate_for_that_interval() {
    let host = Host::new();
    let a = named(1);
    host.container(&a, 1_000_000, 5_000, 100);
    let mut sampler = host.sampler();
    let start = Instant::now();
    sampler.sample(UnixMillis(1), start, &[a]);
    host.container(&a, 500, 5_000, 50);
    let usage = &sampler.sample(UnixMillis(2), start + SECOND, &[a]).containers[0];
    assert_eq!(
        (usage.cpu, usage.read_bps, usage.net_rx_bps, usage.throttled),
        (None, None, None, None)
    );
    let again = SampledContainer { pid: Some(555), ..a };
    host.container(&again, 900_000, 5_000, 9_000);
    let usage = &sampler
        .sample(UnixMillis(3), start + 2 * SECOND, &[again])
        .containers[0];
    assert_eq!(
        (usage.cpu, usage.read_bps, usage.net_rx_bps),
        (None, None, None),
        "another process, even if ahead"
    );
    host.container(&again, 1_000_000, 5_000, 10_000);
    let usage = &sampler
        .sample(UnixMillis(4), start + 3 * SECOND, &[again])
        .containers[0];
    assert_eq!(
        (usage.cpu, usage.read_bps, usage.net_rx_bps),
        (Some(100), Some(1_000), Some(1_000))
    );
}

#[test]
fn what_goes_is_let_go_and_shared_networks_are_not_counted() {
    let host = Host::new();
    let a = named(1);
    host.container(&a, 1_000, 5_000, 100);
    let mut sampler = host.sampler();
    let start = Instant::now();
    sampler.sample(UnixMillis(1), start, &[a]);
    assert!(sampler.containers[&a.id].net.is_some());
    sampler.sample(
        UnixMillis(2),
        start + SECOND,
        &[SampledContainer { pid: None, ..a }],
    );
    assert!(
        sampler.containers[&a.id].net.is_none(),
        "a held file would hold the network namespace"
    );
    sampler.sample(UnixMillis(3), start + 2 * SECOND, &[]);
    assert!(sampler.containers.is_empty());

    let shared = SampledContainer { pid: Some(700), ..a };
    host.container(&shared, 1_000, 5_000, 100);
    fs::remove_file(host.path("proc/700/ns/net")).unwrap();
    fs::hard_link(host.path("proc/self/ns/net"), host.path("proc/700/ns/net")).unwrap();
    sampler.sample(UnixMillis(4), start + 3 * SECOND, &[shared]);
    let usage = &sampler
        .sample(UnixMillis(5), start + 4 * SECOND, &[shared])
        .containers[0];
    assert_eq!((usage.cpu, usage.net_rx_bps), (Some(0), None));
}
