//! What containers have acknowledged: the lines of their logs that begin with `ack `.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

use crate::fleet::Fleet;

/// What a service's containers acknowledge, one after the other.
#[derive(Debug)]
pub struct Acknowledged(Child, Option<JoinHandle<Vec<String>>>);

impl Acknowledged {
    /// From the first line on.
    pub fn follow(f: &Fleet, service: &str) -> Self {
        let mut command = f.brain.berth_command(&["logs", "-f", service]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("berth");
        let out = BufReader::new(child.stdout.take().expect("stdout"));
        let read = std::thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            lines
                .filter_map(|line| Some(line.split_once("ack ")?.1.to_owned()))
                .collect()
        });
        Self(child, Some(read))
    }

    /// All so far, without the word.
    pub fn all(mut self) -> Vec<String> {
        self.end();
        let read = self.1.take().expect("once");
        read.join().expect("reader")
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Acknowledged {
    fn drop(&mut self) {
        self.end();
    }
}
