//! Whether a machine's clock runs as fast as ours.
//!
//! A guest counts the ticks of its processor and measures at boot how many make a second. Emulated beside other work the
//! measurement can go wrong, and the clock then runs several times too fast or too slow: leases, time limits and ages mean nothing
//! in such a machine. Seen once: 51 of its minutes in 7 of ours.

use std::time::{Duration, Instant};

use super::machine::{Machine, PATIENCE};

/// What is looked at, in our time.
const SPAN: Duration = Duration::from_secs(2);
/// How many times too fast or too slow is wrong.
const WRONG: f64 = 1.25;

/// One look at a clock: before and after asking it, in our time, and what it said, seconds.
type Look = (f64, f64, f64);

/// How fast a clock certainly runs at least and at most, after two looks at it.
fn rates(first: Look, second: Look) -> (f64, f64) {
    let passed = second.2 - first.2;
    let (longest, shortest) = (second.1 - first.0, second.0 - first.1);
    (passed / longest, passed / shortest.max(f64::MIN_POSITIVE))
}

/// Whether a clock between these rates is certainly wrong.
fn wrong((least, most): (f64, f64)) -> bool {
    least > WRONG || most < 1.0 / WRONG
}

impl Machine {
    /// How fast its clock runs, at least and at most, if that is certainly wrong.
    pub(super) fn clock_fault(&self) -> Option<(f64, f64)> {
        let began = Instant::now();
        let look = || {
            let before = began.elapsed().as_secs_f64();
            let out = self.try_sh("cat /proc/uptime", PATIENCE).ok()?;
            let said = String::from_utf8_lossy(&out.stdout);
            let said = said.split_whitespace().next()?.parse().ok()?;
            Some((before, began.elapsed().as_secs_f64(), said))
        };
        let first = look()?;
        std::thread::sleep(SPAN);
        let rates = rates(first, look()?);
        wrong(rates).then_some(rates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_prove_nothing_and_a_fast_or_slow_clock_is_found() {
        // Asked at once: as fast as ours.
        assert!(!wrong(rates((0.0, 0.01, 5.0), (2.0, 2.01, 7.0))));
        // The second answer took ten seconds, and was read at its end or at its beginning.
        assert!(!wrong(rates((0.0, 0.01, 5.0), (2.0, 12.0, 17.0))));
        assert!(!wrong(rates((0.0, 0.01, 5.0), (2.0, 12.0, 7.0))));
        // The first did.
        assert!(!wrong(rates((0.0, 10.0, 5.0), (12.0, 12.1, 7.0))));
        assert!(!wrong(rates((0.0, 10.0, 5.0), (12.0, 12.1, 17.0))));
        // Seven times as fast, and a seventh.
        assert!(wrong(rates((0.0, 0.01, 5.0), (2.0, 2.01, 19.0))));
        assert!(wrong(rates((0.0, 0.01, 5.0), (2.0, 2.01, 5.3))));
    }
}
