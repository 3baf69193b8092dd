//! Reads usage once a second.
//!
//! Owns the previous counters and the windows of every container, and lets go of them with the container. Needs about
//! eight open files a container, which is what makes a hundred containers cheap.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::UnixMillis;
use berth_common::protocol::{ContainerUsage, NodeUsage, Pressure};
use procfs::prelude::*;
use procfs::{DiskStats, KernelStats, Meminfo};

use super::proc::{default_routes, has_device, interfaces};
use super::rate::{Flows, advance, millicores, per_second};
use super::window::{Summary, Window};
use crate::cgroup::{Cgroups, Meter, RawStats, parse_pressure};

/// Which interfaces and disks count is looked up anew every so many samples.
const LOOK_AGAIN: u64 = 30;
const SECTOR: u64 = 512;
/// No file read here is larger.
const MAX_FILE: u64 = 4 << 20;

/// Where to read.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Normally `/proc`.
    pub proc: PathBuf,
    /// Normally `/sys`.
    pub sys: PathBuf,
    /// A path on the file system that holds layers.
    pub layers: PathBuf,
}

/// A container to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampledContainer {
    /// Which.
    pub id: ContainerId,
    /// Whose.
    pub tenant: TenantId,
    /// Host pid of its PID 1, if it runs.
    pub pid: Option<u32>,
    /// Bytes in its writable layer, as last measured.
    pub disk: Option<u64>,
}

/// One reading of everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When, by the wall clock.
    pub at: UnixMillis,
    /// The node.
    pub node: NodeUsage,
    /// The containers asked for, in their order.
    pub containers: Vec<ContainerUsage>,
}

struct Tracked {
    pid: Option<u32>,
    meter: Option<Box<dyn Meter>>,
    before: Option<(Instant, RawStats)>,
    net: Option<File>,
    flows: Flows,
    cpu: Window,
    memory: Window,
    seen: u64,
}

impl Tracked {
    fn new() -> Self {
        Self {
            pid: None,
            meter: None,
            before: None,
            net: None,
            flows: Flows::default(),
            cpu: Window::default(),
            memory: Window::default(),
            seen: 0,
        }
    }
}

/// Samples the node and its containers. Blocking; keep it off async threads.
pub struct Sampler {
    sources: Sources,
    cgroups: Arc<dyn Cgroups>,
    containers: HashMap<ContainerId, Tracked>,
    start: Option<Instant>,
    before: Option<(Instant, Option<u64>)>,
    uplinks: Vec<String>,
    disks: Vec<String>,
    net_flows: Flows,
    disk_flows: Flows,
    cpu: Window,
    count: u64,
    buffer: Vec<u8>,
}

impl Sampler {
    /// Over these sources; nothing is read yet. The first sample has no rates.
    pub fn new(sources: Sources, cgroups: Arc<dyn Cgroups>) -> Self {
        Self {
            sources,
            cgroups,
            containers: HashMap::new(),
            start: None,
            before: None,
            uplinks: Vec::new(),
            disks: Vec::new(),
            net_flows: Flows::default(),
            disk_flows: Flows::default(),
            cpu: Window::default(),
            count: 0,
            buffer: Vec::with_capacity(16 << 10),
        }
    }

    /// Reads everything. `mono` gives the interval that rates are over, `now` only goes into the sample.
    pub fn sample(&mut self, now: UnixMillis, mono: Instant, containers: &[SampledContainer]) -> Sample {
        let start = *self.start.get_or_insert(mono);
        let at_ms = mono.saturating_duration_since(start).as_millis() as u64;
        let mut usages = Vec::with_capacity(containers.len());
        let (mut cpu_sum, mut memory_sum) = (Some(0u32), Some(0u64));
        for container in containers {
            let usage = self.sample_container(container, now, mono, at_ms);
            // One that does not run uses nothing, and has nothing to read.
            if container.pid.is_some() {
                cpu_sum = cpu_sum.zip(usage.cpu).map(|(sum, part)| sum.saturating_add(part));
                memory_sum = memory_sum
                    .zip(usage.memory)
                    .map(|(sum, part)| sum.saturating_add(part));
            }
            usages.push(usage);
        }
        let count = self.count;
        self.containers.retain(|_, tracked| tracked.seen == count);
        let mut node = self.sample_node(mono, at_ms);
        node.cpu_containers = cpu_sum;
        node.cpu_foreign = node.cpu.zip(cpu_sum).map(|(all, part)| all.saturating_sub(part));
        node.memory_containers = memory_sum;
        node.memory_foreign = node
            .memory
            .zip(memory_sum)
            .map(|(all, part)| all.saturating_sub(part));
        self.count += 1;
        Sample {
            at: now,
            node,
            containers: usages,
        }
    }

