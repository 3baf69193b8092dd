//! Takes away what a killed test leaves behind; see `berth_tests::reaper`.
//!
//! With `--victim FOLDER` it plays such a test: it starts a containerd there, says so, and waits to be killed.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => berth_tests::reaper::reap(std::io::stdin().lock()),
        [flag, dir] if flag == "--victim" => {
            let version = berth_tests::containerd::Version::System;
            let _daemon =
                berth_tests::containerd::Containerd::start(version, std::path::Path::new(dir), None);
            println!("ready");
            loop {
                std::thread::park();
            }
        }
        _ => panic!("unknown arguments {args:?}"),
    }
}
