//! How answers look: tables for people, JSON and YAML for programs.
//!
//! Everything below is pure: values and the present in, text out. Printing is the caller's.

pub mod check;
pub mod cluster;
pub mod schedule;
pub mod service;
pub mod text;
pub mod usage;
pub mod volume;
pub mod volume_schedule;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

/// The look of one invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether colours may be used.
    pub color: bool,
}

impl Style {
    /// A word of state, coloured by how good it is.
    pub fn state(self, word: &str) -> Cell {
        let cell = Cell::new(text::clean(word));
        let color = match word.to_ascii_lowercase().as_str() {
            "running" | "healthy" | "ready" | "ok" => Color::Green,
            "failed" | "dropped" | "unhealthy" | "lost" | "unreachable" | "backoff" => Color::Red,
            "stopped" | "exited" => Color::DarkGrey,
            _ => Color::Yellow,
        };
        if self.color { cell.fg(color) } else { cell }
    }
}

/// A table with plain columns and no borders.
pub fn table(style: Style, header: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    if style.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A cell of foreign text.
pub fn cell(text: impl std::fmt::Display) -> Cell {
    Cell::new(text::clean(&text.to_string()))
}

/// Pretty JSON with its newline.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(
        |e| format!("{{\"error\":\"{e}\"}}\n"),
        |mut text| {
            text.push('\n');
            text
        },
    )
}

/// YAML.
pub fn yaml(value: &impl Serialize) -> String {
    // Through JSON's model, since some of our types only promise to be self-describing there.
    serde_json::to_value(value)
        .ok()
        .and_then(|value| serde_yaml_ng::to_string(&value).ok())
        .unwrap_or_default()
}
