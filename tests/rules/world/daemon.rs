//! The daemon: requests to all replicas, groups and roots, log records, acknowledgements, and who goes out meanwhile.
//!
//! Its steps take the world apart, since they touch disks and daemon alike.

use super::{Disk, Job, Phase, Place, Record, Resync, Seat, Stage, World, Write, Wrong};
use crate::roots::{Held, Root, Rules, Slot, State, Witness, free_slot};
use std::sync::Arc;

impl World {
    /// Disks of the seats that take writes.
    pub(super) fn writable(&self) -> Vec<(usize, usize, Seat)> {
        let seats = &self.daemon.as_ref().expect("mounted").seats;
        let takes = |(i, (_, disk, seat)): (usize, &Place)| Some((i, disk.filter(|_| *seat != Seat::Out)?, *seat));
        seats.iter().enumerate().filter_map(takes).collect()
    }

    pub fn put_out(&mut self, seat: usize) {
        let daemon = self.daemon();
        if daemon.seats[seat].2 != Seat::Out {
            daemon.seats[seat].2 = Seat::Out;
            daemon.changed = true;
        }
    }

    /// `Mirror::on_writable`: run a request on all that take writes. False: no replica in sync did it; latched.
    fn request(&mut self, mut run: impl FnMut(&mut Disk)) -> bool {
        let lanes = self.writable();
        let (good, bad): (Vec<_>, Vec<_>) = lanes.into_iter().partition(|(_, disk, _)| !self.disks[*disk].gone);
        if !good.iter().any(|(.., seat)| *seat == Seat::InSync) {
            self.daemon().phase = Phase::Failed;
            return false;
        }
        good.into_iter().for_each(|(_, disk, _)| run(&mut self.disks[disk]));
        bad.into_iter().for_each(|(seat, ..)| self.put_out(seat));
        true
    }

    fn write(&mut self, write: &Write) -> bool {
        self.request(|disk| {
            if disk.lying && matches!(write, Write::Root(..)) {
                disk.lying = false;
            } else {
                disk.pending.push(write.clone());
            }
        })
    }

    fn flush(&mut self) -> bool {
        self.request(Disk::flush)
    }

    /// `write_root`: name the members and write the next version.
    fn write_root(&mut self, rules: &Rules, job: Job, mut root: Root) {
        let daemon = self.daemon();
        daemon.version_max += 1 + u64::from(daemon.fork_next && rules.version_free);
        root.version = daemon.version_max;
        daemon.changed = false;
        let mut shrunk = false;
        if let Some((seat, id)) = daemon.rename
            && root.members[seat].0 != id
        {
            shrunk |= root.members[seat].1 == State::InSync;
            root.members[seat] = (id, State::Out);
            root.held[seat] = Held::default();
        }
        let coming = daemon.resync.filter(|resync| resync.since.is_some());
        if let (Job::Note, Some(Resync { seat, since: Some(since), .. })) = (job, coming) {
            root.held[seat].ops = since;
        }
        let last = if rules.held_before { daemon.root.ops } else { root.ops };
        let last = Held { ops: last, version: daemon.root.version };
        for (i, (_, _, seat)) in daemon.seats.iter().enumerate().take(root.members.len()) {
            let (member, held) = (&mut root.members[i], &mut root.held[i]);
            let new = match seat {
                Seat::InSync => State::InSync,
                Seat::Returning => State::Returning,
                Seat::Out if rules.announce && coming.is_some_and(|resync| resync.seat == i) => State::Returning,
                Seat::Out => State::Out,
            };
            shrunk |= new != member.1 && member.1 == State::InSync && rules.epoch_shrunk;
            match (member.1, new) {
                (State::InSync, State::InSync) => {}
                (State::InSync, _) => *held = last,
                (_, State::InSync) => *held = Held::default(),
                _ => {}
            }
            member.1 = new;
        }
        if shrunk || daemon.fork_next {
            let epoch = self.fresh();
            root.chain.push((epoch, root.version));
        }
        let daemon = self.daemon();
        if root.epoch() != daemon.root.epoch() {
            self.witness = Some(Witness::of(&root));
            self.ghost.window = true;
        }
        let daemon = self.daemon();
        let slot = free_slot(rules, &daemon.slots, daemon.newest_slot, root.txg);
        daemon.slots[slot] = Some(root.version);
        let held = Slot::Holds(daemon.root.clone());
        // The first root of a volume is in every slot.
        let is_last =
            |disk: &Disk| disk.slots[slot] == held && disk.slots.iter().filter(|one| **one == held).count() == 1;
        let overwrites = self.writable().iter().any(|(_, disk, _)| is_last(&self.disks[*disk]));
        if overwrites {
            self.wrong(Wrong::Overwritten);
        }
        if self.write(&Write::Root(slot, Arc::new(root.clone()))) {
            self.daemon().phase = Phase::Root(job, root, slot);
        }
    }

