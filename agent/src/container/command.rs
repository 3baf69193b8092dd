//! A command run inside a container to its end, for what the agent asks of containers by itself.
//!
//! The container is hostile: what it prints is bounded, and shown as text alone. How long it may take is the caller's to bound.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_common::id::{ContainerId, clip};
use berth_common::protocol::{ExecDown, ExecSpec};

use super::runtime::Runtime;
use crate::reconcile::apply::chain;

/// Most characters of output that are kept.
const OUTPUT: usize = 300;

/// As one line of text that can be printed.
pub fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    clip(&plain, OUTPUT)
}

/// Runs a command to its end. It is ended when this is dropped.
///
/// # Errors
/// That it could not be run, or ended with another code than 0, with the beginning of what it said.
pub async fn run(runtime: &dyn Runtime, container: ContainerId, words: &[String]) -> Result<(), String> {
    let name = clip(words.first().map_or("nothing", String::as_str), 60);
    let spec = ExecSpec {
        args: words.to_vec(),
        ..ExecSpec::default()
    };
    let session = runtime.exec(container, &spec).await;
    let mut session = session.map_err(|error| chain(&error))?;
    let mut output = Vec::new();
    while let Some(frame) = session.down.recv().await {
        match frame {
            ExecDown::Stdout { data } | ExecDown::Stderr { data } => {
                let room = OUTPUT.saturating_sub(output.len());
                let bytes = STANDARD.decode(data).unwrap_or_default();
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            ExecDown::Exit { code: 0 } => return Ok(()),
            ExecDown::Exit { code } => {
                let said = shown(&output);
                let said = if said.is_empty() {
                    String::new()
                } else {
                    format!(": {said}")
                };
                return Err(format!("{name} ended with code {code}{said}"));
            }
            ExecDown::Problem { problem } => return Err(problem.to_string()),
            ExecDown::Started | ExecDown::Unknown => {}
        }
    }
    Err(format!("{name} could not be followed to its end"))
}
