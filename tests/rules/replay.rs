//! Traces of the simulator on the model: each event must be a step that the model allows, with the same roots in the
//! same slots, the same members, the same choice and the same refusal.
//!
//! Identities of the code (128 bits) and of the model (numbers) are matched as they appear, one to one. The model writes
//! to all replicas in one step, the code to one after the other: the first of these writes moves the model, the others
//! are compared with it. It flushes all in one step, too: it takes that step when it is needed, and then each replica
//! that answers must have been flushed.
//!
//! Here: what is matched, and when the model moves on. In `writes`: roots, records and labels; in `lives`: mounts,
//! acknowledgements, replaces, power cuts.

use super::roots::{Held, RULES, Refusal, Root, Slot, State, Witness};
use super::world::{Daemon, Disk, Ghost, Mode, Phase, Record, Seat, World};
use stablefs::format::{MemberState, Root as RealRoot, Uuid};
use stablefs::simulate::trace::{Event, Slot as RealSlot, Stand, Trace};
use std::collections::HashMap;
use std::sync::Arc;

#[path = "replay/lives.rs"]
mod lives;
#[path = "replay/writes.rs"]
mod writes;

type Checked = Result<(), String>;

/// The history goes on beyond what the model can follow.
const BEYOND: &str = "beyond the model";

pub struct Replay {
    world: World,
    epochs: HashMap<Uuid, u32>,
    replicas: HashMap<Uuid, u32>,
    lives: HashMap<u64, u32>,
    /// Operations of the roots seen, by (epoch, version).
    ops: HashMap<(u32, u64), (u128, u128, Vec<Held>)>,
    /// Records seen, by (life, sequence).
    records: HashMap<(u32, u64), Record>,
    /// Disks with writes that no flush of the code covers: blocks, and anything.
    unflushed: Vec<bool>,
    /// Of these: with roots or records.
    awaited: Vec<bool>,
    /// Version of the last root that the code wrote to each disk.
    given: Vec<u64>,
    granted: Option<Result<(u64, usize, usize, u64), Refusal>>,
    mode: Mode,
    /// The mount is asked for a former replica alone.
    former: bool,
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
                    MemberState::Out | MemberState::Detached => State::Out,
                    MemberState::Returning => State::Returning,
                };
                (Replay::number(&mut self.replicas, m.replica, fresh), state)
            })
            .collect();
        let chain: Vec<(u32, u64)> =
            real.chain.iter().map(|e| (Replay::number(&mut self.epochs, e.id, fresh), e.first_version)).collect();
        let life = Replay::number(&mut self.lives, real.log_id, fresh);
        let epoch = chain.last().expect("never empty").0;
        let unknown = || (0, 0, vec![Held::default(); real.members.len()]);
        let (ops, before, held) = self.ops.get(&(epoch, real.version)).cloned().unwrap_or_else(unknown);
        let (version, txg, clean) = (real.version, real.txg, real.clean);
        Root { version, txg, clean, life, log_seq: real.log_seq, members, held, chain, ops, before }
    }

    fn slot(&mut self, real: &RealSlot) -> Slot {
        match real {
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
            given: vec![0; stands.len()],
            granted: None,
            mode: Mode::Normal,
            former: false,
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

    fn see(&mut self, event: &Event) -> Checked {
        match event {
            Event::Stands(stands) => self.see_stands(stands),
            Event::Root { disk, slot, root, fate } => self.see_root(*disk, *slot, root, *fate),
            Event::Void { disk, slot, fate } => self.see_void(*disk, *slot, *fate),
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
                self.witness = Some(Witness::of(&root));
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
