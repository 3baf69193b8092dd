//! Every wire message by the name of its recording.

use std::collections::BTreeMap;

use berth_common::id::{ContainerId, Generation, VolumeId};
use berth_common::model::{HostNumber, LoadedImage, Subnets, UnixMillis, Vni};
use berth_common::protocol::*;
use berth_common::units::Bytes;

use super::samples::*;

pub fn agent() -> Vec<(&'static str, AgentMessage)> {
    vec![
        (
            "agent_hello",
            AgentMessage::Hello {
                protocol: 1,
                protocol_min: 1,
                generation: Generation(7),
                facts: facts(),
            },
        ),
        (
            "agent_observed",
            AgentMessage::Observed {
                full: true,
                more: false,
                generation: Generation(7),
                containers: vec![observed_container()],
                gone: vec![ContainerId::from_bytes([6; 10])],
            },
        ),
        (
            "agent_observed_checked",
            AgentMessage::Observed {
                full: false,
                more: false,
                generation: Generation(7),
                containers: vec![checked().1],
                gone: Vec::new(),
            },
        ),
        (
            "agent_volumes",
            AgentMessage::Volumes {
                more: true,
                volumes: vec![observed_volume()],
                gone: vec![VolumeId::from_bytes([9; 10])],
            },
        ),
        ("agent_facts", AgentMessage::Facts { facts: facts() }),
        (
            "agent_refused",
            AgentMessage::Refused {
                held: Generation(7),
                refused: Generation(9),
                problem: problem(),
            },
        ),
        (
            "agent_event",
            AgentMessage::Event {
                container: Some(container()),
                kind: "oom".to_owned(),
                text: "a child ran out of memory".to_owned(),
            },
        ),
        ("agent_goodbye", AgentMessage::Goodbye),
    ]
}

pub fn brain() -> Vec<(&'static str, BrainMessage)> {
    vec![
        (
            "brain_welcome",
            BrainMessage::Welcome {
                protocol: 1,
                node: node(),
                name: "host-1".parse().unwrap(),
                brain_version: "0.1.0".to_owned(),
                lease_ms: 10_000,
                usage_interval_ms: 2_000,
                addresses: vec!["brain.example:7070".to_owned()],
            },
        ),
        ("brain_reject", BrainMessage::Reject { problem: problem() }),
        ("brain_desired_full", BrainMessage::Desired(full())),
        ("brain_desired_delta", BrainMessage::Desired(delta())),
        ("brain_ping", BrainMessage::Ping),
    ]
}

