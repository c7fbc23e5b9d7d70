//! Which replica is meant, and whether the new place may be used.
//!
//! *Guarantees*: nothing that is not ours is overwritten; the last replica in sync is never given up. *Assumes*: the
//! caller has checked that the place is not inside the mount. *Fails when*: [`StoreError::Refused`]: what and why.
//! *Order*: commit (it notices containers that have vanished) → judge → release → open → resync.
//! *Not here*: copying (`replace`).

use super::super::{EXAMINE_WAIT, Volume, absolute, close_all, witness};
use super::{Place, ReplaceReport, refused, resync};
use crate::control::Progress;
use crate::disk::backing::{Backing, BackingKind};
use crate::disk::file::{self, CreateOptions, Inspection, Mode};
use crate::disk::{ReplicaHealth, ReplicaName, ReplicaState};
use crate::format::Kinship;
use crate::store::commit::Force;
use crate::store::{StoreError, recover};
use crate::volume::beat::watch::Spot;
use std::path::Path;
use std::sync::Arc;

impl Volume {
    /// Resync a new replica at `new` and let it take the place of `old` (path or slot number). `new` may be the same
    /// place, emptied or left behind. `progress` is told now and then; answering false stops, and nothing has changed
    /// but that the new replica is none.
    ///
    /// # Errors
    /// The place cannot be used, or failed on the way; other long work runs.
    pub fn replace(
        &self,
        old: &str,
        new: &Path,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<ReplaceReport, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let _alone = self.begin_work("replace")?;
        // A container that has vanished is noticed by a commit.
        self.store.commit(Force::Always)?;
        let health = self.mirror.health();
        let slot = self.find_replica(old, &health)?;
        let new = absolute(new);
        let same = Path::new(&health[slot].name.path) == new || self.stood_there(&health[slot], &new);
        let place = self.judge_old(&health, slot, &new, same)?;
        let found = file::inspect(&new).map_err(|error| refused(error.to_string()))?;
        let own = self.judge_new(&health, &found, slot, same)?;
        self.mirror.release(slot);
        let backing = self.open_new(&found, own)?;
        let name = ReplicaName { uuid: self.store.world().uuid(), path: found.path.display().to_string() };
        ::log::info!("replace {} by {}", health[slot].name.path, name.path);
        let report = resync(&self.store, place, name, backing, progress)?;
        self.note_places();
        ::log::info!("replace: {}", report.summary);
        Ok(report)
    }

    /// The slot that `old` names.
    pub(in crate::volume) fn find_replica(&self, old: &str, health: &[ReplicaHealth]) -> Result<usize, StoreError> {
        let health: Vec<&ReplicaHealth> = health.iter().filter(|h| h.is_member()).collect();
        if let Ok(slot) = old.parse::<usize>() {
            return if health.iter().any(|h| h.slot == slot) { Ok(slot) } else { Err(no_such(old, &health)) };
        }
        // Replicas' paths are absolute since they were opened; looking at them now could hang with their disks.
        let plain = std::path::absolute(old).unwrap_or_else(|_| old.into());
        let named = |path: &Path| health.iter().find(|h| Path::new(&h.name.path) == path);
        if let Some(found) = named(&plain).or_else(|| named(&absolute(Path::new(old)))) {
            return Ok(found.slot);
        }
        // The path of a replica that was missing at the mount is known only from the command line.
        let missing: Vec<&&ReplicaHealth> = health.iter().filter(|h| h.state == ReplicaState::Missing).collect();
        match &missing[..] {
            [one] => Ok(one.slot),
            _ => Err(no_such(old, &health)),
        }
    }

    /// Whether `path` was given at the mount for a replica that was not found there, and is where this host last saw
    /// the one of this slot.
    pub(in crate::volume) fn stood_there(&self, old: &ReplicaHealth, path: &Path) -> bool {
        self.absent.iter().any(|(absent, _)| Path::new(absent) == path)
            && witness::stood_at(self.label.volume, old.name.uuid, &path.display().to_string(), EXAMINE_WAIT)
    }

    fn judge_old(&self, health: &[ReplicaHealth], slot: usize, new: &Path, same: bool) -> Result<Place, StoreError> {
        let old = &health[slot];
        let mut others = health.iter().filter(|h| h.is_member() && h.slot != slot);
        let other = others.find(|h| Path::new(&h.name.path) == new);
        if let Some(other) = other.filter(|other| other.state != ReplicaState::Missing) {
            let text = format!("{}: is replica {} of this volume ({})", new.display(), other.slot, other.state.name());
            return Err(refused(text));
        }
        match old.state {
            ReplicaState::InSync if same => Err(refused(format!(
                "{}: is in sync; there is nothing to replace. stablefs scrub proves it",
                new.display()
            ))),
            ReplicaState::InSync => Ok(Place::Taken(slot)),
            ReplicaState::Returning => Err(refused(format!("{}: is being brought back already", old.name.path))),
            ReplicaState::Out | ReplicaState::Missing if same && old.in_flight > 0 => Err(super::hanging(old)),
            ReplicaState::Out | ReplicaState::Missing => Ok(Place::Free(slot)),
            ReplicaState::Detached => Err(refused(format!("{}: is no replica of this volume", old.name.path))),
        }
    }

