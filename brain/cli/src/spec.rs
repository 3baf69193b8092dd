//! Turns flags and files into service specs.
//!
//! Pure: files are read by the caller. Refuses specs that the brain would refuse anyway, since here the flag can be named.

use std::collections::BTreeMap;

use berth_common::id::{Name, clip};
use berth_common::model::{Bandwidth, Class, DEFAULT_POOL, ImageRef, PublishedPort, Restart, ServiceSpec};
use serde::Deserialize as _;

use crate::args::{RemoveArgs, RestartArg, SpecArgs};

/// Applies flags to a spec. `files` are the texts of the environment files in order, `own` reads the caller's variables.
///
/// # Errors
/// What is wrong with which value.
pub fn apply(
    spec: &mut ServiceSpec,
    args: &SpecArgs,
    command: &[String],
    files: &[String],
    own: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    fn set<T: Clone>(slot: &mut Option<T>, value: &Option<T>) {
        if value.is_some() {
            slot.clone_from(value);
        }
    }
    let limits = &mut spec.resources.limits;
    set(&mut limits.cpu, &args.cpus);
    set(&mut limits.cpu_weight, &args.cpu_weight);
    set(&mut limits.memory, &args.memory);
    set(&mut limits.memory_high, &args.memory_high);
    set(&mut limits.pids, &args.pids);
    set(&mut limits.disk, &args.disk);
    set(&mut limits.read_bps, &args.read_bps);
    set(&mut limits.write_bps, &args.write_bps);
    set(&mut limits.read_iops, &args.read_iops);
    set(&mut limits.write_iops, &args.write_iops);
    let reserve = &mut spec.resources.reserve;
    set(&mut reserve.cpu, &args.reserve_cpu);
    set(&mut reserve.memory, &args.reserve_memory);
    set(&mut reserve.disk, &args.reserve_disk);
    for text in files {
        spec.env.extend(crate::args::value::env_file(text, &own)?);
    }
    for pair in &args.env {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => (
                pair.as_str(),
                own(pair).ok_or_else(|| {
                    format!("--env {:?}: you have no such variable; write K=V", clip(pair, 40))
                })?,
            ),
        };
        spec.env.insert(key.to_owned(), value);
    }
    set(&mut spec.working_dir, &args.workdir);
    set(&mut spec.user, &args.user);
    set(&mut spec.hostname, &args.hostname);
    set(&mut spec.stop_signal, &args.stop_signal);
    if !args.tmpfs.is_empty() {
        spec.tmpfs.clone_from(&args.tmpfs);
    }
    if !args.volume.is_empty() {
        spec.volumes.clone_from(&args.volume);
    }
    spec.labels.extend(args.label.iter().cloned());
    spec.node_labels.extend(args.on.iter().cloned());
    // The default one is what a spec without a pool means, and so read back the same.
    if let Some(pool) = &args.pool {
        spec.pool = (pool.as_str() != DEFAULT_POOL).then(|| pool.clone());
    }
    for toleration in &args.toleration {
        if !spec.tolerations.contains(toleration) {
            spec.tolerations.push(toleration.clone());
        }
    }
    for spread in &args.spread {
        spec.spread.retain(|old| old.by != spread.by);
        spec.spread.push(spread.clone());
    }
    for together in &args.together {
        spec.together
            .retain(|old| (&old.with, &old.by) != (&together.with, &together.by));
        spec.together.push(together.clone());
    }
    set(&mut spec.policy, &args.policy);
    spec.priority = args.priority.unwrap_or(spec.priority);
    if let Some(best_effort) = args.best_effort {
        spec.class = if best_effort {
            Class::BestEffort
        } else {
            Class::Standard
        };
    }
    if let Some(most) = args.max_per_node {
        spec.max_per_node = (most > 0).then_some(most);
    }
    if !args.network.is_empty() {
        spec.networks = names("--network", &args.network)?;
    }
    for link in &args.link {
        spec.links.retain(|old| old.service != link.service);
        spec.links.push(link.clone());
    }
    if !args.ingress_from.is_empty() {
        spec.ingress_from = Some(names("--ingress-from", &args.ingress_from)?);
    }
    set(&mut spec.bandwidth.inward, &args.bandwidth_in);
    set(&mut spec.bandwidth.outward, &args.bandwidth_out);
    for port in &args.publish {
        // The same port to another inside, or in another mode, takes the old one's place.
        spec.ports.retain(|old| !same_port(old, port));
        spec.ports.push(*port);
    }
    args.health.apply(&mut spec.health)?;
    if let Some(restart) = args.restart {
        spec.restart.on = match restart {
            RestartArg::Always => Restart::Always,
            RestartArg::OnFailure => Restart::OnFailure,
            RestartArg::Never => Restart::Never,
        };
    }
    spec.replicas = args.replicas.unwrap_or(spec.replicas);
    spec.init = args.init.unwrap_or(spec.init);
    spec.read_only = args.read_only.unwrap_or(spec.read_only);
    spec.privileged = args.privileged.unwrap_or(spec.privileged);
    if !args.cap_add.is_empty() {
        spec.cap_add.clone_from(&args.cap_add);
    }
    if !args.cap_drop.is_empty() {
        spec.cap_drop.clone_from(&args.cap_drop);
    }
    if let Some(grace) = args.stop_grace {
        spec.stop_grace_secs = u32::try_from(grace).map_err(|_| "--stop-grace: at most 1h".to_owned())?;
    }
    if let Some(entrypoint) = &args.entrypoint {
        spec.entrypoint = Some(vec![entrypoint.clone()]);
    }
    if !command.is_empty() {
        spec.command = Some(command.to_vec());
    }
    spec.validate().map_err(|error| error.to_string())
}

