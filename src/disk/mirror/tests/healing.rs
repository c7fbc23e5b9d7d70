//! What one replica omitted is copied over from another one and proven; nothing else is written.
//!
//! Goal: damage on one side never reaches the reader and is mended once; damage on both is an error for that block alone.
//! Method: blocks are harmed in each way; counters say what was found and healed.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn both_correct_nothing_is_written() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    let before = rig.world.io_count();
    for _ in 0..4 {
        rig.read(AT, &sums, 1);
    }
    assert_eq!(rig.world.io_count(), before);
    assert!((0..2).all(|slot| rig.counters(slot).omissions() == 0));
}

type Harm = (&'static str, fn(&SimDisk, Addr));

const HARMS: [Harm; 6] = [
    ("rot", |disk, addr| disk.rot(addr, 12345)),
    ("zero", |disk, addr| disk.zero(addr)),
    ("junk", |disk, addr| disk.junk(addr)),
    ("stale", |disk, addr| assert!(disk.stale(addr))),
    ("swapped", |disk, addr| disk.poke(addr, disk.peek(addr + 1))),
    ("unreadable", |disk, addr| disk.faults(|f| _ = f.unreadable.insert(addr))),
];

#[test]
fn an_omission_on_either_side_is_copied_over_and_proven() {
    for (harm, damage) in HARMS {
        for slot in 0..2 {
            let rig = rig(2);
            rig.put(AT, 8, 1);
            let sums = rig.put(AT, 8, 2);
            damage(&rig.disks[slot], AT + 3);
            let medium_reads = rig.disks[slot].counters().medium_reads;
            rig.read_in_turns(AT, &sums, 2);
            let counters = rig.counters(slot);
            assert_eq!((counters.omissions(), counters.healed), (1, 1), "{harm} on {slot}");
            assert_eq!(counters.unreadable, u64::from(harm == "unreadable"));
            assert_eq!(rig.counters(1 - slot).omissions(), 0);
            assert_eq!(rig.disks[0].snapshot(), rig.disks[1].snapshot(), "{harm} on {slot}");
            let proofs = rig.disks[slot].counters().medium_reads - medium_reads;
            assert!(proofs >= 2, "looked at again before, and proven after the repair");
            assert_eq!(rig.mirror.members().in_sync, 0b11);
        }
    }
}

#[test]
fn omissions_on_both_sides_are_an_error_for_that_block_alone() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    rig.disks[0].rot(AT + 3, 1);
    rig.disks[1].faults(|f| _ = f.unreadable.insert(AT + 3));
    let before = rig.world.io_count();
    for _ in 0..2 {
        let Err(DiskError::Lost { addr, detail }) = rig.mirror.read(AT, &sums) else { panic!("must be lost") };
        assert_eq!(addr, AT + 3);
        assert!(detail.contains("replica 0") && detail.contains("replica 1"), "{detail}");
    }
    assert_eq!(rig.world.io_count(), before, "nothing is written without a proof");
    assert_eq!(*rig.mirror.read(AT, &sums[..3]).unwrap(), content(8, 1)[..3 * BLOCK]);
    assert_eq!(*rig.mirror.read(AT + 4, &sums[4..]).unwrap(), content(8, 1)[4 * BLOCK..]);
    assert_eq!(rig.mirror.members().in_sync, 0b11, "a lost block puts nobody out");
}

#[test]
fn omissions_of_different_blocks_on_both_sides_heal_each_other() {
    let rig = rig(2);
    let sums = rig.put(AT, 300, 1);
    for i in 0..300 {
        rig.disks[i % 2].junk(AT + i as u64);
    }
    rig.read_in_turns(AT, &sums, 1);
    for slot in 0..2 {
        rig.mirror.prove(slot, AT, &sums, true);
        assert_eq!((rig.counters(slot).omissions(), rig.counters(slot).healed), (150, 150));
    }
    assert_eq!(rig.disks[0].snapshot(), rig.disks[1].snapshot());
}

#[test]
fn lost_torn_and_misdirected_writes_are_omissions() {
    for fault in 0..3 {
        let rig = rig(2);
        let others = rig.put(AT + 50, 20, 7);
        rig.disks[1].faults(|f| match fault {
            0 => f.lost_writes = Fault::Next(1),
            1 => f.torn_writes = Fault::Next(1),
            _ => f.misdirected_writes = Fault::Next(1),
        });
        let sums = rig.put(AT, 4, 1);
        for (addr, sums, tag) in [(AT, &sums, 1), (AT + 50, &others, 7)] {
            rig.read_in_turns(addr, sums, tag);
        }
        assert!(rig.counters(1).healed >= 4 && rig.counters(0).healed == 0);
        for (addr, sums) in [(AT, &sums), (AT + 50, &others)] {
            assert!(rig.mirror.prove(1, addr, sums, false).iter().all(|proof| *proof == Proof::Correct));
        }
    }
}

#[test]
fn what_is_wrong_only_once_is_not_repaired() {
    let rig = rig(2);
    let sums = rig.put(AT, 1, 1);
    rig.put(AT + 9, 1, 2);
    let before = rig.world.io_count();
    for disk in &rig.disks {
        disk.faults(|f| f.misdirected_reads = Fault::Next(1));
    }
    rig.read_in_turns(AT, &sums, 1);
    assert_eq!(rig.world.io_count(), before);
    for slot in 0..2 {
        assert_eq!((rig.counters(slot).transient, rig.counters(slot).omissions()), (1, 0));
    }
}

