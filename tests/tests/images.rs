//! Images against a real containerd and a registry that misbehaves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_agent::image::{ContainerdImages, ImageError, ImageSettings, Images};
use berth_common::model::{Digest, ImageRef, LoadedImage, RegistryCredential, UnixMillis};
use berth_common::units::Bytes;
use berth_tests::containerd::Version;
use berth_tests::registry::{Fault, Image, Layer, Packing, Registry};
use containerd_client::services::v1 as api;
use tokio::sync::mpsc;

mod images_bench;
use images_bench::*;

async fn a_good_image_arrives_on(version: Version) {
    let bench = bench_on(version, Loaded::default()).await;
    let (image, index) = good(1).indexed();
    bench.registry.add("team/app:1", &image, index);
    let reference = bench.registry.reference("team/app:1");
    assert_eq!(bench.images.lookup(A, &reference).await.unwrap(), None);

    let (progress, mut events) = mpsc::channel(1000);
    let info = bench.images.pull(A, &reference, None, progress).await.unwrap();
    assert_eq!((info.manifest, info.chain_ids.len()), (image.manifest, 3));
    assert_eq!(info.chain_ids.last(), Some(&info.chain_id));
    let mut steps = Vec::new();
    while let Some(event) = events.recv().await {
        steps.push(event.step);
    }
    for step in ["resolve", "download", "unpack", "done"] {
        assert!(steps.iter().any(|seen| seen == step), "{step} in {steps:?}");
    }

    assert_eq!(
        bench.images.lookup(A, &reference).await.unwrap().as_ref(),
        Some(&info)
    );
    let listed = bench.images.list(A).await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].digest, listed[0].used_by),
        (1, image.manifest, 0)
    );
    bench.settles_at((5, 3, 0, 1)).await;

    // What was unpacked is what was packed. Without a lease the view is garbage at once.
    bench.containerd.lease_create("look", [], 60).await.unwrap();
    let view = api::snapshots::ViewSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        key: "look".to_owned(),
        parent: info.chain_id.clone(),
        ..Default::default()
    };
    let mounts = bench
        .containerd
        .snapshots()
        .view(bench.containerd.leased("look", view))
        .await
        .unwrap();
    let mounts = mounts.into_inner().mounts;
    let lower = mounts[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))
        .unwrap();
    let found = |name: &str| {
        lower
            .split(':')
            .find_map(|dir| std::fs::read(Path::new(dir).join(name)).ok())
    };
    assert_eq!(found("bin/app").unwrap(), noise(1, 3 << 20));
    assert_eq!(found("etc/hosts").unwrap(), b"127.0.0.1 localhost");
    assert_eq!(found("etc/top").unwrap(), noise(1, 40_000));

    // A second process finds it without help, and its removal leaves nothing.
    let again = ContainerdImages::new(
        bench.containerd.clone(),
        "overlayfs".to_owned(),
        Arc::new(Loaded::default()),
        settings(&bench.daemon.root()),
    );
    assert_eq!(again.unwrap().lookup(A, &reference).await.unwrap(), Some(info));
    bench.containerd.lease_delete("look").await.unwrap();

    // Its last use is noted again once that is old, and the daemon survives it: 1.7 crashed on an update without a target.
    bench.forget_last_use().await;
    bench.images.lookup(A, &reference).await.unwrap().unwrap();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if bench.last_use().await > 0 {
            break;
        }
    }
    assert!(bench.last_use().await > 0, "noted");
    bench.containerd.version().await.unwrap();
    bench.images.remove(A, &reference).await.unwrap();
    assert_eq!(bench.images.lookup(A, &reference).await.unwrap(), None);
    bench.settles_at((0, 0, 0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_image_arrives_on_the_systems_containerd() {
    a_good_image_arrives_on(Version::System).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_image_arrives_on_1_7() {
    a_good_image_arrives_on(Version::V1_7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_image_arrives_on_2_1() {
    a_good_image_arrives_on(Version::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_registries_get_clear_errors() {
    let bench = bench().await;
    type Judge = fn(&ImageError) -> bool;
    let passing: Judge = |e| matches!(e, ImageError::Unreachable { .. });
    let denied: Judge = |e| matches!(e, ImageError::Denied { .. });
    let absent: Judge = |e| matches!(e, ImageError::NotFound { .. });
    let refused: Judge = |e| matches!(e, ImageError::Refused { .. });
    // Where the fault is: at the tag, the config or the lowest layer.
    type Place = fn(&Image) -> String;
    let tag: Place = |_| "1".to_owned();
    let config: Place = |image| image.config.to_string();
    let layer: Place = |image| image.layers[0].to_string();
    type Make = fn(&[u8]) -> Fault;
    let flip: Make = |body| {
        let mut body = body.to_vec();
        *body.last_mut().unwrap() ^= 1;
        Fault::Body(body)
    };
    let longer: Make = |body| Fault::Body([body, b"x"].concat());
    let shorter: Make = |body| Fault::Body(body[..body.len() / 2].to_vec());
    let table: [(&str, Place, Make, Judge); 15] = [
        ("500 for ever", tag, |_| Fault::Status(500, 99), passing),
        ("401 without a challenge", tag, |_| Fault::Status(401, 99), denied),
        ("403", tag, |_| Fault::Status(403, 99), denied),
        ("404", tag, |_| Fault::Status(404, 99), absent),
        ("hang", tag, |_| Fault::Hang, passing),
        ("nonsense", tag, |_| Fault::Body(b"<html>".to_vec()), refused),
        ("layer hangs", layer, |_| Fault::Hang, passing),
        ("layer is always cut", layer, |_| Fault::Cut(0, 99), passing),
        ("layer is short", layer, shorter, passing),
        ("layer has a wrong digest", layer, flip, refused),
        ("layer is too long", layer, longer, refused),
        ("layer is missing", layer, |_| Fault::Status(404, 99), absent),
        ("config has a wrong digest", config, flip, refused),
        (
            "bad redirect",
            layer,
            |_| Fault::Redirect("file:///etc/passwd".to_owned()),
            refused,
        ),
        (
            "redirect in circles",
            layer,
            |_| Fault::Redirect(String::new()),
            refused,
        ),
    ];
    for (n, (name, place, make, judge)) in table.into_iter().enumerate() {
        let image = good(20 + n as u8);
        let at = format!("x{n}:1");
        bench.registry.add(&at, &image, image.manifest);
        let place = place(&image);
        let body = place
            .parse::<Digest>()
            .map_or(&[][..], |digest| &image.blobs[&digest]);
        bench.registry.fault(&place, make(body));
        let error = bench.pull(A, &at).await.unwrap_err();
        assert!(judge(&error), "{name}: {error:?}");
        assert!(error.to_string().contains(&at), "{name}: {error}");
        assert!(bench.images.list(A).await.unwrap().is_empty(), "{name}");
        // Once the registry is well again the image arrives; its removal leaves nothing.
        bench.registry.heal();
        bench
            .pull(A, &at)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        bench
            .images
            .remove(A, &bench.registry.reference(&at))
            .await
            .unwrap();
        bench.settles_at((0, 0, 0, 0)).await;
    }
    // Bursts of errors are sat out.
    let image = good(19);
    bench.registry.add("burst:1", &image, image.manifest);
    bench.registry.fault("1", Fault::Status(503, 2));
    bench.registry.fault(image.layers[1], Fault::Status(429, 2));
    bench.pull(A, "burst:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_resume_where_they_broke() {
    let bench = bench().await;
    let image = good(3);
    let layer = image.layers[0];
    bench.registry.add("x:1", &image, image.manifest);
    bench.registry.fault(layer, Fault::Cut(1 << 20, 2));
    bench.pull(A, "x:1").await.unwrap();
    let ranges: Vec<_> = bench
        .registry
        .seen()
        .into_iter()
        .filter(|s| s.path.ends_with(&layer.to_string()))
        .collect();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0].range, None);
    for (n, seen) in ranges.iter().enumerate().skip(1) {
        let from: u64 = seen.range.as_deref().unwrap()["bytes=".len()..]
            .trim_end_matches('-')
            .parse()
            .unwrap();
        assert!(from > 0 && from <= (n as u64) << 20, "{from}");
    }

    // Over attempts, too: the first gives up, the second goes on, from a registry that knows no ranges.
    let image = good(5);
    let layer = image.layers[0];
    bench.registry.add("y:1", &image, image.manifest);
    bench.registry.fault(layer, Fault::Cut(1 << 20, 1));
    bench.registry.fault(image.layers[2], Fault::Status(503, 99));
    let error = bench.pull(A, "y:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    bench.registry.heal();
    bench.registry.fault(layer, Fault::NoRange);
    bench.pull(A, "y:1").await.unwrap();
    assert_eq!(bench.containerd.leases().await.unwrap(), Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_are_refused_and_leave_nothing() {
    let bench = bench().await;
    let zeros = vec![0; 32 << 20];
    let table = [
        (
            "escape",
            Layer::files(&[("../../escape", b"x")]),
            "leaves the image's root",
        ),
        (
            "whiteout",
            Layer::files(&[("a/.wh...", b"")]),
            "leaves the image's root",
        ),
        ("bomb", Layer::files(&[("zeros", &zeros)]), "decompression bombs"),
        ("garbage", Layer(b"this is not an archive".to_vec()), "corrupt"),
    ];
    for (name, layer, why) in table {
        let image = Image::new(&[(layer, Packing::Gzip)], false);
        let tag = format!("{name}:1");
        bench.registry.add(&tag, &image, image.manifest);
        let error = bench.pull(A, &tag).await.unwrap_err();
        assert!(matches!(error, ImageError::Refused { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
    // A config that names another layer's content must not get at that content's snapshot.
    let honest = good(2);
    bench.registry.add("honest:1", &honest, honest.manifest);
    bench.pull(A, "honest:1").await.unwrap();
    let mut liar = Image::new(&[(Layer::files(&[("x", b"liar")]), Packing::Plain)], false);
    let diff_id = serde_json::from_slice::<serde_json::Value>(&honest.blobs[&honest.config]).unwrap();
    let mut config = serde_json::from_slice::<serde_json::Value>(&liar.blobs[&liar.config]).unwrap();
    config["rootfs"]["diff_ids"][0] = diff_id["rootfs"]["diff_ids"][0].clone();
    let config = serde_json::to_vec(&config).unwrap();
    let mut manifest = serde_json::from_slice::<serde_json::Value>(&liar.blobs[&liar.manifest]).unwrap();
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let top = Digest::of(&manifest);
    liar.blobs.insert(Digest::of(&config), config);
    liar.blobs.insert(top, manifest);
    bench.registry.add("liar:1", &liar, top);
    let error = bench.pull(B, "liar:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Refused { .. }), "{error:?}");

    bench
        .images
        .remove(A, &bench.registry.reference("honest:1"))
        .await
        .unwrap();
    bench.settles_at((0, 0, 0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_the_registry_and_go_nowhere_else() {
    let bench = bench().await;
    let image = good(4);
    bench.registry.add("x:1", &image, image.manifest);
    bench.registry.require_login("ann", "s3cret", None);
    let reference = bench.registry.reference("x:1");
    let pull = async |password: Option<&str>| {
        let credential = password.map(|password| RegistryCredential {
            registry: bench.registry.host(),
            username: "ann".to_owned(),
            password: password.to_owned(),
        });
        let (progress, _) = mpsc::channel(1);
        bench
            .images
            .pull(A, &reference, credential.as_ref(), progress)
            .await
    };
    for wrong in [None, Some("guess")] {
        let error = pull(wrong).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
        assert!(!error.to_string().contains("guess"));
    }
    // Blobs come from elsewhere, as from a storage service: the token must not go along.
    let elsewhere = Registry::start().await;
    elsewhere.add("x:1", &image, image.manifest);
    let layer = image.layers[0];
    bench.registry.fault(
        layer,
        Fault::Redirect(format!("http://{}/v2/x/blobs/{layer}", elsewhere.host())),
    );
    pull(Some("s3cret")).await.unwrap();
    let seen = elsewhere.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
    // Another tenant has no share in it, without a login of its own.
    assert_eq!(bench.images.lookup(B, &reference).await.unwrap(), None);
    let error = bench.pull(B, "x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
    assert!(bench.images.list(B).await.unwrap().is_empty());

    // A token service on another host never hears the password.
    bench
        .registry
        .require_login("ann", "other", Some("http://127.0.0.2:9/token".to_owned()));
    let second = good(6);
    bench.registry.add("x:1", &second, second.manifest);
    let error = pull(Some("other")).await.unwrap_err();
    assert!(error.to_string().contains("another host"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_share_the_work_and_tenants_share_layers() {
    let bench = bench().await;
    let image = good(7);
    bench.registry.add("x:1", &image, image.manifest);
    bench.registry.slow(Duration::from_millis(50));
    let (one, two, other) = tokio::join!(bench.pull(A, "x:1"), bench.pull(A, "x:1"), bench.pull(B, "x:1"));
    assert_eq!(one.unwrap(), two.unwrap());
    other.unwrap();
    assert_eq!(bench.registry.asked_for("1"), 2, "one manifest a tenant");
    assert_eq!(bench.registry.asked_for(image.layers[0]), 1);
    bench.settles_at((5, 3, 0, 2)).await;
    bench
        .images
        .remove(A, &bench.registry.reference("x:1"))
        .await
        .unwrap();
    assert!(
        bench
            .images
            .lookup(B, &bench.registry.reference("x:1"))
            .await
            .unwrap()
            .is_some()
    );
    bench.settles_at((5, 3, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_use_stay_and_the_oldest_others_go() {
    let bench = bench().await;
    let mut manifests = Vec::new();
    for (n, tag) in ["used:1", "old:1", "fresh:1"].into_iter().enumerate() {
        let image = good(10 + n as u8);
        bench.registry.add(tag, &image, image.manifest);
        bench.pull(A, tag).await.unwrap();
        manifests.push(image.manifest);
    }
    bench.container("c1", A, manifests[0]).await;
    let error = bench
        .images
        .remove(A, &bench.registry.reference("used:1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::InUse { used_by: 1, .. }), "{error:?}");
    assert!(
        bench
            .images
            .remove(B, &bench.registry.reference("old:1"))
            .await
            .is_err(),
        "R6"
    );

    assert_eq!(
        bench.images.collect_garbage(101, 0).await.unwrap(),
        Vec::new(),
        "under the high mark"
    );
    let patient = ImageSettings {
        collect_grace: Duration::from_secs(600),
        ..settings(&bench.daemon.root())
    };
    let patient = ContainerdImages::new(
        bench.containerd.clone(),
        "overlayfs".to_owned(),
        Arc::new(Loaded::default()),
        patient,
    );
    assert_eq!(
        patient.unwrap().collect_garbage(0, 0).await.unwrap(),
        Vec::new(),
        "all are fresh"
    );
    let removed = bench.images.collect_garbage(0, 100).await.unwrap();
    assert_eq!(
        removed,
        [bench.registry.reference("old:1")],
        "it stops once under the low mark"
    );
    let removed = bench.images.collect_garbage(0, 0).await.unwrap();
    assert_eq!(removed, [bench.registry.reference("fresh:1")]);
    assert!(
        bench
            .images
            .lookup(A, &bench.registry.reference("used:1"))
            .await
            .unwrap()
            .is_some()
    );
    bench.settles_at((5, 3, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loaded_images_come_from_the_brain_and_resume() {
    let image = good(8);
    let reference: ImageRef = "demo/app:1".parse().unwrap();
    let loaded = Loaded {
        image: Some(LoadedImage {
            tenant: A,
            reference: reference.clone(),
            manifest: image.manifest,
            blobs: image
                .blobs
                .iter()
                .map(|(digest, body)| (*digest, Bytes(body.len() as u64)))
                .collect(),
            arch: None,
            loaded_at: UnixMillis(0),
        }),
        blobs: image.blobs.clone().into_iter().collect(),
        breaks: std::sync::Mutex::new(Some((image.layers[0], 1 << 20))),
        offsets: std::sync::Mutex::default(),
    };
    let bench = bench_on(Version::System, loaded).await;
    let (progress, _) = mpsc::channel(1);
    let info = bench.images.pull(A, &reference, None, progress).await.unwrap();
    assert_eq!(info.manifest, image.manifest);
    bench.settles_at((5, 3, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_killed_in_the_middle_of_a_pull_is_survived() {
    let mut bench = bench().await;
    let image = good(9);
    bench.registry.add("x:1", &image, image.manifest);
    bench.registry.slow(Duration::from_millis(300));
    let images = bench.images.clone();
    let reference = bench.registry.reference("x:1");
    let (progress, mut events) = mpsc::channel(1000);
    let pull = tokio::spawn(async move { images.pull(A, &reference, None, progress).await });
    while events.recv().await.is_some_and(|event| event.step != "download") {}
    bench.daemon.kill9();
    let first = pull.await.unwrap();
    let error = first.unwrap_err();
    assert!(error.retryable(), "{error:?}");
    bench.daemon.restart();
    bench.registry.heal();
    bench.pull(A, "x:1").await.unwrap();
    bench.settles_at((5, 3, 0, 1)).await;
}
