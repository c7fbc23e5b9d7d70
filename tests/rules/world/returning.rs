//! Returning: one that was away comes back with its own roots and blocks, renounces, takes writes, is sent what it missed, joins.

use super::{Job, Phase, Resync, Seat, Stage, World, Write, Wrong};
use crate::roots::{Ops, Root, Rules, Slot, State, holds};
use std::sync::Arc;

impl World {
    /// What the replica of `seat` on `disk` holds, if it is taken back: `back::may_return`.
    pub fn may_return(&self, rules: &Rules, seat: usize, disk: usize) -> Option<Ops> {
        let daemon = self.daemon.as_ref()?;
        let (id, _, state) = daemon.seats[seat];
        let found = &self.disks[disk];
        let elsewhere = daemon.seats.iter().enumerate().any(|(i, other)| i != seat && other.1 == Some(disk));
        if state != Seat::Out || found.gone || found.id != Some(id) || elsewhere || daemon.changed {
            return None;
        }
        holds(rules, &daemon.root, seat, found.newest().map(|root| &**root))
    }

    /// `back::bring_back` begins.
    pub fn begin_return(&mut self, rules: &Rules, seat: usize, disk: usize) -> Option<()> {
        let since = self.may_return(rules, seat, disk)?;
        // What one had that was only on its way back was never whole.
        let id = self.disks[disk].id;
        let whole = |root: &&Arc<Root>| id.is_some_and(|id| root.members.contains(&(id, State::InSync)));
        let own = self.disks[disk].newest().filter(whole).cloned();
        let shows = own.map_or(0, |root| {
            let later = self.replayed(&root, &[disk]).into_iter().filter(|record| record.txg > root.txg);
            later.fold(root.ops, |ops, record| ops | record.ops)
        });
        let daemon = self.daemon();
        let ours = daemon.root.ops | daemon.delta;
        let notes = rules.announce || daemon.root.held[seat].ops != since;
        daemon.seats[seat].1 = Some(disk);
        let id = daemon.seats[seat].0;
        daemon.resync = Some(Resync { seat, takes: seat, id, stage: Stage::Told, since: Some(since) });
        if shows & self.ghost.ever & !ours != 0 && !(rules.version_free && self.ghost.duped) {
            self.wrong(Wrong::Thrown);
        }
        if notes {
            self.declare(rules, Job::Note);
        } else {
            self.tell_root();
        }
        Some(())
    }

    /// The newest root, which calls it out, is written to it.
    pub(super) fn tell_root(&mut self) {
        let daemon = self.daemon();
        daemon.phase = Phase::Idle;
        let write = Write::Root(daemon.newest_slot, daemon.root.clone());
        let (_, disk) = self.resync_disk();
        self.disks[disk].pending.push(write);
    }

    /// `back::renounce`, while others go on; then it takes writes.
    pub(super) fn renounce_step(&mut self, rules: &Rules) {
        let (resync, disk) = self.resync_disk();
        let found = &mut self.disks[disk];
        if found.gone {
            return self.give_up();
        }
        if rules.renounce && resync.stage == Stage::Told {
            let told = found.pending.iter().find_map(|write| match write {
                Write::Root(slot, _) => Some(*slot),
                _ => None,
            });
            found.flush();
            let old = (0..found.slots.len()).filter(|slot| Some(*slot) != told && found.slots[*slot] != Slot::Damaged);
            let voids: Vec<Write> = old.map(Write::Void).collect();
            found.pending.extend(voids);
            self.daemon().resync = Some(Resync { stage: Stage::Voided, ..resync });
            return;
        }
        if rules.renounce {
            found.flush();
        } else {
            found.pending.clear();
        }
        // Data of the open group may be written at any time, before the root is, over all that nobody here needs.
        let daemon = self.daemon();
        let ours = daemon.root.ops | daemon.delta;
        self.disks[disk].pending.push(Write::Data(0, ours));
        let daemon = self.daemon();
        daemon.seats[resync.seat].2 = Seat::Returning;
        daemon.changed = true;
        self.declare(rules, Job::Return);
    }
}
