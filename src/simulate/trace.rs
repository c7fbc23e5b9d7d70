//! Traces: what the store asked its disks that the rules of recovery speak of, and what it said.
//!
//! *Guarantees*: equal seeds give equal traces. A trace holds every root, record and label that was written, every
//! flush and failure, what stood on the media after each power cut, each mount with its outcome, and each
//! acknowledgement, in order. *Assumes*: one thread.
//! *Fails when*: never; where the filesystem itself fails (two faults), the mount ends. *Order*: none.
//! *Not here*: what is right (`tests/rules`); what the files hold (`judge`).

use super::driver::Driver;
use super::model::Op as Operation;
use super::{Ask, Bench, Setup, disk_of, disk_path, generate};
use crate::disk::ReplicaName;
use crate::disk::backing::{Backing, Op};
use crate::disk::sim::{Asked, CrashPlan, Fate, Fault, Faults, Image, Random, SimDisk};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::log::{RecordHead, decode_head, entries};
use crate::format::{BLOCK, Geometry, Label, Root, Uuid};
use crate::store::commit::Force;
use crate::store::history::ShrinkHook;
use crate::store::recover::Report;
use crate::store::{Store, StoreError};
use crate::sync::Mutex;
use crate::volume::replace::{Place, resync};
use std::sync::Arc;

/// What stands in a root slot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Slot {
    Damaged,
    Holds(Box<Root>),
}

/// What stands on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// Identity in its label.
    pub replica: Option<Uuid>,
    /// Its root slots.
    pub slots: Vec<Slot>,
    /// Records in its ring that prove themselves.
    pub records: Vec<RecordHead>,
}

/// What happened. Disks are numbers in their world.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Event {
    /// What is there, by disk: at first, after a power cut, and after somebody changed it.
    Stands(Vec<Stand>),
    Root {
        disk: usize,
        slot: usize,
        root: Box<Root>,
        fate: Fate,
    },
    Record {
        disk: usize,
        head: RecordHead,
        fate: Fate,
    },
    /// A slot is made void.
    Void {
        disk: usize,
        slot: usize,
        fate: Fate,
    },
    Label {
        disk: usize,
        replica: Uuid,
        fate: Fate,
    },
    /// A write of anything else.
    Block {
        disk: usize,
        fate: Fate,
    },
    Flush {
        disk: usize,
        fate: Fate,
    },
    /// A read, check or allocation that failed or hung.
    Unanswered {
        disk: usize,
        what: &'static str,
    },
    Mount {
        present: Vec<usize>,
        degraded: bool,
        accept_stale: bool,
    },
    Opened {
        version: u64,
        missing: usize,
        behind: usize,
        replayed: u64,
    },
    Refused(String),
    /// The host writes down that the volume goes on with this root.
    Witness(Box<Root>),
    /// An fsync or a sync was answered with Ok.
    Acknowledged,
    Replace {
        seat: usize,
        disk: usize,
    },
    Replaced(bool),
    /// The daemon is gone, in order (true) or killed.
    Unmounted(bool),
    /// The power fails.
    PowerCut,
}

/// A history as the rules see it.
pub struct Trace {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Power cuts.
    pub cuts: usize,
    /// Mounts that were granted, and refused.
    pub mounts: [usize; 2],
    /// Replicas brought in, and not.
    pub replaces: [usize; 2],
    /// Faults that struck.
    pub faults: u64,
}

struct Tracer {
    bench: Bench,
    random: Random,
    events: Arc<Mutex<Vec<Event>>>,
    label: Label,
    old: Option<(usize, Image)>,
    replicas: u8,
}

fn decode(asked: &Asked<'_>, label: &Label) -> Vec<Event> {
    let (disk, fate) = (asked.disk, asked.fate());
    let bad = matches!(fate, Fate::Failed | Fate::Hung);
    let unanswered = |what| if bad { vec![Event::Unanswered { disk, what }] } else { Vec::new() };
    let (addr, data) = match asked.op {
        Op::Write { addr, data } => (*addr, data),
        Op::Flush => return vec![Event::Flush { disk, fate }],
        Op::ReadMedium { .. } => return unanswered("medium"),
        Op::Read { .. } => return if fate == Fate::Hung { unanswered("read") } else { Vec::new() },
        Op::Allocate { .. } => return unanswered("allocate"),
        Op::Check => return unanswered("check"),
        Op::Punch { .. } => return Vec::new(),
    };
    let geometry = &label.geometry;
    let mut events = Vec::new();
    for (at, block) in (addr..).zip(data.iter().flat_map(|slice| slice.chunks_exact(BLOCK))) {
        let slot = (0..ROOT_SLOTS).find(|slot| Geometry::root_slot(*slot) == at);
        if let Some(slot) = slot.filter(|_| block.iter().all(|byte| *byte == Root::VOID)) {
            events.push(Event::Void { disk, slot, fate });
        } else if let Some(root) = slot.and_then(|slot| Root::decode(block, slot, label.volume, geometry).ok()) {
            events.push(Event::Root { disk, slot: slot.expect("decoded there"), root: Box::new(root), fate });
        } else if let Ok(head) = decode_head(block, label.volume, at, geometry.log_blocks) {
            events.push(Event::Record { disk, head, fate });
        } else if let Ok(found) = Label::decode(block, at) {
            events.push(Event::Label { disk, replica: found.replica, fate });
        }
    }
    if events.is_empty() {
        events.push(Event::Block { disk, fate });
    }
    events
}

