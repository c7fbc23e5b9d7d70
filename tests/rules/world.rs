//! The world of the model: disks, the daemon that has them mounted, this host's witness, and what a ghost remembers.
//!
//! Only what the rules need. An operation is one bit; what it wrote is its data block (in a disk's `data`) or its log
//! record. Requests of the daemon go to all replicas and are pending until the next flush; a power cut keeps any
//! subset of what is pending. So a flush may be one step here: whatever a cut between the flushes of two replicas
//! leaves is left by a cut before both, too.
//!
//! | file | steps |
//! |---|---|
//! | `mounting` | what is there is judged and mounted |
//! | `daemon` | writes, groups, roots, acknowledgements |
//! | `replacing` | a replica is replaced |
//! | `returning` | one that was away returns, and is sent what it missed |

use super::roots::{Held, Ops, Root, Slot, State, Witness};
use std::sync::Arc;

#[path = "world/daemon.rs"]
mod daemon;
#[path = "world/mounting.rs"]
mod mounting;
#[path = "world/replacing.rs"]
mod replacing;
#[path = "world/returning.rs"]
mod returning;

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
    /// Blocks of these operations, in space that these others do not need.
    Data(Ops, Ops),
    Record(Record),
    Root(usize, Arc<Root>),
    /// Something that proves nothing.
    Void(usize),
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
            Write::Data(ops, kept) => self.data = self.data & kept | ops,
            Write::Record(record) => {
                if !self.log.contains(&record) {
                    self.log.push(record);
                }
            }
            Write::Root(slot, root) => self.slots[slot] = Slot::Holds(root),
            Write::Void(slot) => self.slots[slot] = Slot::Damaged,
            Write::Label(id) => self.id = Some(id),
            Write::Blank => {
                self.id = None;
                self.slots.fill(Slot::Damaged);
                self.log.clear();
            }
        }
    }
    /// Part of a write landed. Torn blocks and records prove nothing, as if they had not been written.
    pub fn tear(&mut self, write: &Write) {
        match write {
            Write::Root(slot, _) | Write::Void(slot) => self.slots[*slot] = Slot::Damaged,
            Write::Blank => self.id = None,
            Write::Data(_, kept) => self.data &= kept,
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
    /// Recovery: who is absent.
    Absent,
    /// Recovery: what was replayed.
    Recover,
    /// Operations of the open group and this one, which waits for it.
    Commit(Option<u8>),
    /// Unmount.
    Clean,
    /// Members only; this operation waits for it.
    Declare(Option<u8>),
    /// Members only: what the replica that comes back holds.
    Note,
    /// Members only: the replica that was blanked, or has renounced its roots, is returning.
    Return,
    /// Members only: the replica that returned is in sync.
    Join,
}

impl Job {
    /// The operation that is made durable with a group.
    fn ops(self) -> Ops {
        if let Job::Commit(Some(op)) = self { 1 << op } else { 0 }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    Idle,
    /// The newest root is pending where it was not, and what is to stand in damaged slots.
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
    /// The newest root, which calls it out, is pending on it.
    Told,
    /// Its own roots are being made void.
    Voided,
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
    /// It returns, and holds these operations. Otherwise it replaces another one.
    pub since: Option<Ops>,
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
    /// Disks with a fault that leaves no trace on them: a lost write, old content.
    pub hidden: u8,
    /// As `fooled`, by one of these; or another fault had struck beside.
    pub duped: bool,
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
    /// A return writes over acknowledged operations that only the one who returns has.
    Thrown,
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
            held: vec![Held::default(); members],
            chain: vec![(100, 1)],
            ops: 0,
            before: 0,
        });
        let disk = |i: usize| {
            let used = i < members;
            let slot = if used { Slot::Holds(root.clone()) } else { Slot::Damaged };
            Disk {
                id: used.then_some(i as u32),
                slots: vec![slot; slots],
                data: 0,
                log: Vec::new(),
                pending: Vec::new(),
                gone: false,
                lying: false,
            }
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

    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("mounted")
    }
}
