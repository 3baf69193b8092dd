//! The wire between virtual machines: a learning Ethernet switch in this process, whose links can be cut, slowed and made to
//! lose frames.
//!
//! Emulators connect to one socket each and speak QEMU's stream framing: a big-endian length of four bytes before each frame
//! (QEMU, net/stream.c). In user space, so that it needs no rights, leaves nothing behind, and any pair can be parted.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest frame, bytes: a machine's offloads may make larger ones than its MTU.
const MAX_FRAME: usize = 128 << 10;
/// Frames that wait for a machine; more are lost, as in any switch.
const QUEUE: usize = 4096;

/// How frames fare from one machine to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Nothing gets through.
    pub cut: bool,
    /// Time on the way.
    pub delay: Duration,
    /// Share that is lost, 0 to 1.
    pub loss: f64,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            cut: false,
            delay: Duration::ZERO,
            loss: 0.0,
        }
    }
}

/// Frames that are kept of what got through; more are not, lest memory runs out.
pub const MOST_RECORDED: usize = 200_000;

type Mac = [u8; 6];

#[derive(Debug, Default)]
struct Outgoing {
    frames: Mutex<VecDeque<(Instant, Arc<[u8]>)>>,
    some: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ports: HashMap<String, Arc<Outgoing>>,
    learnt: HashMap<Mac, String>,
    quality: HashMap<(String, String), Quality>,
    seed: u64,
    passed: u64,
    recorded: Option<Vec<Arc<[u8]>>>,
}

/// The switch. Its threads end with their machines.
#[derive(Debug, Clone, Default)]
pub struct Switch {
    state: Arc<Mutex<State>>,
}

impl Switch {
    /// Opens a port for the machine `name` at a socket, where its emulator connects, as often as it is started.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open(&self, name: &str, socket: &Path) -> std::io::Result<()> {
        let listener = UnixListener::bind(socket)?;
        let outgoing = Arc::new(Outgoing::default());
        self.lock().ports.insert(name.to_owned(), outgoing.clone());
        let (switch, name) = (self.clone(), name.to_owned());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (outgoing, writer) = (outgoing.clone(), stream.try_clone());
                let Ok(writer) = writer else { return };
                std::thread::spawn(move || deliver(&outgoing, writer));
                switch.take(&name, stream);
            }
        });
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("switch")
    }

    fn take(&self, from: &str, stream: UnixStream) {
        let mut stream = BufReader::with_capacity(256 << 10, stream);
        let mut length = [0; 4];
        while stream.read_exact(&mut length).is_ok() {
            let length = u32::from_be_bytes(length) as usize;
            if !(14..=MAX_FRAME).contains(&length) {
                return;
            }
            let mut frame = vec![0; length];
            if stream.read_exact(&mut frame).is_err() {
                return;
            }
            self.forward(from, frame.into());
        }
    }

    fn forward(&self, from: &str, frame: Arc<[u8]>) {
        let mut state = self.lock();
        let (to, source): (Mac, Mac) = (
            frame[..6].try_into().expect("six bytes"),
            frame[6..12].try_into().expect("six bytes"),
        );
        if source[0] & 1 == 0 && state.learnt.get(&source).is_none_or(|port| port != from) {
            state.learnt.insert(source, from.to_owned());
        }
        let ports: Vec<String> = match state.learnt.get(&to) {
            Some(port) => vec![port.clone()],
            None => state.ports.keys().cloned().collect(),
        };
        for port in ports.iter().filter(|port| *port != from) {
            let pair = (from.to_owned(), port.clone());
            let quality = state.quality.get(&pair).copied().unwrap_or_default();
            if quality.cut || state.chance() < quality.loss {
                continue;
            }
            state.passed += 1;
            if let Some(recorded) = state.recorded.as_mut().filter(|all| all.len() < MOST_RECORDED) {
                recorded.push(frame.clone());
            }
            if let Some(outgoing) = state.ports.get(port) {
                let mut frames = outgoing.frames.lock().expect("frames");
                if frames.len() < QUEUE {
                    frames.push_back((Instant::now() + quality.delay, frame.clone()));
                    outgoing.some.notify_one();
                }
            }
        }
    }

    /// Sets how frames fare between two machines, both ways.
    pub fn set(&self, a: &str, b: &str, quality: Quality) {
        let mut state = self.lock();
        for pair in [(a, b), (b, a)] {
            state
                .quality
                .insert((pair.0.to_owned(), pair.1.to_owned()), quality);
        }
    }

    /// Parts a machine from all others; with `false` joins it again.
    pub fn isolate(&self, name: &str, cut: bool) {
        let others: Vec<String> = self
            .lock()
            .ports
            .keys()
            .filter(|port| *port != name)
            .cloned()
            .collect();
        for other in others {
            let quality = Quality {
                cut,
                ..Quality::default()
            };
            self.set(name, &other, quality);
        }
    }

    /// Keeps what gets through from now on, as one who listens on the wire would.
    pub fn record(&self) {
        self.lock().recorded = Some(Vec::new());
    }

    /// What got through since; the first [`MOST_RECORDED`] frames.
    pub fn recorded(&self) -> Vec<Arc<[u8]>> {
        self.lock().recorded.take().unwrap_or_default()
    }

    /// Frames that got through so far.
    pub fn passed(&self) -> u64 {
        self.lock().passed
    }
}