    /// One step of what the daemon is at.
    pub fn step(&mut self, rules: &Rules) -> Option<()> {
        match self.daemon.as_ref()?.phase.clone() {
            Phase::Idle | Phase::Failed => return None,
            Phase::Enforce => self.enforced(rules),
            Phase::Data(job) => self.group_done(rules, job),
            Phase::Root(job, root, slot) => self.root_done(rules, job, root, slot),
            Phase::Record(op) => {
                if self.flush() {
                    if self.daemon().changed && rules.declare {
                        let root = (*self.daemon().root).clone();
                        self.write_root(rules, Job::Declare(Some(op)), root);
                    } else {
                        self.acknowledge(Some(op));
                    }
                }
            }
            Phase::Blank => self.blanked(rules),
            Phase::Label => self.labelled(rules),
        }
        self.mend();
        Some(())
    }

    /// The newest root is on all: name who is absent.
    fn enforced(&mut self, rules: &Rules) {
        if !self.flush() {
            return;
        }
        let daemon = self.daemon();
        let root = (*daemon.root).clone();
        let called = root.members.iter().filter(|member| member.1 == State::InSync).count();
        let here = daemon.seats.iter().filter(|seat| seat.2 == Seat::InSync).count();
        let absent = here < called;
        let returning = root.members.iter().any(|member| member.1 == State::Returning);
        daemon.fork_next |= absent && rules.epoch_degraded;
        if absent && rules.absent_first || returning && rules.returning_first {
            self.write_root(rules, Job::Absent, root);
        } else {
            self.replay();
        }
    }

    /// Heal and replay the log, and begin the group that holds it.
    fn replay(&mut self) {
        let root = self.daemon().root.clone();
        let disks: Vec<usize> = self.writable().into_iter().map(|(_, disk, _)| disk).collect();
        let records = self.replayed(&root, &disks);
        for record in &records {
            for disk in &disks {
                let disk = &mut self.disks[*disk];
                if !disk.gone && !disk.log.contains(record) {
                    disk.pending.push(Write::Record(record.clone()));
                }
            }
        }
        self.daemon().delta = records.iter().filter(|r| r.txg > root.txg).fold(0, |ops, r| ops | r.ops);
        self.begin_group(Job::Recover);
    }

    pub fn begin_group(&mut self, job: Job) {
        let ops = self.daemon().delta | job.ops();
        let kept = self.daemon().root.ops | ops;
        if self.write(&Write::Data(ops, kept)) {
            self.daemon().phase = Phase::Data(job);
        }
    }

    /// Blocks are written: the root of the group.
    fn group_done(&mut self, rules: &Rules, job: Job) {
        if rules.flush_first && !self.flush() {
            return;
        }
        let daemon = self.daemon();
        let mut root = (*daemon.root).clone();
        root.txg += 1;
        root.before = root.ops;
        root.ops |= daemon.delta | job.ops();
        (root.life, root.log_seq, root.clean) = (daemon.life, daemon.next_seq, job == Job::Clean);
        self.write_root(rules, job, root);
    }

    fn root_done(&mut self, rules: &Rules, job: Job, root: Root, slot: usize) {
        if !self.flush() {
            return;
        }
        self.ghost.window = false;
        let daemon = self.daemon();
        daemon.root = Arc::new(root.clone());
        daemon.newest_slot = slot;
        if daemon.changed && rules.declare {
            return self.write_root(rules, job, root);
        }
        match job {
            Job::Recover | Job::Commit(_) | Job::Clean => {
                daemon.fork_next = false;
                daemon.delta = 0;
                if let Some(resync) = daemon.resync.as_mut().filter(|r| r.stage == Stage::Returning) {
                    resync.stage = Stage::Committed;
                }
                self.acknowledge(if let Job::Commit(op) = job { op } else { None });
                self.verify();
            }
            Job::Declare(op) => self.acknowledge(op),
            Job::Absent => {
                daemon.fork_next = false;
                self.replay();
            }
            Job::Note => self.tell_root(),
            Job::Return => {
                daemon.rename = None;
                if let Some(resync) = &mut daemon.resync {
                    resync.stage = Stage::Returning;
                }
                daemon.phase = Phase::Idle;
            }
            Job::Join => {
                daemon.rename = None;
                daemon.phase = Phase::Idle;
                let joined = daemon.resync.take().and_then(|resync| daemon.seats[resync.takes].1);
                // It was proven: what came back as old content is its word again.
                self.ghost.restored &= !joined.map_or(0, |disk| 1 << disk);
                self.verify();
            }
        }
        if job == Job::Clean {
            self.mend();
            self.daemon = None;
        }
    }

