//! Blocks that are damaged on every replica, put together from the parts.
//!
//! Goal: nothing is written without a proof; what is written is on each replica in turn, and a cut at any write leaves
//! what can be put together again. Method: sectors are harmed by hand; the power is cut at each request.

use super::*;
use crate::disk::sim::{CrashPlan, Random};

const SECTOR: usize = 512;

/// Other bytes in some sectors.
fn hurt(disk: &SimDisk, addr: Addr, sectors: std::ops::Range<usize>) {
    let mut block = disk.peek(addr);
    block[sectors.start * SECTOR..sectors.end * SECTOR].iter_mut().for_each(|byte| *byte ^= 0x55);
    disk.poke(addr, block);
}

fn halves(rig: &Rig) {
    hurt(&rig.disks[0], AT, 0..5);
    hurt(&rig.disks[1], AT, 5..8);
}

fn is_proven(found: &Combination) -> bool {
    matches!(found, Combination::Proven { .. })
}

#[test]
fn a_read_never_does_it_and_a_look_writes_nothing() {
    // SEMANTICS: READ-3, HEAL-5
    let rig = rig(2);
    let sums = rig.put(AT, 1, 1);
    assert!(matches!(rig.mirror.combine(AT, sums[0], true), Combination::Needless));
    halves(&rig);
    let before = rig.world.io_count();
    assert!(matches!(rig.mirror.read(AT, &sums), Err(DiskError::Lost { .. })));
    assert!(matches!(rig.mirror.prove(0, AT, &sums, true)[..], [Proof::Lost(_)]));
    let Combination::Proven { block, .. } = rig.mirror.combine(AT, sums[0], false) else { panic!("it can be done") };
    assert!(*block == *content(1, 1));
    assert_eq!(rig.world.io_count(), before, "nothing is written");
    assert!(is_proven(&rig.mirror.combine(AT, sums[0], true)));
    rig.read_in_turns(AT, &sums, 1);
    assert_eq!((rig.counters(0).healed, rig.counters(1).healed), (1, 1));
    for disk in rig.world.revive(CrashPlan::DropAll) {
        assert!(disk.peek(AT) == *content(1, 1).block(0), "it is durable");
    }
}

#[test]
fn nothing_is_written_over_what_cannot_be_proven() {
    let rig = rig(2);
    let sums = rig.put(AT, 3, 1);
    hurt(&rig.disks[0], AT, 0..4);
    hurt(&rig.disks[1], AT, 3..8);
    rig.disks[0].faults(|f| _ = f.unreadable.insert(AT + 1));
    hurt(&rig.disks[1], AT + 1, 0..1);
    let before = rig.world.io_count();
    for (i, sum) in sums[..2].iter().enumerate() {
        assert!(matches!(rig.mirror.combine(AT + i as u64, *sum, true), Combination::Impossible));
    }
    assert!(matches!(rig.mirror.combine(4096, 1, true), Combination::Impossible), "beyond the volume");
    assert_eq!(rig.world.io_count(), before);
}

#[test]
fn three_copies_of_which_one_is_out_and_one_cannot_be_read() {
    let rig = rig(3);
    let sums = rig.put(AT, 2, 1);
    rig.mirror.set_out(2, "for this test");
    hurt(&rig.disks[0], AT, 0..2);
    hurt(&rig.disks[1], AT, 0..3);
    hurt(&rig.disks[2], AT, 2..8);
    let out = rig.disks[2].peek(AT);
    assert!(is_proven(&rig.mirror.combine(AT, sums[0], true)));
    assert!(rig.disks[2].peek(AT) == out, "one that is out is not written");
    rig.read(AT, &sums, 1);
    hurt(&rig.disks[0], AT + 1, 0..2);
    rig.disks[1].faults(|f| _ = f.unreadable.insert(AT + 1));
    hurt(&rig.disks[2], AT + 1, 2..8);
    assert!(is_proven(&rig.mirror.combine(AT + 1, sums[1], true)));
    assert_eq!(rig.mirror.prove(1, AT + 1, &sums[1..], false), [Proof::Correct]);
}

#[test]
fn one_that_cannot_keep_it_goes_out_and_the_other_has_it() {
    for slot in 0..2 {
        let rig = rig(2);
        let sums = rig.put(AT, 1, 1);
        halves(&rig);
        rig.disks[slot].faults(|f| _ = f.stuck.insert(AT));
        assert!(is_proven(&rig.mirror.combine(AT, sums[0], true)));
        assert_eq!(rig.state(slot), ReplicaState::Out);
        assert_eq!(rig.mirror.prove(1 - slot, AT, &sums, false), [Proof::Correct]);
        rig.read(AT, &sums, 1);
    }
}

#[test]
fn a_cut_at_any_write_leaves_what_can_be_put_together() {
    // SEMANTICS: CRASH-5
    let mut whole = 0;
    for run in 0..400 {
        let rig = rig_of(2, run);
        let sums = rig.put(AT, 1, 1);
        rig.mirror.flush().unwrap();
        halves(&rig);
        let damaged = rig.disks[1].peek(AT);
        let cut = run % 5;
        rig.world.cut_at(Some(rig.world.io_count() + cut));
        let _cut = rig.mirror.combine(AT, sums[0], true);
        let wanted = content(1, 1);
        let mut random = Random::new(run);
        let block =
            |slot: usize, plan, random: &mut Random| **rig.disks[slot].crash_image(plan, random).get(&AT).unwrap();
        if block(1, CrashPlan::KeepAll, &mut random) != damaged {
            let first = block(0, CrashPlan::DropAll, &mut random);
            assert!(first == *wanted.block(0), "cut {cut}: the second is written before the first is durable");
        }
        let disks = rig.world.revive(CrashPlan::Random);
        let again = mirror_of(&disks);
        let found = again.combine(AT, sums[0], true);
        whole += u64::from(matches!(found, Combination::Needless));
        assert!(!matches!(found, Combination::Impossible | Combination::TooMany), "run {run}, cut {cut}: {found:?}");
        for slot in 0..2 {
            assert!(!matches!(again.prove(slot, AT, &sums, true)[..], [Proof::Lost(_) | Proof::Damaged(_)]));
        }
        assert!(*again.read(AT, &sums).unwrap() == *wanted);
    }
    assert!(whole > 0 && whole < 400, "{whole}");
}
