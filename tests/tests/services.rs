//! Services' own addresses, with everything there is of berth: one address, whoever answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use berth_agent::network::Namespace;
use berth_tests::answer::{answers, asked, asked_udp, serve, serve_udp};
use berth_tests::fleet::{Fleet, all, all_of};
use berth_tests::names::{Told, ask};
use berth_tests::operator::Operator as _;
use berth_tests::overlay::{dial_at, sh, speak};
use berth_tests::process::eventually;

/// A service's own addresses on its first network.
fn addresses(f: &Fleet, service: &str) -> (IpAddr, IpAddr) {
    let shown = f.brain.json(&["service", "inspect", service]);
    let of = |kind: &str| {
        let text = shown["addresses"][0][kind].as_str();
        text.and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no address: {shown}"))
    };
    (of("ipv4"), of("ipv6"))
}

/// Waits until an address is answered by exactly these.
fn answered_by(f: &Fleet, from: &Namespace, at: SocketAddr, want: &[&str]) {
    let want: BTreeSet<String> = want.iter().map(|name| (*name).to_owned()).collect();
    let by = || answers(from, at).into_keys().collect::<BTreeSet<_>>();
    let found = eventually(Duration::from_secs(30), || (by() == want).then_some(()));
    assert!(
        found.is_some(),
        "{at}: {want:?} wanted, {:?} answered\n{}\n{}",
        by(),
        sh(from, "nft list ruleset").1,
        f.agents[0].log()
    );
}

#[test]
fn a_services_address_is_answered_by_its_replicas_in_turn_and_outlives_them_and_the_brain() {
    let mut f = Fleet::new(2);
    f.brain.run_sleepers("web", 3, &[]);
    f.brain.run_sleepers("client", 1, &[]);
    f.brain.wait_running(4, 90);
    let now = all(&f.brain);
    for (name, container) in now.iter().filter(|(name, _)| name.starts_with("web")) {
        serve(&container.space, 80, name);
        serve_udp(&container.space, 53, name);
    }
    let (four, six) = addresses(&f, "web");
    let at = SocketAddr::new(four, 80);
    let (client, web1) = (&now["client.1"], &now["web.1"]);
    let every = ["web.1", "web.2", "web.3"];
    answered_by(&f, &client.space, at, &every);
    answered_by(&f, &client.space, SocketAddr::new(six, 80), &every);
    let own = asked(&client.space, at).expect("answers").1;
    assert_eq!(own, client.ipv4.to_string(), "a replica sees who asks");
    let heard = (0..24).filter_map(|_| asked_udp(&client.space, SocketAddr::new(four, 53)));
    assert_eq!(heard.collect::<BTreeSet<_>>().len(), 3);
    assert!(sh(&client.space, &format!("ping -c 1 -W 3 {four}")).0);
    // A replica may come to itself.
    answered_by(&f, &web1.space, at, &every);
    // The name is the address; the replicas have names, too.
    let gateway: IpAddr = [10, 64, 0, 1].into();
    let told = |name: &str, six| ask(&client.space, gateway, name, six);
    assert_eq!(told("web.", false), Told::Addresses([four].into()));
    assert_eq!(told("web.", true), Told::Addresses([six].into()));

    // One port that nobody listens on, and a service that nobody answers for: refused at once.
    let refused = |at| {
        let begun = Instant::now();
        let error = dial_at(&client.space, at).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(1), "at once");
    };
    refused(SocketAddr::new(four, 81));

    // Connections stay where they are, whatever is restarted or leaves meanwhile.
    let listener = web1.space.within(|| TcpListener::bind("0.0.0.0:7000"));
    let listener = listener.expect("namespace").expect("listens");
    let mut client_end = eventually(Duration::from_secs(20), || {
        dial_at(&client.space, SocketAddr::new(four, 7000)).ok()
    })
    .expect("one of three listens");
    let (mut server_end, _) = listener.accept().expect("accepts");
    speak(&mut client_end, &mut server_end);
    f.brain.berth(&["service", "scale", "web", "2"]);
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);
    speak(&mut client_end, &mut server_end);
    std::thread::sleep(Duration::from_secs(1));
    f.brain.kill9();
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);
    f.agents.iter_mut().for_each(|agent| agent.kill9());
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);
    f.agents.iter_mut().for_each(|agent| agent.restart());
    // Without the brain, what somebody did to it inside is mended, too.
    sh(&client.space, "nft flush ruleset");
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);
    speak(&mut client_end, &mut server_end);
    f.brain.restart();
    for node in ["h1", "h2"] {
        f.brain.wait_node(node, "ready", 30);
    }
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);

    // All new replicas behind the same address; none at all; and it is theirs as long as the service is there.
    f.brain.berth(&["stop", "web"]);
    let idle = eventually(Duration::from_secs(30), || {
        dial_at(&client.space, at)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            .then_some(())
    });
    assert!(idle.is_some(), "{}", sh(&client.space, "nft list ruleset").1);
    refused(at);
    assert_eq!(told("web.", false), Told::Addresses([four].into()));
    f.brain.berth(&["start", "web"]);
    f.brain.berth(&["service", "update", "web", "-e", "NEW=1"]);
    let after = all(&f.brain);
    for (name, container) in after.iter().filter(|(name, _)| name.starts_with("web")) {
        serve(&container.space, 80, name);
    }
    answered_by(&f, &client.space, at, &["web.1", "web.2"]);
    assert_eq!(addresses(&f, "web"), (four, six));
    f.brain.berth(&["service", "rm", "web"]);
    let gone = eventually(Duration::from_secs(30), || {
        (told("web.", false) == Told::NoName).then_some(())
    });
    assert!(gone.is_some(), "{:?}", told("web.", false));
}

#[test]
fn r6_a_services_address_leads_nowhere_for_another_tenant() {
    let f = Fleet::new(1);
    for tenant in ["red", "blue"] {
        f.brain.berth(&["tenant", "create", tenant]);
        f.brain.load_example_for(tenant);
    }
    f.brain.run_sleepers("web", 1, &["--tenant", "red"]);
    // Numbers of its own, so that the other's address is none of a container here.
    f.brain.run_sleepers("other", 4, &["--tenant", "blue"]);
    let up = eventually(Duration::from_secs(90), || {
        (all_of(&f.brain, "red").len() == 1 && all_of(&f.brain, "blue").len() == 4).then_some(())
    });
    assert!(up.is_some());
    let (red, blue) = (all_of(&f.brain, "red"), all_of(&f.brain, "blue"));
    let web = &red["web.1"];
    serve(&web.space, 80, "web.1");
    let shown = f.brain.json(&["--tenant", "red", "service", "inspect", "web"]);
    let four: IpAddr = shown["addresses"][0]["ipv4"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("address");
    let at = SocketAddr::new(four, 80);
    let own = eventually(Duration::from_secs(20), || asked(&web.space, at));
    assert_eq!(own.expect("its own tenant is answered").0, "web.1");
    for other in blue.values() {
        assert_eq!(asked(&other.space, at), None);
        assert_eq!(asked(&other.space, SocketAddr::new(web.ipv4, 80)), None);
    }
}
