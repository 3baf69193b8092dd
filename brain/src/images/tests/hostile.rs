//! Archives that must be refused, each with what the refusal has to say.

use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;

use super::*;

/// A layout of one image whose manifest is `edit`ed after the fact; digests stay right.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let (tar, manifest) = layout();
    let mut value = serde_json::from_slice(&manifest).unwrap();
    edit(&mut value);
    let manifest = value.to_string().into_bytes();
    let top = named(descriptor(MANIFEST, &manifest), REF, "shop:1");
    tar.without("index.json")
        .add(&blob(&manifest), &manifest)
        .add("index.json", index(&[top]))
        .build()
}

/// A layout whose index is `tops`.
fn tops(make: impl FnOnce(&[u8]) -> Vec<serde_json::Value>) -> Vec<u8> {
    let (tar, manifest) = layout();
    tar.without("index.json")
        .add("index.json", index(&make(&manifest)))
        .build()
}

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let (tar, manifest) = layout();
    let good = tar.clone().build();
    let layer = blob(b"the layer");
    let long = |kind: u8| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(1 << 20);
        header.set_path("x").unwrap();
        header.set_cksum();
        [&header.as_bytes()[..], &vec![b'a'; 1 << 20], &good].concat()
    };
    let mut flipped = good.clone();
    let second = flipped
        .windows(12)
        .skip(512)
        .position(|part| part == b"blobs/sha256")
        .unwrap()
        + 512;
    flipped[second] ^= 1;
    let nested = |mut inner: Vec<u8>, levels: usize| {
        let mut tar = tar.clone().without("index.json");
        for _ in 0..levels {
            tar = tar.add(&blob(&inner), &inner);
            inner = index(&[named(descriptor(INDEX, &inner), REF, "shop:1")]);
        }
        tar.add("index.json", inner).build()
    };
    let bomb = gzip(&tar.clone().add("zeros", vec![0; 3 << 20]).build());
    let mut cut_gzip = gzip(&good);
    cut_gzip.truncate(cut_gzip.len() - 20);
    let many = (0..60).fold(tar.clone(), |tar, n| tar.add(&format!("n{n}"), b""));
    let confused = json!({"schemaVersion": 2, "manifests": [], "layers": []}).to_string();
    let docker_edit = |text: &str| {
        docker(b"l", b"l", &["a:1"])
            .without("manifest.json")
            .add("manifest.json", text)
    };
    vec![
        ("empty", Vec::new(), "it is empty"),
        ("text", b"hello".repeat(300), "does not begin with a tar header"),
        ("short text", b"hello".to_vec(), "shorter than a tar header"),
        ("zeros", vec![0; 2048], "it holds no entries"),
        ("xz", b"\xfd7zXZ\0\0".to_vec(), "it is xz"),
        (
            "other tar",
            Tar::default().add("etc/passwd", b"x").build(),
            "neither index.json",
        ),
        ("cut within", good[..good.len() - 2048].to_vec(), "cut short"),
        (
            "no end mark",
            good[..good.len() - 1024].to_vec(),
            "cut short after \"index.json\"",
        ),
        (
            "cut gzip",
            cut_gzip,
            "gzip stream around the archive is damaged or cut short",
        ),
        ("bomb", bomb, "more than 2MiB when unpacked"),
        (
            "too large",
            tar.clone().add("zeros", vec![0; 3 << 20]).build(),
            "more than 2MiB",
        ),
        ("too many entries", many.build(), "more than 50 entries"),
        ("bad checksum", flipped, "has a wrong checksum"),
        (
            "huge size",
            tar.clone().special(EntryType::Regular, "big", 1 << 60).build(),
            "cut short within \"big\"",
        ),
        ("long name of 1 MiB", long(b'L'), "absurdly long extended header"),
        ("pax of 1 MiB", long(b'x'), "absurdly long extended header"),
        (
            "sparse",
            tar.clone().special(EntryType::GNUSparse, "hole", 0).build(),
            "is a sparse file",
        ),
        (
            "twice",
            tar.clone().add(&layer, b"other").build(),
            "is in the archive twice",
        ),
        (
            "twice with ./",
            tar.clone().add(&format!("./{layer}"), b"other").build(),
            "is in the archive twice",
        ),
        (
            "symlink",
            tar.clone()
                .without(&layer)
                .special(EntryType::Symlink, &layer, 0)
                .build(),
            "is a link",
        ),
        (
            "hard link",
            tar.clone()
                .without(&layer)
                .special(EntryType::Link, &layer, 0)
                .build(),
            "is a link",
        ),
        (
            "device",
            tar.clone()
                .without(&layer)
                .special(EntryType::Char, &layer, 0)
                .build(),
            "not a regular file",
        ),
        (
            "no layer",
            tar.clone().without(&layer).build(),
            "is missing from the archive",
        ),
        (
            "no manifest",
            tar.clone().without(&blob(&manifest)).build(),
            "is missing from the archive",
        ),
        (
            "wrong layer",
            tar.clone().without(&layer).add(&layer, b"THE LAYER").build(),
            "hashes to sha256:",
        ),
        (
            "short layer",
            tar.clone().without(&layer).add(&layer, b"the").build(),
            "has 3 bytes, but 9 are promised",
        ),
        (
            "index of 5000 bytes",
            tops(|_| vec![json!({"x": "y".repeat(5000)})]),
            "but a document may have",
        ),
        (
            "index no JSON",
            tar.clone().without("index.json").add("index.json", b"{").build(),
            "is malformed",
        ),
        (
            "confused",
            tar.clone()
                .without("index.json")
                .add("index.json", confused)
                .build(),
            "index and manifest at once",
        ),
        ("no images", tops(|_| vec![]), "it has no image at all"),
        ("nested deeply", nested(index(&[]), 6), "nested too deeply"),
        (
            "artifact",
            tops(|m| vec![descriptor("application/x-chart", m)]),
            "a application/x-chart",
        ),
        (
            "lying index",
            tops(|m| vec![named(on(descriptor(MANIFEST, m), "linux/arm64"), REF, "a:1")]),
            "it has linux/arm64",
        ),
        (
            "nameless",
            tops(|m| vec![descriptor(MANIFEST, m)]),
            "has no name for image",
        ),
        (
            "tag only",
            tops(|m| vec![named(descriptor(MANIFEST, m), REF, "latest")]),
            "only \"latest\"",
        ),
        (
            "bad name",
            tops(|m| vec![named(descriptor(MANIFEST, m), REF, "A:B:C")]),
            "names an image badly",
        ),
        (
            "sha512",
            tops(|m| {
                let mut top = descriptor(MANIFEST, m);
                top["digest"] = json!(format!("sha512:{}", "a".repeat(128)));
                vec![top]
            }),
            "no usable digest",
        ),
        (
            "path digest",
            tops(|m| {
                let mut top = descriptor(MANIFEST, m);
                top["digest"] = json!("sha256:../../../etc/passwd");
                vec![top]
            }),
            "is malformed",
        ),
        ("no layers", edited(|m| m["layers"] = json!([])), "without layers"),
        (
            "two layers, one diff id",
            edited(|m| {
                let layer = m["layers"][0].clone();
                m["layers"] = json!([layer, layer]);
            }),
            "2 layers but 1 diff ids",
        ),
        (
            "strange layer",
            edited(|m| m["layers"][0]["mediaType"] = json!("text/html")),
            "no node can unpack",
        ),
        (
            "strange config",
            edited(|m| m["config"]["mediaType"] = json!("text/html")),
            "an artifact with text/html",
        ),
        (
            "schema 1",
            edited(|m| m["schemaVersion"] = json!(1)),
            "schemaVersion other than 2",
        ),
        (
            "docker: wrong layer",
            docker(b"right", b"wrong", &["a:1"]).build(),
            "\"0a/layer.tar\" hashes to",
        ),
        (
            "docker: wrong gzip",
            docker(b"right", &gzip(b"wrong"), &["a:1"]).build(),
            "unpacks to sha256:",
        ),
        (
            "docker: damaged gzip",
            docker(b"right", &gzip(b"right")[..12], &["a:1"]).build(),
            "is damaged",
        ),
        (
            "docker: layer bomb",
            docker(b"right", &gzip(&vec![0; 3 << 20]), &["a:1"]).build(),
            "unpacks to more than 2MiB",
        ),
        (
            "docker: nameless",
            docker(b"l", b"l", &["<none>:<none>"]).build(),
            "has no name for image",
        ),
        (
            "docker: bad name",
            docker(b"l", b"l", &["Shop:1"]).build(),
            "names an image badly",
        ),
        (
            "docker: not a list",
            docker_edit("{}").build(),
            "\"manifest.json\" is malformed",
        ),
        (
            "docker: no config",
            docker_edit(r#"[{"Config":"../../etc/passwd"}]"#).build(),
            "\"../../etc/passwd\" is missing",
        ),
    ]
}

