//! Replicas that were members once: what they are called, and how to look at what they held.
//!
//! *Guarantees*: nobody is believed against a replica in sync that is there; no version that stood on one is used again.
//! *Assumes*: a person asked for it (`accept_stale`). *Fails when*: as [`choose`]. *Order*: before the choice.
//! *Not here*: the choice (`recover`).

use super::follower::has_followed;
use super::{Found, Present, choose, when};
use crate::format::{Label, MemberState, Root};
use crate::store::StoreError;

impl Found {
    /// Slot of the newest root that calls this replica in sync.
    pub fn last_in_sync(&self) -> Option<usize> {
        self.roots.iter().find(|(_, root)| self.is_called_in_sync(root)).map(|(slot, _)| *slot)
    }

    fn is_called_in_sync(&self, root: &Root) -> bool {
        root.members.iter().any(|m| m.replica == self.label.replica && m.state == MemberState::InSync)
    }
}

/// Why the replica with this label is no member of the volume, if it is none.
pub(super) fn why_no_member(root: &Root, label: &Label) -> Option<String> {
    match root.members.iter().find(|m| m.replica == label.replica) {
        Some(member) if member.state == MemberState::Detached => Some(format!(
            "it was detached at root {} of {}, and is no replica of the volume any more",
            member.since_version,
            when(member.since_ns)
        )),
        Some(_) => None,
        None => Some("it is no replica of the volume any more (replaced or detached), or was never filled".to_owned()),
    }
}

/// A person wants what replicas held when they were in sync last, although the newest root on them says that they are not.
/// That root does not count then. Nothing changes where anybody is in sync, or nobody ever was.
pub(crate) fn believe_older(present: &mut [Present]) -> Result<(), StoreError> {
    // What a follow has written over was reached by older roots; it holds the newest one.
    if present.iter().any(has_followed) {
        return Ok(());
    }
    let was_in_sync = present.iter().all(|one| one.found.last_in_sync().is_some());
    if choose(present)?.members.iter().any(|(_, in_sync)| *in_sync) || !was_in_sync {
        return Ok(());
    }
    for Present { found, .. } in present {
        let roots = std::mem::take(&mut found.roots);
        let (own, others) = roots.into_iter().partition(|(_, root)| found.is_called_in_sync(root));
        found.roots = own;
        found.given_up = others.into_iter().map(|(slot, root): (usize, Root)| (slot, root.version)).collect();
    }
    Ok(())
}