fn stand(disk: &SimDisk, label: &Label) -> Stand {
    let geometry = &label.geometry;
    let found = Geometry::label_copies().into_iter().find_map(|at| Label::decode(&disk.peek(at), at).ok());
    let slots = (0..ROOT_SLOTS).map(|slot| {
        let block = disk.peek(Root::addr(slot));
        match Root::decode(&block, slot, label.volume, geometry) {
            Ok(root) => Slot::Holds(Box::new(root)),
            Err(_) => Slot::Damaged,
        }
    });
    let ring = geometry.log_at..geometry.log_at + u64::from(geometry.log_blocks);
    let whole = |at: u64| {
        let head = decode_head(&disk.peek(at), label.volume, at, geometry.log_blocks).ok()?;
        let end = (at + u64::from(head.blocks)).min(ring.end);
        let bytes: Vec<u8> = (at..end).flat_map(|block| disk.peek(block)).collect();
        entries(&bytes, &head).is_ok().then_some(head)
    };
    let records = ring.clone().filter_map(whole);
    Stand { replica: found.map(|label| label.replica), slots: slots.collect(), records: records.collect() }
}

impl Tracer {
    fn new(seed: u64, replicas: usize) -> Tracer {
        let mut random = Random::new(seed ^ 0x7ace);
        let setup = Setup { replicas, ..Setup::draw(&mut random) };
        let mut bench = Bench::with(seed, setup, Random::new(seed));
        bench.disks.push(bench.power.disk(bench.setup.blocks));
        let label =
            Geometry::label_copies().into_iter().find_map(|at| Label::decode(&bench.disks[0].peek(at), at).ok());
        let label = label.expect("a formatted disk");
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (heard, known) = (events.clone(), label.clone());
        bench.power.listen(Some(Arc::new(move |asked| heard.lock().extend(decode(asked, &known)))));
        Tracer { bench, random, events, label, old: None, replicas: 0 }
    }

    fn tell(&self, event: Event) {
        self.events.lock().push(event);
    }

    fn tell_stands(&self) {
        let stands = self.bench.disks.iter().map(|disk| stand(disk, &self.label)).collect();
        self.tell(Event::Stands(stands));
    }

    fn open(&mut self, which: &[usize], degraded: bool, accept_stale: bool) -> Result<(Store, Report), StoreError> {
        let (present, _) = self.bench.look(which);
        let there = present.iter().filter_map(|one| disk_of(&one.path)).collect();
        self.tell(Event::Mount { present: there, degraded, accept_stale });
        let (write_down, events) = (self.bench.on_shrink(true), self.events.clone());
        let on_shrink: ShrinkHook = Box::new(move |root| {
            write_down(root);
            events.lock().push(Event::Witness(Box::new(root.clone())));
        });
        self.bench.open_present(present, Ask { degraded, accept_stale }, on_shrink)
    }

    /// Mount as a person would: all, or some; with more words where they are asked for.
    fn mount(&mut self) -> Option<Driver> {
        let disks = self.bench.disks.len();
        let all: Vec<usize> = (0..disks).collect();
        let some = if self.random.below(4) == 0 { vec![self.random.below(disks as u64) as usize] } else { all };
        let insist = self.random.below(8) == 0;
        for (degraded, accept_stale) in [(false, false), (true, false), (true, true)] {
            if accept_stale && !insist {
                break;
            }
            match self.open(&some, degraded, accept_stale) {
                Ok((store, report)) => {
                    let (version, missing) = (report.version, report.missing);
                    let behind = report.behind.len();
                    self.tell(Event::Opened { version, missing, behind, replayed: report.replayed });
                    return Driver::new(store, &self.bench.power).ok();
                }
                Err(_) if self.bench.power.is_cut() => return None,
                Err(StoreError::Refused(text)) => self.tell(Event::Refused(text)),
                // Its disks failed on the way.
                Err(_) => {
                    self.tell(Event::Unmounted(false));
                    return None;
                }
            }
        }
        None
    }

    fn run(&mut self, driver: &mut Driver, count: usize) -> bool {
        for _ in 0..count {
            let op = generate::next(driver.now(), &mut self.random, &self.bench.setup.weights);
            let floor = driver.floor;
            let went = driver.step(&op);
            if self.bench.power.is_cut() || went.is_err() {
                return false;
            }
            if matches!(op, Operation::Fsync { .. } | Operation::Sync) && driver.floor > floor {
                self.tell(Event::Acknowledged);
            }
        }
        true
    }

