//! Tests of image references.

use super::*;
use proptest::prelude::*;

#[test]
fn references_are_normalised() {
    let table = [
        (
            "nginx",
            "docker.io/library/nginx:latest",
            "docker.io",
            "library/nginx",
        ),
        (
            "grafana/grafana:9",
            "docker.io/grafana/grafana:9",
            "docker.io",
            "grafana/grafana",
        ),
        (
            "localhost:5000/a/b",
            "localhost:5000/a/b:latest",
            "localhost:5000",
            "a/b",
        ),
        ("reg.example/x:1.2", "reg.example/x:1.2", "reg.example", "x"),
    ];
    for (text, full, registry, repository) in table {
        let image: ImageRef = text.parse().unwrap();
        assert_eq!(
            (image.as_str(), image.registry(), image.repository()),
            (full, registry, repository)
        );
    }
    let pinned = format!("x/y@sha256:{}", "a".repeat(64))
        .parse::<ImageRef>()
        .unwrap();
    assert_eq!(pinned.tag(), None);
    assert!(pinned.digest().is_some());
    for bad in [
        "",
        "UPPER",
        "a//b",
        "a/../b",
        "x:",
        "x@sha256:12",
        "a b",
        "x:ta g",
        "/x",
        "x/",
    ] {
        assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
    }
}

#[test]
fn hosts_follow_the_distribution_grammar() {
    for good in [
        "a.b/x",
        "A-1.example/x",
        "10.0.0.1/x",
        "10.0.0.1:5000/x",
        "localhost/x",
        "localhost:65535/x",
        "[::1]/x",
        "[2001:db8::1]:5000/team/x:1",
        "a:1/x",
    ] {
        let image: ImageRef = good.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(image.registry(), good.split('/').next().unwrap());
    }
    for bad in [
        "../x",
        "../../etc/x",
        "./x",
        ".a/x",
        "a./x",
        "a..b/x",
        "-a.b/x",
        "a-.b/x",
        "a.b-/x",
        ":5000/x",
        "a.b:/x",
        "a.b:0/x",
        "a.b:65536/x",
        "a.b:+1/x",
        "a.b:1:2/x",
        "a.b:port/x",
        "[]/x",
        "[::1/x",
        "::1]/x",
        "[::1]5000/x",
        "[::1]:/x",
        "[1:2]/x",
        "[::ffff:10.0.0.1]/x",
        "[fe80::1%eth0]/x",
        "[..]/x",
        "a_b.c/x",
        "a.b\\c/x",
        "a.b%2f../x",
    ] {
        assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
    }
}

#[test]
fn repositories_follow_the_distribution_grammar() {
    for good in ["a/b_c", "a/b__c", "a/b---c", "a/b.c-d/e", "0/1"] {
        good.parse::<ImageRef>().unwrap_or_else(|e| panic!("{e}"));
    }
    let long = format!("a/{}", "b".repeat(254));
    for bad in [
        "a/b_", "a/b-", "a/b.", "a/_b", "a/b___c", "a/b._c", "a/b..c", "a/.", "a/..", &long,
    ] {
        assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
    }
}

#[test]
fn two_spellings_of_one_image_are_one() {
    for (text, full) in [
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("library/nginx", "docker.io/library/nginx:latest"),
    ] {
        assert_eq!(text.parse::<ImageRef>().unwrap().as_str(), full);
    }
}

/// Host, repository, tag and digest of references as the grammar has them.
fn valid() -> impl Strategy<Value = String> {
    let host = "([a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?[.]){1,3}[a-z]{2,4}(:[1-9][0-9]{0,3})?/|localhost/|\\[::[0-9a-f]{1,4}\\](:[1-9][0-9]{0,3})?/";
    let part = "[a-z0-9]{1,5}(([_.]|__|-{1,3})[a-z0-9]{1,4}){0,2}";
    // Without a host the first part must not look like one.
    let bare = "[a-z0-9]{1,5}((_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
    let repository = format!("(({host}){part}|{bare})(/{part}){{0,3}}");
    let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?";
    let digest = "(@sha256:[0-9a-f]{64})?";
    [&repository, tag, digest]
        .map(|pattern| proptest::string::string_regex(pattern).unwrap())
        .prop_map(|parts| parts.concat())
}

/// What callers that make URLs and paths of the parts rely on.
fn safe(image: &ImageRef) -> Result<(), TestCaseError> {
    let (host, repository) = (image.registry(), image.repository());
    prop_assert!(
        host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['),
        "{image}"
    );
    for part in std::iter::once(host).chain(repository.split('/')) {
        prop_assert!(
            !part.is_empty() && !part.contains("..") && !part.starts_with('.'),
            "{image}"
        );
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b);
        prop_assert!(part.bytes().all(plain), "{image}");
    }
    let mut whole = format!("{host}/{repository}");
    if let Some(tag) = image.tag() {
        whole += &format!(":{tag}");
    }
    if let Some(digest) = image.digest() {
        whole += &format!("@{digest}");
    }
    prop_assert_eq!(&whole, image.as_str());
    prop_assert_eq!(&image.as_str().parse::<ImageRef>().unwrap(), image);
    prop_assert_eq!(
        &image.familiar().parse::<ImageRef>().unwrap(),
        image,
        "{}",
        image.familiar()
    );
    let json = serde_json::to_string(image).unwrap();
    prop_assert_eq!(&serde_json::from_str::<ImageRef>(&json).unwrap(), image);
    Ok(())
}

proptest! {
    #[test]
    fn what_the_grammar_has_is_taken_and_comes_back(text in valid()) {
        let image: ImageRef = text.parse().map_err(|e: ImageRefError| TestCaseError::fail(e.to_string()))?;
        safe(&image)?;
    }

    #[test]
    fn near_misses_are_refused_or_safe(text in "[a-zA-Z0-9./:@_\\[\\]-]{1,24}") {
        if let Ok(image) = text.parse::<ImageRef>() {
            safe(&image)?;
        }
    }

    #[test]
    fn garbage_never_panics(text in ".{0,80}") {
        if let Ok(image) = text.parse::<ImageRef>() {
            safe(&image)?;
        }
    }
}
