//! The lab by hand: `scripts/lab`.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use berth_tests::lab::channel::{Channel, Running};
use berth_tests::lab::cluster::Cluster;
use berth_tests::lab::machine::SHELL_SOCKET;
use berth_tests::lab::{Content, Debian, Lab, Template};

const HELP: &str =
    "usage: scripts/lab up [N] [--bare] [--bookworm]   N hosts with berth on them (3), until Ctrl-C
                       --bare: Debian alone; --bookworm: the last one is Debian 12
       scripts/lab sh HOST [COMMAND…]         a shell, or one command, in host1, host2…";

/// Where the running lab's folder is written.
fn pointer() -> PathBuf {
    berth_tests::lab::store::folder().join("running")
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["up", options @ ..] => up(options),
        ["sh", host, command @ ..] => shell(host, command),
        _ => {
            println!("{HELP}");
            Ok(())
        }
    }
}

fn up(options: &[&str]) -> anyhow::Result<()> {
    let has = |option: &str| options.contains(&option);
    let content = if has("--bare") {
        Content::Bare
    } else {
        Content::Prepared
    };
    let count: usize = match options.iter().find(|option| !option.starts_with("--")) {
        Some(number) => number.parse()?,
        None => 3,
    };
    anyhow::ensure!((1..=9).contains(&count), "1 to 9 hosts");
    let newest = Template::find(Debian::Trixie, content);
    let oldest = has("--bookworm").then(|| Template::find(Debian::Bookworm, content));
    let mut templates = vec![&newest; count];
    if let Some(oldest) = &oldest {
        templates[count - 1] = oldest;
    }
    let (lab, cluster);
    let running = if content == Content::Bare {
        lab = Lab::start(&templates);
        &lab
    } else {
        cluster = Cluster::start(&templates, "");
        cluster.load_example();
        &cluster.lab
    };
    std::fs::write(pointer(), running.folder().display().to_string())?;
    for host in &running.hosts {
        println!("{}  {}  scripts/lab sh {}", host.name, host.address(), host.name);
    }
    println!("up until Ctrl-C");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    let _ = std::fs::remove_file(pointer());
    Ok(())
}

fn shell(host: &str, command: &[&str]) -> anyhow::Result<()> {
    let folder = std::fs::read_to_string(pointer())
        .map_err(|_| anyhow::anyhow!("no lab is up; start one with scripts/lab up"))?;
    let socket = PathBuf::from(folder.trim()).join(host).join(SHELL_SOCKET);
    let channel = Channel::connect(&socket).map_err(|e| anyhow::anyhow!("{host}: {e}"))?;
    let up = berth_tests::process::eventually(std::time::Duration::from_secs(30), || {
        channel
            .answers(std::time::Duration::from_millis(500))
            .then_some(())
    });
    anyhow::ensure!(up.is_some(), "{host} does not answer");
    if !command.is_empty() {
        let out = channel.output(
            &["sh", "-c", &command.join(" ")],
            b"",
            std::time::Duration::from_secs(3600),
        )?;
        std::io::stdout().write_all(&out.stdout)?;
        std::io::stderr().write_all(&out.stderr)?;
        std::process::exit(out.status.code().unwrap_or(255));
    }
    // A terminal of its own in the machine; this one only carries bytes.
    let size = crossterm::terminal::size()
        .ok()
        .filter(|size| size.0 > 0)
        .unwrap_or((80, 24));
    let start = format!("stty rows {} cols {}; exec bash -i", size.1, size.0);
    let running = Arc::new(std::sync::Mutex::new(channel.start(&[
        "env",
        "TERM=xterm",
        "script",
        "-qfc",
        &start,
        "/dev/null",
    ])?));
    crossterm::terminal::enable_raw_mode()?;
    let held = running.clone();
    std::thread::spawn(move || feed(&held));
    let ended = print(&running);
    crossterm::terminal::disable_raw_mode()?;
    ended
}

fn feed(running: &std::sync::Mutex<Running>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = std::io::stdin().read(&mut buffer) {
        if running.lock().expect("running").input(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn print(running: &std::sync::Mutex<Running>) -> anyhow::Result<()> {
    loop {
        let new = running.lock().expect("running").next_output()?;
        let Some(new) = new else { return Ok(()) };
        std::io::stdout().write_all(&new)?;
        std::io::stdout().flush()?;
        std::thread::yield_now();
    }
}