    /// Something happens to one disk; nothing more to the others. The last one is waited for, so it must not hang.
    fn strike(&mut self, driver: &Driver) {
        for disk in &self.bench.disks {
            disk.faults(|faults| *faults = Faults { gone: faults.gone, ..Faults::default() });
        }
        let disk = self.bench.disks[self.random.below(self.bench.disks.len() as u64) as usize].clone();
        let alone = driver.store.mirror().members().count() < 2;
        let skip = self.random.below(16) as u32;
        let kind = self.random.below(9);
        disk.faults(|faults| match kind {
            0 => faults.fail_writes = Fault::Once(skip),
            1 => faults.fail_flushes = Fault::Once(skip),
            2 | 3 => faults.dies = Fault::Once(skip),
            4 | 5 if alone => faults.dies = Fault::Once(skip),
            4 => faults.hang = Fault::Once(skip),
            5 => faults.hang_flushes = Fault::Once(skip),
            6 | 7 => faults.lost_writes = Fault::Once(skip),
            _ => faults.fail_checks = Fault::Once(skip),
        });
    }

    fn replace(&mut self, driver: &mut Driver) {
        let store = driver.store.clone();
        let health = store.mirror().health();
        let seat = self.random.below(health.len() as u64) as usize;
        let used: Vec<String> = health.iter().filter(|h| h.state.takes_writes()).map(|h| h.name.path.clone()).collect();
        let free = (0..self.bench.disks.len()).find(|disk| !used.contains(&disk_path(*disk)));
        let Some(disk) = free else { return };
        let target = self.bench.disks[disk].clone();
        if store.commit(Force::Always).is_err() || self.bench.power.is_cut() || target.in_flight() > 0 {
            return;
        }
        target.faults(|faults| *faults = Faults::default());
        let place = match store.mirror().members().contains(seat) {
            true => Place::Taken(seat),
            false => Place::Free(seat),
        };
        self.replicas += 1;
        let name = ReplicaName { uuid: Uuid([0xe0 + self.replicas; 16]), path: disk_path(disk) };
        self.tell(Event::Replace { seat, disk });
        let done = resync(&store, place, name, self.bench.disks[disk].reopen(), &mut |_| true);
        if !self.bench.power.is_cut() {
            self.tell(Event::Replaced(done.is_ok()));
        }
    }

    /// One mount and its end.
    fn life(&mut self) {
        if self.random.below(3) == 0 {
            self.bench.power.cut_at(Some(self.bench.power.io_count() + self.random.range(1, 300)));
        }
        if self.random.below(8) == 0 {
            self.bench.power.cut_at(Some(self.bench.power.io_count() + self.random.range(1, 14)));
        }
        if let Some(mut driver) = self.mount() {
            let mut alive = self.run_some(&mut driver);
            if alive && self.random.below(2) == 0 {
                self.strike(&driver);
                alive = self.run_some(&mut driver);
            }
            if alive && self.random.below(3) == 0 {
                self.replace(&mut driver);
                alive = !self.bench.power.is_cut() && self.run_some(&mut driver);
            }
            let clean = alive && self.random.below(3) == 0;
            if clean {
                let done = driver.settle().is_ok() && driver.store.commit(Force::Clean).is_ok();
                drop(driver);
                if !self.bench.power.is_cut() {
                    self.tell(Event::Unmounted(done));
                }
            }
        }
        self.between();
    }

    fn run_some(&mut self, driver: &mut Driver) -> bool {
        let count = self.random.range(1, 25) as usize;
        self.run(driver, count)
    }

    /// The power is off; sometimes somebody puts old content back.
    fn between(&mut self) {
        self.tell(Event::PowerCut);
        let plan = *self.random.pick(&[CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random, CrashPlan::Random]);
        self.bench.disks = self.bench.power.revive(plan);
        let keeps_dead = self.random.below(3) == 0;
        for disk in &self.bench.disks {
            disk.faults(|faults| *faults = Faults { gone: faults.gone && keeps_dead, ..Faults::default() });
        }
        self.tell_stands();
        match self.old.take() {
            Some((disk, image)) if self.random.below(4) == 0 => {
                self.bench.disks[disk].restore(image);
                self.tell_stands();
            }
            Some(old) => self.old = Some(old),
            None => {
                let disk = self.random.below(self.bench.disks.len() as u64) as usize;
                self.old = Some((disk, self.bench.disks[disk].snapshot()));
            }
        }
    }
}

/// The history of `seed`: some mounts with operations, faults, replaces and power cuts.
pub fn trace(seed: u64) -> Trace {
    let replicas = if seed.is_multiple_of(3) { 3 } else { 2 };
    let mut tracer = Tracer::new(seed, replicas);
    tracer.tell_stands();
    for _ in 0..tracer.random.range(3, 7) {
        tracer.life();
    }
    let faults = tracer.bench.power.faults();
    let events = std::mem::take(&mut *tracer.events.lock());
    let count = |wanted: &dyn Fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    Trace {
        cuts: count(&|e| matches!(e, Event::PowerCut)),
        mounts: [count(&|e| matches!(e, Event::Opened { .. })), count(&|e| matches!(e, Event::Refused(_)))],
        replaces: [count(&|e| matches!(e, Event::Replaced(true))), count(&|e| matches!(e, Event::Replaced(false)))],
        faults,
        events,
    }
}
