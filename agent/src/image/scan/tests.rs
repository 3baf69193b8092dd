use std::io::Write;

use proptest::prelude::*;

use super::*;

fn small() -> ScanLimits {
    ScanLimits {
        max_uncompressed: 8 << 20,
        max_ratio: 50,
        ratio_from: 1 << 20,
        max_entries: 100,
        max_header: 4096,
    }
}

fn header(kind: u8, path: &[u8], size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn entry(kind: u8, path: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = header(kind, path, body.len() as u64).as_bytes().to_vec();
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() + rest != length {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    entry(b'x', b"pax", &body)
}

#[test]
fn honest_layers_in_every_packing() {
    let tar = archive(&[entry(b'5', b"etc/", b""), entry(b'0', b"etc/hosts", b"127.0.0.1")]);
    let packings = [
        (tar.clone(), Compression::None),
        (gzip(&tar), Compression::Gzip),
        (zstd::stream::encode_all(&tar[..], 1).unwrap(), Compression::Zstd),
    ];
    for (packed, compression) in packings {
        let scan = scan_layer(&packed[..], &small()).unwrap();
        assert_eq!(scan.compression, compression);
        assert_eq!(scan.diff_id, Digest::of(&tar));
        assert_eq!((scan.uncompressed, scan.entries), (tar.len() as u64, 2));
    }
    // Two gzip members are one stream, and what follows the end mark still counts into the digest.
    let mut trailing = tar.clone();
    trailing.extend_from_slice(&[0; 4096]);
    let members = [gzip(&trailing[..700]), gzip(&trailing[700..])].concat();
    assert_eq!(
        scan_layer(&members[..], &small()).unwrap().diff_id,
        Digest::of(&trailing)
    );
}

#[test]
fn the_empty_layer_is_fine() {
    assert_eq!(scan_layer(&archive(&[])[..], &small()).unwrap().entries, 0);
    assert_eq!(scan_layer(&[][..], &small()).unwrap().entries, 0);
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let mut hard = header(b'1', b"x", 0);
    hard.set_link_name_literal("../../etc/shadow").unwrap();
    hard.set_cksum();
    let mut device = header(b'4', b"sda", 0);
    device.set_device_major(8).unwrap();
    device.set_cksum();
    let table = [
        (entry(b'0', b"../evil", b"x"), EntryError::Escape),
        (entry(b'0', b"a/b/../../../evil", b"x"), EntryError::Escape),
        (hard.as_bytes().to_vec(), EntryError::LinkEscape),
        (device.as_bytes().to_vec(), EntryError::Device),
        (
            [pax(&[("path", "../../evil")]), entry(b'0', b"fine", b"x")].concat(),
            EntryError::Escape,
        ),
        (
            [entry(b'L', b"l", b"../../evil\0"), entry(b'0', b"fine", b"x")].concat(),
            EntryError::Escape,
        ),
        (
            [
                pax(&[("GNU.sparse.realsize", "9999999999999")]),
                entry(b'0', b"f", b"x"),
            ]
            .concat(),
            EntryError::Kind('S'),
        ),
        (
            [
                pax(&[("SCHILY.xattr.trusted.overlay.redirect", "/x")]),
                entry(b'5', b"d", b""),
            ]
            .concat(),
            EntryError::Attribute("trusted.overlay.redirect".to_owned()),
        ),
        (entry(b'x', b"pax", b"999 path=short\n"), EntryError::Pax),
    ];
    for (bytes, expected) in table {
        let plain = archive(&[bytes]);
        for packed in [gzip(&plain), plain] {
            match scan_layer(&packed[..], &small()) {
                Err(ScanError::Entry { source, .. }) => assert_eq!(source, expected),
                other => panic!("{expected:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn bombs_are_stopped_early() {
    let zeros = vec![0; 4 << 20];
    let bomb = gzip(&archive(&[entry(b'0', b"z", &zeros)]));
    assert!(matches!(
        scan_layer(&bomb[..], &small()),
        Err(ScanError::Ratio { limit: 50 })
    ));
    let loose = ScanLimits {
        max_ratio: u64::MAX,
        max_uncompressed: 1 << 20,
        ..small()
    };
    assert!(matches!(
        scan_layer(&bomb[..], &loose),
        Err(ScanError::TooLarge { .. })
    ));
    // A claimed size is enough, whatever follows.
    let claim = header(b'0', b"huge", 1 << 40).as_bytes().to_vec();
    assert!(matches!(
        scan_layer(&claim[..], &small()),
        Err(ScanError::TooLarge { .. })
    ));
    let many = archive(&vec![entry(b'0', b"f", b""); 101]);
    assert!(matches!(
        scan_layer(&many[..], &small()),
        Err(ScanError::TooMany { limit: 100 })
    ));
    let header = header(b'x', b"pax", 1 << 30).as_bytes().to_vec();
    assert!(matches!(
        scan_layer(&header[..], &small()),
        Err(ScanError::Corrupt(_))
    ));
}

#[test]
fn corrupt_and_broken_are_told_apart() {
    let good = archive(&[entry(b'0', b"f", &[7; 9000])]);
    let packed = gzip(&good);
    for bad in [
        &packed[..packed.len() / 2],
        &good[..5000],
        b"not a tar at all",
        &[GZIP[0], GZIP[1], 9, 9],
    ] {
        assert!(matches!(scan_layer(bad, &small()), Err(ScanError::Corrupt(_))));
    }
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    assert!(matches!(
        scan_layer(&flipped[..], &small()),
        Err(ScanError::Corrupt(_))
    ));

    struct Breaks;
    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("cable cut"))
        }
    }
    let cut = (&packed[..40]).chain(Breaks);
    assert!(matches!(scan_layer(cut, &small()), Err(ScanError::Read(_))));
}

proptest! {
    #[test]
    fn never_panics_and_never_reads_past_its_limit(data in proptest::collection::vec(any::<u8>(), 0..4000)) {
        if let Ok(scan) = scan_layer(&data[..], &small()) {
            prop_assert!(scan.uncompressed <= small().max_uncompressed);
        }
    }

    #[test]
    fn a_flipped_byte_changes_the_digest_or_is_refused(at in 0usize..2048, bit in 0u8..8) {
        let good = archive(&[entry(b'0', b"a", b"hello"), entry(b'5', b"d", b"")]);
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        match scan_layer(&bad[..], &small()) {
            Ok(scan) => prop_assert_ne!(scan.diff_id, Digest::of(&good)),
            Err(error) => prop_assert!(!matches!(error, ScanError::Read(_))),
        }
    }
}
