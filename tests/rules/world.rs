//! The world of the model: disks, the daemon that has them mounted, this host's witness, and what a ghost remembers.
//!
//! Only what the rules need. An operation is one bit; what it wrote is its data block (in a disk's `data`) or its log
//! record. Requests of the daemon go to all replicas and are pending until the next flush; a power cut keeps any
//! subset of what is pending. So a flush may be one step here: whatever a cut between the flushes of two replicas
//! leaves is left by a cut before both, too.

use super::roots::{Choice, Found, Ops, Refusal, Root, Rules, Slot, State, Witness, choose, free_slot, left_behind};
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    pub life: u32,
    pub seq: u64,
    pub txg: u64,
    /// Version of the newest durable root when it was written.
    pub follows: u64,
    pub ops: Ops,
}

/// A write that no flush covers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Write {
    Data(Ops),
    Record(Record),
    Root(usize, Arc<Root>),
    Label(u32),
    /// Zeros over label, roots and log.
    Blank,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Disk {
    /// Identity in its label.
    pub id: Option<u32>,
    pub slots: Vec<Slot>,
    /// Operations whose blocks are here.
    pub data: Ops,
    pub log: Vec<Record>,
    pub pending: Vec<Write>,
    /// Fails or hangs at every request.
    pub gone: bool,
    /// Its next root write is answered and lost.
    pub lying: bool,
}