#[tokio::test]
async fn hostile_archives_are_refused_and_the_refusal_names_the_fault() {
    let mut wrong = Vec::new();
    for (what, archive, expected) in cases() {
        match Bench::new().load(&archive, options()).await {
            Ok(images) => wrong.push(format!("{what}: loaded {images:?}")),
            Err(problem) => {
                let said = problem.detail.contains(expected) && problem.detail.len() < 600;
                if problem.kind != ErrorKind::Invalid || !said {
                    wrong.push(format!("{what}: {:?} {problem}", problem.kind));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn documents_are_bounded_together_and_images_in_number() {
    let (mut tar, mut list) = (Tar::default(), Vec::new());
    for n in 0..4 {
        let (more, manifest) = image(tar, "amd64", format!("layer {n}").as_bytes());
        list.push(named(descriptor(MANIFEST, &manifest), REF, &format!("a:{n}")));
        tar = more;
    }
    let archive = tar.add("index.json", index(&list)).build();
    let problem = Bench::new().load(&archive, options()).await.unwrap_err();
    assert!(problem.detail.contains("more than 3 images"), "{problem}");
    let mut small = options();
    small.limits.documents = Bytes(2048);
    let problem = Bench::new().load(&archive, small).await.unwrap_err();
    assert!(problem.detail.contains("one document too many"), "{problem}");
}

#[tokio::test]
async fn two_images_of_one_name_are_refused() {
    let (tar, one) = image(Tar::default(), "amd64", b"one");
    let (tar, two) = image(tar, "amd64", b"two");
    let list = [one, two].map(|manifest| named(descriptor(MANIFEST, &manifest), REF, "a:1"));
    let problem = Bench::new()
        .load(&tar.add("index.json", index(&list)).build(), options())
        .await
        .unwrap_err();
    assert!(problem.detail.contains("two images named a:1"), "{problem}");
}

/// Knowing another tenant's digest is not having its bytes (R6).
#[tokio::test]
async fn a_stored_blob_is_no_substitute_for_the_archives_own() {
    let bench = Bench::new();
    let (tar, _) = layout();
    bench.load(&tar.clone().build(), options()).await.unwrap();
    let layer = blob(b"the layer");
    for theft in [
        tar.clone().without(&layer),
        tar.without(&layer).add(&layer, b"xxx xxxxx"),
    ] {
        let problem = bench.load(&theft.build(), options()).await.unwrap_err();
        assert!(problem.detail.contains(&layer), "{problem}");
    }
}

proptest! {
    /// Whatever is flipped or cut: an answer, no panic, and never a blob that does not hash to its name.
    #[test]
    fn damage_is_never_accepted_silently(at in 0_usize..8192, bit in 0_u8..8, cut in 0_usize..12_000) {
        let mut archive = layout().0.build();
        let at = at % archive.len();
        archive[at] ^= 1 << bit;
        archive.truncate(cut.max(1));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            if let Ok(images) = bench.load(&archive, options()).await {
                for image in &images {
                    bench.check(image).await;
                }
            }
        });
    }
}