pub fn node_requests() -> Vec<(&'static str, NodeRequest)> {
    vec![
        (
            "node_request_logs",
            NodeRequest::Logs {
                container: container(),
                options: LogOptions {
                    follow: true,
                    tail: Some(10),
                    since: Some(UnixMillis(1_700_000_000_000)),
                },
            },
        ),
        (
            "node_request_exec",
            NodeRequest::Exec {
                container: container(),
                spec: ExecSpec {
                    args: vec!["/bin/sh".to_owned(), "-i".to_owned()],
                    tty: true,
                    stdin: true,
                    env: BTreeMap::from([("TERM".to_owned(), "xterm".to_owned())]),
                    working_dir: Some("/srv".to_owned()),
                    user: Some("root".to_owned()),
                    size: Some((80, 24)),
                },
            },
        ),
        (
            "node_request_pull_image",
            NodeRequest::PullImage {
                tenant: tenant(),
                reference: reference(),
                credential: Some(credential()),
            },
        ),
        (
            "node_request_list_images",
            NodeRequest::ListImages { tenant: tenant() },
        ),
        (
            "node_request_remove_image",
            NodeRequest::RemoveImage {
                tenant: tenant(),
                reference: reference(),
            },
        ),
        (
            "node_request_probe",
            NodeRequest::Probe {
                endpoint: DesiredEndpoint {
                    vni: Vni::PROBE,
                    network: "probe".parse().unwrap(),
                    subnets: Subnets::new("198.18.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap())
                        .unwrap(),
                    host: HostNumber(2),
                },
                neighbours: Neighbours {
                    nodes: [(node(), [192, 0, 2, 7].into())].into(),
                    networks: [(Vni::PROBE, [(HostNumber(3), node())].into())].into(),
                    ..Neighbours::default()
                },
            },
        ),
        (
            "node_request_trace",
            NodeRequest::Trace(TraceRequest {
                half: Half::In,
                container: container(),
                vni: Vni::MIN,
                host: HostNumber(2),
                other: HostNumber(3),
                service: Some(HostNumber(9)),
            }),
        ),
    ]
}

fn summary() -> ImageSummary {
    ImageSummary {
        reference: reference(),
        digest: digest(),
        size: Bytes::mib(40),
        used_by: 3,
        created_at: UnixMillis(1_700_000_000_000),
    }
}

fn echoes(sent: u32) -> Echoes {
    Echoes {
        sent,
        answered: sent - 1,
        min_us: 90,
        mean_us: 120,
        max_us: 700,
    }
}

pub fn node_replies() -> Vec<(&'static str, NodeReply)> {
    vec![
        (
            "node_reply_log",
            NodeReply::Log(LogLine {
                at: UnixMillis(1_700_000_000_000),
                stream: LogStream::Stderr,
                text: "GET / 200".to_owned(),
                partial: true,
            }),
        ),
        (
            "node_reply_progress",
            NodeReply::Progress(Progress {
                step: "download".to_owned(),
                item: "abababab".to_owned(),
                done: 5,
                total: 9,
            }),
        ),
        ("node_reply_image", NodeReply::Image { image: summary() }),
        (
            "node_reply_images",
            NodeReply::Images {
                images: vec![summary()],
            },
        ),
        ("node_reply_ready", NodeReply::Ready),
        (
            "node_reply_probed",
            NodeReply::Probed {
                probed: Probed {
                    node: node(),
                    underlay: Some(echoes(5)),
                    underlay_mtu: Some(1500),
                    network: echoes(50),
                    network_mtu: Some(1450),
                    udp: true,
                    tcp: true,
                },
            },
        ),
        ("node_reply_finished", NodeReply::Finished),
        (
            "node_reply_heard",
            NodeReply::Heard {
                heard: Heard {
                    hosts: [HostNumber(2), HostNumber(3)].into(),
                },
            },
        ),
        (
            "node_reply_hops",
            NodeReply::Hops {
                hops: vec![
                    Hop::passes("bridge", "to the tunnel"),
                    Hop::drops("tunnel", "no entry").cure("wait five seconds"),
                ],
            },
        ),
        ("node_reply_end", NodeReply::End),
        ("node_reply_problem", NodeReply::Problem { problem: problem() }),
    ]
}

pub fn brain_requests() -> Vec<(&'static str, BrainRequest)> {
    vec![
        (
            "brain_request_renew",
            BrainRequest::Renew {
                csr_pem: "-----BEGIN CERTIFICATE REQUEST-----".to_owned(),
            },
        ),
        (
            "brain_request_loaded_image",
            BrainRequest::LoadedImage {
                tenant: tenant(),
                reference: reference(),
            },
        ),
        (
            "brain_request_blob",
            BrainRequest::Blob {
                tenant: tenant(),
                digest: digest(),
                offset: 4096,
            },
        ),
    ]
}

pub fn brain_replies() -> Vec<(&'static str, BrainReply)> {
    vec![
        (
            "brain_reply_renewed",
            BrainReply::Renewed {
                cert_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
                ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
            },
        ),
        (
            "brain_reply_loaded_image",
            BrainReply::LoadedImage {
                image: Some(LoadedImage {
                    tenant: tenant(),
                    reference: reference(),
                    manifest: digest(),
                    blobs: vec![(digest(), Bytes(1234))],
                    arch: None,
                    loaded_at: UnixMillis(1_700_000_000_000),
                }),
            },
        ),
        ("brain_reply_blob", BrainReply::Blob { length: 1234 }),
        ("brain_reply_problem", BrainReply::Problem { problem: problem() }),
    ]
}

pub fn exec_up() -> Vec<(&'static str, ExecUp)> {
    let data = "aGVsbG8=".to_owned();
    vec![
        ("exec_up_stdin", ExecUp::Stdin { data }),
        ("exec_up_stdin_eof", ExecUp::StdinEof),
        ("exec_up_resize", ExecUp::Resize { cols: 132, rows: 43 }),
    ]
}

pub fn exec_down() -> Vec<(&'static str, ExecDown)> {
    let data = "aGVsbG8=".to_owned();
    vec![
        ("exec_down_started", ExecDown::Started),
        ("exec_down_stdout", ExecDown::Stdout { data: data.clone() }),
        ("exec_down_stderr", ExecDown::Stderr { data }),
        ("exec_down_exit", ExecDown::Exit { code: 143 }),
        ("exec_down_problem", ExecDown::Problem { problem: problem() }),
    ]
}

pub fn join_replies() -> Vec<(&'static str, JoinReply)> {
    vec![
        (
            "join_reply_joined",
            JoinReply::Joined {
                node: node(),
                name: "host-1".parse().unwrap(),
                cert_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
                ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
                addresses: vec!["brain.example:7070".to_owned()],
            },
        ),
        ("join_reply_problem", JoinReply::Problem { problem: problem() }),
    ]
}

pub fn join_request() -> JoinRequest {
    JoinRequest {
        secret: "aaaaaaaaaaaaaaaa.00".to_owned(),
        csr_pem: "-----BEGIN CERTIFICATE REQUEST-----".to_owned(),
        name: Some("host-1".parse().unwrap()),
        facts: facts(),
    }
}

pub fn join_token() -> JoinToken {
    JoinToken {
        addresses: vec!["brain.example:7070".to_owned()],
        ca_fingerprint: "cd".repeat(32),
        secret: "aaaaaaaaaaaaaaaa.00".to_owned(),
    }
}

pub fn probe_steps() -> Vec<(&'static str, ProbeStep)> {
    let peers = vec![ProbePeer {
        node: node(),
        host: HostNumber(3),
    }];
    vec![("probe_step_go", ProbeStep::Go { peers })]
}
