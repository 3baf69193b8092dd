//! Rates from counters, pure. A counter that went back (a restart, a wrap) or a set of devices that changed gives no rate.

use std::time::Duration;

/// Over shorter intervals the clock's and the kernel's grain would show as load.
pub const SHORTEST: Duration = Duration::from_millis(20);

/// By how much a counter advanced; `None` if either reading is missing or it went back.
pub fn advance(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

/// `amount` over `elapsed`, a second.
pub fn per_second(amount: u64, elapsed: Duration) -> Option<u64> {
    if elapsed < SHORTEST {
        return None;
    }
    u64::try_from(u128::from(amount) * 1_000_000_000 / elapsed.as_nanos()).ok()
}

/// CPU time in nanoseconds over `elapsed`, in millicores.
pub fn millicores(cpu_ns: u64, elapsed: Duration) -> Option<u32> {
    if elapsed < SHORTEST {
        return None;
    }
    u32::try_from(u128::from(cpu_ns) * 1_000 / elapsed.as_nanos()).ok()
}

/// Two counters of each of several named devices, summed only while the devices stay the same ones: a device that
/// appears brings its whole past with it, which nobody moved within the interval.
#[derive(Debug, Default)]
pub struct Flows {
    entries: Vec<(String, u64, u64)>,
    next: usize,
    moved: (u64, u64),
    known: bool,
}

impl Flows {
    /// Begins a reading; call [`Self::push`] for each device in the kernel's order, then [`Self::finish`].
    pub fn begin(&mut self) {
        self.next = 0;
        self.moved = (0, 0);
    }

    /// One device's counters.
    pub fn push(&mut self, name: &str, first: u64, second: u64) {
        match self.entries.get_mut(self.next) {
            Some(entry) if entry.0 == name => {
                match (first.checked_sub(entry.1), second.checked_sub(entry.2)) {
                    (Some(a), Some(b)) => {
                        self.moved = (self.moved.0.saturating_add(a), self.moved.1.saturating_add(b));
                    }
                    _ => self.known = false,
                }
                (entry.1, entry.2) = (first, second);
            }
            _ => {
                self.known = false;
                self.entries.truncate(self.next);
                self.entries.push((name.to_owned(), first, second));
            }
        }
        self.next += 1;
    }

    /// What moved since the reading before, if there was one of the same devices without a reset.
    pub fn finish(&mut self) -> Option<(u64, u64)> {
        if self.entries.len() > self.next {
            self.entries.truncate(self.next);
            self.known = false;
        }
        let known = std::mem::replace(&mut self.known, true);
        (known && self.next > 0).then_some(self.moved)
    }

    /// The reading failed: the next one starts afresh.
    pub fn forget(&mut self) {
        self.entries.clear();
        self.known = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(flows: &mut Flows, devices: &[(&str, u64, u64)]) -> Option<(u64, u64)> {
        flows.begin();
        for (name, a, b) in devices {
            flows.push(name, *a, *b);
        }
        flows.finish()
    }

    #[test]
    fn only_the_same_devices_moving_forward_give_a_sum() {
        let mut flows = Flows::default();
        assert_eq!(read(&mut flows, &[("a", 10, 1), ("b", 5, 5)]), None);
        assert_eq!(read(&mut flows, &[("a", 11, 1), ("b", 9, 6)]), Some((5, 1)));
        assert_eq!(
            read(&mut flows, &[("a", 11, 1), ("b", 9, 6), ("c", 900, 900)]),
            None,
            "appeared"
        );
        assert_eq!(
            read(&mut flows, &[("a", 11, 1), ("b", 9, 6), ("c", 901, 900)]),
            Some((1, 0))
        );
        assert_eq!(read(&mut flows, &[("b", 9, 6), ("c", 901, 900)]), None, "went");
        assert_eq!(read(&mut flows, &[("b", 9, 6), ("c", 902, 900)]), Some((1, 0)));
        assert_eq!(
            read(&mut flows, &[("b", 1, 6), ("c", 903, 900)]),
            None,
            "was reset"
        );
        assert_eq!(read(&mut flows, &[("b", 1, 7), ("c", 903, 900)]), Some((0, 1)));
        flows.forget();
        assert_eq!(
            read(&mut flows, &[("b", 1, 7), ("c", 903, 900)]),
            None,
            "nothing before"
        );
        assert_eq!(read(&mut flows, &[]), None);
        assert_eq!(read(&mut flows, &[]), None, "no device is not zero load");
    }

    #[test]
    fn rates_use_the_real_interval() {
        assert_eq!(per_second(100, Duration::from_millis(500)), Some(200));
        assert_eq!(millicores(1_000_000_000, Duration::from_secs(2)), Some(500));
        assert_eq!(per_second(1, Duration::ZERO), None);
        assert_eq!(advance(Some(5), Some(4)), None);
        assert_eq!(advance(None, Some(4)), None);
        assert_eq!(advance(Some(4), None), None);
    }

    proptest! {
        #[test]
        fn no_reset_gives_a_negative_or_invented_rate(before in any::<u64>(), now in any::<u64>(), ms in 0u64..10_000) {
            let got = advance(Some(before), Some(now)).and_then(|moved| per_second(moved, Duration::from_millis(ms)));
            if now < before || ms < 20 {
                prop_assert_eq!(got, None);
            }
        }
    }
}
