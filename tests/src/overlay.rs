//! Hosts with berth's networks and nothing else of berth: namespaces on one wire, and containers that are namespaces, too.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use berth_agent::network::egress::Transit;
use berth_agent::network::plan::{missing, plan};
use berth_agent::network::{Kernel, Namespace, Overlay, Step};
use berth_common::model::{HostNumber, Subnets, Vni};

use crate::host::{Host, Lan};

/// A few hosts on one wire, as agents see them.
#[derive(Debug)]
pub struct World {
    /// The wire.
    pub lan: Lan,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Each host's networks.
    pub kernels: Vec<Kernel>,
    /// Where namespaces are kept.
    _folder: tempfile::TempDir,
    /// Where requests to the kernel run.
    pub runtime: tokio::runtime::Runtime,
}

impl Drop for World {
    fn drop(&mut self) {
        for kernel in &self.kernels {
            for vni in kernel.kept().unwrap_or_default() {
                let _ = Namespace::release(&kernel.path(vni));
            }
        }
    }
}

impl World {
    /// So many hosts on one wire.
    pub fn new(count: usize) -> Self {
        let (lan, folder) = (Lan::new(), tempfile::tempdir().expect("folder"));
        crate::reaper::guard_folder(folder.path());
        let (mut hosts, mut kernels) = (Vec::new(), Vec::new());
        for at in 0..count {
            let host = Host::new("net");
            lan.attach(&host, "eth0", at as u8 + 1);
            kernels.push(Kernel::new(host.space(), folder.path().join(at.to_string())));
            hosts.push(host);
        }
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        Self {
            lan,
            hosts,
            kernels,
            _folder: folder,
            runtime,
        }
    }

    /// A host's address on the wire.
    pub fn address(&self, host: usize) -> IpAddr {
        self.lan.address(host as u8 + 1).parse().expect("address")
    }

    /// A network with these endpoints, each on a host, as one of them sees it.
    pub fn overlay(&self, vni: u32, here: usize, endpoints: &[(u32, usize)]) -> Overlay {
        let on = |wanted: bool| {
            endpoints
                .iter()
                .filter(move |(_, host)| (*host == here) == wanted)
        };
        Overlay {
            offload: true,
            six: false,
            vni: Vni::try_from(vni).expect("vni"),
            subnets: Subnets::new(
                "10.80.0.0/16".parse().expect("cidr"),
                "fd00:be::/64".parse().expect("cidr"),
            )
            .expect("subnets"),
            transit: Transit::free(|number| usize::from(number.address().octets()[3]) < 2 + vni as usize),
            rates: BTreeMap::new(),
            published: Vec::new(),
            underlay: (self.address(here), 1500),
            port: 4789,
            local: on(true).map(|(number, _)| HostNumber(*number)).collect(),
            remote: Some(
                on(false)
                    .map(|(number, host)| (HostNumber(*number), self.address(*host)))
                    .collect(),
            ),
        }
    }

    /// What a host would have to change.
    pub fn steps(&self, at: usize, overlay: &Overlay) -> Vec<Step> {
        let seen = self
            .runtime
            .block_on(self.kernels[at].observe(overlay.vni))
            .expect("observed");
        plan(Some(overlay), seen.as_ref())
    }

    /// Observe, plan, apply, attach; then nothing may be left to do, and what is there is what is wanted.
    pub fn settle(&self, at: usize, overlay: &Overlay, containers: &BTreeMap<u32, Namespace>) -> usize {
        let (kernel, vni) = (&self.kernels[at], overlay.vni);
        let steps = self.steps(at, overlay);
        self.runtime.block_on(async {
            kernel
                .apply(vni, &steps)
                .await
                .unwrap_or_else(|e| panic!("{e:?}\n{steps:#?}"));
            let seen = kernel.observe(vni).await.expect("observed").expect("a namespace");
            for host in missing(overlay, &seen) {
                kernel
                    .attach(overlay, host, &containers[&host.0], 0)
                    .await
                    .expect("attached");
            }
            let seen = kernel.observe(vni).await.expect("observed").expect("a namespace");
            assert_eq!(seen.links, overlay.links());
            assert_eq!(seen.entries, overlay.entries());
            assert!(plan(Some(overlay), Some(&seen)).is_empty());
        });
        steps.len()
    }
}

/// Containers' namespaces, by endpoint.
pub fn containers(numbers: &[u32]) -> BTreeMap<u32, Namespace> {
    numbers
        .iter()
        .map(|n| (*n, Namespace::new().expect("namespace")))
        .collect()
}

/// Two hosts with a network, and an endpoint of it on each: 2 and 3.
pub fn pair() -> (World, BTreeMap<u32, Namespace>, [Overlay; 2]) {
    let world = World::new(2);
    let inside = containers(&[2, 3]);
    let overlays = [0, 1].map(|at| world.overlay(7, at, &[(2, 0), (3, 1)]));
    for (at, overlay) in overlays.iter().enumerate() {
        world.settle(at, overlay, &inside);
    }
    (world, inside, overlays)
}

/// Runs a shell script in a namespace; whether it succeeded, and what it said.
pub fn sh(within: &Namespace, command: &str) -> (bool, String) {
    let command = command.to_owned();
    let out = within.within(move || Command::new("sh").args(["-c", &command]).output());
    let out = out.expect("namespace").expect("program");
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    (out.status.success(), text)
}

/// Listens on TCP port 80 there.
pub fn listen(within: &Namespace, address: IpAddr) -> TcpListener {
    let bound = within.within(move || TcpListener::bind(SocketAddr::new(address, 80)));
    bound.expect("namespace").expect("listens")
}

/// Dials TCP port 80 from there.
pub fn dial(within: &Namespace, address: IpAddr) -> std::io::Result<TcpStream> {
    dial_at(within, SocketAddr::new(address, 80))
}

/// Dials a TCP port from there.
pub fn dial_at(within: &Namespace, to: SocketAddr) -> std::io::Result<TcpStream> {
    within
        .within(move || TcpStream::connect_timeout(&to, Duration::from_millis(1500)))
        .expect("namespace")
}

/// A word there and back.
pub fn speak(client: &mut TcpStream, server: &mut TcpStream) {
    let mut word = [0; 5];
    for end in [&mut *client, &mut *server] {
        end.set_read_timeout(Some(Duration::from_secs(5)))
            .expect("option");
    }
    client.write_all(b"berth").expect("sent");
    server.read_exact(&mut word).expect("received");
    server.write_all(&word).expect("sent");
    client.read_exact(&mut word).expect("received");
    assert_eq!(&word, b"berth");
}

/// Dials a listener from a namespace and speaks; both ends, still open.
pub fn talk_at(client: &Namespace, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().expect("address");
    let mut client = dial_at(client, to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let mut server = listener.accept().expect("a client").0;
    speak(&mut client, &mut server);
    (client, server)
}

/// Dials from one namespace into another and speaks; both ends, still open.
pub fn talk(client: &Namespace, server: &Namespace, address: IpAddr) -> (TcpStream, TcpStream) {
    talk_at(client, &listen(server, address))
}