    fn acknowledge(&mut self, op: Option<u8>) {
        if let Some(op) = op {
            self.ghost.acked |= 1 << op;
            self.ghost.ever |= 1 << op;
            // What had been visible is durable with it.
            let before = self.ghost.bases[usize::from(op)];
            self.ghost.acked |= before;
            self.ghost.ever |= before;
        }
        let daemon = self.daemon();
        let logged = matches!(daemon.phase, Phase::Record(_) | Phase::Root(Job::Declare(Some(_)), ..));
        if let Some(op) = op.filter(|_| logged) {
            daemon.delta |= 1 << op;
        }
        daemon.phase = Phase::Idle;
    }

    /// `verify_root`: a replica that lost the root gets it once more; one that does not take it goes out.
    pub fn verify(&mut self) {
        let (slot, held) = (self.daemon().newest_slot, Slot::Holds(self.daemon().root.clone()));
        for (seat, disk, state) in self.writable() {
            let count = self.writable().iter().filter(|(.., seat)| *seat == Seat::InSync).count();
            if state == Seat::InSync && self.disks[disk].gone && count > 1 {
                self.put_out(seat);
            } else if state == Seat::InSync && !self.disks[disk].gone {
                self.disks[disk].slots[slot] = held.clone();
            }
        }
    }

    /// An operation that waits for a log record.
    pub fn begin_record(&mut self, op: u8) {
        let daemon = self.daemon();
        let (life, seq, txg, follows) = (daemon.life, daemon.next_seq, daemon.root.txg + 1, daemon.root.version);
        daemon.next_seq += 1;
        if self.write(&Write::Record(Record { life, seq, txg, follows, ops: 1 << op })) {
            self.daemon().phase = Phase::Record(op);
        }
    }

    /// A new operation on what is visible.
    pub fn new_op(&mut self) -> u8 {
        let daemon = self.daemon.as_ref().expect("mounted");
        self.ghost.bases.push(daemon.root.ops | daemon.delta);
        (self.ghost.bases.len() - 1) as u8
    }

    pub fn declare(&mut self, rules: &Rules, job: Job) {
        let root = (*self.daemon().root).clone();
        self.write_root(rules, job, root);
    }

    /// A disk is whole again where it is in sync, has the newest root and all that any root says it has; it does not
    /// matter any more where it is nobody and nobody is missed.
    pub fn mend(&mut self) {
        let Some(daemon) = self.daemon.as_ref().filter(|d| d.phase == Phase::Idle && !d.changed) else { return };
        let complete = daemon.root.members.iter().all(|member| member.1 == State::InSync);
        let mut mended = 0;
        for (i, disk) in self.disks.iter().enumerate() {
            let seat = daemon.seats.iter().find(|seat| seat.1 == Some(i));
            let newest = disk.slots[daemon.newest_slot] == Slot::Holds(daemon.root.clone());
            let whole = newest && !disk.gone && !disk.lying && self.keeps_word(disk);
            let stranger = seat.is_none() && disk.id.is_none_or(|id| daemon.root.members.iter().all(|m| m.0 != id));
            if seat.is_some_and(|seat| seat.2 == Seat::InSync) && whole || stranger && complete {
                mended |= 1 << i;
            }
        }
        self.ghost.struck &= !mended;
        self.ghost.silent &= !mended;
        self.ghost.hidden &= !mended;
        self.ghost.restored &= !mended;
    }

    /// Whether a disk holds everything that is reached by any root that calls it in sync, is not older than its own, and
    /// stands on a disk with a label.
    pub fn keeps_word(&self, disk: &Disk) -> bool {
        let newest = disk.newest().map_or(0, |root| root.version);
        let labelled = self.disks.iter().filter(|other| other.id.is_some());
        let roots = labelled.flat_map(|other| other.slots.iter().filter_map(Slot::root));
        let mut roots = roots.filter(|root| root.version >= newest);
        let names = |root: &Root| disk.id.is_some_and(|id| root.members.contains(&(id, State::InSync)));
        roots.all(|root| !names(root) || disk.data & root.ops == root.ops)
    }
}
