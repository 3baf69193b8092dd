//! Looks at the pool, carries out what the plan says, looks again.
//!
//! One writer of what is known of this node's volumes. Steps of different volumes run at the same time, a volume's own one after the
//! other, each on a fresh look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_common::id::{ContainerId, SnapshotId, VolumeId};
use berth_common::model::VolumeMount;
use berth_common::protocol::VolumePlace;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::attempts::Attempts;
use super::begun::Begun;
use super::hooks::{self, Commands};
use super::plan::{Hooked, Seen, Step, plan};
use super::ready;
use super::report::{Change, Report, change, report};
use super::sending::Sending;
use crate::peers::{Peers, Rate};
use crate::reconcile::apply::chain;
use crate::reconcile::{Board, Mounts, VolumeOrders};
use crate::volume::{Listing, Pool, VolumeError};

/// Pause between looks when nothing happens: how old what is told of a volume's use may be.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Pause after a look that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Shortest pause between two reports of which only sizes differ.
const SIZES_EVERY: Duration = Duration::from_secs(5);
/// Steps at a time. More would wait for one another in the file system's transactions.
const AT_ONCE: usize = 4;
/// Snapshots at a time around which commands run: whoever lets these take long must not keep other volumes from what they need.
const HOOKED_AT_ONCE: usize = 16;

/// Whether there is a pool.
#[derive(Clone)]
pub enum Access {
    /// It is being made or mounted.
    Opening,
    /// There is none, and why.
    Broken(String),
    /// It, and who sends from it and receives into it; none: why was told.
    Open(Arc<dyn Pool>, Option<Arc<Peers>>),
}

/// What is known, after one look.
#[derive(Clone)]
pub(super) struct Standing {
    access: Access,
    seen: Arc<Seen>,
    problems: Arc<BTreeMap<VolumeId, String>>,
    /// Why the pool could not be looked at.
    trouble: Option<String>,
}

impl Standing {
    /// The pool, if a container's volumes can be mounted now. `orders`: the latest, which may be later than the look.
    pub fn judge(
        &self,
        orders: &VolumeOrders,
        mounts: &Mounts,
        spec: &[VolumeMount],
    ) -> Result<Arc<dyn Pool>, String> {
        let pool = match &self.access {
            Access::Opening => return Err("this node's volumes are being opened".into()),
            Access::Broken(why) => return Err(format!("this node can't have volumes: {why}")),
            Access::Open(pool, _) => pool,
        };
        if let Some(why) = &self.trouble {
            return Err(why.clone());
        }
        ready::all(orders, mounts, spec, &self.seen).map_err(|why| {
            let known = mounts
                .volumes
                .iter()
                .find_map(|one| self.problems.get(&one.volume));
            known.map_or(why.clone(), |known| format!("{why}: {known}"))
        })?;
        Ok(Arc::clone(pool))
    }

    /// Waiting does not help.
    pub fn is_hopeless(&self) -> bool {
        matches!(self.access, Access::Broken(_))
    }

    pub fn pool(&self) -> Option<Arc<dyn Pool>> {
        match &self.access {
            Access::Open(pool, _) => Some(Arc::clone(pool)),
            _ => None,
        }
    }
}

/// This node's volumes.
pub struct Keeper {
    board: Arc<Board>,
    run_dir: PathBuf,
    access: watch::Receiver<Access>,
    standing: watch::Sender<Standing>,
    report: watch::Sender<Option<Arc<Report>>>,
    wake: Arc<Notify>,
    rate: Rate,
    begun: Begun,
    commands: OnceLock<Arc<dyn Commands>>,
}

/// What only the loop knows.
struct Work {
    running: JoinSet<Result<Option<String>, VolumeError>>,
    steps: HashMap<Id, Step>,
    attempts: Attempts,
    /// Where the command after the last snapshot failed, in words.
    unfinished: BTreeMap<VolumeId, String>,
    deleted: BTreeSet<VolumeId>,
    told: BTreeSet<String>,
    sizes_told: Option<Instant>,
    sending: Sending,
}

