//! One replica more, or one less, on the live mount.
//!
//! *Guarantees*: a replica that is attached serves and counts only after every reachable block on it was proven, and a durable
//! root names it; what is cut before is no replica, and the others are as they were. One that is detached is a member no more
//! for ever, by a durable root on the others, before anything further is acknowledged. The last one in sync stays.
//! *Assumes*: the caller has checked that the place is not inside the mount. *Fails when*: [`StoreError::Refused`].
//! *Order*: attach: judge → open → [`resync`]. Detach: commit → a root without it → its own newest root says so, if it answers.
//! *Not here*: copying and proving (`replace`), slots (`disk::mirror`).

use super::away::open_let_go;
use super::beat::watch::Spot;
use super::replace::{self, Place, ReplaceReport, resync};
use super::status::shell_word;
use super::{EXAMINE_WAIT, Volume, absolute, close_all, refused};
use crate::control::Progress;
use crate::disk::backing::{Backing, BackingKind};
use crate::disk::file::{self, CreateOptions, Inspection, Mode};
use crate::disk::{Left, ReplicaHealth, ReplicaName, ReplicaState};
use crate::store::commit::Force;
use crate::store::{Store, StoreError, recover};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the place of a replica that is away, to tell it that it was detached.
const TELL_WAIT: Duration = Duration::from_secs(5);

/// What a detach did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachReport {
    /// One line.
    pub summary: String,
    /// Path of the one that was detached.
    pub detached: String,
    /// Whether it says of itself that it was.
    pub told: bool,
    /// Replicas that are in sync now.
    pub in_sync: u64,
    /// How to mount what is left.
    pub mount: String,
}

/// Detach the replica in `slot`. Gives what it was, and whether it says of itself that it was detached (`None`: nothing of
/// it is open here).
///
/// # Errors
/// It is the last one in sync.
pub fn leave(store: &Store, slot: usize) -> Result<(ReplicaHealth, Option<bool>), StoreError> {
    // What it is left with is a state of its own: it needs nothing of the log.
    store.commit(Force::Always)?;
    let health = store.mirror().health().swap_remove(slot);
    let path = &health.name.path;
    let Left::Gone(backing) = store.detach(slot, "detached")? else {
        return refused(format!(
            "{path}: is the only replica in sync: without it nothing could be read. Bring back another one, or attach one, \
             before it is detached"
        ));
    };
    let told = backing.map(|backing| {
        let told = health.in_flight == 0 && tell(store, &*backing, path);
        backing.close();
        told
    });
    Ok((health, told))
}

/// What it held when it was in sync last stays readable on it.
fn tell(store: &Store, backing: &dyn Backing, path: &str) -> bool {
    let found = recover::examine(backing, EXAMINE_WAIT);
    let told = found.and_then(|found| replace::tell(store, backing, found.last_in_sync()));
    told.inspect_err(|why| ::log::warn!("{path} could not be told that it was detached: {why}")).is_ok()
}

impl Volume {
    /// Attach one more replica at `new`, filled and proven while service goes on. `force`: whatever stands there.
    ///
    /// # Errors
    /// The place cannot be used, or failed on the way; there is no slot for one more; other long work runs.
    pub fn attach(
        &self,
        new: &Path,
        force: bool,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<ReplaceReport, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let _alone = self.begin_work("attach")?;
        if !self.store.has_free_slot() {
            return refused(replace::full_up());
        }
        // A container that has vanished is noticed by a commit.
        self.store.commit(Force::Always)?;
        let health: Vec<_> = self.mirror.health().into_iter().filter(ReplicaHealth::is_member).collect();
        let new = absolute(new);
        self.not_a_members_place(&health, &new)?;
        let found = file::inspect(&new).map_err(|error| StoreError::Refused(error.to_string()))?;
        let backing = self.open_attached(&health, &found, force)?;
        let name = ReplicaName { uuid: self.store.world().uuid(), path: found.path.display().to_string() };
        ::log::info!("attach {}", name.path);
        let report = resync(&self.store, Place::New, name, backing, progress)?;
        self.note_places();
        ::log::info!("attach: {}", report.summary);
        Ok(report)
    }

    fn not_a_members_place(&self, health: &[ReplicaHealth], new: &Path) -> Result<(), StoreError> {
        let Some(here) = health.iter().find(|h| Path::new(&h.name.path) == new || self.stood_there(h, new)) else {
            return Ok(());
        };
        let (place, slot) = (new.display(), here.slot);
        refused(match here.state {
            ReplicaState::InSync | ReplicaState::Returning => {
                format!("{place}: is replica {slot} of this volume already ({})", here.state.name())
            }
            _ => format!(
                "{place}: is the place of replica {slot}, which is {}: stablefs online or replace brings it back, stablefs \
                 detach MOUNTPOINT {slot} gives it up",
                here.state.name()
            ),
        })
    }

