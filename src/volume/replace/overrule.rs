//! Overrule: a replica that was written apart gives up its own history, by a person's word, and gets what the volume holds.
//!
//! *Guarantees*: nothing of it is written over before a durable root of the others calls it returning, with nothing known of
//! what it holds, and before that root is durable on it and its own are void: from then on it is one that is behind, alone too.
//! Every block in use is compared, read from its medium and proven before a root calls it in sync. It may be cut at
//! any write and begun again, also by a usual return (invariant 7). One that was warm or cold is hot from then on.
//! *Assumes*: the versions to come lie above every root on it (invariant 11); a person chose. *Fails when*: it fails on the way:
//! it is out, the others are as they were. *Order*: as of a return (`back`), without a look at its history.
//! *Not here*: who is to win, and what is saved before (`volume::resolve`).

use super::back::{ReturnReport, renounce};
use super::{Place, ReplicaName, Resync, give_up, nothing_hangs, refused, stays_in};
use crate::control::Progress;
use crate::disk::ReplicaState;
use crate::disk::backing::Backing;
use crate::format::{Label, Member, MemberState, Role};
use crate::store::{Store, StoreError};
use std::sync::Arc;

/// Have the replica with `label`, which stands on `backing` at `path`, take over everything in `store`.
///
/// # Errors
/// It is no member, or in sync; or it failed on the way: it is out, and the others are as they were.
pub fn overrule(
    store: &Store,
    path: &str,
    backing: Arc<dyn Backing>,
    label: &Label,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<ReturnReport, StoreError> {
    let name = ReplicaName { uuid: label.replica, path: path.to_owned() };
    let slot = store.declare().and_then(|()| slot_of(store, &name, label))?;
    // A root that calls it out and not hot, on it, would say that it had followed to that state (`store::recover`).
    if store.durable_root().members[slot].role != Role::Hot {
        store.set_role(slot, Role::Hot)?;
    }
    let begun = store.announce(slot, 0).and_then(|root| {
        let deadline = store.mirror().deadline();
        renounce(&*backing, &root, deadline, &mut || true).map_err(|why| refused(format!("{path}: {why}")))?;
        store.change_members(|mirror| mirror.start_returning(slot, name, backing))
    });
    let said = store.end_announcement();
    begun.and(said)?;
    let mut resync = Resync::new(store, slot, path.to_owned(), progress);
    let done = resync.catch_up().and_then(|caught| resync.join(Place::Free(slot)).map(|_| caught));
    let report = match done {
        Ok((rounds, missed, sampled)) => resync.return_report(rounds, missed, sampled),
        Err(why) => return Err(give_up(store, Place::Free(slot), slot, path, &why)),
    };
    stays_in(store, slot, path)?;
    Ok(report)
}

/// The slot of a replica that may be overruled.
fn slot_of(store: &Store, name: &ReplicaName, label: &Label) -> Result<usize, StoreError> {
    let path = &name.path;
    let ours = store.label();
    if label.volume != ours.volume || label.geometry != ours.geometry {
        return Err(refused(format!("{path}: is a replica of another volume ({})", label.volume)));
    }
    let is_it = |member: &Member| member.replica == name.uuid && member.state != MemberState::Detached;
    let Some(slot) = store.durable_root().members.iter().position(is_it) else {
        return Err(refused(format!(
            "{path}: is not a replica of this volume any more (replaced or detached), and was left as it is"
        )));
    };
    let health = store.mirror().health();
    if matches!(health[slot].state, ReplicaState::InSync | ReplicaState::Returning) {
        return Err(refused(format!("{path}: is {}: there is nothing to overrule", health[slot].state.name())));
    }
    nothing_hangs(store, name)?;
    Ok(slot)
}