/// Whether two are open at the same ports of a node.
fn same_port(a: &PublishedPort, b: &PublishedPort) -> bool {
    (a.published, a.count, a.protocol) == (b.published, b.count, b.protocol)
}

/// Networks or services by name; `none` alone is none.
fn names(flag: &str, names: &[String]) -> Result<Vec<Name>, String> {
    if let [only] = names
        && only == "none"
    {
        return Ok(Vec::new());
    }
    let parsed = names
        .iter()
        .map(|name| name.parse().map_err(|error| format!("{flag} {name:?}: {error}")));
    parsed.collect()
}

/// Takes out of a spec what is to go, before anything is added.
///
/// # Errors
/// What is not there to be removed: a typo must not pass for done.
pub fn remove(spec: &mut ServiceSpec, args: &RemoveArgs) -> Result<(), String> {
    let missing = |flag: &str, key: &str, there: Vec<&str>| {
        let there = match there.join(", ") {
            none if none.is_empty() => "none".to_owned(),
            some => clip(&some, 200),
        };
        format!("{flag} {:?}: there is no such; there is {there}", clip(key, 40))
    };
    for (flag, keys, map) in [
        ("--env-rm", &args.env_rm, &mut spec.env),
        ("--label-rm", &args.label_rm, &mut spec.labels),
        ("--on-rm", &args.on_rm, &mut spec.node_labels),
    ] {
        for key in keys {
            if map.remove(key).is_none() {
                return Err(missing(flag, key, map.keys().map(String::as_str).collect()));
            }
        }
    }
    for path in &args.tmpfs_rm {
        let Some(at) = spec.tmpfs.iter().position(|tmpfs| tmpfs.path == *path) else {
            let there = spec.tmpfs.iter().map(|tmpfs| tmpfs.path.as_str());
            return Err(missing("--tmpfs-rm", path, there.collect()));
        };
        spec.tmpfs.remove(at);
    }
    for name in &args.volume_rm {
        let before = spec.volumes.len();
        spec.volumes.retain(|mount| mount.volume != *name);
        if spec.volumes.len() == before {
            let there = spec.volumes.iter().map(|mount| mount.volume.as_str());
            return Err(missing("--volume-rm", name.as_str(), there.collect()));
        }
    }
    for gone in &args.toleration_rm {
        let Some(at) = spec.tolerations.iter().position(|one| one == gone) else {
            let there: Vec<String> = spec.tolerations.iter().map(ToString::to_string).collect();
            let there = there.iter().map(String::as_str).collect();
            return Err(missing("--toleration-rm", &gone.to_string(), there));
        };
        spec.tolerations.remove(at);
    }
    for label in &args.spread_rm {
        let Some(at) = spec.spread.iter().position(|one| one.by == *label) else {
            let there = spec.spread.iter().map(|one| one.by.as_str()).collect();
            return Err(missing("--spread-rm", label, there));
        };
        spec.spread.remove(at);
    }
    for name in &args.together_rm {
        let before = spec.together.len();
        spec.together.retain(|one| one.with != *name);
        if spec.together.len() == before {
            let there = spec.together.iter().map(|one| one.with.as_str()).collect();
            return Err(missing("--together-rm", name.as_str(), there));
        }
    }
    for name in &args.link_rm {
        let Some(at) = spec.links.iter().position(|link| link.service == *name) else {
            let there: Vec<&str> = spec.links.iter().map(|link| link.service.as_str()).collect();
            return Err(missing("--link-rm", name.as_str(), there));
        };
        spec.links.remove(at);
    }
    if args.policy_rm && spec.policy.take().is_none() {
        return Err("--policy-rm: it asks no policy".to_owned());
    }
    if args.ingress_rm && spec.ingress_from.take().is_none() {
        return Err("--ingress-rm: all services of the tenant may come in already".to_owned());
    }
    if args.bandwidth_rm {
        spec.bandwidth = Bandwidth::default();
    }
    if args.health_rm && spec.health.take().is_none() {
        return Err("--health-rm: its containers are not checked".to_owned());
    }
    for port in &args.publish_rm {
        let Some(at) = spec.ports.iter().position(|old| same_port(old, port)) else {
            let there: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
            let there = there.iter().map(String::as_str).collect();
            return Err(missing("--publish-rm", &port.to_string(), there));
        };
        spec.ports.remove(at);
    }
    Ok(())
}

