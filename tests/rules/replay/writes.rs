//! What the code writes to a disk is what the model writes next, or a copy of what another replica has.

use super::{BEYOND, Checked, Replay, same_root, says};
use crate::roots::{RULES, Root};
use crate::world::{Daemon, Job, Phase, Record, Seat, Stage, World, Write};
use stablefs::disk::sim::Fate;
use stablefs::format::log::RecordHead;
use stablefs::format::{Root as RealRoot, Uuid};
use std::sync::Arc;

/// Writes that no flush covers.
fn pending(world: &mut World) -> impl Iterator<Item = &mut Write> {
    world.disks.iter_mut().flat_map(|disk| &mut disk.pending)
}

impl Replay {
    pub(super) fn see_root(&mut self, disk: usize, slot: usize, real: &RealRoot, fate: Fate) -> Checked {
        if self.former {
            return says(BEYOND.into());
        }
        let found = self.root(real);
        if !self.lanes().contains(&disk) && !matches!(self.phase(), Ok(Phase::Blank)) {
            self.settle()?;
            // The one that was replaced is told.
            if !self.daemon().is_ok_and(|daemon| same_root(&daemon.root, &found) && daemon.newest_slot == slot) {
                return says(format!("a root is written to disk {disk}, which takes none"));
            }
            let told = Write::Root(slot, self.daemon()?.root.clone());
            self.world.disks[disk].pending.push(told);
            self.fate(disk, fate, |write| matches!(write, Write::Root(s, _) if *s == slot));
            return Ok(());
        }
        let pending = |found: &Root, world: &World| {
            let same = |w: &Write| matches!(w, Write::Root(s, r) if *s == slot && same_root(r, found));
            world.disks[disk].pending.iter().any(same)
        };
        let writes = matches!(self.phase(), Ok(Phase::Root(_, root, _)) if root.version == found.version);
        let awaited = |replay: &Replay| match &replay.world.daemon {
            Some(Daemon { phase: Phase::Root(_, root, at), .. }) => *at == slot && same_root(root, &found),
            Some(Daemon { phase: Phase::Enforce, .. }) => pending(&found, &replay.world),
            _ => false,
        };
        if writes {
            self.agree(slot, &found)?;
        } else if !awaited(self) && !self.is_copy(slot, &found) {
            self.settle()?;
            if !awaited(self) {
                self.next_root(&found)?;
                self.agree(slot, &found)?;
            }
        } else if !awaited(self) {
            let copy = Arc::new(self.known(&found));
            self.world.disks[disk].pending.push(Write::Root(slot, copy));
        }
        self.given[disk] = found.version;
        self.fate(disk, fate, |write| matches!(write, Write::Root(s, _) if *s == slot));
        Ok(())
    }

    pub(super) fn see_void(&mut self, disk: usize, slot: usize, fate: Fate) -> Checked {
        let void = |write: &Write| *write == Write::Void(slot);
        if self.phase()? != &Phase::Enforce || !self.world.disks[disk].pending.iter().any(void) {
            return says(format!("slot {slot} of disk {disk} is made void, and the model is at {:?}", self.phase()?));
        }
        self.fate(disk, fate, void);
        Ok(())
    }

    /// What became of a write that the model has just made.
    fn fate(&mut self, disk: usize, fate: Fate, is_it: impl Fn(&Write) -> bool) {
        let held = &mut self.world.disks[disk];
        match fate {
            Fate::Done | Fate::Cut | Fate::Late => (self.unflushed[disk], self.awaited[disk]) = (true, true),
            Fate::Lied => held.pending.retain(|write| !is_it(write)),
            Fate::Failed => {
                held.pending.retain(|write| !is_it(write));
                held.gone = true;
            }
            Fate::Hung => held.gone = true,
        }
    }

    fn known(&self, found: &Root) -> Root {
        let known = self.ops.get(&(found.epoch(), found.version)).cloned();
        let (ops, before, held) = known.unwrap_or_else(|| (0, 0, found.held.clone()));
        Root { ops, before, held, ..found.clone() }
    }

    /// A root that another replica has in that slot: healed, or copied to a replica that returns.
    fn is_copy(&self, slot: usize, found: &Root) -> bool {
        self.world.disks.iter().any(|disk| disk.slots[slot].root().is_some_and(|root| same_root(root, found)))
    }