    /// Whether what stands there is ours to use again (true) or nothing (false).
    pub(in crate::volume) fn judge_new(
        &self,
        health: &[ReplicaHealth],
        found: &Inspection,
        slot: usize,
        same: bool,
    ) -> Result<bool, StoreError> {
        let path = found.path.display();
        if let Some(label) = &found.label {
            if label.volume != self.label.volume {
                let text = format!("{path}: is a replica of another volume ({}); empty it first", label.volume);
                return Err(refused(text));
            }
            let mut members = health.iter().filter(|h| h.is_member());
            let member = members.find(|h| h.slot != slot && h.name.uuid == label.replica);
            if let Some(member) = member {
                return Err(refused(format!("{path}: is replica {} of this volume", member.slot)));
            }
            return Ok(true);
        }
        match &found.foreign {
            // The container has our name; a file or device must show that it was ours.
            Some(_) if same && found.kind == BackingKind::Directory => Ok(true),
            // What an attach or a replace that was cut left there, too.
            Some(_) if found.container && self.was_ours(found) => Ok(true),
            Some(what) => Err(refused(format!("{path}: {what}; empty it first, or choose another place"))),
            None => Ok(false),
        }
    }

    /// Open it: what is ours is kept, since a block that is correct there need not be copied, and may be the last copy.
    pub(in crate::volume) fn open_new(&self, found: &Inspection, own: bool) -> Result<Arc<dyn Backing>, StoreError> {
        if own && found.container && found.size_bytes > 0 {
            match file::open(&found.path, Mode::Write, None) {
                Ok(backing) => {
                    self.not_used_elsewhere(&backing, found)?;
                    return self.not_mounted_elsewhere(backing, &found.path);
                }
                // Whatever it is that cannot be looked at is not overwritten.
                Err(error) => return Err(refused(error.to_string())),
            }
        }
        let blocks = if found.kind == BackingKind::Directory { 0 } else { self.label.geometry.blocks };
        let create = CreateOptions { blocks, replace: own, only_in: None };
        file::open(&found.path, Mode::Write, Some(create)).map_err(|error| refused(error.to_string()))
    }

    /// Whoever lives and writes there is not written over.
    pub(in crate::volume) fn not_used_elsewhere(
        &self,
        backing: &Arc<dyn Backing>,
        found: &Inspection,
    ) -> Result<(), StoreError> {
        let label = found.label.clone().unwrap_or_else(|| self.label.clone());
        let spot = Spot { path: found.path.display().to_string(), label, backing: backing.clone() };
        let admitted = self.heart.admit(spot).map(drop);
        admitted.inspect_err(|_| close_all(std::slice::from_ref(backing)))
    }

    /// Whether a root of this volume proves itself there.
    fn was_ours(&self, found: &Inspection) -> bool {
        let Ok(backing) = file::open(&found.path, Mode::ReadOnly, None) else { return false };
        let ours = !recover::roots_on(&*backing, &self.label, EXAMINE_WAIT).is_empty();
        close_all(&[backing]);
        ours
    }

    /// A former replica may have been written alone, and hold what nobody else has: that is for a person to decide.
    fn not_mounted_elsewhere(&self, backing: Arc<dyn Backing>, path: &Path) -> Result<Arc<dyn Backing>, StoreError> {
        let ours = self.store.durable_root();
        let Some(theirs) = recover::roots_on(&*backing, &self.label, EXAMINE_WAIT).into_iter().next() else {
            return Ok(backing);
        };
        let why = match ours.kinship(theirs.epoch().id, theirs.version) {
            Kinship::Past => return Ok(backing),
            Kinship::Forked => "was written apart from the others; its changes would be lost",
            Kinship::TooOld => "is too old to compare; it may have been written apart, and its changes would be lost",
        };
        close_all(&[backing]);
        Err(refused(format!(
            "{}: {why} (root {} of {}). Unmount, then `stablefs resolve` with all replicas shows what they are; or empty it, \
             then replace again",
            path.display(),
            theirs.version,
            crate::world::utc(theirs.time_ns)
        )))
    }
}

fn no_such(old: &str, health: &[&ReplicaHealth]) -> StoreError {
    let known: Vec<String> = health.iter().map(|h| format!("{} {}", h.slot, h.name.path)).collect();
    refused(format!("{old}: is no replica of this volume; it has {}", known.join(", ")))
}