    fn open_attached(
        &self,
        health: &[ReplicaHealth],
        found: &Inspection,
        force: bool,
    ) -> Result<Arc<dyn Backing>, StoreError> {
        let nobody = usize::MAX;
        let is_member = found.label.as_ref().is_some_and(|l| health.iter().any(|h| h.name.uuid == l.replica));
        if force && !is_member {
            // Also of another volume: whoever lives and writes there is not written over.
            if found.label.is_some() && found.container {
                let opened = file::open(&found.path, Mode::Write, None);
                let backing = opened.map_err(|error| StoreError::Refused(error.to_string()))?;
                self.not_used_elsewhere(&backing, found)?;
                close_all(&[backing]);
            }
            let blocks = if found.kind == BackingKind::Directory { 0 } else { self.label.geometry.blocks };
            let create = CreateOptions { blocks, replace: true, only_in: None };
            let opened = file::open(&found.path, Mode::Write, Some(create));
            return opened.map_err(|error| StoreError::Refused(error.to_string()));
        }
        let judged = self.judge_new(health, found, nobody, false);
        let opened = judged.and_then(|own| self.open_new(found, own));
        opened.map_err(|error| match error {
            StoreError::Refused(text) if !is_member && (found.label.is_some() || found.foreign.is_some()) => {
                StoreError::Refused(format!("{text}; --force overwrites it"))
            }
            other => other,
        })
    }

    /// Detach the replica `which` (path or slot number), in whatever state it is, for ever.
    ///
    /// # Errors
    /// It is the last one in sync; nobody is called so; other long work runs.
    pub fn detach(&self, which: &str) -> Result<DetachReport, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let _alone = self.begin_work("detach")?;
        let slot = self.find_replica(which, &self.mirror.health())?;
        let (health, told) = leave(&self.store, slot)?;
        self.kept_away.lock().remove(&slot);
        self.roles.lock().remove(&health.name.uuid);
        let told = told.unwrap_or_else(|| self.tell_at_its_place(&health));
        self.note_places();
        let report = self.detach_report(health.name.path, told);
        ::log::info!("detach: {}", report.summary);
        Ok(report)
    }

    /// The same of one that is away, if it is what it was, and has no history of its own.
    fn tell_at_its_place(&self, health: &ReplicaHealth) -> bool {
        let (path, replica, label) = (health.name.path.clone(), health.name.uuid, self.label.clone());
        if !path.starts_with('/') || health.in_flight > 0 {
            return false;
        }
        let root = self.store.durable_root();
        let open = move || {
            let backing = open_let_go(Path::new(&path)).map_err(std::io::Error::other)?;
            let found = recover::examine(&*backing, EXAMINE_WAIT).map_err(std::io::Error::other)?;
            let is_it = found.label.volume == label.volume && found.label.replica == replica;
            let is_past =
                found.roots.first().is_some_and(|(_, theirs)| root.follows(theirs.epoch().id, theirs.version));
            if is_it && is_past { Ok(backing) } else { Err(std::io::Error::other("it is another one there")) }
        };
        let Ok(backing) = file::apart(TELL_WAIT, open) else { return false };
        let spot = Spot { path: health.name.path.clone(), label: self.label.clone(), backing: backing.clone() };
        let told = self.heart.admit(spot).is_ok() && tell(&self.store, &*backing, &health.name.path);
        backing.close();
        told
    }

    fn detach_report(&self, path: String, told: bool) -> DetachReport {
        let health: Vec<_> = self.mirror.health().into_iter().filter(ReplicaHealth::is_member).collect();
        let places: Vec<String> =
            health.iter().filter(|h| h.name.path.starts_with('/')).map(|h| shell_word(&h.name.path)).collect();
        let in_sync = self.mirror.members().count();
        let held = match in_sync {
            1 => "every block is held once: attach another one".to_owned(),
            count => format!("every block is held on {count} replicas"),
        };
        let untold =
            if told { "" } else { "; it could not be told so: keep it away from mounts of this volume, or empty it" };
        DetachReport {
            summary: format!("{path} is no replica of the volume any more{untold}; {held}"),
            detached: path,
            told,
            in_sync: in_sync as u64,
            mount: format!("stablefs mount {} MOUNTPOINT", places.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests;
