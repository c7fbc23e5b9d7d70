//! A warm or cold replica alone, when all that were in sync are gone.
//!
//! *Guarantees*: it is believed only with a root that it got when it had followed to it, so that it holds all of that; and only by a
//! person's word (`accept_stale`). *Assumes*: nobody else gives a root to a replica that the root calls out and not hot
//! (`volume::follow`). *Fails when*: nobody in sync and no such replica is there, or the word is not given.
//! *Order*: after the choice of a root. *Not here*: the choice (`recover`).

use super::{Choice, Present, in_sync};
use crate::format::{Member, MemberState, Role, Root};
use crate::store::StoreError;

/// Whether `root` was left on `replica`, which is warm or cold, when it had followed to it.
pub(super) fn follows(member: &Member, replica: &Present, root: &Root) -> bool {
    let is_its_own = replica.found.roots.first().is_some_and(|(_, own)| own == root);
    member.state == MemberState::Out && member.role != Role::Hot && is_its_own
}

/// Whether the newest root on it is one to which it has followed.
pub(super) fn has_followed(replica: &Present) -> bool {
    let Some((_, root)) = replica.found.roots.first() else { return false };
    root.members.iter().any(|m| m.replica == replica.found.label.replica && follows(m, replica, root))
}

/// If nobody in sync is there, take one that has followed to this state for in sync, if a person says that the others are gone.
/// Gives whether that was done: then it goes on apart from them.
///
/// # Errors
/// There is none, or nobody says so.
pub(super) fn take_if_alone(present: &[Present], choice: &mut Choice, accept_stale: bool) -> Result<bool, StoreError> {
    if in_sync(choice) > 0 {
        return Ok(false);
    }
    let is_one = |i: &usize| {
        choice.members[*i].0.is_some_and(|index| follows(&choice.root.members[*i], &present[index], &choice.root))
    };
    let one = (0..choice.members.len()).find(is_one);
    let (Some(taken), true) = (one, accept_stale) else {
        let behind = choice.behind.iter().map(|(p, w)| format!("{p}: {w}")).collect::<Vec<_>>().join("; ");
        let what_now = match one {
            Some(_) => {
                "give one; or, if they are gone for good, mount with `-o degraded,accept_stale`: everything written since then is \
                 lost"
            }
            None => {
                "give its twin; if one was detached or replaced, `-o degraded,accept_stale,ro` shows what it held then; without \
                 ro it goes on, apart from the others for ever"
            }
        };
        return Err(StoreError::Refused(format!("no replica that was in sync is there ({behind}): {what_now}")));
    };
    choice.members[taken].1 = true;
    if let Some(index) = choice.members[taken].0 {
        choice.behind.retain(|(path, _)| *path != present[index].path);
        for (slot, found) in &present[index].found.roots {
            choice.slots[*slot] = choice.slots[*slot].max(Some(found.version));
        }
    }
    Ok(true)
}
