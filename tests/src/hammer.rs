//! Requests without a pause, to see whether any is lost.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_agent::network::Namespace;

use crate::overlay::dial_at;

/// A page's last line.
///
/// # Errors
/// No answer, or one that is none of a web server.
pub fn page(from: &Namespace, at: SocketAddr) -> std::io::Result<String> {
    let mut stream = dial_at(from, at)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.starts_with("HTTP/1.") {
        true => Ok(text.lines().last().unwrap_or_default().to_owned()),
        false => Err(std::io::Error::other(format!("no answer: {text:?}"))),
    }
}

/// Asks for a page again and again, from a container's or a host's network.
#[derive(Debug)]
pub struct Hammer {
    stop: Arc<AtomicBool>,
    work: JoinHandle<(usize, Vec<String>)>,
}

impl Hammer {
    /// From now on.
    pub fn new(from: &Namespace, at: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (from, stopped) = (from.try_clone().expect("namespace"), stop.clone());
        let work = std::thread::spawn(move || {
            let (mut asked, mut failed) = (0, Vec::new());
            let begun = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                asked += 1;
                if let Err(error) = page(&from, at) {
                    failed.push(format!("after {:?}: {error}", begun.elapsed()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            (asked, failed)
        });
        Self { stop, work }
    }

    /// All were answered.
    pub fn lost_nothing(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, failed) = self.work.join().expect("ended");
        eprintln!("{what}: {asked} requests, {} of them failed", failed.len());
        assert!(asked > 100, "{what}: {asked} requests");
        assert!(
            failed.is_empty(),
            "{what}: {} of {asked} failed: {failed:#?}",
            failed.len()
        );
    }
}
