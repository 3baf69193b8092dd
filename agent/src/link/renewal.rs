//! When to renew this node's certificate, and when to dial anew with the renewed one. Pure: the time is an input.
//!
//! A connection goes on with the certificate that it began with. Dialling anew ends its streams (logs, execs), so that waits
//! until none is open, but not until the old certificate ends.

/// Longest pause after a renewal that failed, seconds.
const PAUSE: i64 = 3_600;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Asking the brain for a new certificate.
    Renew,
    /// Dialling anew, with the renewed certificate.
    Redial,
}

/// One connection's certificate. Times are seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    from: i64,
    to: i64,
    renewed: bool,
    not_before: i64,
}

impl Renewal {
    /// A connection begun with a certificate of this validity.
    pub const fn new(from: i64, to: i64) -> Self {
        Self {
            from,
            to,
            renewed: false,
            not_before: i64::MIN,
        }
    }

    const fn life(&self) -> i64 {
        let life = self.to.saturating_sub(self.from);
        if life > 0 { life } else { 0 }
    }

    /// What is due now, with so many streams open on the connection.
    pub fn due(&self, now: i64, streams: usize) -> Due {
        if self.renewed {
            let late = now >= self.to.saturating_sub(self.life() / 6);
            return if streams == 0 || late {
                Due::Redial
            } else {
                Due::Nothing
            };
        }
        // At two thirds of its life.
        let due = self.from.saturating_add(self.life() / 3 * 2);
        if now >= due && now >= self.not_before {
            Due::Renew
        } else {
            Due::Nothing
        }
    }

    /// There is a new certificate.
    pub const fn renewed(&mut self) {
        self.renewed = true;
    }

    /// There is none: the brain is away, or the disk is full. Tried again after a while.
    pub fn failed(&mut self, now: i64) {
        let pause = (self.life() / 60).clamp(1, PAUSE);
        self.not_before = now.saturating_add(pause);
    }

    /// Whether the certificate has ended.
    pub const fn is_over(&self, now: i64) -> bool {
        now >= self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_two_thirds_and_tried_again_after_a_pause() {
        let mut renewal = Renewal::new(0, 30 * 86_400);
        assert_eq!(renewal.due(20 * 86_400 - 1, 0), Due::Nothing);
        assert_eq!(renewal.due(20 * 86_400, 5), Due::Renew);
        renewal.failed(20 * 86_400);
        assert_eq!(renewal.due(20 * 86_400 + 3_599, 0), Due::Nothing);
        assert_eq!(renewal.due(20 * 86_400 + 3_600, 0), Due::Renew);
        assert!(!renewal.is_over(30 * 86_400 - 1) && renewal.is_over(30 * 86_400));
        // A short life has short pauses.
        let mut short = Renewal::new(0, 60);
        assert_eq!(short.due(40, 0), Due::Renew);
        short.failed(40);
        assert_eq!((short.due(40, 0), short.due(41, 0)), (Due::Nothing, Due::Renew));
    }

    #[test]
    fn a_renewed_one_is_used_once_nobody_is_in_the_way_or_it_is_late() {
        let mut renewal = Renewal::new(0, 600);
        renewal.renewed();
        assert_eq!(renewal.due(400, 0), Due::Redial);
        assert_eq!(renewal.due(400, 1), Due::Nothing);
        assert_eq!(renewal.due(499, 1), Due::Nothing);
        assert_eq!(renewal.due(500, 1), Due::Redial);
    }

    #[test]
    fn nonsense_is_renewed_and_nothing_overflows() {
        for (from, to) in [(600, 0), (i64::MIN, i64::MAX), (i64::MAX, i64::MAX)] {
            for now in [i64::MIN, 0, i64::MAX] {
                let mut renewal = Renewal::new(from, to);
                let _ = renewal.due(now, 0);
                renewal.failed(now);
                let _ = renewal.due(now, 0);
                renewal.renewed();
                assert_eq!(renewal.due(now, 0), Due::Redial);
            }
        }
        assert_eq!(Renewal::new(600, 0).due(601, 0), Due::Renew);
    }
}
