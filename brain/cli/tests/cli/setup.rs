//! Sign-in, the configuration file, help and completion.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use crate::fake::{Fake, Ran, TOKEN};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn login_keeps_a_private_file_that_then_suffices() {
    let fake = Fake::start();
    for (index, by) in [
        vec!["--ca", "ca.crt"],
        vec!["--fingerprint", &fake.ca_fingerprint],
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(fake.home.path().join("ca.crt"), &fake.ca_pem).unwrap();
        let name = format!("c{index}");
        let mut args = vec!["login", &fake.url, "--token-stdin", "--name", &name];
        args.extend(by);
        let mut child = fake
            .bare(&args)
            .current_dir(fake.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(TOKEN.as_bytes()).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(!ran.err.contains("s3cr3t"), "{ran:?}");
        assert_eq!(
            (mode(&fake.config()), mode(fake.config().parent().unwrap())),
            (0o600, 0o700)
        );
        let ran = Ran::of(fake.bare(&["service", "ls", "-q"]).output().unwrap());
        assert_eq!(ran.out, "api\nweb\n", "{ran:?}");
    }
    let shown = Ran::of(fake.bare(&["context", "show"]).output().unwrap());
    assert!(
        shown.out.contains(&fake.ca_fingerprint) && !shown.out.contains("s3cr3t"),
        "{shown:?}"
    );
    let listed = Ran::of(fake.bare(&["context", "ls", "-o", "json"]).output().unwrap());
    assert!(!listed.out.contains("s3cr3t"), "{listed:?}");

    std::fs::set_permissions(fake.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = Ran::of(fake.bare(&["ps"]).output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("cure: run `chmod 600"), "{ran:?}");
}

#[test]
fn a_login_with_a_wrong_fingerprint_or_token_keeps_nothing() {
    let fake = Fake::start();
    std::fs::write(fake.home.path().join("ca.crt"), &fake.ca_pem).unwrap();
    let wrong = "0".repeat(64);
    for by in [["--fingerprint", wrong.as_str()], ["--ca", "ca.crt"]] {
        let mut child = fake
            .bare(&["login", &fake.url, "--token-stdin", by[0], by[1]])
            .current_dir(fake.home.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first attempt may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(b"berth_x_y");
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!([4, 5].contains(&ran.code), "{ran:?}");
        assert!(!fake.config().exists());
    }
}

#[test]
fn completions_and_help_teach() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = Ran::of(fake.bare(&["completion", shell]).output().unwrap());
        assert!(
            ran.code == 0 && ran.out.contains("berth") && ran.out.len() > 1000,
            "{shell}"
        );
    }
    for command in [
        "run",
        "service update",
        "service apply",
        "ps",
        "logs",
        "exec",
        "stop",
        "node token",
        "node drain",
        "top",
        "events",
        "image load",
        "image login",
        "tenant create",
        "tenant token",
        "context add",
        "login",
        "completion",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let ran = Ran::of(fake.bare(&args).output().unwrap());
        assert!(ran.code == 0 && ran.out.contains("Example"), "{command}: {ran:?}");
    }
    assert_eq!(Ran::of(fake.bare(&["frobnicate"]).output().unwrap()).code, 2);
}
