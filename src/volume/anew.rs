//! A deleted container is made anew, without a person, where it stood.
//!
//! *Guarantees*: only where our own descriptor has shown that no name leads to the container any more (it was not moved, and
//! will not come back), in the very directory in which it was opened, by device, inode and time of birth, compared on
//! the descriptor in which the new one is made; and only if nothing else is in there. An empty mount point whose disk is not
//! mounted is another directory. What is there is never overwritten. The new one is another replica, filled as by `replace`.
//! *Assumes*: an [`Op::Check`](crate::disk::backing::Op::Check) looked while it was open: what is deleted while nobody has the volume
//! mounted is not known to be. *Fails when*: [`StoreError::Refused`]; then a person is to say `replace`: it is tried once.
//! *Order*: [`Volume::let_go`](super::Volume) notes it → [`WAIT`] → [`Away::may_be_made`] → [`Volume::make_anew`]. *Not here*: when it is
//! tried (`daemon`); copying (`replace`).

use super::away::{Away, RESYNC};
use super::replace::{Place, ReplaceReport, resync};
use super::{EXAMINE_WAIT, Volume, refused};
use crate::control::Progress;
use crate::disk::ReplicaName;
use crate::disk::backing::{BackingKind, Directory};
use crate::disk::file::{self, CreateOptions, Mode};
use crate::format::Uuid;
use crate::store::StoreError;
use crate::sync::Instant;
use std::path::Path;
use std::time::Duration;

/// How long it must have been known: whoever is at work there may not be done.
pub const WAIT: Duration = Duration::from_secs(10);

/// A container that was deleted.
#[derive(Debug, Clone, Copy)]
pub struct Deleted {
    replica: Uuid,
    directory: Directory,
    noted: Instant,
}

impl Deleted {
    /// Whether it is time to make it anew.
    pub fn is_due(&self) -> bool {
        self.noted.elapsed() >= WAIT
    }
}

impl Away {
    /// Whether its container was deleted, long enough ago, and may be made anew. `None`: nothing is known of that. May hang
    /// with the disk.
    ///
    /// # Errors
    /// It is not to be made there: why.
    pub fn may_be_made(&self) -> Option<Result<(), String>> {
        let deleted = self.deleted.filter(Deleted::is_due)?;
        self.places.first().map(|path| look(path, deleted.directory))
    }
}

/// Whether that directory is there, and nothing is in it.
fn look(path: &str, directory: Directory) -> Result<(), String> {
    let found = file::inspect(Path::new(path)).map_err(|error| error.to_string())?;
    let here = file::directory_at(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
    if found.kind != BackingKind::Directory || here != directory {
        return Err(format!("{path}: is another directory than before (is its disk mounted?)"));
    }
    match found.foreign {
        Some(what) => Err(format!("{path}: {what}")),
        None if found.container => Err(format!("{path}: holds a container again")),
        None => Ok(()),
    }
}

impl Volume {
    /// Remember that the container of the replica in `slot`, which is out, was deleted, if that is known.
    pub(super) fn note_deleted(&self, slot: usize) {
        let Some(directory) = self.mirror.backing(slot).and_then(|backing| backing.deleted_from()) else { return };
        let Some(health) = self.mirror.health().into_iter().nth(slot) else { return };
        let deleted = Deleted { replica: health.name.uuid, directory, noted: Instant::now() };
        ::log::warn!("{}: its container was deleted; it is made anew in {} s", health.name.path, WAIT.as_secs());
        self.deleted.lock().insert(slot, deleted);
    }

    /// Whether the container of `replica` is known to be deleted.
    pub(super) fn is_deleted(&self, slot: usize, replica: &str) -> bool {
        self.deleted.lock().get(&slot).is_some_and(|deleted| deleted.replica.to_string() == replica)
    }

    /// What is known of the deleted container of `replica`.
    pub(super) fn deleted_in(&self, slot: usize, replica: Uuid) -> Option<Deleted> {
        self.deleted.lock().get(&slot).copied().filter(|deleted| deleted.replica == replica)
    }

    /// Make the deleted container of a replica anew, fill it, and call it in sync.
    ///
    /// # Errors
    /// It is not to be made, or failed on the way; other long work runs.
    pub fn make_anew(
        &self,
        away: &Away,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<ReplaceReport, StoreError> {
        let _alone = self.begin_work(RESYNC)?;
        let slot = away.slot;
        let (Some(path), Some(deleted)) = (away.places.first(), self.deleted_in(slot, away.replica)) else {
            return refused("nothing is known of a container that was deleted".into());
        };
        if let Some(why_not) = self.why_not(slot) {
            return refused(format!("{path}: {why_not}"));
        }
        let at = path.clone();
        let looked = file::apart(EXAMINE_WAIT, move || Ok(look(&at, deleted.directory)));
        let made = looked.map_err(|error| error.to_string()).flatten().and_then(|()| {
            let create = CreateOptions { blocks: 0, replace: false, only_in: Some(deleted.directory) };
            file::open(Path::new(path), Mode::Write, Some(create)).map_err(|error| error.to_string())
        });
        let backing = match made {
            Ok(backing) => backing,
            Err(why) => return refused(why),
        };
        // What an attempt leaves that fails from here on is for a person to judge.
        self.deleted.lock().remove(&slot);
        ::log::info!("{path}: its container was deleted there: it is made anew");
        let mut progress = |told: &Progress| !self.is_sent_away(slot) && progress(told);
        let name = ReplicaName { uuid: self.store.world().uuid(), path: path.clone() };
        let report = resync(&self.store, Place::Free(slot), name, backing, &mut progress)?;
        self.note_places();
        ::log::info!("made anew: {}", report.summary);
        Ok(report)
    }
}
