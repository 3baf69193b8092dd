//! Orders to the reconciler and what becomes of them.

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::Generation;
use berth_common::protocol::{Apply, DesiredUpdate};
use tokio::sync::{mpsc, oneshot};

/// An update, and where its verdict goes.
pub(super) type Order = (DesiredUpdate, oneshot::Sender<Verdict>);

/// The order was taken, or was held already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The generation held now.
    pub generation: Generation,
}

/// The order was not taken; what was held stays in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The generation held.
    pub held: Generation,
    /// The generation refused.
    pub refused: Generation,
    /// Why.
    pub problem: Problem,
}

pub(super) type Verdict = Result<Accepted, Refusal>;

/// To the reconciler.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) orders: mpsc::Sender<Order>,
}

impl Handle {
    /// Hands over an update; returns once it is persisted or refused.
    ///
    /// # Errors
    /// [`Refusal`], also when the reconciler has ended.
    pub async fn order(&self, update: DesiredUpdate) -> Verdict {
        let refused = update.generation();
        let gone = || Refusal {
            held: Generation(0),
            refused,
            problem: Problem::unavailable("the agent is shutting down"),
        };
        let (reply, verdict) = oneshot::channel();
        self.orders.send((update, reply)).await.map_err(|_| gone())?;
        verdict.await.map_err(|_| gone())?
    }
}

/// The refusal that an outcome of [`DesiredSet::apply`] means; none if it is none.
pub fn refusal(apply: &Apply, held: Generation, update: &DesiredUpdate) -> Option<Refusal> {
    let refused = update.generation();
    let problem = match apply {
        Apply::New(_) | Apply::Same => return None,
        Apply::Stale => Problem::new(
            ErrorKind::Conflict,
            format!("desired generation {refused} is older than {held}, which this node holds"),
        )
        .cure("a brain restored from a backup must raise its generations above those of its nodes"),
        Apply::MissingBase => Problem::new(
            ErrorKind::Precondition,
            format!("the change to generation {refused} builds on one that this node does not hold ({held})"),
        )
        .cure("send the full set"),
        Apply::Unknown => Problem::new(
            ErrorKind::Precondition,
            "the update has a form that this agent does not know",
        )
        .cure("send the full set, and upgrade the agent: it is older than the brain"),
        Apply::WrongNode => Problem::new(ErrorKind::Forbidden, "the desired set is meant for another node"),
    };
    Some(Refusal {
        held,
        refused,
        problem,
    })
}
