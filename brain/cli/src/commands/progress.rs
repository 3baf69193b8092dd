//! Progress of long work on standard error: bars on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::render::text::clean;

/// One changing sentence.
pub struct Line {
    bar: Option<ProgressBar>,
    last: RefCell<String>,
    quiet: bool,
}

impl Line {
    /// A silent one if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            last: RefCell::new(String::new()),
            quiet,
        }
    }

    /// Whether what is said replaces what was said before.
    pub const fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Says it, once.
    pub fn say(&self, text: &str) {
        let text = clean(text);
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if self.quiet || *self.last.borrow() == text => {}
            None => {
                eprintln!("{text}");
                *self.last.borrow_mut() = text;
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar of bytes.
pub fn byte_bar(quiet: bool, total: Option<u64>) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match total {
        Some(total) => ProgressBar::new(total).with_style(bar_style()),
        None => ProgressBar::new_spinner(),
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:30!} {bar:30} {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Many pieces of work at once, by name.
pub struct Board {
    bars: MultiProgress,
    by_name: BTreeMap<String, (ProgressBar, String)>,
    terminal: bool,
    quiet: bool,
}

impl Board {
    /// A silent one if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self {
            bars: MultiProgress::new(),
            by_name: BTreeMap::new(),
            terminal: std::io::stderr().is_terminal(),
            quiet,
        }
    }

    /// `name` is at `step`, `done` of `total` (0: unknown).
    pub fn update(&mut self, name: &str, step: &str, done: u64, total: u64) {
        // A hostile peer could name ever new pieces.
        if self.quiet || (self.by_name.len() >= 500 && !self.by_name.contains_key(name)) {
            return;
        }
        let (name, step) = (clean(name), clean(step));
        let bars = &self.bars;
        let terminal = self.terminal;
        let (bar, last) = self.by_name.entry(name.clone()).or_insert_with(|| {
            let bar = if terminal {
                bars.add(ProgressBar::new(total))
            } else {
                ProgressBar::hidden()
            };
            (bar.with_style(bar_style()), String::new())
        });
        if terminal {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{name} {step}"));
        } else if *last != step {
            eprintln!("{name}: {step}");
        }
        *last = step;
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        for (bar, _) in self.by_name.values() {
            bar.finish_and_clear();
        }
    }
}