    fn sample_container(
        &mut self,
        container: &SampledContainer,
        now: UnixMillis,
        mono: Instant,
        at_ms: u64,
    ) -> ContainerUsage {
        let tracked = self.containers.entry(container.id).or_insert_with(Tracked::new);
        tracked.seen = self.count;
        if tracked.pid != container.pid {
            // Another process is another life: its counters have nothing to do with those before.
            tracked.pid = container.pid;
            tracked.before = None;
            tracked.net = None;
            tracked.meter = None;
            tracked.flows.forget();
        }
        let (stats, moved) = match container.pid {
            Some(pid) => {
                let meter = &mut tracked.meter;
                if meter.is_none() {
                    *meter = self.cgroups.meter(container.tenant, container.id);
                }
                let stats = meter.as_mut().map_or_else(
                    || self.cgroups.stats(container.tenant, container.id),
                    |meter| meter.read(),
                );
                (stats, net_of(tracked, &self.sources, pid, &mut self.buffer))
            }
            None => (RawStats::default(), None),
        };
        let (elapsed, before) = match tracked.before {
            Some((then, before)) => (mono.saturating_duration_since(then), before),
            None => (Duration::ZERO, RawStats::default()),
        };
        tracked.before = container.pid.map(|_| (mono, stats));
        let rate = |before, now| advance(before, now).and_then(|moved| per_second(moved, elapsed));
        let cpu = advance(before.cpu_ns, stats.cpu_ns).and_then(|ns| millicores(ns, elapsed));
        let memory = stats
            .memory
            .zip(stats.inactive_file)
            .map(|(all, inactive)| all.saturating_sub(inactive));
        tracked.cpu.push(at_ms, cpu.map(u64::from));
        tracked.memory.push(at_ms, memory);
        ContainerUsage {
            id: container.id,
            at: now,
            cpu,
            throttled: share(
                advance(before.throttled, stats.throttled),
                advance(before.periods, stats.periods),
            ),
            memory,
            oom_kills: stats.oom_kills,
            pids: stats.pids.and_then(|pids| u32::try_from(pids).ok()),
            disk: container.disk,
            read_bps: rate(before.read_bytes, stats.read_bytes),
            write_bps: rate(before.write_bytes, stats.write_bytes),
            net_rx_bps: moved.and_then(|(received, _)| per_second(received, elapsed)),
            net_tx_bps: moved.and_then(|(_, sent)| per_second(sent, elapsed)),
            cpu_minute: tracked.cpu.summary().and_then(four),
            memory_minute_max: tracked.memory.summary().map(|summary| summary.max),
            psi_cpu: None,
            psi_memory: None,
            psi_io: None,
        }
    }

    fn sample_node(&mut self, mono: Instant, at_ms: u64) -> NodeUsage {
        if self.count.is_multiple_of(LOOK_AGAIN) {
            self.look_again();
        }
        let busy = self.read("stat").and_then(busy_ns);
        let (elapsed, busy_before) = match self.before {
            Some((then, busy)) => (mono.saturating_duration_since(then), busy),
            None => (Duration::ZERO, None),
        };
        self.before = Some((mono, busy));
        let cpu = advance(busy_before, busy).and_then(|ns| millicores(ns, elapsed));
        self.cpu.push(at_ms, cpu.map(u64::from));
        let memory = self
            .read("meminfo")
            .and_then(|text| Meminfo::from_buf_read(text).ok())
            .and_then(|info| Some(info.mem_total.saturating_sub(info.mem_available?)));
        let disk_moved = self.disk_moved();
        let net_moved = self.net_moved();
        let layers = nix::sys::statvfs::statvfs(&self.sources.layers).ok();
        let rate = |moved: Option<u64>| moved.and_then(|moved| per_second(moved, elapsed));
        NodeUsage {
            cpu,
            memory,
            disk: layers.map(|fs| (fs.blocks() - fs.blocks_free().min(fs.blocks())) * fs.fragment_size()),
            disk_read_bps: rate(disk_moved.map(|(read, _)| read)),
            disk_write_bps: rate(disk_moved.map(|(_, written)| written)),
            net_rx_bps: rate(net_moved.map(|(received, _)| received)),
            net_tx_bps: rate(net_moved.map(|(_, sent)| sent)),
            psi_cpu: self.pressure("pressure/cpu", true),
            psi_memory: self.pressure("pressure/memory", false),
            psi_io: self.pressure("pressure/io", false),
            cpu_minute: self.cpu.summary().and_then(four),
            ..NodeUsage::default()
        }
    }

    /// A file below `/proc`, in the shared buffer.
    fn read(&mut self, name: &str) -> Option<&[u8]> {
        self.buffer.clear();
        let file = File::open(self.sources.proc.join(name)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut self.buffer).ok()?;
        Some(&self.buffer)
    }

    fn pressure(&mut self, name: &str, is_cpu: bool) -> Option<Pressure> {
        parse_pressure(std::str::from_utf8(self.read(name)?).ok()?, is_cpu)
    }

