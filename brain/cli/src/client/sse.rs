//! Server-sent events: lines in, events out.
//!
//! Pure parser for the part of the format that the brain sends: `id`, `data`, comments as keep-alive; other fields are
//! ignored as the format demands.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Last id that was seen, to resume from.
    pub id: Option<String>,
    /// The data lines, joined.
    pub data: String,
}

/// Collects lines until an event is complete.
#[derive(Debug, Default)]
pub struct SseParser {
    id: Option<String>,
    data: Option<String>,
}

impl SseParser {
    /// Takes one line; gives the event that it completes.
    pub fn line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            return self.data.take().map(|data| SseEvent {
                id: self.id.clone(),
                data,
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Vec<SseEvent> {
        let mut parser = SseParser::default();
        text.split('\n').filter_map(|line| parser.line(line)).collect()
    }

    #[test]
    fn table() {
        let event = |id: Option<&str>, data: &str| SseEvent {
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        assert_eq!(parse("id: 7\ndata: {}\n\n"), [event(Some("7"), "{}")]);
        assert_eq!(parse(": ping\n\nevent: x\n\n"), []);
        assert_eq!(parse("data:a\ndata: b\n\n"), [event(None, "a\nb")]);
        assert_eq!(
            parse("id:1\n\ndata: x\n\ndata: y\n\n"),
            [event(Some("1"), "x"), event(Some("1"), "y")]
        );
        assert_eq!(parse("data: cut off"), []);
    }

    proptest! {
        #[test]
        fn any_data_comes_back(data in "[^\n\r]{0,80}") {
            let got = parse(&format!("data: {data}\n\n"));
            prop_assert_eq!(&got[0].data, &data);
        }
    }
}