impl State {
    /// The next of a fixed row of numbers in [0, 1): a run can be repeated (splitmix64).
    fn chance(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Hands a machine its frames when they are due, until its emulator is gone.
fn deliver(outgoing: &Outgoing, mut stream: UnixStream) {
    // What was meant for it while it was off is no concern of its next life.
    const STALE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    outgoing
        .frames
        .lock()
        .expect("frames")
        .retain(|(due, _)| *due + STALE > begun);
    loop {
        let mut batch = Vec::new();
        {
            let mut frames = outgoing.frames.lock().expect("frames");
            loop {
                let now = Instant::now();
                while frames.front().is_some_and(|(due, _)| *due <= now) {
                    let Some((_, frame)) = frames.pop_front() else {
                        break;
                    };
                    batch.extend((frame.len() as u32).to_be_bytes());
                    batch.extend_from_slice(&frame);
                }
                if !batch.is_empty() {
                    break;
                }
                // Wakes now and then to see whether anyone is still there.
                let pause = frames
                    .front()
                    .map_or(Duration::from_secs(1), |(due, _)| *due - now);
                frames = outgoing.some.wait_timeout(frames, pause).expect("frames").0;
                if frames.is_empty() && gone(&stream) {
                    return;
                }
            }
        }
        if stream.write_all(&batch).is_err() {
            return;
        }
    }
}

/// Whether the other end closed: an empty write says nothing, so the socket's error does.
fn gone(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0]
        .revents()
        .is_some_and(|seen| seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        (bytes[5], bytes[11]) = (to, from);
        let mut out = 60u32.to_be_bytes().to_vec();
        out.extend(bytes);
        out
    }

    struct Port(UnixStream);

    impl Port {
        fn receives(&mut self) -> bool {
            let mut bytes = [0; 64];
            self.0.read_exact(&mut bytes).is_ok()
        }
    }

    fn ports(switch: &Switch, dir: &Path) -> Vec<Port> {
        ["a", "b", "c"]
            .map(|name| {
                let socket = dir.join(name);
                switch.open(name, &socket).unwrap();
                let stream = UnixStream::connect(&socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                Port(stream)
            })
            .into()
    }

    #[test]
    fn it_floods_learns_cuts_and_delays() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::default();
        let mut p = ports(&switch, dir.path());
        p[0].0.write_all(&frame(2, 1)).unwrap();
        assert!(
            p[1].receives() && p[2].receives(),
            "an unknown address is flooded"
        );
        p[1].0.write_all(&frame(1, 2)).unwrap();
        assert!(p[0].receives(), "a known one is not");
        assert!(!p[2].receives());
        let cut = Quality {
            cut: true,
            ..Quality::default()
        };
        switch.set("a", "b", cut);
        p[0].0.write_all(&frame(2, 1)).unwrap();
        assert!(!p[1].receives(), "cut");
        switch.isolate("a", false);
        let slow = Quality {
            delay: Duration::from_millis(150),
            ..Quality::default()
        };
        switch.set("a", "b", slow);
        let sent = Instant::now();
        p[0].0.write_all(&frame(2, 1)).unwrap();
        assert!(p[1].receives() && sent.elapsed() >= slow.delay);
    }

    #[test]
    fn loss_is_what_was_asked_for() {
        let mut state = State::default();
        let lost = (0..10_000).filter(|_| state.chance() < 0.2).count();
        assert!((1_800..2_200).contains(&lost), "{lost}");
    }
}