impl Keeper {
    /// Touches nothing before [`Self::run`]. `run_dir`: below it containers' volumes are mounted; `rate`: how fast all that is sent may go.
    pub fn new(board: Arc<Board>, run_dir: &Path, access: watch::Receiver<Access>, rate: Rate) -> Arc<Self> {
        let standing = Standing {
            access: access.borrow().clone(),
            seen: Arc::default(),
            problems: Arc::default(),
            trouble: Some("this node's volumes were not looked at yet".into()),
        };
        Arc::new(Self {
            board,
            run_dir: run_dir.to_owned(),
            access,
            standing: watch::Sender::new(standing),
            report: watch::Sender::new(None),
            wake: Arc::default(),
            rate,
            begun: Begun::new(run_dir),
            commands: OnceLock::new(),
        })
    }

    /// Who runs commands around snapshots. Before [`Self::run`]; the second is ignored.
    pub fn run_commands_by(&self, commands: Arc<dyn Commands>) {
        let _ = self.commands.set(commands);
    }

    /// What is to be told of the volumes; none until it is known.
    pub fn report(&self) -> watch::Receiver<Option<Arc<Report>>> {
        self.report.subscribe()
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) fn orders(&self) -> Option<Arc<VolumeOrders>> {
        self.board.volumes().borrow().clone()
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Something was mounted or taken away, or has arrived.
    pub fn look(&self) {
        self.wake.notify_one();
    }

    /// Keeps the volumes for ever.
    pub async fn run(self: Arc<Self>) {
        let (mut access, mut orders) = (self.access.clone(), self.board.volumes());
        let mut work = Work::new(Arc::clone(&self.wake), self.rate.clone());
        loop {
            let (now, wanted) = (
                access.borrow_and_update().clone(),
                orders.borrow_and_update().clone(),
            );
            let due = self.round(now, wanted, &mut work).await;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                Ok(()) = access.changed() => {}
                Ok(()) = orders.changed() => {}
                () = self.wake.notified() => {}
                Some(done) = work.running.join_next_with_id() => work.on_done(done),
            }
            // Others that are done need no look of their own.
            while let Some(done) = work.running.try_join_next_with_id() {
                work.on_done(done);
            }
        }
    }

    /// One look and what follows from it; when the next is due.
    async fn round(&self, access: Access, orders: Option<Arc<VolumeOrders>>, work: &mut Work) -> Instant {
        let now = Instant::now();
        let mut next = Standing {
            access,
            trouble: None,
            ..self.standing.borrow().clone()
        };
        let blind = orders.is_none();
        let orders = orders.unwrap_or_default();
        let mut due = now + LOOK_EVERY;
        let looked = match &next.access {
            Access::Opening => return self.publish(next, &orders, work, now, due),
            Access::Broken(why) => Err(why.clone()),
            Access::Open(pool, _) => self.observe(&**pool, &orders, work).await,
        };
        match looked {
            Ok((seen, strange)) => {
                work.tell(strange, (!blind).then_some(&*orders), &seen);
                let mut plan = plan(&orders.volumes, &seen);
                work.attempts.keep(&plan.steps);
                for (volume, why) in work.attempts.problems() {
                    plan.problems.entry(volume).or_insert_with(|| why.to_owned());
                }
                let hooked = |id: &VolumeId| orders.volume(*id).is_some_and(|want| want.hooks.is_some());
                work.unfinished.retain(|id, _| hooked(id));
                for (volume, why) in &work.unfinished {
                    plan.problems.entry(*volume).or_insert_with(|| why.clone());
                }
                if let Access::Open(pool, peers) = &next.access {
                    work.begin(self, pool, plan.steps, now);
                    if !blind {
                        work.sending.follow(&orders, pool, peers.as_ref());
                    }
                }
                due = work.attempts.due(now).map_or(due, |at| at.min(due));
                (next.seen, next.problems) = (Arc::new(seen), Arc::new(plan.problems));
            }
            Err(why) => {
                let wanted = orders.volumes.iter();
                let concerned = wanted.filter(|want| want.place != VolumePlace::Unknown);
                let problems = concerned.map(|want| (want.id, why.clone()));
                next.problems = Arc::new(problems.collect());
                next.trouble = Some(why);
                due = now + LOOK_AGAIN;
            }
        }
        self.publish(next, &orders, work, now, due)
    }

