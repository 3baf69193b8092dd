//! Counts links that are up, and measures how long the crowd needs to come back. Pure.

use std::time::{Duration, Instant};

/// What is known of every link. Fed with looks at all of them; as exact as the looks are frequent.
#[derive(Debug, Default)]
pub struct Tracker {
    links: Vec<(Option<usize>, bool)>,
    began: Option<Instant>,
    complete: bool,
    /// Links that are up.
    pub connected: usize,
    /// Links that came back after having been up, so far.
    pub reconnects: u64,
    /// From the first link lost to the last one back, of the last outage that is over.
    pub last_outage: Option<Duration>,
}

impl Tracker {
    /// Takes a look: for each agent, in a fixed order, which connection it has.
    pub fn look(&mut self, now: Instant, links: impl Iterator<Item = Option<usize>>) {
        self.connected = 0;
        let mut lost = false;
        for (at, link) in links.enumerate() {
            if at == self.links.len() {
                self.links.push((None, false));
            }
            let (before, was_up) = self.links[at];
            // Another connection than at the last look: it was lost and came back in between.
            lost |= before.is_some() && link != before;
            if link.is_some() {
                self.connected += 1;
                if link != before && was_up {
                    self.reconnects += 1;
                }
            }
            self.links[at] = (link, was_up || link.is_some());
        }
        if lost && self.complete && self.began.is_none() {
            self.began = Some(now);
        }
        let all = !self.links.is_empty() && self.connected == self.links.len();
        // Losses while the crowd is still arriving are no outage.
        self.complete |= all;
        if all && let Some(began) = self.began.take() {
            self.last_outage = Some(now.duration_since(began));
        }
    }

    /// How long the present outage lasts.
    pub fn outage(&self, now: Instant) -> Option<Duration> {
        self.began.map(|began| now.duration_since(began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_the_first_loss_to_the_last_return() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut tracker = Tracker::default();
        let mut look = |secs, links: [Option<usize>; 3]| {
            tracker.look(at(secs), links.into_iter());
            (
                tracker.connected,
                tracker.reconnects,
                tracker.last_outage.map(|d| d.as_secs()),
                tracker.began.is_some(),
            )
        };
        assert_eq!(look(0, [None, Some(1), None]), (1, 0, None, false));
        assert_eq!(
            look(1, [Some(2), None, None]),
            (1, 0, None, false),
            "still arriving"
        );
        assert_eq!(look(2, [Some(2), Some(3), Some(4)]), (3, 1, None, false));
        assert_eq!(look(5, [Some(2), None, Some(4)]), (2, 1, None, true));
        assert_eq!(look(6, [None, None, None]), (0, 1, None, true));
        assert_eq!(look(8, [Some(5), Some(6), None]), (2, 3, None, true));
        assert_eq!(look(9, [Some(5), Some(6), Some(7)]), (3, 4, Some(4), false));
        assert_eq!(
            look(10, [Some(5), Some(8), Some(7)]),
            (3, 5, Some(0), false),
            "between two looks"
        );
    }
}