impl Disk {
    pub fn land(&mut self, write: Write) {
        match write {
            Write::Data(ops) => self.data |= ops,
            Write::Record(record) => {
                if !self.log.contains(&record) {
                    self.log.push(record);
                }
            }
            Write::Root(slot, root) => self.slots[slot] = Slot::Holds(root),
            Write::Label(id) => self.id = Some(id),
            Write::Blank => {
                self.id = None;
                self.slots.fill(Slot::Empty);
                self.log.clear();
            }
        }
    }
    /// Part of a write landed. Torn blocks and records prove nothing, as if they had not been written.
    pub fn tear(&mut self, write: &Write) {
        match write {
            Write::Root(slot, _) => self.slots[*slot] = Slot::Damaged,
            Write::Blank => self.id = None,
            _ => {}
        }
    }
    pub fn flush(&mut self) {
        for write in std::mem::take(&mut self.pending) {
            self.land(write);
        }
    }
    /// The newest root on it.
    pub fn newest(&self) -> Option<&Arc<Root>> {
        self.slots.iter().filter_map(Slot::root).max_by_key(|root| root.version)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Seat {
    InSync,
    Out,
    Returning,
}

/// A slot of the mirror: identity, disk, state.
pub type Place = (u32, Option<usize>, Seat);

/// What a group or a root is written for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Job {
    /// Recovery: what was replayed.
    Recover,
    /// Operations of the open group and this one, which waits for it.
    Commit(Option<u8>),
    /// Unmount.
    Clean,
    /// Members only; this operation waits for it.
    Declare(Option<u8>),
    /// Members only: the replica that was blanked is returning.
    Return,
    /// Members only: the replica that returned is in sync.
    Join,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    Idle,
    /// The newest root is pending where it was not.
    Enforce,
    /// A group's blocks are pending.
    Data(Job),
    /// A root is pending in this slot.
    Root(Job, Root, usize),
    /// A record with this operation is pending.
    Record(u8),
    /// A new place is being blanked.
    Blank,
    /// Its label is pending; all else is proven.
    Label,
    /// No replica takes writes any more.
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Blanked,
    Returning,
    Committed,
    Copied,
    Proven,
}

/// A replica on its way back: its seat, whose seat it takes in the end, its new identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Resync {
    pub seat: usize,
    pub takes: usize,
    pub id: u32,
    pub stage: Stage,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Daemon {
    pub seats: Vec<Place>,
    /// The newest durable root, and its slot.
    pub root: Arc<Root>,
    pub newest_slot: usize,
    pub slots: Vec<Option<u64>>,
    pub version_max: u64,
    /// Somebody's state changed since the newest root named the members.
    pub changed: bool,
    pub fork_next: bool,
    /// Life of the log ring, and the next record's sequence.
    pub life: u32,
    pub next_seq: u64,
    /// Operations since the last commit.
    pub delta: Ops,
    pub resync: Option<Resync>,
    /// Seats whose replica is another one in the root being written.
    pub rename: Option<(usize, u32)>,
    pub phase: Phase,
}

/// What nobody in the world knows, for the properties.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ghost {
    /// Fresh identities: epochs, lives and replicas.
    pub fresh: u32,
    /// For each operation what was visible when it was made.
    pub bases: Vec<Ops>,
    /// Acknowledged and not given up by a person's word.
    pub acked: Ops,
    /// Ever acknowledged.
    pub ever: Ops,
    /// Disks that a fault struck and nothing has mended.
    pub struck: u8,
    /// Of these: those that say nothing of it (lost write, old content, damage).
    pub silent: u8,
    /// Old content came back on these and nothing has been proven since.
    pub restored: u8,
    /// A disk that says nothing of a fault was mounted without another that was in sync: nobody could know.
    pub fooled: bool,
    /// Two disks were struck at a time, at some time.
    pub two: bool,
    /// The witness was lost.
    pub blind: bool,
    /// The witness speaks of a root that is not durable yet.
    pub window: bool,
    /// The first broken promise.
    pub wrong: Option<Wrong>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
    /// A mount with one fault lacks something acknowledged.
    Lost,
    /// A mount with two faults lacks something acknowledged, and the host could have known.
    SilentlyLost,
    /// A mount shows operations of two histories, or a later one without an earlier one.
    TwoHistories,
    /// A mount shows less than what another replica that is there has of acknowledged operations.
    Merged,
    /// A replica that must be known to be old is taken to be in sync.
    StaleTrusted,
    /// The newest durable root is overwritten on a replica.
    Overwritten,
    /// A mount without a replica in sync, and nobody was asked.
    Unasked,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Mode {
    Normal,
    Degraded,
    AcceptStale,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub disks: Vec<Disk>,
    pub daemon: Option<Daemon>,
    pub witness: Option<Witness>,
    pub ghost: Ghost,
}

impl World {
    /// A volume on `members` disks, cleanly unmounted, and `spares` empty ones.
    pub fn new(members: usize, spares: usize, slots: usize) -> World {
        let root = Arc::new(Root {
            version: 1,
            txg: 1,
            clean: true,
            life: 0,
            log_seq: 1,
            members: (0..members as u32).map(|id| (id, State::InSync)).collect(),
            chain: vec![(100, 1)],
            ops: 0,
        });
        let disk = |i: usize| {
            let used = i < members;
            let mut disk = Disk {
                id: used.then_some(i as u32),
                slots: vec![Slot::Empty; slots],
                data: 0,
                log: Vec::new(),
                pending: Vec::new(),
                gone: false,
                lying: false,
            };
            if used {
                disk.slots[0] = Slot::Holds(root.clone());
            }
            disk
        };
        let ghost = Ghost { fresh: 101, ..Ghost::default() };
        World { disks: (0..members + spares).map(disk).collect(), daemon: None, witness: None, ghost }
    }

    pub fn fresh(&mut self) -> u32 {
        self.ghost.fresh += 1;
        self.ghost.fresh - 1
    }

    pub fn strike(&mut self, disk: usize, silent: bool) {
        self.ghost.struck |= 1 << disk;
        self.ghost.silent |= u8::from(silent) << disk;
        self.ghost.two |= self.ghost.struck.count_ones() > 1;
    }

    fn wrong(&mut self, wrong: Wrong) {
        self.ghost.wrong.get_or_insert(wrong);
    }