/// Specs from YAML (several documents allowed) or JSON, which is YAML too.
///
/// # Errors
/// Where and why it does not parse.
pub fn parse(text: &str) -> Result<Vec<ServiceSpec>, String> {
    let mut specs: Vec<ServiceSpec> = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let spec = Option::<ServiceSpec>::deserialize(document).map_err(|error| error.to_string())?;
        let Some(spec) = spec else { continue };
        spec.validate()
            .map_err(|error| format!("service {}: {error}", spec.name))?;
        if specs.iter().any(|other| other.name == spec.name) {
            return Err(format!("service {} is in it twice", spec.name));
        }
        specs.push(spec);
    }
    if specs.is_empty() {
        return Err("it holds no service".into());
    }
    Ok(specs)
}

/// A name for a service of this image: its last part, made a DNS label, and a suffix that tells runs apart.
pub fn generated_name(image: &ImageRef, suffix: &str) -> Name {
    let last = image.repository().rsplit('/').next().unwrap_or_default();
    let mut base: String = last
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .skip_while(|c| !c.is_ascii_lowercase())
        .take(50)
        .collect();
    base.truncate(base.trim_end_matches('-').len());
    if base.is_empty() {
        base.push_str("service");
    }
    format!("{base}-{suffix}")
        .parse()
        .unwrap_or_else(|_| "service".parse().expect("a valid name"))
}

