//! Names inside networks, with everything there is of berth.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_tests::fleet::{Fleet, Inside, all, all_of};
use berth_tests::host::Host;
use berth_tests::names::{Told, ask, ask_tcp, resolver};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;

fn of<'a>(inside: impl IntoIterator<Item = &'a Inside>) -> Told {
    Told::Addresses(inside.into_iter().map(|c| c.ipv4).collect())
}

/// Names follow containers within a moment.
fn comes_to(within: u64, f: &Fleet, want: &Told, mut asked: impl FnMut() -> Told) {
    let limit = Duration::from_secs(within);
    let found = eventually(limit, || (asked() == *want).then_some(()));
    assert!(
        found.is_some(),
        "{want:?} is wanted, {:?} told\n{}",
        asked(),
        f.agents[0].log()
    );
}

#[test]
fn services_and_replicas_have_names_that_follow_them_and_outlive_the_brain() {
    let mut f = Fleet::with(2, |lan| format!("nameservers = [\"{}\"]", lan.address(200)));
    let outside = Host::new("world");
    f.lan.attach(&outside, "eth0", 200);
    let address: IpAddr = f.lan.address(200).parse().expect("address");
    let heard = resolver(&outside.space(), address, "example.org.", [203, 0, 113, 7]);
    f.brain
        .berth(&["network", "create", "back", "--cidr", "10.20.0.0/16"]);
    f.brain
        .run_sleepers("web", 3, &["--network", "default", "--network", "back"]);
    f.brain.run_sleepers("db", 1, &["--network", "back"]);
    f.brain.wait_running(4, 90);
    let now = all(&f.brain);
    let web: Vec<&Inside> = ["web.1", "web.2", "web.3"]
        .iter()
        .map(|name| &now[*name])
        .collect();
    let from = web[0];
    let gateway: IpAddr = [10, 64, 0, 1].into();
    let asks = |name: &str| ask(&from.space, gateway, name, false);

    comes_to(20, &f, &of(web.clone()), || asks("all.web."));
    for container in &web {
        comes_to(20, &f, &of(web.clone()), || {
            ask(&container.space, gateway, "all.web.", false)
        });
    }
    assert_eq!(ask_tcp(&from.space, gateway, "ALL.WEB."), of(web.clone()));
    let six: BTreeSet<_> = web.iter().map(|c| c.ipv6).collect();
    assert_eq!(
        ask(&from.space, gateway, "all.web.default.berth.internal.", true),
        Told::Addresses(six)
    );
    assert_eq!(asks("2.web."), of([web[1]]));
    // On the second network, by its own name and by the short one; the other way round it is not known.
    let own = |service: &str| {
        let shown = f.brain.json(&["service", "inspect", service]);
        let address = shown["addresses"][0]["ipv4"].as_str().expect("address");
        Told::Addresses([address.parse().expect("address")].into())
    };
    let (web_own, db_own) = (own("web"), own("db"));
    comes_to(20, &f, &of([&now["db.1"]]), || {
        asks("all.db.back.berth.internal.")
    });
    assert_eq!((asks("web."), asks("db.")), (own("web"), own("db")));
    assert_eq!(asks("db.back.berth.internal."), db_own);
    assert_eq!(asks("db.default.berth.internal."), Told::NoName);
    let back: IpAddr = [10, 20, 0, 1].into();
    let on_back = ask(&now["db.1"].space, back, "all.web.", false);
    assert!(
        matches!(&on_back, Told::Addresses(some) if some.len() == 3 && *some != web.iter().map(|c| c.ipv4).collect()),
        "{on_back:?}"
    );
    assert_eq!(
        ask(&now["db.1"].space, back, "web.default.berth.internal.", false),
        Told::NoName
    );
    assert_eq!(asks("nobody."), Told::NoName);
    assert!(heard.try_recv().is_err(), "a short name never leaves the host");
    // What is not berth's is the host's resolvers' to know.
    assert_eq!(
        asks("example.org."),
        Told::Addresses([[203, 0, 113, 7].into()].into())
    );
    assert_eq!(asks("example.com."), Told::NoName);
    let hosts: Vec<IpAddr> = [11, 12]
        .iter()
        .map(|n| f.lan.address(*n).parse().expect("address"))
        .collect();
    assert!(hosts.contains(&heard.recv().expect("somebody asked")));

    // As programs look names up.
    let (lookup, file) = (
        ["exec", "web.1", "nslookup", "db"],
        ["exec", "web.1", "cat", "/etc/resolv.conf"],
    );
    let looked = f.brain.try_berth(&lookup);
    let text = String::from_utf8_lossy(&looked.stdout).into_owned();
    assert!(
        matches!(&db_own, Told::Addresses(one) if one.iter().all(|ip| text.contains(&ip.to_string()))),
        "{text}\n{}",
        f.brain.berth(&file)
    );
    let text = f.brain.berth(&file);
    assert!(
        text.contains("nameserver 10.64.0.1\nsearch default.berth.internal back.berth.internal"),
        "{text}"
    );

    // Fewer replicas, fewer addresses; a stopped service keeps its own alone.
    f.brain.berth(&["service", "scale", "web", "2"]);
    comes_to(20, &f, &of([web[0], web[1]]), || asks("all.web."));
    f.brain.berth(&["stop", "db"]);
    comes_to(20, &f, &Told::NoName, || asks("all.db.back.berth.internal."));
    assert_eq!(asks("db."), db_own);
    f.brain.berth(&["start", "db"]);
    comes_to(30, &f, &of([&now["db.1"]]), || {
        asks("all.db.back.berth.internal.")
    });

    // The brain away, and agents restarted without it. What an agent heard is on its disk a moment later.
    std::thread::sleep(Duration::from_secs(1));
    f.brain.kill9();
    assert_eq!(asks("all.web."), of([web[0], web[1]]));
    assert_eq!(asks("web."), web_own);
    f.agents.iter_mut().for_each(|agent| agent.kill9());
    f.agents.iter_mut().for_each(|agent| agent.restart());
    comes_to(30, &f, &of([web[0], web[1]]), || asks("all.web."));
    assert_eq!(
        asks("example.org."),
        Told::Addresses([[203, 0, 113, 7].into()].into())
    );
    // A new brain knows nothing of what runs until it is told; names stay.
    f.brain.restart();
    for _ in 0..30 {
        assert_eq!(asks("all.web."), of([web[0], web[1]]));
        assert_eq!(asks("web."), web_own);
        assert_eq!(asks("db."), db_own);
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn r6_names_are_of_the_own_tenant_and_a_flood_of_questions_is_nobody_elses_trouble() {
    let f = Fleet::new(1);
    let of_tenant = |tenant: &str| all_of(&f.brain, tenant).into_values().next();
    for tenant in ["red", "blue"] {
        f.brain.berth(&["tenant", "create", tenant]);
        f.brain.load_example_for(tenant);
        f.brain
            .run_sleepers(&format!("of-{tenant}"), 1, &["--tenant", tenant]);
        let up = eventually(Duration::from_secs(60), || of_tenant(tenant).map(drop));
        assert!(up.is_some(), "{}", f.brain.berth(&["ps", "--tenant", tenant]));
    }
    let (red, blue) = (of_tenant("red").expect("runs"), of_tenant("blue").expect("runs"));
    let gateway: IpAddr = [10, 64, 0, 1].into();
    for (own, other, inside) in [("of-red.", "of-blue.", &red), ("of-blue.", "of-red.", &blue)] {
        let all_own = format!("all.{own}default.berth.internal.");
        comes_to(20, &f, &of([inside]), || {
            ask(&inside.space, gateway, &all_own, false)
        });
        assert_eq!(ask(&inside.space, gateway, other, false), Told::NoName);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let flood = red.space.within({
        let stop = stop.clone();
        move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
            std::thread::spawn(move || {
                let mut question = vec![0; 12];
                question[5] = 1;
                question.extend(b"\x06of-red\0\0\x01\0\x01");
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    sent += u64::from(socket.send_to(&question, SocketAddr::new(gateway, 53)).is_ok());
                }
                sent
            })
        }
    });
    let flood = flood.expect("namespace");
    std::thread::sleep(Duration::from_millis(500));
    for n in 0..100 {
        assert_eq!(
            ask(&blue.space, gateway, "1.of-blue.", false),
            of([&blue]),
            "question {n}"
        );
    }
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().expect("flood");
    assert!(sent > 20_000, "it was a flood: {sent}");
    comes_to(20, &f, &of([&red]), || {
        ask(&red.space, gateway, "1.of-red.", false)
    });
}
