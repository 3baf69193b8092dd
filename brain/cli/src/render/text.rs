//! Small forms for people: ages, amounts, and text that can't drive the terminal.

use berth_common::model::UnixMillis;
use berth_common::units::Bytes;

/// Text from elsewhere on one line: control characters become `·`, so that names and reasons can't move the cursor.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' | '\r' => ' ',
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => '·',
            c => c,
        })
        .collect()
}

/// A span of time in its largest unit: `3s`, `5m`, `2h`, `9d`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Time since `then`.
pub fn age(now: UnixMillis, then: UnixMillis) -> String {
    span(now.since(then))
}

/// A moment as RFC 3339 in UTC with milliseconds.
pub fn moment(at: UnixMillis) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
        .map_or_else(|| at.0.to_string(), |at| format!("{at:.3}"))
}

/// Bytes, or `-` when not known.
pub fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |value| Bytes(value).to_string())
}

/// Millicores as cores with two digits, or `-` when not known.
pub fn cores(value: Option<u32>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{:.2}", f64::from(value) / 1000.0))
}

/// `part` of `whole` in percent, or `-`.
pub fn percent(part: Option<u64>, whole: u64) -> String {
    match part {
        Some(part) if whole > 0 => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans() {
        for (millis, want) in [
            (0, "0s"),
            (119_999, "119s"),
            (180_000, "3m"),
            (7_200_000, "2h"),
            (9 * 86_400_000, "9d"),
        ] {
            assert_eq!(span(millis), want);
        }
    }

    #[test]
    fn unknown_is_a_dash_and_not_zero() {
        assert_eq!(
            (bytes(None), cores(None), percent(None, 5), percent(Some(1), 0)),
            ("-".into(), "-".into(), "-".into(), "-".into())
        );
        assert_eq!(
            (cores(Some(1250)), percent(Some(1), 3)),
            ("1.25".into(), "33%".into())
        );
        assert_eq!(moment(UnixMillis(1_500)), "1970-01-01T00:00:01.500Z");
    }

    proptest! {
        #[test]
        fn clean_text_has_no_controls(text in any::<String>()) {
            prop_assert!(!clean(&text).chars().any(char::is_control));
        }
    }
}