    /// What opening would find on these disks; those without a label are no replicas.
    fn found(&self, present: &[usize]) -> Vec<(usize, Found<'_>)> {
        let one = |i: &usize| Some((*i, Found { id: self.disks[*i].id?, slots: &self.disks[*i].slots }));
        present.iter().filter_map(one).collect()
    }

    /// `Volume::recover`, `recover::open`: the choice and the disks that its indices mean.
    pub fn judge(&self, rules: &Rules, present: &[usize], mode: Mode) -> Result<(Choice, Vec<usize>), Refusal> {
        let (which, found): (Vec<usize>, Vec<Found>) = self.found(present).into_iter().unzip();
        let choice = choose(rules, &found)?;
        if rules.witness && mode != Mode::AcceptStale && self.is_stale(&choice, &which) {
            return Err(Refusal::LeftBehind);
        }
        if !choice.members.iter().any(|(_, in_sync)| *in_sync) {
            return Err(Refusal::NoneInSync);
        }
        if rules.need_all && choice.missing > 0 && mode == Mode::Normal {
            return Err(Refusal::Missing);
        }
        let records = self.replayed(&choice.root, &World::in_sync_disks(&choice, &which));
        if rules.records_know && records.iter().any(|record| record.follows > choice.root.version) {
            return Err(Refusal::RootLost);
        }
        Ok((choice, which))
    }

    /// Whether this host has seen a newer state on a replica that is not there.
    fn is_stale(&self, choice: &Choice, which: &[usize]) -> bool {
        let found: Vec<Found> = self.found(which).into_iter().map(|(_, found)| found).collect();
        self.witness.as_ref().is_some_and(|witness| left_behind(witness, &choice.root, &found))
    }

    /// Disks that the choice calls in sync.
    fn in_sync_disks(choice: &Choice, which: &[usize]) -> Vec<usize> {
        let disk = |(index, in_sync): &(Option<usize>, bool)| index.filter(|_| *in_sync).map(|i| which[i]);
        choice.members.iter().filter_map(disk).collect()
    }

    /// Records that replay takes, in order.
    fn replayed(&self, root: &Root, disks: &[usize]) -> Vec<Record> {
        let mut out: Vec<Record> = Vec::new();
        if root.clean {
            return out;
        }
        loop {
            let seq = root.log_seq + out.len() as u64;
            let is_next = |r: &&Record| r.life == root.life && r.seq == seq;
            let Some(record) = disks.iter().find_map(|d| self.disks[*d].log.iter().find(is_next)) else { return out };
            out.push(record.clone());
        }
    }

    /// What a mount shows.
    pub fn shows(&self, choice: &Choice, which: &[usize]) -> Ops {
        let records = self.replayed(&choice.root, &World::in_sync_disks(choice, which));
        let later = records.iter().filter(|r| r.txg > choice.root.txg);
        later.fold(choice.root.ops, |ops, record| ops | record.ops)
    }

    /// Records that a mount would replay.
    pub fn records(&self, choice: &Choice, which: &[usize]) -> usize {
        self.replayed(&choice.root, &World::in_sync_disks(choice, which)).len()
    }

