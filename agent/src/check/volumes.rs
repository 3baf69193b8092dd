//! Whether volumes can be on this host, and where. Without them everything else works.

use super::Finding;
use crate::config::Config;
use crate::volume::pool::{self, Observed};
use crate::volume::pool_apply;
use crate::volume::pool_error::PoolError;

const CHECK: &str = "volumes";

pub(super) fn finding(config: &Config) -> Finding {
    let settings = config.volume_pool();
    judge(&settings, pool_apply::observe(&settings))
}

fn judge(settings: &pool::Settings, observed: Result<Observed, PoolError>) -> Finding {
    let planned = observed.and_then(|observed| Ok((pool::plan(settings, &observed)?, observed)));
    let (plan, observed) = match planned {
        Ok(planned) => planned,
        Err(error) => return Finding::warn(CHECK, error.found(), error.cure()),
    };
    if let Some(warning) = plan.warnings.first() {
        return Finding::warn(CHECK, &warning.found, &warning.cure);
    }
    Finding::ok(CHECK, plan.place(settings, &observed))
}

#[cfg(test)]
mod tests {
    use berth_common::units::Bytes;

    use super::*;
    use crate::check::Level;
    use crate::volume::Uuid;
    use crate::volume::pool::{PoolFile, Signature};

    #[test]
    fn volumes_say_where_they_are_or_what_is_missing() {
        let settings = pool::Settings {
            dir: "/s/volumes".into(),
            size: None,
        };
        let bare = Observed {
            free: Bytes::gib(40),
            kernel: true,
            ..Observed::default()
        };
        let finding = judge(&settings, Ok(bare.clone()));
        assert!(
            finding.level == Level::Ok && finding.found.contains("20GiB"),
            "{finding:?}"
        );
        let id = Uuid::from_bytes([1; 16]);
        let file = PoolFile {
            size: Bytes::gib(7),
            signature: Signature::Btrfs(id),
        };
        let there = Observed {
            file: Some(file),
            ..bare.clone()
        };
        let finding = judge(&settings, Ok(there));
        assert!(
            finding.level == Level::Ok && finding.found.contains("7GiB"),
            "{finding:?}"
        );
        for (lacking, kernel, free, cure) in [
            (vec!["btrfs", "mkfs.btrfs"], true, 40, "install btrfs-progs"),
            (vec![], false, 40, "modprobe btrfs"),
            (vec![], true, 0, "free some"),
        ] {
            let observed = Observed {
                lacking,
                kernel,
                free: Bytes::gib(free),
                ..bare.clone()
            };
            let finding = judge(&settings, Ok(observed));
            assert_eq!(finding.level, Level::Warn, "{finding:?}");
            assert!(
                finding.found.contains(cure) || finding.cure.contains(cure),
                "{finding:?}"
            );
            assert!(!finding.cure.is_empty(), "{finding:?}");
        }
    }
}
