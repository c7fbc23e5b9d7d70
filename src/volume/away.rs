//! Replicas that are away: who they are, whether their place answers again, and sending one away by hand.
//!
//! *Guarantees*: nothing is written to a place before it has shown that it is the one ([`replace::back`]). Looking at a place
//! may hang with its disk, and holds nothing of the volume meanwhile. Whoever was sent away is not asked for.
//! *Assumes*: a place belongs to who stood there, or was given at the mount. *Fails when*: [`StoreError::Refused`].
//! *Order*: [`Volume::away`] → [`Away::open`] → [`Volume::bring_back`]. *Not here*: when it is tried (`daemon`).

use super::anew::Deleted;
use super::{EXAMINE_WAIT, Volume, close_all, refused, risk};
use crate::control::Progress;
use crate::disk::backing::{Backing, Done, Op};
use crate::disk::file::{self, Mode, OpenError};
use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::{Label, Role, Uuid};
use crate::store::StoreError;
use crate::store::recover::{self, Found};
use crate::sync::Instant;
use crate::volume::beat::Heart;
use crate::volume::beat::watch::Spot;
use crate::volume::follow::Tracked;
use crate::volume::replace::back::{ReturnReport, bring_back};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a place that this process has just let go of may take to be free.
const LET_GO: Duration = Duration::from_secs(1);

/// What the cause of one begins with that had no room.
pub(super) const FULL: &str = "full:";
/// Room that one needs beside what it missed: the units in which containers grow, and what is written meanwhile.
const ROOM_MIN: u64 = 8 << 20;

/// How long a return may take to end when its replica is sent away.
const STOP_MAX: Duration = Duration::from_secs(30);
/// What this work is called.
pub(super) const RESYNC: &str = "resync";

/// Whether it is out or missing, and may come back.
pub(super) fn is_away(health: &ReplicaHealth) -> bool {
    matches!(health.state, ReplicaState::Out | ReplicaState::Missing)
}