    /// Mount what is there. `None`: refused.
    pub fn mount(&mut self, rules: &Rules, present: &[usize], mode: Mode) -> Option<()> {
        let (choice, which) = self.judge(rules, present, mode).ok()?;
        self.judge_mount(rules, &choice, &which, present, mode);
        self.ghost.window = false;
        let root = choice.root.clone();
        // Another state was written down than this one's history has: this one goes on under a new name.
        let knows = |witness: &Witness| root.chain.iter().any(|epoch| epoch.0 == witness.epoch);
        let apart = rules.witness_renewed && self.witness.as_ref().is_some_and(|witness| !knows(witness));
        let returning = rules.epoch_returning && root.members.iter().any(|member| member.1 == State::Returning);
        let seats: Vec<Place> = root
            .members
            .iter()
            .zip(&choice.members)
            .map(|((id, _), (index, in_sync))| {
                (*id, index.map(|i| which[i]), if *in_sync { Seat::InSync } else { Seat::Out })
            })
            .collect();
        if rules.enforce {
            for disk in World::in_sync_disks(&choice, &which) {
                if self.disks[disk].slots[choice.slot] != Slot::Holds(root.clone()) {
                    self.disks[disk].pending.push(Write::Root(choice.slot, root.clone()));
                }
            }
        }
        // A version that a damaged slot may have had is not used again.
        let skipped = if choice.may_be_newer { choice.slots.len() as u64 } else { 0 };
        let version_max = choice.slots.iter().flatten().copied().max().unwrap_or(0).max(root.version);
        self.daemon = Some(Daemon {
            seats,
            root,
            newest_slot: choice.slot,
            slots: choice.slots,
            version_max: version_max + skipped,
            changed: true,
            fork_next: rules.epoch_degraded && choice.missing > 0 || returning || apart,
            life: self.fresh(),
            next_seq: 1,
            delta: 0,
            resync: None,
            rename: None,
            phase: Phase::Enforce,
        });
        Some(())
    }

    /// The promises of a granted mount.
    fn judge_mount(&mut self, rules: &Rules, choice: &Choice, which: &[usize], present: &[usize], mode: Mode) {
        let shows = self.shows(choice, which);
        let in_sync = World::in_sync_disks(choice, which);
        let absent: Vec<usize> = (0..self.disks.len())
            .filter(|i| !present.contains(i))
            .filter(|i| self.disks[*i].id.is_some_and(|id| choice.root.in_sync().contains(&id)))
            .collect();
        absent.into_iter().for_each(|disk| self.strike(disk, false));
        if choice.missing > 0 && mode == Mode::Normal {
            self.wrong(Wrong::Unasked);
        }
        let silent = present.iter().any(|d| self.ghost.silent >> d & 1 == 1);
        self.ghost.fooled |= silent && choice.missing > 0;
        let lacks = self.ghost.acked & !shows != 0;
        if mode == Mode::AcceptStale {
            // A person gave up what this does not show.
            self.ghost.acked &= shows;
            self.ghost.two = true;
        } else if lacks && !self.ghost.two && !self.ghost.blind {
            self.wrong(Wrong::Lost);
        } else if lacks && !silent && !self.ghost.blind {
            self.wrong(Wrong::SilentlyLost);
        }
        let seen: Vec<usize> = (0..self.ghost.bases.len()).filter(|op| shows >> op & 1 == 1).collect();
        let ordered = |a: usize, b: usize| self.ghost.bases[b] >> a & 1 == 1;
        let closed = seen.iter().all(|op| self.ghost.bases[*op] & !shows == 0);
        if !closed || seen.iter().any(|a| seen.iter().any(|b| a < b && !ordered(*a, *b))) {
            self.wrong(Wrong::TwoHistories);
        }
        let there = which.iter().flat_map(|d| self.disks[*d].slots.iter().filter_map(Slot::root));
        let known = there.fold(0, |ops, root| ops | root.ops);
        if known & self.ghost.ever & !shows != 0 && !(rules.version_free && self.ghost.fooled) {
            self.wrong(Wrong::Merged);
        }
        // One group less is what a crash between two root writes leaves: only more can be known.
        let old = |d: &usize| {
            let newest = self.disks[*d].newest().map_or(0, |root| root.txg);
            // A damaged slot may have held one more.
            let damaged = self.disks[*d].slots.iter().filter(|slot| **slot == Slot::Damaged).count() as u64;
            self.disks[*d].data & choice.root.ops != choice.root.ops && newest + 1 + damaged < choice.root.txg
        };
        if in_sync.iter().any(old) {
            self.wrong(Wrong::StaleTrusted);
        }
        // Whoever could not be seen is given up, too, or the same loss would be reported for ever.
        if lacks {
            self.ghost.acked &= shows;
        }
    }
}

// What follows is the daemon. Its steps take the world apart, since they touch disks and daemon alike.
impl World {
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("mounted")
    }

