//! What `/proc` and `/sys` say about the host, parsed. Malformed text gives nothing.

use std::path::Path;

/// Calls `each` with name, bytes received and bytes sent of every interface in `/proc/net/dev`.
///
/// `None`, with some interfaces perhaps told, if the text is not as expected.
pub(super) fn interfaces(text: &str, mut each: impl FnMut(&str, u64, u64)) -> Option<()> {
    let mut lines = text.lines();
    lines.next()?.strip_prefix("Inter-|")?;
    lines.next()?;
    for line in lines {
        let (name, numbers) = line.rsplit_once(':')?;
        let mut numbers = numbers.split_ascii_whitespace();
        let received = numbers.next()?.parse().ok()?;
        let sent = numbers.nth(7)?.parse().ok()?;
        each(name.trim_start(), received, sent);
    }
    Some(())
}

/// Interfaces that a default route of `/proc/net/route` uses.
pub(super) fn default_routes(text: &str) -> Vec<String> {
    let mut found: Vec<String> = text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (name, destination) = (words.next()?, words.next()?);
            (destination == "00000000").then(|| name.to_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Names that have hardware behind them: `/sys/class/net` or `/sys/block` link them to a device. Loop, RAM, device
/// mapper and md disks, partitions, bridges, veths and tunnels have none; their traffic shows at what they stand on.
pub(super) fn has_device(class: &Path, name: &str) -> bool {
    // Names come from the kernel and hold no slash; `!` stands for it in /sys.
    class.join(name.replace('/', "!")).join("device").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n";

    #[test]
    fn interfaces_table() {
        let mut seen = Vec::new();
        let text = format!(
            "{HEAD}    lo: 3193 29 0 0 0 0 0 0 77 29 0 0 0 0 0 0\n  eth0:254 1 2 3 4 5 6 7 96 1 0 0 0 0 0 0\n"
        );
        interfaces(&text, |name, rx, tx| seen.push((name.to_owned(), rx, tx))).unwrap();
        assert_eq!(seen, [("lo".to_owned(), 3193, 77), ("eth0".to_owned(), 254, 96)]);
        for bad in [
            "",
            "x\ny\n",
            &format!("{HEAD}eth0: 1 2\n"),
            &format!("{HEAD}eth0\n"),
            &format!("{HEAD}eth0: -1 0 0 0 0 0 0 0 1\n"),
        ] {
            assert!(interfaces(bad, |_, _, _| {}).is_none(), "{bad}");
        }
    }

    #[test]
    fn routes_table() {
        let text =
            "Iface\tDestination\tGateway\nup0\t00000000\t0101A8C0\nup0\t00000000\t0\nlan\t0000A8C0\t0\n";
        assert_eq!(default_routes(text), ["up0"]);
        assert!(default_routes("").is_empty());
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in ".{0,200}") {
            let _ = interfaces(&format!("{HEAD}{text}"), |_, _, _| {});
            let _ = default_routes(&text);
        }
    }
}
