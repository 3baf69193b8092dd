//! What a test runs and copies in a machine.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use super::channel::{ChannelError, Running};
use super::machine::{Machine, PATIENCE};

impl Machine {
    /// Runs a shell script, whatever comes of it.
    ///
    /// # Errors
    /// When it gives no result: the machine is gone or the time is over.
    pub fn try_sh(&self, script: &str, limit: Duration) -> Result<Output, ChannelError> {
        let begun = Instant::now();
        let result = self.channel().output(&["sh", "-c", script], b"", limit);
        if begun.elapsed() > Duration::from_secs(5) {
            let line = script.trim_start().lines().next().unwrap_or("");
            eprintln!(
                "lab: {}: {:.1} s: {line}",
                self.name,
                begun.elapsed().as_secs_f64()
            );
        }
        result
    }

    /// Runs a shell script and returns its exit code and all its output.
    pub fn sh(&self, script: &str) -> (i32, String) {
        let out = self
            .try_sh(script, PATIENCE)
            .unwrap_or_else(|e| panic!("{}: {script}: {e}", self.name));
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap_or(-1), text)
    }

    /// Runs a shell script that must succeed and returns its standard output.
    pub fn ok(&self, script: &str) -> String {
        self.ok_within(script, PATIENCE)
    }

    /// The same with a time of its own.
    pub fn ok_within(&self, script: &str, limit: Duration) -> String {
        let out = self
            .try_sh(script, limit)
            .unwrap_or_else(|e| panic!("{}: {script}: {e}", self.name));
        assert!(
            out.status.success(),
            "{}: {script}: {}\n{}{}",
            self.name,
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// Runs one program with arguments as they are.
    ///
    /// # Errors
    /// When it gives no result.
    pub fn program(&self, argv: &[&str], stdin: &[u8]) -> Result<Output, ChannelError> {
        self.channel().output(argv, stdin, PATIENCE)
    }

    /// Runs one program that must succeed and returns its standard output.
    fn succeed(&self, argv: &[&str], stdin: &[u8]) -> Vec<u8> {
        let out = self.program(argv, stdin);
        let out = out.unwrap_or_else(|e| panic!("{}: {argv:?}: {e}", self.name));
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: {argv:?}: {why}", self.name);
        out.stdout
    }

    /// Starts a shell script that goes on beside the test.
    pub fn spawn(&self, script: &str) -> Running {
        let started = self.channel().start(&["sh", "-c", script]);
        started.unwrap_or_else(|e| panic!("{}: {script}: {e}", self.name))
    }

    /// Writes a file, making its folder.
    pub fn write(&self, path: &str, content: &[u8], mode: u32) {
        let script = format!(
            "umask 022; mkdir -p \"${{1%/*}}\" && cat >\"$1.lab\" && chmod {mode:o} \"$1.lab\" && mv \"$1.lab\" \"$1\" && sync \"$1\" \"${{1%/*}}\""
        );
        self.succeed(&["sh", "-c", &script, "sh", path], content);
    }

    /// Copies a file into the machine.
    pub fn push(&self, from: &Path, to: &str, mode: u32) {
        let content = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        self.write(to, &content, mode);
    }

    /// Reads a file of the machine.
    pub fn read(&self, path: &str) -> Vec<u8> {
        self.succeed(&["cat", path], b"")
    }

    /// What came out of its serial console.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Polls a script until it succeeds; its output.
    pub fn eventually(&self, script: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            let last = self.try_sh(script, PATIENCE);
            if let Ok(out) = &last
                && out.status.success()
            {
                return String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
            }
            assert!(
                Instant::now() < end,
                "{}: {script}: not within {limit:?}: {last:?}",
                self.name
            );
            std::thread::sleep(super::POLL);
        }
    }
}
