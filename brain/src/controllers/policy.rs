//! Policies in plans: nothing is placed before the service's policy was heard, and nothing is stopped for what can't be placed yet.

use super::services::Pass;
use crate::policies::Opinion;
use crate::scheduler::Refusal;

impl Pass<'_, '_, '_> {
    /// Whether the service's policy was heard, or need not be. If not it is asked, or planned again when that is worth it.
    ///
    /// # Errors
    /// What containers of it wait for.
    pub fn heard(&mut self) -> Result<(), Box<Refusal>> {
        let refusal = match self.cx.input.outlook.opinion(self.service) {
            Opinion::Free | Opinion::Heard(..) => return Ok(()),
            Opinion::Unasked(why) => {
                self.cx.plan.wanted.insert(self.service.id);
                Refusal::unheard(why, true)
            }
            Opinion::Waits { why, again } => {
                if let Some(again) = again {
                    self.look_again(again);
                }
                Refusal::unheard(why, false)
            }
        };
        // Who does not know yet where it may be takes nobody's place.
        self.hopeless = true;
        Err(Box::new(refusal))
    }

    /// What was refused for the policy's sake is asked anew when its word no longer counts.
    pub fn doubt(&mut self, refusal: &Refusal) {
        if let Opinion::Heard(_, until) = self.cx.input.outlook.opinion(self.service)
            && refusal.kinds().contains(&"policy")
        {
            self.look_again(until);
        }
    }

    /// Plans the service again at a time in seconds.
    fn look_again(&mut self, at: u32) {
        self.cx.recheck(self.service.id, u64::from(at) * 1_000);
    }
}