    /// Move the model to where it writes its next root.
    fn next_root(&mut self, found: &Root) -> Checked {
        let Some(daemon) = &self.world.daemon else { return says("a root is written without a mount".into()) };
        match daemon.phase.clone() {
            Phase::Root(..) => Ok(()),
            Phase::Enforce => {
                self.notice();
                self.settle()?;
                self.next_root(found)
            }
            Phase::Data(_) => {
                self.flushed_all()?;
                self.step();
                Ok(())
            }
            Phase::Blank => {
                self.notice();
                self.step();
                // In the place of one that is in sync: no root says so yet.
                if self.phase()? == &Phase::Idle { self.next_root(found) } else { Ok(()) }
            }
            Phase::Label => {
                self.notice();
                self.step();
                Ok(())
            }
            Phase::Idle if found.txg == daemon.root.txg => {
                self.notice();
                if let Some(resync) = self.daemon()?.resync
                    && self.daemon()?.seats[resync.seat].2 == Seat::Out
                {
                    self.world.give_up();
                }
                self.world.declare(&RULES, Job::Declare(None));
                Ok(())
            }
            Phase::Idle => {
                self.notice();
                self.flushed_all()?;
                let job = if found.clean { Job::Clean } else { Job::Commit(Some(self.new_op()?)) };
                self.world.begin_group(job);
                self.step();
                Ok(())
            }
            phase => says(format!("a root is written while the model is at {phase:?}")),
        }
    }

    fn new_op(&mut self) -> Result<u8, String> {
        if self.world.ghost.bases.len() >= 127 {
            return says(BEYOND.into());
        }
        Ok(self.world.new_op())
    }

    /// Invariant 3: what the root reaches is flushed before it is written.
    fn flushed_all(&self) -> Checked {
        let dirty = self.lanes().into_iter().find(|disk| self.unflushed[*disk]);
        dirty.map_or(Ok(()), |disk| says(format!("a root is written before disk {disk} was flushed")))
    }

    /// The root that the model writes is the one that the code wrote, in the same slot.
    fn agree(&mut self, slot: usize, found: &Root) -> Checked {
        let Phase::Root(_, root, at) = self.phase()?.clone() else {
            return says(format!("the model does not write a root now but is at {:?}", self.phase()?));
        };
        // What is new in both is the same thing.
        let (ours, theirs) = (root.chain.last(), found.chain.last());
        let mut renamed = root.clone();
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && root.chain.len() == found.chain.len()
            && ours.0 != theirs.0
        {
            self.rename_epoch(ours.0, theirs.0);
            renamed.chain.last_mut().expect("never empty").0 = theirs.0;
        }
        for (ours, theirs) in root.members.iter().zip(&found.members) {
            if ours.0 != theirs.0 {
                self.rename_replica(ours.0, theirs.0);
            }
        }
        if root.life != found.life {
            let ours = root.life;
            let daemon = self.world.daemon();
            if daemon.life == ours {
                daemon.life = found.life;
            }
        }
        let mut expected = match self.phase()?.clone() {
            Phase::Root(_, root, _) => root,
            _ => renamed,
        };
        expected.life = found.life;
        if let Phase::Root(_, root, _) = &mut self.world.daemon().phase {
            root.life = found.life;
        }
        for write in pending(&mut self.world) {
            if let Write::Root(s, pending) = write
                && *s == at
                && pending.version == expected.version
            {
                *pending = Arc::new(expected.clone());
            }
        }
        if slot != at || !same_root(&expected, found) {
            return says(format!(
                "the code writes\n  {found:?} to slot {slot}, the model\n  {expected:?} to slot {at}"
            ));
        }
        self.ops.insert((found.epoch(), found.version), (expected.ops, expected.before, expected.held.clone()));
        if self.world.witness != self.witness {
            return says(format!("the code has written down {:?}, the model {:?}", self.witness, self.world.witness));
        }
        Ok(())
    }

    fn rename_epoch(&mut self, ours: u32, theirs: u32) {
        if let Some(witness) = &mut self.world.witness
            && witness.epoch == ours
        {
            witness.epoch = theirs;
        }
        if let Phase::Root(_, root, _) = &mut self.world.daemon().phase {
            root.chain.iter_mut().filter(|e| e.0 == ours).for_each(|e| e.0 = theirs);
        }
    }

    fn rename_replica(&mut self, ours: u32, theirs: u32) {
        let daemon = self.world.daemon();
        daemon.seats.iter_mut().filter(|seat| seat.0 == ours).for_each(|seat| seat.0 = theirs);
        if let Phase::Root(_, root, _) = &mut daemon.phase {
            root.members.iter_mut().filter(|m| m.0 == ours).for_each(|m| m.0 = theirs);
        }
        if let Some(resync) = daemon.resync.as_mut().filter(|resync| resync.id == ours) {
            resync.id = theirs;
        }
        if let Some((_, id)) = daemon.rename.as_mut().filter(|(_, id)| *id == ours) {
            *id = theirs;
        }
        if let Some(witness) = &mut self.world.witness {
            witness.in_sync.iter_mut().filter(|id| **id == ours).for_each(|id| *id = theirs);
        }
        for write in pending(&mut self.world) {
            if let Write::Label(id) = write
                && *id == ours
            {
                *id = theirs;
            }
        }
    }

