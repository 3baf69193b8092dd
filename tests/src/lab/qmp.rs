//! QEMU's monitor: a line of JSON each way (QEMU, docs/interop/qmp-spec).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A monitor.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// Why the monitor did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The emulator is gone or does not answer.
    #[error("the emulator does not answer")]
    Line(#[from] std::io::Error),
    /// It refused.
    #[error("{command}: {why}")]
    Refused {
        /// What it was asked.
        command: String,
        /// Its answer.
        why: String,
    },
}

impl Qmp {
    /// Connects and agrees on what is spoken.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn connect(socket: &Path) -> Result<Self, QmpError> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(Duration::from_secs(60)))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Self { reader, writer };
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_str(&line).map_err(|e| std::io::Error::other(e).into())
    }

    /// Runs a command and returns its answer; events in between are passed over.
    ///
    /// # Errors
    /// When it is refused or nobody answers.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.writer.write_all(format!("{text}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    why: error["desc"].as_str().unwrap_or("no reason given").to_owned(),
                });
            }
        }
    }
}