    /// Disks of the seats that take writes.
    fn writable(&self) -> Vec<(usize, usize, Seat)> {
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
        }
        for (member, seat) in root.members.iter_mut().zip(&daemon.seats) {
            let new = match seat.2 {
                Seat::InSync => State::InSync,
                Seat::Returning => State::Returning,
                Seat::Out => State::Out,
            };
            shrunk |= new != member.1 && member.1 == State::InSync && rules.epoch_shrunk;
            member.1 = new;
        }
        if shrunk || daemon.fork_next {
            let epoch = self.fresh();
            root.chain.push((epoch, root.version));
        }
        let daemon = self.daemon();
        if root.epoch() != daemon.root.epoch() {
            let (version, epoch, in_sync) = (root.version, root.epoch(), root.in_sync());
            self.witness = Some(Witness { version, epoch, in_sync });
            self.ghost.window = true;
        }
        let daemon = self.daemon();
        let slot = free_slot(rules, &daemon.slots, daemon.newest_slot, root.txg);
        daemon.slots[slot] = Some(root.version);
        let held = Slot::Holds(daemon.root.clone());
        let overwrites = self.writable().iter().any(|(_, disk, _)| self.disks[*disk].slots[slot] == held);
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
            Phase::Enforce => self.replay(),
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

    /// The newest root is on all; heal and replay the log, and begin the group that holds it.
    fn replay(&mut self) {
        if !self.flush() {
            return;
        }
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
        let ops = self.daemon().delta | if let Job::Commit(Some(op)) = job { 1 << op } else { 0 };
        if self.write(&Write::Data(ops)) {
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
        root.ops |= daemon.delta | if let Job::Commit(Some(op)) = job { 1 << op } else { 0 };
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
                daemon.resync = None;
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
        self.ghost.restored &= !mended;
    }

    /// Whether a disk holds everything that is reached by any root that calls it in sync.
    pub fn keeps_word(&self, disk: &Disk) -> bool {
        let mut roots = self.disks.iter().flat_map(|other| other.slots.iter().filter_map(Slot::root));
        let names = |root: &Root| disk.id.is_some_and(|id| root.members.contains(&(id, State::InSync)));
        roots.all(|root| !names(root) || disk.data & root.ops == root.ops)
    }
}

// Replace.
impl World {
    /// `replace::resync` begins: `disk` is to take the place of what is in `seat`. Its content is kept but for
    /// label, roots and log; a disk that was gone is a new one.
    pub fn replace(&mut self, seat: usize, disk: usize) {
        let id = self.fresh();
        let found = &mut self.disks[disk];
        if found.gone {
            (found.gone, found.data) = (false, 0);
            found.pending.clear();
            found.land(Write::Blank);
        }
        found.lying = false;
        found.pending.push(Write::Blank);
        let daemon = self.daemon();
        let free = daemon.seats[seat].2 == Seat::Out;
        if free {
            daemon.seats[seat].1 = None;
        }
        let own = if free { seat } else { daemon.seats.len() };
        daemon.resync = Some(Resync { seat: own, takes: seat, id, stage: Stage::Blanked });
        daemon.phase = Phase::Blank;
        // The disk waits in an extra seat that takes no writes yet.
        if free {
            daemon.seats[seat] = (id, Some(disk), Seat::Out);
        } else {
            daemon.seats.push((id, Some(disk), Seat::Out));
        }
    }

    fn resync_disk(&self) -> (Resync, usize) {
        let daemon = self.daemon.as_ref().expect("mounted");
        let resync = daemon.resync.expect("replacing");
        (resync, daemon.seats[resync.seat].1.expect("it has a disk"))
    }

