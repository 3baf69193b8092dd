//! The picture of replays: for each policy how full every host was over the day, as plain SVG.
//!
//! Owns what it looks like. Pure: the same scenario and events are the same text. A row is a host, a column an interval; neighbours that
//! look alike are one stroke, which keeps the file small.

use std::fmt::Write as _;

use super::engine::Event;
use super::report::{asked, outside, whole};
use super::scenario::{INTERVAL, Scenario};

/// Most hosts that can be told from one another.
pub const MOST_HOSTS: usize = 100;

/// Shares of a host's CPU, percent, up to which the steps of the scale go; what is over all of them is overload.
const STEPS: [u64; 5] = [30, 50, 70, 85, 100];
/// The class of overload that containers make.
const OVER: usize = STEPS.len();
/// The class of overload that is from outside alone.
const HOPELESS: usize = OVER + 1;
const CLASSES: usize = HOPELESS + 1;

/// Sizes, pixels: a panel's width, between panels, left of them, over the first ones, of a panel's title.
const WIDTH: usize = 432;
const GAP: usize = 28;
const LEFT: usize = 16;
const HEAD: usize = 78;
const TITLE: usize = 22;
const COLUMNS: usize = 2;

/// Colours on a light ground, then on a dark one: more is further from the ground.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-size:16px;font-weight:600}.n{font-weight:600}.s{fill:#59636e}.a{font-size:11px}\
.g{fill:#fff}path{fill:none}.o{stroke:#1f2328}\
.c0{stroke:#eef3f8;fill:#eef3f8}.c1{stroke:#cfe0f0;fill:#cfe0f0}.c2{stroke:#a3c4e2;fill:#a3c4e2}.c3{stroke:#6a9fd0;fill:#6a9fd0}\
.c4{stroke:#2f6fae;fill:#2f6fae}.c5{stroke:#e8590c;fill:#e8590c}.c6{stroke:#8a1f7a;fill:#8a1f7a}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.g{fill:#0d1117}.o{stroke:#e6edf3}\
.c0{stroke:#161d27;fill:#161d27}.c1{stroke:#1b2f45;fill:#1b2f45}.c2{stroke:#23496e;fill:#23496e}.c3{stroke:#35709f;fill:#35709f}\
.c4{stroke:#74abd9;fill:#74abd9}.c5{stroke:#ff7b29;fill:#ff7b29}.c6{stroke:#e56bd0;fill:#e56bd0}}";

/// What a cell looks like.
fn class(asked: u64, outside: u64, whole: u64) -> usize {
    if outside > whole {
        return HOPELESS;
    }
    STEPS
        .iter()
        .position(|step| asked * 100 <= whole * step)
        .unwrap_or(OVER)
}

/// A picture with a panel of each of `replays`: a policy's name, what is to be said of it, and what happened.
pub fn svg(scenario: &Scenario, title: &str, replays: &[(&str, String, &[Event])]) -> String {
    let (hosts, intervals) = (scenario.settings.hosts, (scenario.end() / INTERVAL) as usize);
    // Rows are high enough to be seen, and no higher than the panel is wide.
    let row = (150 / hosts.max(1)).clamp(3, 12);
    let panel = TITLE + hosts * row + GAP;
    let across = LEFT + COLUMNS * (WIDTH + GAP);
    let down = HEAD + replays.len().div_ceil(COLUMNS) * panel;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {across} {down}\" width=\"{across}\" height=\"{down}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<rect class=\"g\" width=\"{across}\" height=\"{down}\"/>\n\
         <text class=\"t\" x=\"{LEFT}\" y=\"26\">{title}</text>\n",
        title = escaped(title)
    );
    legend(&mut text);
    let foreign = outside(scenario);
    for (nth, (name, told, events)) in replays.iter().enumerate() {
        let (x, y) = (LEFT + nth % COLUMNS * (WIDTH + GAP), HEAD + nth / COLUMNS * panel);
        let _ = write!(
            text,
            "<text x=\"{x}\" y=\"{}\"><tspan class=\"n\">{}</tspan><tspan class=\"s\" dx=\"8\">{}</tspan></text>\n\
             <g transform=\"translate({x} {}) scale({:.3} {row})\" shape-rendering=\"crispEdges\">\n",
            y + 14,
            escaped(name),
            escaped(told),
            y + TITLE,
            WIDTH as f64 / intervals.max(1) as f64,
        );
        let cells: Vec<usize> = asked(scenario, events)
            .iter()
            .zip(&foreign)
            .map(|(asked, outside)| class(*asked, *outside, whole(scenario)))
            .collect();
        for (class, path) in strokes(&cells, intervals).iter().enumerate() {
            if !path.is_empty() {
                let _ = writeln!(text, "<path class=\"c{class}\" d=\"{path}\"/>");
            }
        }
        text.push_str("</g>\n");
        marks(&mut text, scenario, x, y + TITLE, row);
        hours(&mut text, scenario, x, y + TITLE + hosts * row + 13);
    }
    text.push_str("</svg>\n");
    text
}

/// Of each class its cells: a stroke for those of a row that are side by side.
fn strokes(cells: &[usize], intervals: usize) -> [String; CLASSES] {
    let mut paths: [String; CLASSES] = Default::default();
    for (host, day) in cells.chunks(intervals.max(1)).enumerate() {
        let mut at = 0;
        for alike in day.chunk_by(|one, next| one == next) {
            // Half a row down: a stroke is as wide as a row.
            let _ = write!(paths[alike[0]], "M{at} {host}.5h{}", alike.len());
            at += alike.len();
        }
    }
    paths
}

/// A mark left of every host that has load from outside.
fn marks(text: &mut String, scenario: &Scenario, x: usize, y: usize, row: usize) {
    let hosts: std::collections::BTreeSet<usize> = scenario.foreign.iter().map(|(_, host)| *host).collect();
    let mut path = String::new();
    for host in hosts {
        let _ = write!(path, "M{} {}v{}", x - 4, y + host * row, row - 1);
    }
    if !path.is_empty() {
        let _ = writeln!(text, "<path class=\"o\" stroke-width=\"3\" d=\"{path}\"/>");
    }
}

/// Begin, middle and end of the time across.
fn hours(text: &mut String, scenario: &Scenario, x: usize, y: usize) {
    for (nth, anchor) in ["start", "middle", "end"].into_iter().enumerate() {
        let hour = f64::from(scenario.end()) * nth as f64 / 2.0 / 3_600.0;
        let _ = writeln!(
            text,
            "<text class=\"s a\" text-anchor=\"{anchor}\" x=\"{}\" y=\"{y}\">{hour:.0} h</text>",
            x + WIDTH * nth / 2
        );
    }
}

fn legend(text: &mut String) {
    let mut x = LEFT;
    let mut entry = |class: &str, width: usize, words: &str| {
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"40\" width=\"{width}\" height=\"12\"/><text class=\"s\" x=\"{}\" y=\"51\">{words}</text>",
            x + width + 6
        );
        x += width + 14 + words.len() * 7;
    };
    for (class, step) in STEPS.iter().enumerate() {
        entry(&format!("c{class}"), 14, &format!("to {step} %"));
    }
    entry(&format!("c{OVER}"), 14, "overloaded");
    entry(&format!("c{HOPELESS}"), 14, "from outside alone");
    let _ = writeln!(
        text,
        "<path class=\"o\" stroke-width=\"3\" d=\"M{x} 40v12\"/><text class=\"s\" x=\"{}\" y=\"51\">host with load from outside</text>",
        x + 8
    );
}

/// As text of XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::engine::{Telemetry, run};
    use crate::simulate::policy::by_name;
    use crate::simulate::report::figures;
    use crate::simulate::scenario::Settings;
    use crate::simulate::trace::Row;

    /// Names of elements as they begin and end; panics where that is no tree.
    fn elements(text: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        let mut pieces = text.split('<');
        assert_eq!(pieces.next(), Some(""), "nothing before the first element");
        for piece in pieces {
            let (tag, after) = piece.split_once('>').expect("a tag ends");
            assert!(!after.contains('>') && !tag.contains('&') && tag.matches('"').count() % 2 == 0);
            assert!(!open.is_empty() || seen.is_empty(), "one root");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "ends what is open");
            } else {
                let name = tag.split([' ', '/']).next().unwrap().to_owned();
                seen.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
        seen
    }

    /// Cells that the strokes of a class cover.
    fn cells(text: &str, class: usize) -> usize {
        let begin = format!("<path class=\"c{class}\" d=\"");
        let paths = text.lines().filter_map(|line| line.strip_prefix(&begin));
        paths
            .flat_map(|path| path.trim_end_matches("\"/>").split('h').skip(1))
            .map(|part| part.split('M').next().unwrap().parse::<usize>().unwrap())
            .sum()
    }

    #[test]
    fn a_picture_is_a_tree_and_shows_every_interval_as_it_was() {
        let rows: Vec<Row> = (0..60_u32)
            .map(|row| {
                (0..48_u32)
                    .map(|at| ((row * 37 + at * at * 13) % 101) as u8)
                    .collect()
            })
            .collect();
        let settings = Settings {
            hosts: 5,
            host_cpu: 9_000,
            arrive: 3_600,
            ..Settings::default()
        };
        let scenario = Scenario::new(settings, rows, None).unwrap();
        let replay = |name| run(&scenario, &mut *by_name(name, 1).unwrap(), Telemetry::default());
        let (one, other) = (replay("requests"), replay("binpack"));
        let draw = |replays: &[(&str, String, &[Event])]| svg(&scenario, "a < b & c", replays);
        for (name, events) in [("requests", &one), ("binpack", &other)] {
            let text = draw(&[(name, String::new(), events)]);
            let told = figures(name, &scenario, events);
            assert!(
                told.overloaded > 0 && told.overloaded_from_outside > 0,
                "{told:?}"
            );
            assert_eq!(cells(&text, HOPELESS), told.overloaded_from_outside);
            assert_eq!(cells(&text, OVER), told.overloaded - told.overloaded_from_outside);
            let all: usize = (0..CLASSES).map(|class| cells(&text, class)).sum();
            assert_eq!(all, told.intervals);
        }
        let both = draw(&[("requests", "x".into(), &one), ("binpack", "y".into(), &other)]);
        let seen = elements(&both);
        assert_eq!(seen.iter().filter(|name| *name == "g").count(), 2, "a panel each");
        assert!(both.contains("<title>a &lt; b &amp; c</title>"));
        assert_eq!(
            both,
            draw(&[("requests", "x".into(), &one), ("binpack", "y".into(), &other)])
        );
    }

    #[test]
    fn neighbours_that_look_alike_are_one_stroke() {
        let told = strokes(&[0, 0, 5, 5, 5, 0, 1, 1], 4);
        assert_eq!((&*told[0], &*told[1]), ("M0 0.5h2M1 1.5h1", "M2 1.5h2"));
        assert_eq!(told[5], "M2 0.5h2M0 1.5h1");
        let whole = 1_000;
        let classes = [(0, 0), (300, 0), (301, 0), (1_000, 0), (1_001, 0), (1_001, 1_001)];
        let classes = classes.map(|(asked, outside)| class(asked, outside, whole));
        assert_eq!(classes, [0, 0, 1, 4, OVER, HOPELESS]);
    }
}