#[test]
fn a_replica_that_cannot_keep_its_repair_goes_out() {
    for stuck in [true, false] {
        let rig = rig(2);
        let sums = rig.put(AT, 8, 1);
        rig.disks[0].rot(AT + 3, 1);
        rig.disks[0].faults(|f| _ = if stuck { f.stuck.insert(AT + 3) } else { f.unwritable.insert(AT + 3) });
        let before = rig.mirror.members().generation;
        rig.read_in_turns(AT, &sums, 1);
        let counters = rig.counters(0);
        assert_eq!((counters.omissions(), counters.healed, counters.heal_failed), (1, 0, 1));
        assert_eq!(rig.state(0), ReplicaState::Out);
        assert!(rig.mirror.health()[0].cause.contains("repair"), "{}", rig.mirror.health()[0].cause);
        assert!(rig.mirror.members().in_sync == 0b10 && rig.mirror.members().generation > before);
    }
}

#[test]
fn the_last_replica_is_healed_from_one_that_is_out_and_never_leaves() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    rig.mirror.set_out(1, "for this test");
    rig.disks[0].rot(AT + 1, 1);
    rig.read(AT, &sums, 1);
    assert_eq!((rig.counters(0).healed, rig.counters(0).checksum), (1, 1));
    rig.disks[0].rot(AT + 2, 1);
    rig.disks[0].faults(|f| _ = f.stuck.insert(AT + 2));
    rig.read(AT, &sums, 1);
    assert_eq!((rig.counters(0).heal_failed, rig.state(0)), (1, ReplicaState::InSync));
    rig.put(AT + 100, 1, 3);
}

#[test]
fn proofs_tell_what_is_there_and_repair_only_when_asked() {
    let rig = rig(2);
    let sums = rig.put(AT, 600, 1);
    rig.disks[0].zero(AT + 1);
    rig.disks[0].faults(|f| _ = f.unreadable.insert(AT + 2));
    rig.disks[0].junk(AT + 599);
    rig.disks[1].junk(AT + 599);
    let before = rig.world.io_count();
    let dry = rig.mirror.prove(0, AT, &sums, false);
    assert_eq!(dry.iter().filter(|proof| **proof == Proof::Correct).count(), 597);
    assert_eq!(dry[1], Proof::Damaged(Damage::Zeros));
    assert!(matches!(&dry[2], Proof::Damaged(Damage::Unreadable(_))));
    assert_eq!(rig.world.io_count(), before);
    let healed = rig.mirror.prove(0, AT, &sums, true);
    assert_eq!(healed[1], Proof::Healed(Damage::Zeros));
    assert!(matches!(&healed[2], Proof::Healed(Damage::Unreadable(_))));
    assert_eq!(healed[599], Proof::Lost(Damage::Checksum));
    assert_eq!(rig.mirror.prove(0, AT, &sums[..599], false), vec![Proof::Correct; 599]);
}

#[test]
fn concurrent_readers_of_damaged_blocks_repair_each_once() {
    let rig = rig(2);
    let sums = rig.put(AT, 1000, 1);
    (0..1000).for_each(|i| rig.disks[0].rot(AT + i, 1));
    let start = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(rig.mirror.prove(0, AT, &sums, true).len(), 1000);
            });
        }
    });
    assert_eq!((rig.counters(0).omissions(), rig.counters(0).healed), (1000, 1000));
}

#[test]
fn detected_is_injected_is_healed() {
    let rig = rig(2);
    let sums = rig.put(AT, 2000, 1);
    for i in 0..1000 {
        rig.disks[1].junk(AT + 2 * i);
    }
    rig.read(AT, &sums, 1);
    let found = rig.mirror.prove(1, AT, &sums, true);
    let other = rig.mirror.prove(0, AT, &sums, true);
    let counters = rig.counters(1);
    assert_eq!((counters.omissions(), counters.healed, counters.heal_failed), (1000, 1000, 0));
    let by_proof = found.iter().filter(|proof| matches!(proof, Proof::Healed(_))).count();
    assert!(by_proof > 0 && by_proof < 1000, "some by the read, some by the proof: {by_proof}");
    assert!(other.iter().all(|proof| *proof == Proof::Correct));
}

/// A disk whose medium answers ETIMEDOUT, as the kernel does for some that are broken.
struct TimedOut {
    disk: Arc<SimDisk>,
    until_written: AtomicBool,
}

impl Backing for TimedOut {
    fn submit(&self, op: Op) -> Ticket {
        match op {
            Op::Write { .. } => self.until_written.store(false, Ordering::Relaxed),
            Op::Read { .. } | Op::ReadMedium { .. } if self.until_written.load(Ordering::Relaxed) => {
                let error = std::io::Error::from_raw_os_error(libc::ETIMEDOUT);
                return Ticket::answered(Err(error));
            }
            _ => {}
        }
        self.disk.submit(op)
    }
    fn facts(&self) -> BackingFacts {
        self.disk.facts()
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn close(&self) {}
    fn is_closed(&self) -> bool {
        true
    }
}

#[test]
fn what_the_kernel_calls_timed_out_is_an_unreadable_block() {
    let rig = rig(2);
    let sums = rig.put(AT, 1, 5);
    let until_written = AtomicBool::new(true);
    let second: Arc<dyn Backing> = Arc::new(TimedOut { disk: rig.disks[1].clone(), until_written });
    let replicas = vec![(name(0), rig.disks[0].clone() as Arc<dyn Backing>, true), (name(1), second, true)];
    let mirror = mirror_over(replicas, HOUR);
    let proofs = mirror.prove(1, AT, &sums, true);
    assert!(matches!(proofs[..], [Proof::Healed(Damage::Unreadable(_))]), "{proofs:?}");
    assert_eq!(mirror.prove(1, AT, &sums, false), [Proof::Correct]);
}