/// Open a place that this process may have just let go of, or be looking at. May hang with the disk.
pub(super) fn open_let_go(place: &Path) -> Result<Arc<dyn Backing>, OpenError> {
    let until = Instant::now() + LET_GO;
    loop {
        match file::open(place, Mode::Write, None) {
            Err(OpenError::Busy(_)) if Instant::now() < until => {
                crate::sync::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// A replica that is not in sync.
#[derive(Clone)]
pub struct Away {
    /// Its slot.
    pub slot: usize,
    /// Where it may be: the place where it stood, or those given at the mount where nobody was.
    pub places: Vec<String>,
    pub(super) replica: Uuid,
    label: Label,
    heart: Arc<Heart>,
    /// Its container was deleted.
    pub(super) deleted: Option<Deleted>,
    /// It follows, and is behind by more than half of what it may miss.
    pub hurries: bool,
    /// It went out because it was full: room that it needs before it is worth trying again.
    needs_bytes: u64,
}

/// A replica whose place answers.
pub struct Opened {
    pub(super) slot: usize,
    pub(super) path: String,
    pub(super) backing: Arc<dyn Backing>,
    pub(super) found: Found,
}

impl Away {
    /// Its identity.
    pub fn replica(&self) -> Uuid {
        self.replica
    }

    /// Whether something stands in its place; opens nothing. May hang with the disk.
    pub fn answers(&self) -> bool {
        let stands = |place: &String| {
            let place = Path::new(place);
            std::fs::metadata(place).is_ok_and(|found| !found.is_dir() || place.join(file::CONTAINER).exists())
        };
        self.places.iter().any(stands)
    }

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
        let backing = open_let_go(Path::new(place)).map_err(|error| error.to_string())?;
        let found = match self.examine(place, &backing) {
            Ok(found) if found.label.volume == self.label.volume && found.label.replica == self.replica => found,
            Ok(found) => {
                close_all(&[backing]);
                let whose = if found.label.volume == self.label.volume { "another replica" } else { "another volume" };
                return Err(format!("{place}: {whose} is there ({})", found.label.replica));
            }
            Err(why) => {
                close_all(&[backing]);
                return Err(super::sentence(place, &why));
            }
        };
        if let Err(why) = self.has_room(&*backing) {
            close_all(&[backing]);
            return Err(format!("{place}: {why}"));
        }
        Ok(Opened { slot: self.slot, path: place.to_owned(), backing, found })
    }

    /// Who is there, once it is known that no other host uses it.
    fn examine(&self, place: &str, backing: &Arc<dyn Backing>) -> Result<Found, String> {
        let found = recover::examine(&**backing, EXAMINE_WAIT)?;
        let spot = Spot { path: place.to_owned(), label: found.label.clone(), backing: backing.clone() };
        match self.heart.admit(spot).map_err(|refusal| refusal.to_string())? {
            true => recover::examine(&**backing, EXAMINE_WAIT),
            false => Ok(found),
        }
    }
}

impl Away {
    /// Trying again without room would change states, and write, for nothing.
    fn has_room(&self, backing: &dyn Backing) -> Result<(), String> {
        if self.needs_bytes == 0 {
            return Ok(());
        }
        match backing.submit(Op::Check).wait(Some(Instant::now() + EXAMINE_WAIT)) {
            Some(Ok(Done::Facts(facts))) if facts.bytes_free_below >= self.needs_bytes => Ok(()),
            Some(Ok(Done::Facts(facts))) => Err(format!(
                "its disk is full: {} bytes are free, what it missed may need {}; make room, or try with stablefs online",
                facts.bytes_free_below, self.needs_bytes
            )),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(_)) | None => Err("does not answer".into()),
        }
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
        let health = self.mirror.health().into_iter();
        let free = health.filter(|h| is_away(h) && h.in_flight == 0 && !kept_away.contains(&h.slot));
        let root = self.store.named_root();
        let needs = |h: &ReplicaHealth| match h.cause.starts_with(FULL) {
            true => ROOM_MIN.saturating_add(risk::missed_bytes(h, &root).unwrap_or(0)),
            false => 0,
        };
        let hot = free.filter(|h| self.role(h.name.uuid) == Role::Hot);
        hot.map(|h| (needs(&h), h)).map(|(needs_bytes, h)| Away { needs_bytes, ..self.as_away(h) }).collect()
    }

    /// Who may follow: every warm or cold replica that was not sent away, and has nothing under way.
    pub fn followers(&self) -> Vec<(Role, Away)> {
        if self.options.read_only {
            return Vec::new();
        }
        let kept_away = self.kept_away.lock();
        let health = self.mirror.health().into_iter();
        let free = health.filter(|h| is_away(h) && h.in_flight == 0 && !kept_away.contains(&h.slot));
        let with_role = free.map(|h| (self.role(h.name.uuid), h)).filter(|(role, _)| *role != Role::Hot);
        let root = self.store.named_root();
        let hurries = |h: &ReplicaHealth| {
            let missed = risk::missed_bytes(h, &root).unwrap_or(0);
            self.options.lag.bytes.is_some_and(|most| missed > most / 2)
        };
        with_role.map(|(role, h)| (role, Away { hurries: hurries(&h), ..self.as_away(h) })).collect()
    }

    /// Keep the replica `which` (path or slot number) as `role`, from now on. A hot one that becomes warm or cold is in sync no
    /// longer; one that becomes hot returns ([`Volume::online`]).
    ///
    /// # Errors
    /// It is the last one in sync; other long work runs.
    pub fn set_role(&self, which: &str, role: Role) -> Result<(), StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let slot = self.find_replica(which, &self.mirror.health())?;
        self.set_role_of(slot, role)
    }

    pub(super) fn set_role_of(&self, slot: usize, role: Role) -> Result<(), StoreError> {
        let _alone = self.begin_work("change of replicas")?;
        let Some(name) = self.mirror.health().into_iter().find(|h| h.slot == slot).map(|h| h.name) else {
            return refused(format!("{slot}: there is no such replica any more"));
        };
        if self.role(name.uuid) == role {
            return Ok(());
        }
        if !self.store.set_role(slot, role)? {
            return refused(format!(
                "{}: is the only replica in sync: it must stay hot. Make another one hot first",
                name.path
            ));
        }
        match role {
            Role::Hot => drop(self.roles.lock().remove(&name.uuid)),
            _ => {
                let mut roles = self.roles.lock();
                roles.entry(name.uuid).or_insert_with(|| Tracked::new(role)).role = role;
                drop(roles);
                self.mirror.release(slot);
            }
        }
        Ok(())
    }

    fn as_away(&self, health: ReplicaHealth) -> Away {
        Away {
            slot: health.slot,
            places: match health.name.path.starts_with('/') {
                true => vec![health.name.path],
                false => self.absent.iter().map(|(path, _)| path.clone()).collect(),
            },
            replica: health.name.uuid,
            label: self.label.clone(),
            heart: self.heart.clone(),
            deleted: self.deleted_in(health.slot, health.name.uuid),
            needs_bytes: 0,
            hurries: false,
        }
    }

    /// Let go of the place of a replica that is out, so that [`Away::open`] finds it free.
    pub fn let_go(&self, away: &Away) {
        self.note_deleted(away.slot);
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
        let _alone = match self.begin_work(RESYNC) {
            Ok(alone) => alone,
            Err(refusal) => {
                opened.close();
                return Err(refusal);
            }
        };
        // While its place was being opened, another may have brought it back, or a person may have sent it away.
        if let Some(why_not) = self.why_not(opened.slot) {
            let text = format!("{}: {why_not}", opened.path);
            opened.close();
            return refused(text);
        }
        let Opened { slot, path, backing, found } = opened;
        ::log::info!("{path} answers again: it is brought back");
        let mut progress = |told: &Progress| !self.is_sent_away(slot) && progress(told);
        let report = bring_back(&self.store, slot, path, backing, &found, &mut progress)?;
        self.note_places();
        ::log::info!("resync: {}", report.summary);
        Ok(report)
    }

    /// Why the replica in `slot` is not to be brought back now.
    pub(super) fn why_not(&self, slot: usize) -> Option<&'static str> {
        match self.mirror.health().into_iter().find(|health| health.slot == slot) {
            Some(health) if !health.is_member() => Some("was detached"),
            Some(health) if !is_away(&health) => Some("is back already"),
            _ if self.is_sent_away(slot) => Some("was taken offline"),
            Some(health) if self.role(health.name.uuid) != Role::Hot => Some("is not hot"),
            _ => None,
        }
    }

    /// Send the replica `which` (path or slot number) away: until [`Volume::online`], or with `until_mount` until the next mount.
    /// If it is on its way back, that ends.
    ///
    /// # Errors
    /// It is the last one in sync; other long work runs.
    pub fn offline(&self, which: &str, until_mount: bool) -> Result<(), StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let slot = self.find_replica(which, &self.mirror.health())?;
        // Asked before its return can see that it is not wanted.
        let comes = self.is_coming(slot);
        let is_new = self.kept_away.lock().insert(slot);
        let sent = self.send_away(slot, until_mount, comes);
        if sent.is_err() && is_new {
            self.kept_away.lock().remove(&slot);
        }
        sent
    }

    fn send_away(&self, slot: usize, until_mount: bool, mut comes: bool) -> Result<(), StoreError> {
        let until = Instant::now() + STOP_MAX;
        let _alone = loop {
            comes |= self.is_coming(slot);
            match self.begin_work("change of replicas") {
                // Its return sees that it is not wanted, and ends; it is out before it has ended.
                Err(_) if comes && Instant::now() < until => {
                    crate::sync::thread::sleep(Duration::from_millis(10));
                }
                begun => break begun?,
            }
        };
        let cause = if until_mount { "taken offline until the next mount" } else { "taken offline" };
        if !self.store.send_away(slot, cause, !until_mount)? {
            let path = self.mirror.health().get(slot).map(|h| h.name.path.clone()).unwrap_or_default();
            return refused(format!(
                "{path}: is the only replica in sync: without it nothing could be read. Unmount the volume instead"
            ));
        }
        self.mirror.release(slot);
        Ok(())
    }

    /// Whether a return is under way that may be its own: it is called returning only after it has renounced its roots.
    fn is_coming(&self, slot: usize) -> bool {
        let other = |h: &ReplicaHealth| h.slot != slot && h.state == ReplicaState::Returning;
        *self.work.lock() == Some(RESYNC) && !self.mirror.health().iter().any(other)
    }

    /// Let the replica `which` (path or slot number) return. `None`: it is in sync, or on its way.
    ///
    /// # Errors
    /// Nobody is called so; requests to it still hang.
    pub fn online(&self, which: &str) -> Result<Option<Away>, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        let mut health = self.mirror.health();
        let slot = self.find_replica(which, &health)?;
        let health = health.swap_remove(slot);
        self.kept_away.lock().remove(&slot);
        self.store.let_return(slot)?;
        if !is_away(&health) {
            return Ok(None);
        }
        if health.in_flight > 0 {
            return refused(format!(
                "{}: {} requests to it have not come back; what hangs there could still land on it. Wait until the disk \
                 answers or is gone",
                health.name.path, health.in_flight
            ));
        }
        Ok(Some(self.as_away(health)))
    }

    /// Whether the replica in `slot` was sent away by hand.
    pub fn is_sent_away(&self, slot: usize) -> bool {
        self.kept_away.lock().contains(&slot)
    }
}
