//! Churn: containers of several services come, go and move on four hosts for a while; then every host's kernel has exactly what the plan
//! says, and no address is left over.
//!
//! `BERTH_SOAK_SECS` says how long (default 30) and `BERTH_SOAK_CONTAINERS` how many at most (default 40).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use berth_agent::network::plan::{Link, missing, plan};
use berth_agent::network::{Kernel, Overlay};
use berth_common::model::{Subnets, Vni};
use berth_tests::fleet::{Fleet, all, led_to};
use berth_tests::operator::Operator as _;
use berth_tests::overlay::sh;
use berth_tests::process::eventually;
use serde_json::Value;

const NODES: [&str; 4] = ["h1", "h2", "h3", "h4"];
const NETWORKS: [&str; 2] = ["default", "back"];

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Everybody on a network: where, by address.
fn placed(network: &Value) -> BTreeMap<Ipv4Addr, String> {
    let containers = network["containers"].as_array().cloned().unwrap_or_default();
    let one = |c: &Value| {
        let address = c["ipv4"].as_str()?.parse().ok()?;
        Some((address, c["node_name"].as_str()?.to_owned()))
    };
    containers.iter().filter_map(one).collect()
}

/// What a host's kernel has that the plan has not, or the other way round; for people.
fn difference(f: &Fleet, node: usize, network: &Value, kernel: &Kernel) -> Option<String> {
    let text = |key: &str| network[key].as_str().expect("text").parse();
    let (v4, v6) = (
        text("cidr").expect("cidr"),
        network["cidr6"].as_str().expect("text").parse().expect("cidr"),
    );
    let subnets = Subnets::new(v4, v6).expect("subnets");
    let vni = Vni::try_from(network["vni"].as_u64().expect("vni") as u32).expect("vni");
    let mut local = BTreeSet::new();
    let mut remote = BTreeMap::new();
    for (address, on) in placed(network) {
        let host = subnets.number(address.into()).expect("on its network");
        let at = NODES.iter().position(|name| *name == on).expect("a node");
        match at == node {
            true => drop(local.insert(host)),
            false => drop(remote.insert(host, underlay(f, at))),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let seen = runtime.block_on(kernel.observe(vni)).expect("observed");
    if local.is_empty() {
        return seen.map(|_| format!("{}: a network that nobody there is on", NODES[node]));
    }
    let Some(seen) = seen else {
        return Some(format!("{}: no network though {local:?} are there", NODES[node]));
    };
    let transit = match seen.links.get("up0") {
        Some(Link::Uplink { number, .. }) => *number,
        _ => None,
    };
    let wanted = Overlay {
        vni,
        subnets,
        underlay: (underlay(f, node), 1500),
        port: 4789,
        local,
        remote: Some(remote),
        transit,
        rates: BTreeMap::new(),
        published: Vec::new(),
        offload: true,
        six: false,
    };
    let (steps, absent) = (plan(Some(&wanted), Some(&seen)), missing(&wanted, &seen));
    let right = steps.is_empty() && absent.is_empty() && transit.is_some();
    (!right).then(|| format!("{}: {steps:?}, not attached: {absent:?}", NODES[node]))
}

fn underlay(f: &Fleet, node: usize) -> IpAddr {
    f.lan.address(11 + node as u8).parse().expect("address")
}

#[test]
fn after_any_churn_every_host_has_exactly_what_is_planned_and_no_address_is_left_over() {
    let (seconds, most) = (
        setting("BERTH_SOAK_SECS", 30),
        setting("BERTH_SOAK_CONTAINERS", 40),
    );
    let mut f = Fleet::new(4);
    f.brain.berth(&["network", "create", "back"]);
    let kernels: Vec<Kernel> = (0..4)
        .map(|n| Kernel::new(f.hosts[n].space(), f.agents[n].run_dir().join("networks")))
        .collect();
    let mut dice = Dice(seconds);
    let mut services: BTreeMap<String, u64> = BTreeMap::new();
    let begun = Instant::now();
    let mut acts = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let held: u64 = services.values().sum();
        let name = format!("s{}", dice.roll(8));
        let replicas = dice.roll(most / 4 + 1).min(most.saturating_sub(held));
        let networks = [&["default"][..], &["back"], &["default", "back"]][dice.roll(3) as usize];
        acts += 1;
        match (services.contains_key(&name), dice.roll(10)) {
            (false, _) => {
                // Small enough that half of the hosts take all of them: others are being drained.
                let mut flags = vec!["--cpus", "0.01"];
                flags.extend(networks.iter().flat_map(|network| ["--network", network]));
                f.brain.run_sleepers(&name, replicas as usize, &flags);
                services.insert(name, replicas);
            }
            (true, 0 | 1) => {
                f.brain.berth(&["service", "rm", &name]);
                services.remove(&name);
            }
            (true, 2) => drop(
                f.brain
                    .berth(&["service", "update", &name, "-d", "-e", &format!("N={acts}")]),
            ),
            (true, 3) => drop(f.brain.berth(&["restart", &name])),
            (true, 4) => {
                let node = NODES[dice.roll(4) as usize];
                f.brain.berth(&["node", "drain", node, "-d"]);
                std::thread::sleep(Duration::from_millis(700));
                f.brain.berth(&["node", "uncordon", node]);
            }
            (true, 5) => {
                let agent = dice.roll(4) as usize;
                f.agents[agent].kill9();
                f.agents[agent].restart();
            }
            (true, _) => {
                f.brain.berth(&["service", "scale", &name, &replicas.to_string()]);
                services.insert(name, replicas);
            }
        }
    }
    for node in NODES {
        f.brain.wait_node(node, "ready", 60);
    }
    let wanted: u64 = services.values().sum();
    f.brain.wait_running(wanted as usize, 180);
    let settled = eventually(Duration::from_secs(120), || {
        let items = f.brain.items(&["ps"]);
        (items.len() == wanted as usize).then_some(())
    });
    assert!(settled.is_some(), "{}", f.brain.berth(&["ps"]));
    println!("{acts} acts in {seconds} s; {wanted} containers are left");

    // Two looks at everything are more than enough; what is still wrong then stays wrong.
    let inspect = |name: &str| f.brain.json(&["network", "inspect", name]);
    let wrong = || -> Vec<String> {
        let mut wrong = Vec::new();
        for name in NETWORKS {
            let network = inspect(name);
            wrong.extend((0..4).filter_map(|node| difference(&f, node, &network, &kernels[node])));
        }
        wrong
    };
    let right = eventually(Duration::from_secs(15), || wrong().is_empty().then_some(()));
    assert!(right.is_some(), "{:#?}\n{}", wrong(), f.agents[0].log());
    let now = all(&f.brain);
    let items = f.brain.items(&["ps"]);
    let on = |name: &str| -> BTreeMap<String, Ipv4Addr> {
        let item = items.iter().find(|item| item["name"] == name).expect("listed");
        let places = item["addresses"].as_array().expect("places").iter();
        places
            .map(|at| {
                let text = |key: &str| at[key].as_str().expect("text").to_owned();
                (text("network"), text("ipv4").parse().expect("address"))
            })
            .collect()
    };
    let places: BTreeMap<&String, BTreeMap<String, Ipv4Addr>> =
        now.keys().map(|name| (name, on(name))).collect();
    for (name, inside) in &now {
        let own = &places[name];
        let led: BTreeSet<Ipv4Addr> = places
            .values()
            .flat_map(|theirs| theirs.iter().filter(|(network, _)| own.contains_key(*network)))
            .map(|(_, address)| *address)
            .collect();
        let found = eventually(Duration::from_secs(10), || {
            (led_to(&inside.space) == led).then_some(())
        });
        assert!(
            found.is_some(),
            "{name}: {led:?} wanted, {:?} found",
            led_to(&inside.space)
        );
    }
    for name in NETWORKS {
        let network = inspect(name);
        let placed = places.values().filter(|own| own.contains_key(name)).count();
        assert_eq!(network["endpoints"], placed, "{network}");
    }

    // And nothing of anything once they are gone.
    for name in services.keys() {
        f.brain.berth(&["service", "rm", name]);
    }
    let left = || -> String {
        let kept = kernels
            .iter()
            .map(|kernel| format!("{:?}", kernel.kept().expect("kept")));
        let hosts = f.hosts.iter().map(|host| {
            sh(
                &host.space(),
                "nft list ruleset; ip -o link | grep -v 'lo:\\|eth0'",
            )
            .1
        });
        kept.chain(hosts).filter(|text| text != "[]").collect()
    };
    let gone = eventually(Duration::from_secs(60), || left().is_empty().then_some(()));
    assert!(gone.is_some(), "{}", left());
    for name in NETWORKS {
        assert_eq!(inspect(name)["endpoints"], 0);
    }
}
