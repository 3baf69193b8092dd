//! What certificates carry, and what becomes of the CA's files.

use super::*;

fn request(params: CertificateParams) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key)
}

fn plain() -> (String, KeyPair) {
    request(CertificateParams::new(Vec::<String>::new()).unwrap())
}

fn now() -> UnixMillis {
    UnixMillis(u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap() * 1000)
}

#[test]
fn the_same_ca_comes_back_and_its_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("ca");
    let first = CertificateAuthority::open_or_create(&at).unwrap();
    let second = CertificateAuthority::open_or_create(&at).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&at), mode(&at.join(KEY_FILE)), mode(&at.join(CERT_FILE))),
        (0o700, 0o600, 0o600)
    );
    // A node of the first start is still known to the second.
    let (csr, key) = plain();
    let node = NodeId::from_bytes([7; 10]);
    let (cert, _) = first.issue_node(&csr, node, now()).unwrap();
    let identity = Identity::from_pem(&cert, &key.serialize_pem(), second.ca_pem()).unwrap();
    identity::agent_tls(&identity).unwrap();
}

#[test]
fn a_lost_or_foreign_key_is_never_papered_over() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    CertificateAuthority::open_or_create(&a).unwrap();
    CertificateAuthority::open_or_create(&b).unwrap();
    fs::copy(b.join(KEY_FILE), a.join(KEY_FILE)).unwrap();
    assert!(matches!(
        CertificateAuthority::open_or_create(&a),
        Err(CaError::Mismatch(_))
    ));
    fs::remove_file(a.join(KEY_FILE)).unwrap();
    assert!(matches!(
        CertificateAuthority::open_or_create(&a),
        Err(CaError::KeyMissing(_))
    ));
    // A crash between the two files of a first start: nothing was signed yet.
    fs::remove_file(b.join(CERT_FILE)).unwrap();
    CertificateAuthority::open_or_create(&b).unwrap();
}

#[test]
fn r7_a_request_chooses_nothing_but_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let ca = CertificateAuthority::open_or_create(dir.path()).unwrap();
    let (node, other) = (NodeId::from_bytes([1; 10]), NodeId::from_bytes([2; 10]));
    let mut params = CertificateParams::new(vec![BRAIN_NAME.to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI(identity::node_uri(other).try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (csr, key) = request(params);
    let (pem, fingerprint) = ca.issue_node(&csr, node, now()).unwrap();
    let cert = identity::parse_cert("it", &pem).unwrap();
    assert_eq!(identity::node_of(&cert).unwrap(), node);
    assert_eq!(
        fingerprint,
        hex::encode(Sha256::digest(key.subject_public_key_info()))
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(&cert).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(!parsed.is_ca());
    let (from, to) = identity::validity(&cert).unwrap();
    let seconds = i64::try_from(now().0 / 1000).unwrap();
    assert!(
        from < seconds - 86_300 && from > seconds - 86_500,
        "a day for hosts whose clocks are behind"
    );
    assert_eq!(to - from, 31 * 86_400);
}

#[test]
fn bad_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = CertificateAuthority::open_or_create(dir.path()).unwrap();
    let node = NodeId::from_bytes([1; 10]);
    let (mut forged, _) = plain();
    let at = forged.len() / 2;
    forged.replace_range(at..=at, if &forged[at..=at] == "A" { "B" } else { "A" });
    for bad in ["", "garbage", &forged, &"x".repeat(MAX_CSR + 1)] {
        assert!(matches!(
            ca.issue_node(bad, node, now()),
            Err(CaError::Request(_))
        ));
    }
}

#[test]
fn the_brain_answers_to_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let ca = CertificateAuthority::open_or_create(dir.path()).unwrap();
    let identity = ca
        .issue_server(&["brain.example.org".to_owned()], &["192.0.2.7".parse().unwrap()])
        .unwrap();
    identity::brain_tls(&identity).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&identity.chain[0]).unwrap();
    let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
    for name in [
        BRAIN_NAME,
        "localhost",
        "brain.example.org",
        "[192, 0, 2, 7]",
        "[127, 0, 0, 1]",
    ] {
        assert!(names.contains(name), "{name} in {names}");
    }
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    assert_eq!(identity.chain.len(), 2, "joining agents find the CA in the chain");
    assert!(ca.issue_server(&["not a näme".to_owned()], &[]).is_err());
}
