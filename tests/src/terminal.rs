//! A program on a terminal of its own, as a person would have it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::pty::{Winsize, openpty};

use crate::process::eventually;

/// A program and the terminal that it runs on, 24 lines of 80 columns at first.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    path: PathBuf,
    /// Keeps the terminal's settings readable after the program's end.
    _slave: OwnedFd,
}

impl Terminal {
    /// Starts a program with the terminal as its controlling one.
    ///
    /// # Panics
    /// Without terminals or `setsid`.
    pub fn start(command: &Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).expect("a pseudo-terminal");
        let path = nix::unistd::ttyname(&pair.slave).expect("its name");
        let end = || Stdio::from(pair.slave.try_clone().expect("a descriptor"));
        let mut wrapped = Command::new("setsid");
        wrapped
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        wrapped.env("TERM", "xterm");
        let child = wrapped
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let keyboard = File::from(pair.master);
        let (mut reader, seen) = (keyboard.try_clone().expect("a descriptor"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock().expect("screen").extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keyboard,
            screen,
            path,
            _slave: pair.slave,
        }
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typing");
    }

    /// Everything shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("screen")).into_owned()
    }

    /// Forgets what was shown.
    pub fn clear(&self) {
        self.screen.lock().expect("screen").clear();
    }

    /// Waits until a text is shown.
    pub fn wait_for(&self, text: &str, seconds: u64) {
        let found = eventually(Duration::from_secs(seconds), || {
            self.shown().contains(text).then_some(())
        });
        assert!(found.is_some(), "{text:?} never came:\n{}", self.shown());
    }

    /// Another size, as when a window is dragged.
    pub fn resize(&self, rows: u16, columns: u16) {
        crate::process::run(Command::new("stty").arg("-F").arg(&self.path).args([
            "rows",
            &rows.to_string(),
            "cols",
            &columns.to_string(),
        ]));
    }

    /// Whether the terminal itself edits lines and shows what is typed, as a shell expects it.
    pub fn is_cooked(&self) -> bool {
        let settings = crate::process::run(Command::new("stty").arg("-F").arg(&self.path).arg("-a"));
        let words: Vec<_> = settings.split([' ', ';', '\n']).collect();
        words.contains(&"icanon") && words.contains(&"echo")
    }

    /// Waits for the program's end.
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let ended = eventually(Duration::from_secs(seconds), || {
            self.child.try_wait().expect("wait")
        });
        ended.unwrap_or_else(|| panic!("it did not end:\n{}", self.shown()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The end of its terminal hangs up on the program.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
