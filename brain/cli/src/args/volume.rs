//! Arguments about volumes.

use berth_common::id::Name;
use berth_common::units::Bytes;
use clap::{Args, Subcommand};

use super::value;
use super::volume_schedule::{HookArgs, ScheduleArgs};

/// `berth volume …`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make an empty volume
    #[command(
        after_help = "Services make the volumes that they mount by themselves; this is for those of a size or on a node of your own choice.

Examples:
  berth volume create data
  berth volume create data --size 20GiB
  berth volume create data --size 20GiB --node h1
  berth volume create data --snapshot-every 1h --keep-last 4 --keep-daily 7
  berth run postgres -v data:/var/lib/postgresql/data     mounts it"
    )]
    Create {
        /// Unique in the tenant.
        name: Name,
        /// Most that it holds, 1MiB to 64TiB; default 1GiB.
        #[arg(long)]
        size: Option<Bytes>,
        /// The node that is to have it; default where its first container is placed.
        #[arg(long)]
        node: Option<Name>,
        /// Snapshots that are made by themselves.
        #[command(flatten)]
        schedule: ScheduleArgs,
        /// Commands around snapshots.
        #[command(flatten)]
        hooks: HookArgs,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List volumes
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  berth volume ls\n  berth volume ls -o json"
    )]
    Ls,
    /// Show a volume with its snapshots, who has it, and how far its move is
    #[command(after_help = "Example:\n  berth volume inspect data")]
    Inspect {
        /// Its name.
        name: Name,
    },
    /// Give a volume another size, while it is in use too
    #[command(after_help = "It can shrink to what it holds, with its snapshots.

Example:
  berth volume resize data 50GiB")]
    Resize {
        /// Its name.
        name: Name,
        /// Most that it is to hold.
        size: Bytes,
    },
    /// Show, give or end a volume's schedule of snapshots, and commands that run around each
    #[command(
        after_help = "Without options it shows both and when the next snapshot is due. Of the snapshots that it made, those stay that any --keep keeps; the
others go with the next one, and those made by hand stay. Times that were missed are made up for by one snapshot.
Commands run in a container that writes to the volume, before and after snapshots by schedule and by hand; where none runs, not at all.

Examples:
  berth volume schedule data --snapshot-every 1h --keep-last 4 --keep-hourly 24 --keep-daily 7
  berth volume schedule data --snapshot-before 'redis-cli save' --snapshot-limit 30s
  berth volume schedule data                       shows it
  berth volume schedule data --off                 ends it; its snapshots stay
  berth volume schedule data --no-hooks            runs no commands any more"
    )]
    Schedule {
        /// The volume.
        name: Name,
        /// Snapshots that are made by themselves.
        #[command(flatten)]
        schedule: ScheduleArgs,
        /// Commands around snapshots.
        #[command(flatten)]
        hooks: HookArgs,
        /// End the schedule; the snapshots stay.
        #[arg(long, conflicts_with = "ScheduleArgs")]
        off: bool,
        /// Run no commands around snapshots any more.
        #[arg(long, conflicts_with = "HookArgs")]
        no_hooks: bool,
    },
    /// Make a snapshot of a volume, at once and while it is in use
    #[command(
        after_help = "It is on the volume's node and holds what was written until then, as a power cut would have left it.

Examples:
  berth volume snapshot data                      named by the moment: snap-20250131-120000
  berth volume snapshot data before-upgrade
  berth volume rollback data before-upgrade       goes back to it
  berth run postgres -v data@before-upgrade:/old  reads it, beside what the volume is now"
    )]
    Snapshot {
        /// The volume.
        name: Name,
        /// The snapshot's name, unique in the volume.
        snapshot: Option<Name>,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove a snapshot
    #[command(after_help = "Example:\n  berth volume snapshot-rm data before-upgrade")]
    SnapshotRm {
        /// The volume.
        name: Name,
        /// Its snapshot.
        snapshot: Name,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Have a volume become what a snapshot of it is; its containers are restarted
    #[command(
        after_help = "What it was before is kept as a snapshot named before-SNAPSHOT: rolling back to that undoes it.

Example:
  berth volume rollback data before-upgrade"
    )]
    Rollback {
        /// The volume.
        name: Name,
        /// Its snapshot.
        snapshot: Name,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make a volume that begins as a snapshot of another
    #[command(
        after_help = "It shares what both have alike, so it is there at once and takes no room of its own at first.

Examples:
  berth volume clone data before-upgrade test-data
  berth volume clone data before-upgrade test-data --size 50GiB"
    )]
    Clone {
        /// The volume.
        name: Name,
        /// Its snapshot.
        snapshot: Name,
        /// The new volume's name.
        new: Name,
        /// Most that the new one holds; default what the old one does.
        #[arg(long)]
        size: Option<Bytes>,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move a volume, and those its containers have together with it, to another node
    #[command(
        after_help = "It is sent while its containers write, again and again until the rest is small; only then they stop, and start where it is.

Examples:
  berth volume move data              to the node with the most room for volumes
  berth volume move data h2
  berth volume move data h2 -d        don't wait; `berth volume inspect data` shows how far it is
  berth volume cancel-move data       leaves it where it is"
    )]
    Move {
        /// The volume.
        name: Name,
        /// The node.
        node: Option<Name>,
        /// Don't wait until it is there.
        #[arg(short, long)]
        detach: bool,
        /// Wait at most so long; moving goes on afterwards. Default: without end.
        #[arg(long, value_parser = value::duration, conflicts_with = "detach")]
        timeout: Option<u64>,
    },
    /// Cancel a move, as long as its last part is not being sent
    #[command(after_help = "Example:\n  berth volume cancel-move data")]
    CancelMove {
        /// The volume.
        name: Name,
    },
    /// Remove volumes with their data and snapshots
    #[command(
        visible_alias = "remove",
        after_help = "A volume that a service mounts stays.

Examples:
  berth volume rm data
  berth volume rm data --force        its node is lost: it is forgotten, and its data stays on that host"
    )]
    Rm {
        /// Which.
        #[arg(required = true)]
        names: Vec<Name>,
        /// Give up volumes whose nodes are lost.
        #[arg(long)]
        force: bool,
        /// How to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// How long to wait until a node has done what was asked.
#[derive(Debug, Clone, Copy, Args)]
pub struct WaitArgs {
    /// Don't wait until it is done.
    #[arg(short, long)]
    pub detach: bool,
    /// Wait at most so long; it goes on afterwards.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = value::duration)]
    pub wait: u64,
}
