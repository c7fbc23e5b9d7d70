//! Mounting: what opening would find, the choice or the refusal, the daemon that comes of it, and the promises that a
//! granted mount keeps or breaks.

use super::{Daemon, Disk, Mode, Phase, Place, Record, Seat, World, Write, Wrong};
use crate::roots::{Choice, Found, Ops, Refusal, Root, Rules, Slot, State, Witness, choose, left_behind};

impl World {
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

    /// What opening would find on these disks; those without a label are no replicas.
    fn found(&self, present: &[usize]) -> Vec<(usize, Found<'_>)> {
        let one = |i: &usize| Some((*i, Found { id: self.disks[*i].id?, slots: &self.disks[*i].slots }));
        present.iter().filter_map(one).collect()
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
    pub(super) fn replayed(&self, root: &Root, disks: &[usize]) -> Vec<Record> {
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
        self.mend_slots(&choice, &which);
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
            fork_next: returning || apart,
            life: self.fresh(),
            next_seq: 1,
            delta: 0,
            resync: None,
            rename: None,
            phase: Phase::Enforce,
        });
        Some(())
    }

    /// `Store::mend_slots`.
    fn mend_slots(&mut self, choice: &Choice, which: &[usize]) {
        let disks = World::in_sync_disks(choice, which);
        for slot in (0..choice.slots.len()).filter(|slot| *slot != choice.slot) {
            if which.iter().all(|disk| self.disks[*disk].slots[slot] != Slot::Damaged) {
                continue;
            }
            let good = disks.iter().find_map(|disk| self.disks[*disk].slots[slot].root().cloned());
            for disk in &disks {
                let disk = &mut self.disks[*disk];
                match (&good, &disk.slots[slot]) {
                    (_, Slot::Holds(_)) => {}
                    (Some(root), _) => disk.pending.push(Write::Root(slot, root.clone())),
                    (None, _) => disk.pending.push(Write::Void(slot)),
                }
            }
        }
    }

    /// The promises of a granted mount.
    fn judge_mount(&mut self, rules: &Rules, choice: &Choice, which: &[usize], present: &[usize], mode: Mode) {
        let shows = self.shows(choice, which);
        let in_sync = World::in_sync_disks(choice, which);
        // Old content does not know who joined since.
        let labelled = self.disks.iter().filter(|disk| disk.id.is_some());
        let newest = labelled.filter_map(Disk::newest).max_by_key(|root| root.version);
        let mut in_sync_now = choice.root.in_sync();
        in_sync_now.extend(newest.map(|root| root.in_sync()).unwrap_or_default());
        let absent: Vec<usize> = (0..self.disks.len())
            .filter(|i| !present.contains(i))
            .filter(|i| self.disks[*i].id.is_some_and(|id| in_sync_now.contains(&id)))
            .collect();
        absent.into_iter().for_each(|disk| self.strike(disk, false));
        if choice.missing > 0 && mode == Mode::Normal {
            self.wrong(Wrong::Unasked);
        }
        let silent = present.iter().any(|d| self.ghost.silent >> d & 1 == 1);
        self.ghost.fooled |= silent && choice.missing > 0;
        self.ghost.duped |=
            (choice.missing > 0 || self.ghost.two) && present.iter().any(|d| self.ghost.hidden >> d & 1 == 1);
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
        // One that was only on its way back has roots, too; what they reach was never whole on it.
        let says = |d: &usize, root: &Root| self.disks[*d].id.is_some_and(|id| root.in_sync().contains(&id));
        let there = which.iter().flat_map(|d| self.disks[*d].slots.iter().filter_map(Slot::root).map(move |r| (d, r)));
        let known = there.filter(|(d, root)| says(d, root)).fold(0, |ops, (_, root)| ops | root.ops);
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
