//! A life of the daemon, from the choice at its mount to the end or the power cut, and what it says meanwhile.

use super::{BEYOND, Checked, Replay, same_root, same_slot, says};
use crate::roots::{RULES, Refusal, Slot};
use crate::world::{Mode, Phase, Record, Write};
use stablefs::simulate::trace::Stand;

impl Replay {
    pub(super) fn see_mount(&mut self, present: &[usize], mode: Mode) {
        self.mode = mode;
        for disk in present {
            self.world.disks[*disk].gone = false;
        }
        let judged = self.world.judge(&RULES, present, mode);
        // A person may look at what a former replica held when it was in sync: those are none for the model.
        self.former = mode == Mode::AcceptStale && matches!(judged, Err(Refusal::NoneInSync));
        self.granted = Some(judged.map(|(choice, which)| {
            let there = which.len() - choice.members.iter().filter(|(_, in_sync)| *in_sync).count();
            let records = self.world.records(&choice, &which) as u64;
            (choice.root.version, choice.missing, there, records)
        }));
        self.unflushed.fill(false);
        self.awaited.fill(false);
        self.world.mount(&RULES, present, mode);
    }

    pub(super) fn see_opened(&mut self, outcome: (u64, usize, usize, u64)) -> Checked {
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

    pub(super) fn see_refused(&mut self, text: &str) -> Checked {
        self.former = false;
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

    pub(super) fn see_acknowledged(&mut self) -> Checked {
        self.settle()?;
        let verified_out = self.verified_out;
        let daemon = self.daemon()?;
        match &daemon.phase {
            Phase::Idle if !daemon.changed || verified_out => Ok(()),
            Phase::Idle => says("acknowledged before a root names who is out".into()),
            phase => says(format!("acknowledged while the model is at {phase:?}")),
        }
    }

    pub(super) fn see_replaced(&mut self, done: bool) -> Checked {
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

    /// What stands on the disks after a power cut is what may stand there.
    pub(super) fn see_stands(&mut self, stands: &[Stand]) -> Checked {
        let cut = std::mem::take(&mut self.cutting);
        self.world.daemon = None;
        self.granted = None;
        self.former = false;
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
                    (Write::Root(s, _) | Write::Void(s), Slot::Damaged) => *s == at,
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
}
