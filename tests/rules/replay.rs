//! Traces of the simulator on the model: each event must be a step that the model allows, with the same roots in the
//! same slots, the same members, the same choice and the same refusal.
//!
//! Identities of the code (128 bits) and of the model (numbers) are matched as they appear, one to one. The model writes
//! to all replicas in one step, the code to one after the other: the first of these writes moves the model, the others
//! are compared with it. It flushes all in one step, too: it takes that step when it is needed, and then each replica
//! that answers must have been flushed.

use super::roots::{RULES, Refusal, Root, Slot, State, Witness};
use super::world::{Daemon, Disk, Ghost, Job, Mode, Phase, Record, Seat, Stage, World, Write};
use stablefs::disk::sim::Fate;
use stablefs::format::log::RecordHead;
use stablefs::format::{MemberState, Root as RealRoot, Uuid};
use stablefs::simulate::trace::{Event, Slot as RealSlot, Stand, Trace};
use std::collections::HashMap;
use std::sync::Arc;

type Checked = Result<(), String>;

/// The history goes on beyond what the model can follow.
const BEYOND: &str = "beyond the model";

pub struct Replay {
    world: World,
    epochs: HashMap<Uuid, u32>,
    replicas: HashMap<Uuid, u32>,
    lives: HashMap<u64, u32>,
    /// Operations of the roots seen, by (epoch, version).
    ops: HashMap<(u32, u64), u128>,
    /// Records seen, by (life, sequence).
    records: HashMap<(u32, u64), Record>,
    /// Disks with writes that no flush of the code covers: blocks, and anything.
    unflushed: Vec<bool>,
    /// Of these: with roots or records.
    awaited: Vec<bool>,
    granted: Option<Result<(u64, usize, usize, u64), Refusal>>,
    mode: Mode,
    /// The last verification put somebody out; that is declared with the next root.
    verified_out: bool,
    cutting: bool,
    /// What the code has written down last.
    witness: Option<Witness>,
    pub steps: usize,
}

fn says<T>(text: String) -> Result<T, String> {
    Err(text)
}