    fn disk_moved(&mut self) -> Option<(u64, u64)> {
        let Some(stats) = self
            .read("diskstats")
            .and_then(|text| DiskStats::from_buf_read(text).ok())
        else {
            self.disk_flows.forget();
            return None;
        };
        self.disk_flows.begin();
        for disk in stats.0 {
            if self.disks.contains(&disk.name) {
                let (read, written) = (disk.sectors_read, disk.sectors_written);
                self.disk_flows.push(
                    &disk.name,
                    read.saturating_mul(SECTOR),
                    written.saturating_mul(SECTOR),
                );
            }
        }
        self.disk_flows.finish()
    }

    fn net_moved(&mut self) -> Option<(u64, u64)> {
        let read = self.read("net/dev").is_some();
        self.net_flows.begin();
        let (flows, uplinks) = (&mut self.net_flows, &self.uplinks);
        let parsed = std::str::from_utf8(&self.buffer)
            .ok()
            .filter(|_| read)
            .and_then(|text| {
                interfaces(text, |name, received, sent| {
                    if uplinks.iter().any(|uplink| uplink == name) {
                        flows.push(name, received, sent);
                    }
                })
            });
        if parsed.is_none() {
            self.net_flows.forget();
            return None;
        }
        self.net_flows.finish()
    }

    /// Which interfaces and disks are hardware. A host without (a virtual one in a network namespace) counts what
    /// its default route goes through.
    fn look_again(&mut self) {
        let class = self.sources.sys.join("class/net");
        let names = |dir: &PathBuf| -> Vec<String> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        };
        self.uplinks = names(&class)
            .into_iter()
            .filter(|name| has_device(&class, name))
            .collect();
        if self.uplinks.is_empty() {
            self.uplinks = self
                .read("net/route")
                .and_then(|text| std::str::from_utf8(text).ok())
                .map(default_routes)
                .unwrap_or_default();
        }
        let block = self.sources.sys.join("block");
        self.disks = names(&block)
            .into_iter()
            .filter(|name| has_device(&block, name))
            .collect();
        for name in &mut self.disks {
            *name = name.replace('!', "/");
        }
    }
}

/// What a container's interfaces moved since the reading before. Containers that share the host's network have none
/// of their own.
fn net_of(tracked: &mut Tracked, sources: &Sources, pid: u32, buffer: &mut Vec<u8>) -> Option<(u64, u64)> {
    if tracked.net.is_none() {
        tracked.net = open_net(sources, pid);
    }
    let parsed = tracked.net.as_ref().and_then(|file| {
        buffer.resize(8 << 10, 0);
        let mut filled = 0;
        // A record a line: the kernel may hand them out in several reads.
        loop {
            match file.read_at(&mut buffer[filled..], filled as u64).ok()? {
                0 if filled == buffer.len() => return None,
                0 => break,
                count => filled += count,
            }
        }
        let flows = &mut tracked.flows;
        flows.begin();
        interfaces(
            std::str::from_utf8(&buffer[..filled]).ok()?,
            |name, received, sent| {
                if name != "lo" {
                    flows.push(name, received, sent);
                }
            },
        )
    });
    if parsed.is_none() {
        tracked.net = None;
        tracked.flows.forget();
        return None;
    }
    tracked.flows.finish()
}

fn open_net(sources: &Sources, pid: u32) -> Option<File> {
    let dir = sources.proc.join(pid.to_string());
    let own = std::fs::metadata(dir.join("ns/net")).ok()?;
    let host = std::fs::metadata(sources.proc.join("self/ns/net")).ok()?;
    if (own.dev(), own.ino()) == (host.dev(), host.ino()) {
        return None;
    }
    File::open(dir.join("net/dev")).ok()
}

/// CPU time that was neither idle, nor waiting for IO, nor taken by the hypervisor. Guests' time is within user's.
fn busy_ns(text: &[u8]) -> Option<u64> {
    let total = KernelStats::from_buf_read(text, procfs::current_system_info())
        .ok()?
        .total;
    let ticks = total
        .user
        .checked_add(total.nice)?
        .checked_add(total.system)?
        .checked_add(total.irq?)?
        .checked_add(total.softirq?)?;
    ticks.checked_mul(1_000_000_000 / procfs::ticks_per_second())
}

/// Percent ×100. No period elapsed means that none was throttled.
fn share(part: Option<u64>, whole: Option<u64>) -> Option<u16> {
    let (part, whole) = (part?, whole?);
    if whole == 0 {
        return Some(0);
    }
    u16::try_from(u128::from(part.min(whole)) * 10_000 / u128::from(whole)).ok()
}

fn four(summary: Summary) -> Option<[u32; 4]> {
    let [mean, p50, p95, max] = [summary.mean, summary.p50, summary.p95, summary.max].map(u32::try_from);
    Some([mean.ok()?, p50.ok()?, p95.ok()?, max.ok()?])
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