    /// What is in the pool, and what is mounted or may be.
    async fn observe(
        &self,
        pool: &dyn Pool,
        orders: &VolumeOrders,
        work: &mut Work,
    ) -> Result<(Seen, Vec<String>), String> {
        let failed =
            |error: VolumeError| format!("this node's volumes can't be looked at: {}", chain(&error));
        let Listing { volumes, strange, .. } = pool.list().await.map_err(failed)?;
        let mounts = pool.mounted().await.map_err(failed)?;
        let mut writers: BTreeMap<VolumeId, ContainerId> = BTreeMap::new();
        let mut writes = |container: ContainerId, volume: VolumeId| {
            let first = writers.entry(volume).or_insert(container);
            *first = container.min(*first);
        };
        // What runs is not known at once after a start of the agent, what is mounted for whom is.
        for (at, volume) in &mounts {
            let container = at
                .parent()
                .and_then(|folder| folder.file_name()?.to_str()?.parse().ok());
            let named = container.and_then(|id| Some((id, orders.mounts.get(&id)?)));
            if let Some((id, _)) = named.filter(|(_, named)| named.writable.contains(volume)) {
                writes(id, *volume);
            }
        }
        let mut mounted: BTreeSet<_> = mounts.into_iter().map(|(_, volume)| volume).collect();
        // A process whose mount somebody took away on the host still has its own.
        let running = self.board.running();
        let named = running
            .iter()
            .filter_map(|one| Some((one.id, orders.mounts.get(&one.id)?)));
        for (container, mounts) in named {
            mounted.extend(mounts.volumes.iter().map(|one| one.volume));
            mounts
                .writable
                .iter()
                .for_each(|volume| writes(container, *volume));
        }
        let volumes: BTreeMap<_, _> = volumes.into_iter().map(|one| (one.meta.id, one)).collect();
        work.deleted.retain(|id| {
            let wanted = orders.volume(*id);
            !volumes.contains_key(id) && wanted.is_some_and(|want| want.place == VolumePlace::Deleted)
        });
        let seen = Seen {
            volumes,
            mounted,
            writers,
            begun: work.left(self.begun.all()),
            deleted: work.deleted.clone(),
        };
        Ok((seen, strange))
    }

    /// Tells who waits, and the brain if it is worth it.
    fn publish(
        &self,
        next: Standing,
        orders: &VolumeOrders,
        work: &mut Work,
        now: Instant,
        due: Instant,
    ) -> Instant {
        if matches!(next.access, Access::Opening) {
            self.standing.send_replace(next);
            return due;
        }
        let sending = work.sending.told.all();
        let report = report(&orders.volumes, &next.seen, &next.problems, &sending);
        self.standing.send_replace(next);
        let told = self.report.borrow().clone();
        let sizes_due = work.sizes_told.map(|at| at + SIZES_EVERY).filter(|at| *at > now);
        match (
            told.map_or(Change::More, |told| change(&told, &report)),
            sizes_due,
        ) {
            (Change::None, _) => due,
            (Change::Sizes, Some(at)) => due.min(at),
            _ => {
                work.sizes_told = Some(now);
                self.report.send_replace(Some(Arc::new(report)));
                due
            }
        }
    }
}

impl Work {
    fn new(wake: Arc<Notify>, rate: Rate) -> Self {
        Self {
            running: JoinSet::new(),
            steps: HashMap::new(),
            attempts: Attempts::default(),
            unfinished: BTreeMap::new(),
            deleted: BTreeSet::new(),
            told: BTreeSet::new(),
            sizes_told: None,
            sending: Sending::new(wake, rate),
        }
    }

    /// Of what was begun around snapshots, what is not being done.
    fn left(&self, mut begun: BTreeMap<VolumeId, Hooked>) -> BTreeMap<VolumeId, Hooked> {
        for step in self.steps.values().filter(|step| step.runs_commands()) {
            begun.remove(&step.volume());
        }
        begun
    }

    /// Logs what is left alone, each thing once.
    fn tell(&mut self, strange: Vec<String>, orders: Option<&VolumeOrders>, seen: &Seen) {
        let unnamed = |id: &&VolumeId| orders.is_some_and(|orders| orders.volume(**id).is_none());
        let foreign = seen.volumes.keys().filter(unnamed);
        let foreign = foreign.map(|id| format!("volume {id}, which the brain does not name"));
        let told: BTreeSet<_> = strange.into_iter().chain(foreign).collect();
        for what in told.difference(&self.told) {
            tracing::warn!(what, "left alone among this node's volumes");
        }
        self.told = told;
    }

