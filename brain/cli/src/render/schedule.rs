//! Places compared, and what is foreseen, as tables with their sentence.

use std::fmt::Write as _;

use berth_common::api::{Fate, ForeseenReplica, ForeseenView, NodeFit, PackView, PlacementView, ScoreParts};

use super::text::{clean, moment};
use super::{Style, cell, table};

/// `berth schedule explain`.
pub fn placement(style: Style, view: &PlacementView) -> String {
    let mut text = String::new();
    if !view.nodes.is_empty() {
        text.push_str(&nodes(style, &view.nodes));
        text.push('\n');
    }
    let _ = writeln!(text, "{}", clean(&view.verdict));
    if !view.events.is_empty() {
        text.push_str("\nlately:\n");
    }
    for event in &view.events {
        let (kind, what) = (clean(&event.kind), clean(&event.text));
        let _ = writeln!(text, "  {}  {kind:<10}  {what}", moment(event.at));
    }
    text
}

fn nodes(style: Style, nodes: &[NodeFit]) -> String {
    // Parts that are nothing everywhere say nothing.
    let used = |at: usize| {
        let mut scores = nodes.iter().filter_map(|node| node.score.as_ref());
        scores.any(|score| score.parts()[at].1 != 0)
    };
    let parts: Vec<usize> = (0..ScoreParts::default().parts().len())
        .filter(|at| used(*at))
        .collect();
    let names: Vec<String> = parts
        .iter()
        .map(|at| ScoreParts::default().parts()[*at].0.to_uppercase())
        .collect();
    let mut header = vec!["", "NODE", "SCORE"];
    header.extend(names.iter().map(String::as_str));
    header.extend([
        "FREE CPU",
        "FREE MEMORY",
        "CPU WITH IT",
        "MEMORY WITH IT",
        "VERDICT",
    ]);
    let rows = nodes.iter().map(|node| {
        let score = node.score.as_ref();
        let mut row = vec![
            cell(if node.best { "*" } else { "" }),
            cell(&node.name),
            cell(score.map_or_else(|| "-".into(), |score| score.total.to_string())),
        ];
        row.extend(
            parts
                .iter()
                .map(|at| cell(score.map_or_else(|| "-".into(), |score| score.parts()[*at].1.to_string()))),
        );
        let share = |of: Option<u32>| cell(of.map_or_else(|| "-".into(), |percent| format!("{percent}%")));
        row.extend([
            cell(node.free.cpu),
            cell(node.free.memory),
            share(node.expected.map(|expected| expected.cpu_high_percent)),
            share(node.expected.map(|expected| expected.memory_percent)),
            cell(verdict(node)),
        ]);
        row
    });
    table(style, &header, rows.collect())
}

fn verdict(node: &NodeFit) -> String {
    let mut words = Vec::new();
    if node.here {
        words.push("here".to_owned());
    }
    if node.best {
        words.push("best".to_owned());
    }
    words.extend(node.against.iter().cloned());
    if words.is_empty() {
        words.push("fits".to_owned());
    }
    words.join(", ")
}

/// `berth schedule what-if`.
pub fn foreseen(style: Style, view: &ForeseenView) -> String {
    let mut text = String::new();
    if !view.replicas.is_empty() {
        text.push_str(&replicas(style, &view.replicas));
        text.push('\n');
    }
    if !view.nodes.is_empty() {
        let rows = view.nodes.iter();
        let rows = rows.map(|node| vec![cell(&node.name), cell(node.replicas), cell(node.new)]);
        text.push_str(&table(style, &["NODE", "REPLICAS", "NEW"], rows.collect()));
        text.push('\n');
    }
    if !view.others.is_empty() {
        text.push_str("others:\n");
        text.push_str(&replicas(style, &view.others));
        text.push('\n');
    }
    for sentence in &view.preempted {
        let _ = writeln!(text, "{}", clean(sentence));
    }
    let _ = writeln!(text, "{}", clean(&view.verdict));
    text
}

fn replicas(style: Style, all: &[ForeseenReplica]) -> String {
    let rows = all.iter().map(|one| {
        let name = |name: Option<&berth_common::id::Name>| cell(name.map_or("-", |name| name.as_str()));
        vec![
            cell(&one.name),
            style.state(fate(one.fate)),
            name(one.from.as_ref()),
            name(one.to.as_ref()),
            cell(one.why.as_deref().unwrap_or_default()),
        ]
    });
    table(
        style,
        &["REPLICA", "WOULD BE", "FROM", "TO", "WHY"],
        rows.collect(),
    )
}

fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::New => "new",
        Fate::Stays => "as it is",
        Fate::Changed => "changed in place",
        Fate::Replaced => "replaced",
        Fate::Waits => "waiting",
        Fate::Removed => "removed",
        Fate::Lost => "lost",
        Fate::Unknown => "unknown",
    }
}

/// `berth node pack`.
pub fn packed(style: Style, view: &PackView) -> String {
    let mut text = String::new();
    let moves = view.freed.iter().flat_map(|node| {
        let empty = node
            .moves
            .is_empty()
            .then(|| vec![cell(&node.name), cell("-"), cell("-"), cell("-")]);
        let moves = node.moves.iter().map(|one| {
            vec![
                cell(&node.name),
                cell(&one.name),
                cell(&one.tenant_name),
                cell(&one.to),
            ]
        });
        empty.into_iter().chain(moves)
    });
    let moves: Vec<_> = moves.collect();
    if !moves.is_empty() {
        text.push_str(&table(style, &["EMPTIED", "CONTAINER", "TENANT", "TO"], moves));
        text.push('\n');
    }
    let kept = view
        .kept
        .iter()
        .map(|node| vec![cell(&node.name), cell(&node.why)]);
    let kept: Vec<_> = kept.collect();
    if !kept.is_empty() {
        text.push_str(&table(style, &["STAYS", "WHY"], kept));
        text.push('\n');
    }
    let _ = writeln!(text, "{}", clean(&view.verdict));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { color: false };

    fn fit(name: &str, score: Option<ScoreParts>, against: &[&str]) -> NodeFit {
        let value = serde_json::json!({ "node": "aaaaaaaaaaaaaaaa", "name": name, "here": name == "h1", "best": name == "h1",
            "against": against, "score": score, "free": { "cpu": 1500, "memory": 1_u64 << 30, "disk": 0 }, "replicas": 0,
            "expected": { "cpu_percent": 20, "cpu_high_percent": 41, "memory_percent": 7, "deviations": 8.0 } });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_comparison_shows_the_parts_that_say_something_and_ends_in_words() {
        let score = |load| ScoreParts {
            total: 900 + load,
            reservation: 900,
            load,
            ..ScoreParts::default()
        };
        let view = PlacementView {
            container: "aaaaaaaaaaaaaaaa".parse().unwrap(),
            name: "web.1".into(),
            node_name: "h1".parse().ok(),
            best: "h1".parse().ok(),
            verdict: "web.1 is on h1\u{1b}".into(),
            asked: Default::default(),
            cpu: 0,
            memory: 0,
            nodes: vec![
                fit("h1", Some(score(64_000)), &[]),
                fit("h2", Some(score(50)), &[]),
                fit("h3", None, &["is cordoned", "lacks disk"]),
            ],
            events: Vec::new(),
        };
        let told = placement(PLAIN, &view);
        let lines: Vec<&str> = told.lines().collect();
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            words(lines[0]),
            "NODE SCORE RESERVATION LOAD FREE CPU FREE MEMORY CPU WITH IT MEMORY WITH IT VERDICT"
        );
        assert_eq!(words(lines[1]), "* h1 64900 900 64000 1.5 1GiB 41% 7% here, best");
        assert_eq!(words(lines[2]), "h2 950 900 50 1.5 1GiB 41% 7% fits");
        assert_eq!(
            words(lines[3]),
            "h3 - - - 1.5 1GiB 41% 7% is cordoned, lacks disk"
        );
        assert_eq!(lines[5], "web.1 is on h1·");
    }

    #[test]
    fn what_is_foreseen_is_told_replica_by_replica() {
        let one = |name: &str, fate, to: Option<&str>, why: Option<&str>| ForeseenReplica {
            name: name.into(),
            fate,
            from: None,
            to: to.and_then(|name| name.parse().ok()),
            why: why.map(str::to_owned),
        };
        let view = ForeseenView {
            verdict: "1 of 2 would wait".into(),
            fits: false,
            replicas: vec![
                one("web.1", Fate::New, Some("h1"), None),
                one("web.2", Fate::Waits, None, Some("no node fits")),
            ],
            nodes: Vec::new(),
            others: vec![one("db.1", Fate::Replaced, Some("h2"), None)],
            preempted: vec!["preempted db.1".into()],
            cut: false,
        };
        let told = foreseen(PLAIN, &view);
        assert!(
            told.contains("web.2     waiting    -      -    no node fits\n"),
            "{told}"
        );
        assert!(
            told.contains("others:\n") && told.contains("db.1      replaced   -      h2"),
            "{told}"
        );
        assert!(told.ends_with("preempted db.1\n1 of 2 would wait\n"), "{told}");
    }
}
