//! `berth-log`: keeps one container's output. Started by containerd's shim with stdout on fd 3, stderr on fd 4 and a pipe on
//! fd 5 that says "ready" by being closed; `key value` argument pairs come from the URI's query.

use std::path::PathBuf;

use anyhow::Context as _;
use berth_agent::logs::pump;
use berth_agent::logs::writer::{Bounds, Log};
use berth_agent::sys::fd;

fn main() -> anyhow::Result<()> {
    let out = fd::inherited(3).context("fd 3 must be the container's stdout")?;
    let err = fd::inherited(4).context("fd 4 must be the container's stderr")?;
    let ready = fd::inherited(5).context("fd 5 must be the ready pipe")?;
    let (mut dir, mut uid, mut gid, mut rate) = (None, None, None, 0);
    let mut bounds = Bounds {
        max_size: 10 << 20,
        max_files: 5,
    };
    let mut arguments = std::env::args().skip(1);
    while let (Some(key), Some(value)) = (arguments.next(), arguments.next()) {
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("{key} must be a number"))
        };
        match key.as_str() {
            "dir" => dir = Some(PathBuf::from(value)),
            "max_size" => bounds.max_size = number()?.max(4096),
            "max_files" => bounds.max_files = u32::try_from(number()?)?.clamp(1, 1000),
            "rate" => rate = number()?,
            "uid" => uid = Some(u32::try_from(number()?)?),
            "gid" => gid = Some(u32::try_from(number()?)?),
            // Of a newer agent.
            _ => {}
        }
    }
    let dir = dir.context("dir is missing")?;
    // Programs open /dev/stdout anew, which needs a pipe that belongs to them.
    for pipe in [&out, &err] {
        let _ = nix::unistd::fchown(pipe, uid.map(Into::into), gid.map(Into::into));
    }
    // Whoever stops the shim or its group must not cut the container's last lines.
    for signal in [
        nix::sys::signal::SIGTERM,
        nix::sys::signal::SIGINT,
        nix::sys::signal::SIGHUP,
    ] {
        nix::sys::signal::SigSet::from(signal).thread_block()?;
    }
    // The shim's folder, which must be removable.
    let _ = std::env::set_current_dir("/");
    let mut log = Log::new(&dir, bounds);
    drop(ready);
    pump::run(out, err, &mut log, rate);
    Ok(())
}