    /// Begins what may be tried, of volumes of which nothing is under way.
    fn begin(&mut self, keeper: &Keeper, pool: &Arc<dyn Pool>, steps: Vec<Step>, now: Instant) {
        let mut busy: BTreeSet<_> = self.steps.values().map(Step::volume).collect();
        let mut hooked = self.steps.values().filter(|step| step.runs_commands()).count();
        let mut plain = self.steps.len() - hooked;
        for step in steps {
            let (count, most) = match step.runs_commands() {
                true => (&mut hooked, HOOKED_AT_ONCE),
                false => (&mut plain, AT_ONCE),
            };
            if *count >= most || self.attempts.waits(&step, now) || !busy.insert(step.volume()) {
                continue;
            }
            *count += 1;
            tracing::debug!(?step, "volume");
            let (pool, doing) = (Arc::clone(pool), step.clone());
            let (board, commands) = (Arc::clone(&keeper.board), keeper.commands.get().cloned());
            let begun = keeper.begun.clone();
            let task = self.running.spawn(async move {
                let by = (commands.as_deref(), &begun);
                match &doing {
                    Step::Snapshot {
                        volume,
                        snapshot,
                        hooks: Some(hooked),
                    } => {
                        let wanted = || is_wanted(&board, *volume, *snapshot);
                        hooks::snapshot(&*pool, by, (*volume, *snapshot), hooked, wanted).await
                    }
                    Step::EndHooks { volume, hooked } => Ok(hooks::end(by, *volume, hooked).await),
                    plain => carry_out(&*pool, plain).await.map(|()| None),
                }
            });
            self.steps.insert(task.id(), step);
        }
    }

    fn on_done(&mut self, done: Result<(Id, Result<Option<String>, VolumeError>), tokio::task::JoinError>) {
        let (id, result) = match done {
            Ok(done) => done,
            Err(error) => (error.id(), Err(VolumeError::Interrupted)),
        };
        let Some(step) = self.steps.remove(&id) else {
            return;
        };
        match &result {
            Ok(left) => {
                if step.runs_commands() {
                    self.unfinished.remove(&step.volume());
                    self.unfinished
                        .extend(left.clone().map(|why| (step.volume(), why)));
                }
                if let Step::Delete(volume) = step {
                    self.deleted.insert(volume);
                }
                tracing::info!(?step, "volume changed");
            }
            Err(error) => tracing::warn!(?step, error = chain(error), "volume not changed"),
        }
        self.attempts.note(step, result.as_ref().err(), Instant::now());
    }
}

/// Whether a snapshot is still to be made, by the latest orders.
fn is_wanted(board: &Board, volume: VolumeId, snapshot: SnapshotId) -> bool {
    let orders = board.volumes().borrow().clone();
    let want = orders.as_ref().and_then(|orders| orders.volume(volume));
    want.is_some_and(|want| {
        matches!(want.place, VolumePlace::Held { .. }) && want.snapshots.contains(&snapshot)
    })
}

/// Does one step, without the commands around it.
pub(super) async fn carry_out(pool: &dyn Pool, step: &Step) -> Result<(), VolumeError> {
    match step {
        Step::Create(meta) => pool.create(meta).await,
        Step::Clone { source, meta } => pool.clone_snapshot(source.volume, source.snapshot, meta).await,
        Step::Resize { volume, size } => pool.resize(*volume, *size).await,
        Step::SetEpoch { volume, epoch } => pool.set_epoch(*volume, *epoch).await,
        Step::Snapshot { volume, snapshot, .. } => pool.snapshot(*volume, *snapshot).await.map(drop),
        // Nothing of it is the pool's.
        Step::EndHooks { .. } => Ok(()),
        Step::DeleteSnapshot { volume, snapshot } => pool.delete_snapshot(*volume, *snapshot).await,
        Step::RollBack {
            volume,
            snapshot,
            keep,
        } => pool.roll_back(*volume, *snapshot, *keep).await,
        Step::Retire { volume, last } => pool.retire(*volume, Some(*last)).await,
        Step::Delete(volume) => pool.delete(*volume).await,
    }
}