    pub(super) fn see_record(&mut self, disk: usize, head: &RecordHead, fate: Fate) -> Checked {
        let life = Replay::number(&mut self.lives, head.log_id, &mut self.world.ghost.fresh);
        let is_it = |record: &Record| record.life == life && record.seq == head.seq;
        let known = |world: &World| {
            let logs = world.disks.iter().any(|disk| disk.log.iter().any(is_it));
            let writes = world.disks.iter().flat_map(|disk| &disk.pending);
            logs || writes.into_iter().any(|write| matches!(write, Write::Record(r) if is_it(r)))
        };
        if !known(&self.world) {
            self.settle()?;
            let daemon = self.world.daemon();
            if daemon.phase != Phase::Idle {
                return says(format!("a record is written while the model is at {:?}", daemon.phase));
            }
            // It may have been made before members were declared: then it says less than it could.
            if daemon.next_seq != head.seq || daemon.root.version < head.root_version {
                let (seq, version) = (daemon.next_seq, daemon.root.version);
                return says(format!("record {head:?}; the model writes record {seq} after root {version}"));
            }
            if head.txg != daemon.root.txg + 1 {
                return says(format!("record {head:?} of a group that is not open"));
            }
            daemon.life = life;
            let op = self.new_op()?;
            self.world.begin_record(op);
            let follows = head.root_version;
            for write in pending(&mut self.world) {
                if let Write::Record(record) = write
                    && is_it(record)
                {
                    record.follows = follows;
                    self.records.insert((life, head.seq), record.clone());
                }
            }
        } else {
            // Recovery heals and replays, or a replica that returns gets what replay needs.
            if matches!(self.phase(), Ok(Phase::Enforce)) {
                self.settle()?;
            }
            let all = self.world.disks.iter().flat_map(|disk| {
                let writes = disk.pending.iter().filter_map(|w| if let Write::Record(r) = w { Some(r) } else { None });
                disk.log.iter().chain(writes)
            });
            let record = all.into_iter().find(|r| is_it(r)).cloned();
            let held = &mut self.world.disks[disk];
            let has = held.pending.iter().any(|write| matches!(write, Write::Record(r) if is_it(r)));
            if let Some(record) = record.filter(|_| !has) {
                held.pending.push(Write::Record(record));
            }
        }
        self.fate(disk, fate, |write| matches!(write, Write::Record(r) if is_it(r)));
        Ok(())
    }

    /// The label of a new replica: it has been proven.
    pub(super) fn see_label(&mut self, disk: usize, uuid: Uuid, fate: Fate) -> Checked {
        let theirs = Replay::number(&mut self.replicas, uuid, &mut self.world.ghost.fresh);
        self.settle()?;
        let Some(resync) = self.world.daemon.as_ref().and_then(|daemon| daemon.resync) else {
            return says(format!("disk {disk} gets a label, and nothing is being replaced"));
        };
        self.rename_replica(resync.id, theirs);
        for _ in 0..4 {
            let daemon = self.world.daemon();
            let Some(resync) = daemon.resync else { return says("the model gave up what the code labels".into()) };
            match (resync.stage, &daemon.phase) {
                (Stage::Committed | Stage::Copied, Phase::Idle) => self.world.resync_step(&RULES),
                (_, Phase::Label) => break,
                other => return says(format!("a label is written while the model is at {other:?}")),
            }
        }
        self.fate(disk, fate, |write| matches!(write, Write::Label(_)));
        Ok(())
    }

    pub(super) fn see_block(&mut self, disk: usize, fate: Fate) -> Checked {
        if matches!(self.phase(), Ok(Phase::Enforce)) {
            self.settle()?;
        }
        match fate {
            Fate::Failed | Fate::Hung => self.world.disks[disk].gone = true,
            _ => self.unflushed[disk] = true,
        }
        Ok(())
    }

    pub(super) fn see_flush(&mut self, disk: usize, fate: Fate) -> Checked {
        match fate {
            Fate::Done | Fate::Lied | Fate::Late => (self.unflushed[disk], self.awaited[disk]) = (false, false),
            Fate::Failed | Fate::Hung => self.world.disks[disk].gone = true,
            Fate::Cut => return Ok(()),
        }
        // The code gives a root to those in sync, flushes it, and then gives it to one that returns.
        let given = |replay: &Replay, disk: usize| match replay.phase() {
            Ok(Phase::Root(_, root, _)) => replay.given[disk] == root.version,
            Ok(Phase::Record(_)) => true,
            _ => false,
        };
        let is_done = self.lanes().into_iter().all(|lane| given(self, lane) && !self.awaited[lane]);
        let waits = matches!(self.phase(), Ok(Phase::Root(..) | Phase::Record(_)));
        if waits && is_done { self.settle() } else { Ok(()) }
    }
}
