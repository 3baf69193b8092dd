//! The lab's end of the control channel inside a virtual machine: runs what it is told and passes output on.
//!
//! One thread reads the line, three more serve each program. Written for root inside a machine that belongs to a test, so it
//! checks nobody.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use berth_tests::lab::frame::{Frame, Kind, MAX};

/// One for the test, one for a person who wants a shell meanwhile.
const PORTS: [&str; 2] = ["berth.lab", "berth.shell"];

type Line = Arc<Mutex<File>>;

fn main() {
    std::thread::scope(|scope| {
        for port in PORTS {
            scope.spawn(move || serve_port(port));
        }
    });
}

fn serve_port(port: &str) {
    let path = format!("/dev/virtio-ports/{port}");
    let reader = loop {
        match File::options().read(true).write(true).open(&path) {
            Ok(file) => break file,
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let line: Line = Arc::new(Mutex::new(reader.try_clone().expect("a second handle")));
    send(&line, Frame::new(Kind::Hello, 0, ""));
    let mut guest = Guest {
        line,
        running: HashMap::new(),
    };
    let mut patient = Patient(reader);
    while let Ok(frame) = Frame::read(&mut patient) {
        guest.handle(frame);
    }
}

/// The port reads as ended while nobody listens at the other end; that passes.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Ok(0) => std::thread::sleep(Duration::from_millis(20)),
                other => return other,
            }
        }
    }
}

fn send(line: &Line, frame: Frame) {
    // What can't be told is lost: the test has its own time limits.
    let _ = frame.write(&mut *line.lock().expect("line"));
}

struct Program {
    pid: u32,
    input: mpsc::Sender<Vec<u8>>,
}

struct Guest {
    line: Line,
    running: HashMap<u32, Program>,
}

impl Guest {
    fn handle(&mut self, frame: Frame) {
        let Frame { kind, id, payload } = frame;
        match kind {
            Kind::Ping => send(&self.line, Frame::new(Kind::Pong, id, "")),
            Kind::Run => match self.run(id, &payload) {
                Ok(program) => {
                    self.running.insert(id, program);
                }
                Err(why) => send(&self.line, Frame::new(Kind::Failed, id, why)),
            },
            Kind::Stdin => {
                if let Some(program) = self.running.get(&id) {
                    let _ = program.input.send(payload);
                }
            }
            // Dropping the sender ends the input; the pid is kept no longer, since its number may be given anew.
            Kind::StdinEnd => {
                if let Some(program) = self.running.get_mut(&id) {
                    program.input = mpsc::channel().0;
                }
            }
            Kind::Kill => {
                if let Some(program) = self.running.remove(&id) {
                    let pid = nix::unistd::Pid::from_raw(program.pid as i32);
                    let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            _ => {}
        }
    }

    fn run(&self, id: u32, payload: &[u8]) -> Result<Program, String> {
        use std::os::unix::process::CommandExt as _;
        let argv: Vec<String> = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
        let (program, arguments) = argv.split_first().ok_or("no program named")?;
        let mut child = Command::new(program)
            .args(arguments)
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/root")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{program}: {e}"))?;
        let (input, inputs) = mpsc::channel();
        let pid = child.id();
        let stdin = child.stdin.take().expect("piped");
        std::thread::spawn(move || feed(stdin, &inputs));
        let line = self.line.clone();
        std::thread::spawn(move || serve(&line, id, child));
        Ok(Program { pid, input })
    }
}

fn feed(mut stdin: ChildStdin, inputs: &mpsc::Receiver<Vec<u8>>) {
    while let Ok(bytes) = inputs.recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Passes output on, and the end once all output is told. A program's daemons may hold its output open: they are not waited
/// for longer than a moment.
fn serve(line: &Line, id: u32, mut child: Child) {
    let stdout = child.stdout.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    let (done, ended) = mpsc::channel::<()>();
    for (kind, stream) in [
        (Kind::Stdout, Box::new(stdout) as Box<dyn Read + Send>),
        (Kind::Stderr, Box::new(stderr)),
    ] {
        let (line, done) = (line.clone(), done.clone());
        std::thread::spawn(move || pass_on(&line, id, kind, stream, &done));
    }
    drop(done);
    let status = child.wait().map_or(-1, |status| status.into_raw());
    let _ = ended.recv_timeout(Duration::from_millis(300));
    let _ = ended.recv_timeout(Duration::from_millis(300));
    send(line, Frame::new(Kind::Exit, id, status.to_be_bytes()));
}

fn pass_on(line: &Line, id: u32, kind: Kind, mut stream: Box<dyn Read + Send>, done: &mpsc::Sender<()>) {
    let mut buffer = vec![0; MAX.min(64 << 10)];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        send(line, Frame::new(kind, id, &buffer[..read]));
    }
    let _ = done.send(());
}
