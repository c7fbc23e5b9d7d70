//! Replacing a replica: the new one is blanked, takes writes, is copied to and proven, gets its label, joins.

use super::{Job, Phase, Resync, Seat, Stage, World, Write};
use crate::roots::{Root, Rules, Slot};

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
        daemon.resync = Some(Resync { seat: own, takes: seat, id, stage: Stage::Blanked, since: None });
        daemon.phase = Phase::Blank;
        // The disk waits in an extra seat that takes no writes yet.
        if free {
            daemon.seats[seat] = (id, Some(disk), Seat::Out);
        } else {
            daemon.seats.push((id, Some(disk), Seat::Out));
        }
    }

    pub(super) fn resync_disk(&self) -> (Resync, usize) {
        let daemon = self.daemon.as_ref().expect("mounted");
        let resync = daemon.resync.expect("replacing");
        (resync, daemon.seats[resync.seat].1.expect("it has a disk"))
    }

    pub(super) fn blanked(&mut self, rules: &Rules) {
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
        if matches!(resync.stage, Stage::Told | Stage::Voided) {
            return self.renounce_step(rules);
        }
        if self.disks[disk].gone || self.daemon().seats[resync.seat].2 != Seat::Returning {
            return self.give_up();
        }
        let (root, visible) = (self.daemon().root.clone(), self.daemon().root.ops);
        // One that returns is sent what it missed, over what nobody needs.
        let (visible, kept) = match resync.since {
            Some(since) => (visible & !since, visible),
            None => (visible, u128::MAX),
        };
        match resync.stage {
            Stage::Told | Stage::Voided | Stage::Blanked => {}
            Stage::Returning => self.begin_group(Job::Commit(None)),
            Stage::Committed => {
                self.disks[disk].pending.push(Write::Data(visible, kept));
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
                if resync.since.is_none() {
                    self.disks[disk].pending.push(Write::Label(resync.id));
                }
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
    pub(super) fn labelled(&mut self, rules: &Rules) {
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