impl Replay {
    fn number<K: std::hash::Hash + Eq + Copy>(map: &mut HashMap<K, u32>, key: K, next: &mut u32) -> u32 {
        *map.entry(key).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    fn root(&mut self, real: &RealRoot) -> Root {
        let fresh = &mut self.world.ghost.fresh;
        let members = real
            .members
            .iter()
            .map(|m| {
                let state = match m.state {
                    MemberState::InSync => State::InSync,
                    MemberState::Out => State::Out,
                    MemberState::Returning => State::Returning,
                };
                (Replay::number(&mut self.replicas, m.replica, fresh), state)
            })
            .collect();
        let chain: Vec<(u32, u64)> =
            real.chain.iter().map(|e| (Replay::number(&mut self.epochs, e.id, fresh), e.first_version)).collect();
        let life = Replay::number(&mut self.lives, real.log_id, fresh);
        let epoch = chain.last().expect("never empty").0;
        let ops = self.ops.get(&(epoch, real.version)).copied().unwrap_or(0);
        let (version, txg, clean) = (real.version, real.txg, real.clean);
        Root { version, txg, clean, life, log_seq: real.log_seq, members, chain, ops }
    }

    fn slot(&mut self, real: &RealSlot) -> Slot {
        match real {
            RealSlot::Empty => Slot::Empty,
            RealSlot::Damaged => Slot::Damaged,
            RealSlot::Holds(root) => Slot::Holds(Arc::new(self.root(root))),
        }
    }

    fn new(stands: &[Stand]) -> Replay {
        let ghost = Ghost { fresh: 1, ..Ghost::default() };
        let mut replay = Replay {
            world: World { disks: Vec::new(), daemon: None, witness: None, ghost },
            epochs: HashMap::new(),
            replicas: HashMap::new(),
            lives: HashMap::new(),
            ops: HashMap::new(),
            records: HashMap::new(),
            unflushed: vec![false; stands.len()],
            awaited: vec![false; stands.len()],
            granted: None,
            mode: Mode::Normal,
            verified_out: false,
            cutting: false,
            witness: None,
            steps: 0,
        };
        for stand in stands {
            let fresh = &mut replay.world.ghost.fresh;
            let id = stand.replica.map(|uuid| Replay::number(&mut replay.replicas, uuid, fresh));
            let slots = stand.slots.iter().map(|slot| replay.slot(slot)).collect();
            let (data, log, pending) = (0, Vec::new(), Vec::new());
            replay.world.disks.push(Disk { id, slots, data, log, pending, gone: false, lying: false });
        }
        replay
    }

    fn daemon(&self) -> Result<&Daemon, String> {
        self.world.daemon.as_ref().ok_or_else(|| "nothing is mounted in the model".to_owned())
    }

    fn phase(&self) -> Result<&Phase, String> {
        self.daemon().map(|daemon| &daemon.phase)
    }

    /// Disks that take writes in the model and answer.
    fn lanes(&self) -> Vec<usize> {
        let Some(daemon) = &self.world.daemon else { return Vec::new() };
        let lanes = daemon.seats.iter().filter(|seat| seat.2 != Seat::Out).filter_map(|seat| seat.1);
        lanes.filter(|disk| !self.world.disks[*disk].gone).collect()
    }

    fn step(&mut self) {
        self.steps += 1;
        let before = self.world.daemon.as_ref().map(|daemon| daemon.changed);
        let committed = self.world.daemon.as_ref().is_some_and(|daemon| matches!(daemon.phase, Phase::Root(..)));
        self.world.step(&RULES);
        let after = self.world.daemon.as_ref().map(|daemon| daemon.changed);
        self.verified_out = committed && before == Some(false) && after == Some(true);
    }

    /// Take the flush that the model waits for, if the code has flushed.
    fn settle(&mut self) -> Checked {
        let Some(daemon) = &self.world.daemon else { return Ok(()) };
        let job = match &daemon.phase {
            Phase::Enforce => "the newest root",
            Phase::Root(..) => "a root",
            Phase::Record(_) => "a record",
            _ => return Ok(()),
        };
        let waits = |d: &usize| self.awaited[*d] && !self.world.disks[*d].pending.is_empty();
        if let Some(disk) = self.lanes().into_iter().find(|d| waits(d)) {
            return says(format!("goes on before {job} was flushed on disk {disk}"));
        }
        self.step();
        Ok(())
    }

    /// Whoever failed before this point is out in the code.
    fn notice(&mut self) {
        let Some(daemon) = &self.world.daemon else { return };
        let gone = |disk: Option<usize>| disk.is_some_and(|disk| self.world.disks[disk].gone);
        let seats: Vec<usize> =
            (0..daemon.seats.len()).filter(|i| daemon.seats[*i].2 != Seat::Out && gone(daemon.seats[*i].1)).collect();
        for seat in seats {
            let in_sync = self.world.daemon().seats.iter().filter(|seat| seat.2 == Seat::InSync).count();
            if self.world.daemon().seats[seat].2 != Seat::InSync || in_sync > 1 {
                self.world.put_out(seat);
            }
        }
    }

    fn see_root(&mut self, disk: usize, slot: usize, real: &RealRoot, fate: Fate) -> Checked {
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
        self.fate(disk, fate, |write| matches!(write, Write::Root(s, _) if *s == slot));
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
        let ops = self.ops.get(&(found.epoch(), found.version)).copied().unwrap_or(0);
        Root { ops, ..found.clone() }
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
        for disk in &mut self.world.disks {
            for write in &mut disk.pending {
                if let Write::Root(s, pending) = write
                    && *s == at
                    && pending.version == expected.version
                {
                    *pending = Arc::new(expected.clone());
                }
            }
        }
        if slot != at || !same_root(&expected, found) {
            return says(format!(
                "the code writes\n  {found:?} to slot {slot}, the model\n  {expected:?} to slot {at}"
            ));
        }
        self.ops.insert((found.epoch(), found.version), expected.ops);
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
        for write in self.world.disks.iter_mut().flat_map(|disk| &mut disk.pending) {
            if let Write::Label(id) = write
                && *id == ours
            {
                *id = theirs;
            }
        }
    }

    fn see_record(&mut self, disk: usize, head: &RecordHead, fate: Fate) -> Checked {
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
            for write in self.world.disks.iter_mut().flat_map(|disk| &mut disk.pending) {
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
    fn see_label(&mut self, disk: usize, uuid: Uuid, fate: Fate) -> Checked {
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

    fn see_block(&mut self, disk: usize, fate: Fate) -> Checked {
        if matches!(self.phase(), Ok(Phase::Enforce)) {
            self.settle()?;
        }
        match fate {
            Fate::Failed | Fate::Hung => self.world.disks[disk].gone = true,
            _ => self.unflushed[disk] = true,
        }
        Ok(())
    }

    fn see_flush(&mut self, disk: usize, fate: Fate) -> Checked {
        match fate {
            Fate::Done | Fate::Lied | Fate::Late => (self.unflushed[disk], self.awaited[disk]) = (false, false),
            Fate::Failed | Fate::Hung => self.world.disks[disk].gone = true,
            Fate::Cut => return Ok(()),
        }
        let waits = matches!(self.phase(), Ok(Phase::Root(..) | Phase::Record(_)));
        if waits && self.lanes().into_iter().all(|lane| !self.awaited[lane]) { self.settle() } else { Ok(()) }
    }

    fn see_mount(&mut self, present: &[usize], mode: Mode) {
        self.mode = mode;
        for disk in present {
            self.world.disks[*disk].gone = false;
        }
        let judged = self.world.judge(&RULES, present, mode);
        self.granted = Some(judged.map(|(choice, which)| {
            let there = which.len() - choice.members.iter().filter(|(_, in_sync)| *in_sync).count();
            let records = self.world.records(&choice, &which) as u64;
            (choice.root.version, choice.missing, there, records)
        }));
        self.unflushed.fill(false);
        self.awaited.fill(false);
        self.world.mount(&RULES, present, mode);
    }

    fn see_opened(&mut self, outcome: (u64, usize, usize, u64)) -> Checked {
        match self.granted.take() {
            Some(Ok(expected)) if expected == outcome => {}
            other => {
                return says(format!("opened (root, missing, behind, replayed) {outcome:?}, the model says {other:?}"));
            }
        }
        self.settle()?;
        match self.phase()? {
            Phase::Idle => Ok(()),
            phase => says(format!("mounted, and the model is still at {phase:?}")),
        }
    }

    fn see_refused(&mut self, text: &str) -> Checked {
        let why = [
            ("split brain", Refusal::Forked),
            ("was left behind: the volume went on", Refusal::LeftBehind),
            ("no replica that was in sync is there", Refusal::NoneInSync),
            ("missing:", Refusal::Missing),
            ("no root proves itself", Refusal::NoRoot),
            ("was durable and is on none", Refusal::RootLost),
            ("no replica was given", Refusal::NothingThere),
        ];
        let found = why.iter().find(|(part, _)| text.contains(part)).map(|(_, why)| *why);
        match (self.granted.take(), found) {
            (Some(Err(expected)), Some(found)) if expected == found => Ok(()),
            // A lost write and a lost disk: blocks are damaged, of which the model knows nothing.
            (Some(Ok(_)), None) if text.contains("damaged on every replica") => says(BEYOND.into()),
            (expected, _) => says(format!("refused: {text}; the model says {expected:?}")),
        }
    }

    fn see_acknowledged(&mut self) -> Checked {
        self.settle()?;
        let verified_out = self.verified_out;
        let daemon = self.daemon()?;
        match &daemon.phase {
            Phase::Idle if !daemon.changed || verified_out => Ok(()),
            Phase::Idle => says("acknowledged before a root names who is out".into()),
            phase => says(format!("acknowledged while the model is at {phase:?}")),
        }
    }

    /// What stands on the disks after a power cut is what may stand there.
    fn see_stands(&mut self, stands: &[Stand]) -> Checked {
        let cut = std::mem::take(&mut self.cutting);
        self.world.daemon = None;
        self.granted = None;
        // Disks can be dead before the daemon is: it may have written down a root that it could not write.
        self.world.witness = self.witness.clone();
        for (i, stand) in stands.iter().enumerate() {
            let slots: Vec<Slot> = stand.slots.iter().map(|slot| self.slot(slot)).collect();
            let fresh = &mut self.world.ghost.fresh;
            let id = stand.replica.map(|uuid| Replay::number(&mut self.replicas, uuid, fresh));
            let heads: Vec<(u32, u64)> =
                stand.records.iter().map(|h| (Replay::number(&mut self.lives, h.log_id, fresh), h.seq)).collect();
            let disk = &mut self.world.disks[i];
            let pending = std::mem::take(&mut disk.pending);
            for (at, slot) in slots.iter().enumerate() {
                let could = |w: &Write| match (w, slot) {
                    (Write::Root(s, root), Slot::Holds(found)) => *s == at && same_root(root, found),
                    (Write::Root(s, _), Slot::Damaged) => *s == at,
                    (Write::Blank, _) => true,
                    _ => false,
                };
                if cut && !same_slot(slot, &disk.slots[at]) && !pending.iter().any(could) {
                    let was = &disk.slots[at];
                    return says(format!(
                        "disk {i}, slot {at}: {slot:?} stands there, was {was:?}, pending {pending:?}"
                    ));
                }
            }
            disk.slots = slots;
            disk.id = id;
            let newest = disk.newest().cloned();
            let needed =
                |r: &&Record| newest.as_ref().is_some_and(|n| !n.clean && r.life == n.life && r.seq >= n.log_seq);
            let lost = disk.log.iter().filter(needed).find(|r| !heads.contains(&(r.life, r.seq)));
            if let Some(lost) = lost.filter(|_| cut) {
                return says(format!("disk {i}: {lost:?} was flushed, and is gone"));
            }
            disk.log = heads.iter().filter_map(|head| self.records.get(head).cloned()).collect();
        }
        self.unflushed.fill(false);
        self.awaited.fill(false);
        Ok(())
    }

    fn see(&mut self, event: &Event) -> Checked {
        match event {
            Event::Stands(stands) => self.see_stands(stands),
            Event::Root { disk, slot, root, fate } => self.see_root(*disk, *slot, root, *fate),
            Event::Record { disk, head, fate } => self.see_record(*disk, head, *fate),
            Event::Label { disk, replica, fate } => self.see_label(*disk, *replica, *fate),
            Event::Block { disk, fate } => self.see_block(*disk, *fate),
            Event::Flush { disk, fate } => self.see_flush(*disk, *fate),
            Event::Unanswered { disk, what } => {
                self.world.disks[*disk].gone |= matches!(*what, "medium" | "read" | "check");
                Ok(())
            }
            Event::Mount { present, degraded, accept_stale } => {
                let mode = match (degraded, accept_stale) {
                    (_, true) => Mode::AcceptStale,
                    (true, _) => Mode::Degraded,
                    _ => Mode::Normal,
                };
                self.see_mount(present, mode);
                Ok(())
            }
            Event::Opened { version, missing, behind, replayed } => {
                self.see_opened((*version, *missing, *behind, *replayed))
            }
            Event::Refused(text) => self.see_refused(text),
            Event::Witness(root) => {
                let root = self.root(root);
                let (version, epoch, in_sync) = (root.version, root.epoch(), root.in_sync());
                self.witness = Some(Witness { version, epoch, in_sync });
                Ok(())
            }
            Event::Acknowledged => self.see_acknowledged(),
            Event::Replace { seat, disk } => {
                self.settle()?;
                self.notice();
                self.world.replace(*seat, *disk);
                self.unflushed[*disk] = true;
                Ok(())
            }
            Event::Replaced(done) => self.see_replaced(*done),
            Event::Unmounted(clean) => {
                self.settle()?;
                match (&self.world.daemon, clean) {
                    (Some(daemon), true) => says(format!("unmounted, and the model is at {:?}", daemon.phase)),
                    _ => Ok(()),
                }
            }
            Event::PowerCut => {
                self.cutting = true;
                Ok(())
            }
        }
    }

    fn see_replaced(&mut self, done: bool) -> Checked {
        // It may have failed at a flush.
        let settled = self.settle();
        if done {
            settled?;
        }
        let daemon = self.world.daemon();
        let complete = daemon.resync.is_none() && daemon.phase == Phase::Idle;
        match done {
            true if !complete => says(format!("replaced, and the model is at {:?}, {:?}", daemon.phase, daemon.resync)),
            true => Ok(()),
            false => {
                if daemon.resync.is_some() && daemon.phase != Phase::Failed {
                    self.world.give_up();
                    self.world.daemon().changed = false;
                }
                Ok(())
            }
        }
    }
}

fn same_root(a: &Root, b: &Root) -> bool {
    (a.version, a.txg, a.clean, a.log_seq, &a.members, &a.chain)
        == (b.version, b.txg, b.clean, b.log_seq, &b.members, &b.chain)
}

fn same_slot(a: &Slot, b: &Slot) -> bool {
    match (a, b) {
        (Slot::Holds(a), Slot::Holds(b)) => same_root(a, b),
        (a, b) => a == b,
    }
}

/// Replay a trace; how many events agreed.
pub fn replay(trace: &Trace) -> Result<usize, String> {
    let Some(Event::Stands(stands)) = trace.events.first() else {
        return says("a trace begins with what stands".into());
    };
    let mut replay = Replay::new(stands);
    for (i, event) in trace.events.iter().enumerate().skip(1) {
        if let Err(text) = replay.see(event) {
            if text == BEYOND {
                return Ok(i);
            }
            let from = i.saturating_sub(30);
            let before: Vec<String> = trace.events[from..=i].iter().map(brief).collect();
            return says(format!("event {i}: {text}\nevents before:\n  {}", before.join("\n  ")));
        }
    }
    Ok(trace.events.len())
}

fn brief(event: &Event) -> String {
    match event {
        Event::Stands(_) => "stands".into(),
        Event::Root { disk, slot, root, fate } => {
            let members: Vec<String> = root.members.iter().map(|m| format!("{:?}", m.state)).collect();
            let (version, txg, epochs) = (root.version, root.txg, root.chain.len());
            format!("disk {disk}: root {version} of group {txg}, {epochs} epochs, {members:?} to slot {slot}: {fate:?}")
        }
        Event::Record { disk, head, fate } => {
            let (seq, txg, version) = (head.seq, head.txg, head.root_version);
            format!("disk {disk}: record {seq} of group {txg} after root {version}: {fate:?}")
        }
        other => format!("{other:?}"),
    }
}