/// Pairs as a map.
pub fn map(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::units::Bytes;
    use proptest::prelude::*;

    fn base() -> ServiceSpec {
        ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap())
    }

    #[test]
    fn what_is_absent_stays() {
        let mut spec = base();
        spec.env.insert("A".into(), "1".into());
        spec.init = true;
        let before = spec.clone();
        apply(&mut spec, &SpecArgs::default(), &[], &[], |_| None).unwrap();
        assert_eq!(spec, before);
        let args = SpecArgs {
            memory: Some(Bytes::mib(64)),
            env: vec!["B=x=y".into(), "HOME".into()],
            init: Some(false),
            ..Default::default()
        };
        apply(&mut spec, &args, &["a".into()], &["A=2\nC=3".into()], |_| {
            Some("/h".into())
        })
        .unwrap();
        assert_eq!(spec.resources.limits.memory, Some(Bytes::mib(64)));
        let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=2", "B=x=y", "C=3", "HOME=/h"]);
        assert!(!spec.init);
        assert_eq!(spec.command, Some(vec!["a".to_owned()]));
    }

    #[test]
    fn what_is_to_go_goes_and_a_typo_is_told() {
        let mut spec = base();
        spec.env = map(vec![("A".into(), "1".into()), ("B".into(), "2".into())]);
        spec.labels = map(vec![("tier".into(), "web".into())]);
        spec.node_labels = map(vec![("disk".into(), "ssd".into())]);
        spec.tmpfs = vec![crate::args::value::tmpfs("/tmp:1MiB").unwrap()];
        spec.health = Some(Default::default());
        spec.volumes = vec!["old:/old".parse().unwrap()];
        let mut with = SpecArgs {
            volume: vec![
                "data:/srv:size=2GiB".parse().unwrap(),
                "logs:/logs:ro".parse().unwrap(),
            ],
            link: vec!["db:1".parse().unwrap(), "db:2".parse().unwrap()],
            ingress_from: vec!["none".into()],
            bandwidth_in: Some(Bytes::mib(1)),
            spread: vec!["zone".parse().unwrap(), "zone,hard".parse().unwrap()],
            together: vec!["db,by=zone".parse().unwrap(), "db,hard".parse().unwrap()],
            max_per_node: Some(2),
            policy: Some("gpu-first".parse().unwrap()),
            ..Default::default()
        };
        with.health.health_tcp = Some(80);
        apply(&mut spec, &with, &[], &[], |_| None).unwrap();
        assert_eq!(spec.links, ["db:2".parse().unwrap()]);
        let volumes: Vec<String> = spec.volumes.iter().map(ToString::to_string).collect();
        assert_eq!(
            volumes,
            ["data:/srv:size=2GiB", "logs:/logs:ro"],
            "they take the old ones' place"
        );
        assert_eq!(spec.spread, ["zone,hard".parse().unwrap()]);
        assert_eq!((spec.together.len(), spec.max_per_node), (2, Some(2)));
        assert_eq!(spec.ingress_from, Some(vec![]));
        assert_eq!(spec.policy.as_ref().map(Name::as_str), Some("gpu-first"));
        spec.tolerations = vec!["gpu".parse().unwrap()];
        spec.ports = vec!["8080:80".parse().unwrap(), "8080/udp".parse().unwrap()];
        let typo = RemoveArgs {
            env_rm: vec!["AA".into()],
            ..Default::default()
        };
        let error = remove(&mut spec.clone(), &typo).unwrap_err();
        assert!(error.contains("\"AA\"") && error.contains("A, B"), "{error}");
        let all = RemoveArgs {
            publish_rm: vec!["8080".parse().unwrap()],
            env_rm: vec!["A".into()],
            label_rm: vec!["tier".into()],
            on_rm: vec!["disk".into()],
            tmpfs_rm: vec!["/tmp".into()],
            volume_rm: vec!["data".parse().unwrap()],
            health_rm: true,
            link_rm: vec!["db".parse().unwrap()],
            ingress_rm: true,
            bandwidth_rm: true,
            toleration_rm: vec!["gpu".parse().unwrap()],
            spread_rm: vec!["zone".into()],
            together_rm: vec!["db".parse().unwrap()],
            policy_rm: true,
        };
        remove(&mut spec, &all).unwrap();
        assert_eq!(spec.env.keys().collect::<Vec<_>>(), ["B"]);
        assert!(spec.tolerations.is_empty() && spec.spread.is_empty() && spec.together.is_empty());
        assert!(spec.labels.is_empty() && spec.node_labels.is_empty() && spec.tmpfs.is_empty());
        assert_eq!(spec.ports, ["8080/udp".parse().unwrap()]);
        assert_eq!((&spec.health, &spec.ingress_from), (&None, &None));
        assert_eq!(spec.policy, None);
        assert_eq!(spec.volumes, ["logs:/logs:ro".parse().unwrap()]);
        let error = remove(
            &mut spec.clone(),
            &RemoveArgs {
                volume_rm: all.volume_rm.clone(),
                ..Default::default()
            },
        );
        assert!(
            error
                .unwrap_err()
                .contains("--volume-rm \"data\": there is no such; there is logs")
        );
        assert!(spec.links.is_empty() && spec.bandwidth.is_free());
        assert!(remove(&mut spec, &all).unwrap_err().contains("--env-rm"));
    }

    #[test]
    fn wrong_values_are_named() {
        let args = SpecArgs {
            cpu_weight: Some(0),
            ..Default::default()
        };
        let error = apply(&mut base(), &args, &[], &[], |_| None).unwrap_err();
        assert!(error.contains("cpu_weight"), "{error}");
        let args = SpecArgs {
            env: vec!["NOPE".into()],
            ..Default::default()
        };
        assert!(
            apply(&mut base(), &args, &[], &[], |_| None)
                .unwrap_err()
                .contains("NOPE")
        );
    }

    #[test]
    fn files_hold_one_or_more_services() {
        let specs = parse("name: a\nimage: nginx\n---\nname: b\nimage: redis\nreplicas: 2\n").unwrap();
        assert_eq!(specs.len(), 2);
        assert_eq!(parse(r#"{"name":"a","image":"nginx"}"#).unwrap().len(), 1);
        for bad in [
            "",
            "name: a",
            "name: a\nimage: x\nreplcas: 2",
            "name: a\nimage: x\n---\nname: a\nimage: x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_image_gives_a_name(image in "[a-z0-9._/:-]{1,60}") {
            if let Ok(image) = image.parse::<ImageRef>() {
                let name = generated_name(&image, "ab2c");
                prop_assert!(name.as_str().ends_with("-ab2c"));
            }
        }
    }
}