    fn blanked(&mut self, rules: &Rules) {
        let (resync, disk) = self.resync_disk();
        if self.disks[disk].gone {
            return self.give_up();
        }
        self.disks[disk].flush();
        let daemon = self.daemon();
        daemon.seats[resync.seat].2 = Seat::Returning;
        daemon.changed = true;
        if resync.seat == resync.takes {
            daemon.rename = Some((resync.seat, resync.id));
            self.declare(rules, Job::Return);
        } else {
            daemon.resync = Some(Resync { stage: Stage::Returning, ..resync });
            daemon.phase = Phase::Idle;
        }
    }

    /// The new replica is not to be.
    pub fn give_up(&mut self) {
        let daemon = self.daemon();
        if let Some(resync) = daemon.resync.take() {
            daemon.seats[resync.seat].2 = Seat::Out;
            daemon.seats[resync.seat].1 = None;
            if resync.seat != resync.takes {
                daemon.seats.pop();
            }
        }
        daemon.rename = None;
        daemon.changed = true;
        daemon.phase = Phase::Idle;
    }

    /// The next stage of a replace, between two operations.
    pub fn resync_step(&mut self, rules: &Rules) {
        let (resync, disk) = self.resync_disk();
        if self.disks[disk].gone || self.daemon().seats[resync.seat].2 != Seat::Returning {
            return self.give_up();
        }
        let (root, visible) = (self.daemon().root.clone(), self.daemon().root.ops);
        match resync.stage {
            Stage::Blanked => {}
            Stage::Returning => self.begin_group(Job::Commit(None)),
            Stage::Committed => {
                self.disks[disk].pending.push(Write::Data(visible));
                self.daemon().resync = Some(Resync { stage: Stage::Copied, ..resync });
                if !rules.prove {
                    self.disks[disk].pending.clear();
                }
            }
            Stage::Copied => {
                self.disks[disk].flush();
                if rules.prove && self.disks[disk].data & visible != visible {
                    self.daemon().resync = Some(Resync { stage: Stage::Committed, ..resync });
                    return;
                }
                self.copy_fixed(&root, disk);
                self.disks[disk].pending.push(Write::Label(resync.id));
                self.daemon().resync = Some(Resync { stage: Stage::Proven, ..resync });
                self.daemon().phase = Phase::Label;
            }
            Stage::Proven => {}
        }
    }

    /// `prove_log`, `prove_roots` with healing.
    fn copy_fixed(&mut self, root: &Root, disk: usize) {
        let twin = self.writable().into_iter().find(|(_, d, seat)| *seat == Seat::InSync && !self.disks[*d].gone);
        let Some((_, twin, _)) = twin else { return };
        let from = self.disks[twin].clone();
        for record in from.log.iter().filter(|r| r.life == root.life && r.seq >= root.log_seq) {
            self.disks[disk].land(Write::Record(record.clone()));
        }
        for (slot, held) in from.slots.iter().enumerate() {
            if let Slot::Holds(held) = held
                && self.daemon().slots[slot] == Some(held.version)
            {
                self.disks[disk].land(Write::Root(slot, held.clone()));
            }
        }
    }

    /// The label is written: join, or take over.
    fn labelled(&mut self, rules: &Rules) {
        let (resync, disk) = self.resync_disk();
        if self.disks[disk].gone || self.daemon().seats[resync.seat].2 != Seat::Returning {
            return self.give_up();
        }
        self.disks[disk].flush();
        let daemon = self.daemon();
        daemon.changed = true;
        if resync.seat == resync.takes {
            daemon.seats[resync.seat].2 = Seat::InSync;
        } else {
            let mut new = daemon.seats.pop().expect("its own seat");
            new.2 = Seat::InSync;
            daemon.seats[resync.takes] = new;
            daemon.rename = Some((resync.takes, resync.id));
        }
        self.declare(rules, Job::Join);
    }
}
