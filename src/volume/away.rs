//! Replicas that are away: who they are, whether their place answers again, and sending one away by hand.
//!
//! *Guarantees*: nothing is written to a place before it has shown that it is the one ([`replace::back`]). Looking at a place
//! may hang with its disk, and holds nothing of the volume meanwhile. Whoever was sent away is not asked for.
//! *Assumes*: a place belongs to who stood there, or was given at the mount. *Fails when*: [`StoreError::Refused`].
//! *Order*: [`Volume::away`] → [`Away::open`] → [`Volume::bring_back`]. *Not here*: when it is tried (`daemon`).

use super::{EXAMINE_WAIT, Volume, close_all, refused};
use crate::control::Progress;
use crate::disk::ReplicaState;
use crate::disk::backing::Backing;
use crate::disk::file::{self, Mode, OpenError};
use crate::format::{Label, Uuid};
use crate::store::StoreError;
use crate::store::recover::{self, Found};
use crate::sync::Instant;
use crate::volume::replace::back::{ReturnReport, bring_back};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a place that this process has just let go of may take to be free.
const LET_GO: Duration = Duration::from_secs(1);

/// A replica that is not in sync.
#[derive(Debug, Clone)]
pub struct Away {
    /// Its slot.
    pub slot: usize,
    /// Where it may be: the place where it stood, or those given at the mount where nobody was.
    pub places: Vec<String>,
    replica: Uuid,
    label: Label,
}

/// A replica whose place answers.
pub struct Opened {
    slot: usize,
    path: String,
    backing: Arc<dyn Backing>,
    found: Found,
}

impl Away {
    /// Open its place and read who is there. May hang with the disk.
    ///
    /// # Errors
    /// It is not there: why.
    pub fn open(&self) -> Result<Opened, String> {
        let mut why = "nobody knows where it stood; name its place at the next mount, or replace it".to_owned();
        for place in &self.places {
            match self.open_at(place) {
                Ok(opened) => return Ok(opened),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    fn open_at(&self, place: &str) -> Result<Opened, String> {
        let until = Instant::now() + LET_GO;
        let backing = loop {
            match file::open(Path::new(place), Mode::Write, None) {
                Err(OpenError::Busy(_)) if Instant::now() < until => {
                    crate::sync::thread::sleep(Duration::from_millis(10));
                }
                opened => break opened.map_err(|error| error.to_string())?,
            }
        };
        let found = match recover::examine(&*backing, EXAMINE_WAIT) {
            Ok(found) if found.label.volume == self.label.volume && found.label.replica == self.replica => found,
            Ok(found) => {
                close_all(&[backing]);
                let whose = if found.label.volume == self.label.volume { "another replica" } else { "another volume" };
                return Err(format!("{place}: {whose} is there ({})", found.label.replica));
            }
            Err(why) => {
                close_all(&[backing]);
                return Err(format!("{place}: {why}"));
            }
        };
        Ok(Opened { slot: self.slot, path: place.to_owned(), backing, found })
    }
}

impl Opened {
    /// Let go of the place again.
    pub fn close(self) {
        self.backing.close();
    }
}

impl Volume {
    /// Who may return: every replica that is out or missing, was not sent away, and has nothing under way that could still
    /// land on it.
    pub fn away(&self) -> Vec<Away> {
        if self.options.read_only {
            return Vec::new();
        }
        let kept_away = self.kept_away.lock();
        let is_away = |state: ReplicaState| matches!(state, ReplicaState::Out | ReplicaState::Missing);
        let health = self.mirror.health().into_iter();
        let free = health.filter(|h| is_away(h.state) && h.in_flight == 0 && !kept_away.contains(&h.slot));
        free.map(|h| Away {
            slot: h.slot,
            places: match h.name.path.starts_with('/') {
                true => vec![h.name.path],
                false => self.absent.iter().map(|(path, _)| path.clone()).collect(),
            },
            replica: h.name.uuid,
            label: self.label.clone(),
        })
        .collect()
    }

    /// Let go of the place of a replica that is out, so that [`Away::open`] finds it free.
    pub fn let_go(&self, away: &Away) {
        self.mirror.release(away.slot);
    }

    /// Bring a replica back; it is sent what it missed.
    ///
    /// # Errors
    /// It may not be taken back, or failed on the way; other long work runs.
    pub fn bring_back(
        &self,
        opened: Opened,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<ReturnReport, StoreError> {
        let _alone = match self.begin_work("resync") {
            Ok(alone) => alone,
            Err(refusal) => {
                opened.close();
                return Err(refusal);
            }
        };
        let is_away = |h: crate::disk::ReplicaHealth| {
            h.slot == opened.slot && matches!(h.state, ReplicaState::Out | ReplicaState::Missing)
        };
        if !self.mirror.health().into_iter().any(is_away) {
            let text = format!("{}: is back already", opened.path);
            opened.close();
            return refused(text);
        }
        // While its place was being opened, a person may have sent it away.
        if self.is_sent_away(opened.slot) {
            let text = format!("{}: was taken offline", opened.path);
            opened.close();
            return refused(text);
        }
        let Opened { slot, path, backing, found } = opened;
        ::log::info!("{path} answers again: it is brought back");
        let report = bring_back(&self.store, slot, path, backing, &found, progress)?;
        self.note_places();
        ::log::info!("resync: {}", report.summary);
        Ok(report)
    }

    /// Send the replica `which` (path or slot number) away: until [`Volume::online`], or with `until_mount` until the next mount.
    ///
    /// # Errors
    /// It is the last one in sync.
    pub fn offline(&self, which: &str, until_mount: bool) -> Result<(), StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let _alone = self.begin_work("change of replicas")?;
        let health = self.mirror.health();
        let slot = self.find_replica(which, &health)?;
        let members = self.mirror.members();
        if members.contains(slot) && members.count() == 1 {
            return refused(format!(
                "{}: is the only replica in sync: without it nothing could be read. Unmount the volume instead",
                health[slot].name.path
            ));
        }
        let cause = if until_mount { "taken offline until the next mount" } else { "taken offline" };
        self.store.send_away(slot, cause, !until_mount)?;
        self.kept_away.lock().insert(slot);
        self.mirror.release(slot);
        Ok(())
    }

    /// Let the replica `which` (path or slot number) return. `None`: it is in sync, or on its way.
    ///
    /// # Errors
    /// Nobody is called so; requests to it still hang.
    pub fn online(&self, which: &str) -> Result<Option<Away>, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let health = self.mirror.health();
        let slot = self.find_replica(which, &health)?;
        self.kept_away.lock().remove(&slot);
        self.store.let_return(slot)?;
        if !matches!(health[slot].state, ReplicaState::Out | ReplicaState::Missing) {
            return Ok(None);
        }
        let found = self.away().into_iter().find(|away| away.slot == slot);
        found.map(Some).ok_or_else(|| {
            StoreError::Refused(format!(
                "{}: {} requests to it have not come back; what hangs there could still land on it. Wait until the disk \
                 answers or is gone",
                health[slot].name.path, health[slot].in_flight
            ))
        })
    }

    /// Whether the replica in `slot` was sent away by hand.
    pub fn is_sent_away(&self, slot: usize) -> bool {
        self.kept_away.lock().contains(&slot)
    }
}
