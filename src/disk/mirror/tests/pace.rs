//! Slow replicas, on simulated disks whose times are what the test says.
//!
//! Goal: one that is slow relative to its twin gets no reads, is told, and is quick again when it was shown to be; nobody is
//! called slow for one hiccup or because all are. Method: as `telling`; no time passes.

use super::*;
use crate::disk::mirror::slow::{FACTOR, FLOOR, SAMPLES_MIN, WINDOW};

const QUICK: Duration = Duration::from_millis(2);
const SLOW: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(60);

fn takes(rig: &Rig, times: &[Duration]) {
    for (disk, took) in rig.disks.iter().zip(times) {
        disk.faults(|faults| faults.takes = *took);
    }
}

fn is_slow(rig: &Rig, slot: usize) -> bool {
    rig.mirror.health()[slot].pace.slow_since_ns > 0
}

fn told(rig: &Rig) -> Vec<(What, usize)> {
    let (events, _) = rig.mirror.listen(Duration::ZERO);
    events.into_iter().map(|one| (one.what, one.replica.map_or(9, |(slot, _)| slot))).collect()
}

fn reads(rig: &Rig, slot: usize) -> u64 {
    rig.counters(slot).reads
}

fn write_much(rig: &Rig) {
    (0..WINDOW as u64).for_each(|i| drop(rig.put(AT + 100 + i, 1, 3)));
}

/// By writes: no reads, told once, in sync, and back when writes are quick.
#[test]
fn one_that_writes_slowly_gets_no_reads_until_it_is_quick() {
    // SEMANTICS: SLOW-1
    let rig = rig(2);
    let sums = rig.put(AT, 4, 7);
    takes(&rig, &[QUICK, SLOW]);
    (0..SAMPLES_MIN).for_each(|_| drop(rig.put(AT + 8, 1, 1)));
    assert!(is_slow(&rig, 1) && !is_slow(&rig, 0));
    assert_eq!((rig.state(1), told(&rig)), (ReplicaState::InSync, vec![(What::Slow, 1)]));
    let before = (reads(&rig, 0), reads(&rig, 1));
    (0..100).for_each(|_| rig.read(AT, &sums, 7));
    assert_eq!((reads(&rig, 0), reads(&rig, 1)), (before.0 + 100, before.1));
    assert!(is_slow(&rig, 1), "quick reads are not what it lacks");
    let writes = rig.counters(1).writes;
    write_much(&rig);
    assert_eq!(rig.counters(1).writes, writes + WINDOW as u64, "it takes all writes");
    let pace = rig.mirror.health()[1].pace;
    assert_eq!((pace.write, pace.twin_write), (Some(SLOW), Some(QUICK)));
    takes(&rig, &[QUICK, QUICK]);
    write_much(&rig);
    assert_eq!((is_slow(&rig, 1), told(&rig)), (false, vec![(What::Quick, 1)]));
    let before = reads(&rig, 1);
    (0..10).for_each(|_| rig.read(AT, &sums, 7));
    assert_eq!(reads(&rig, 1), before + 5);
}

/// By reads: it is asked now and then, and what is read is not waited for there.
#[test]
fn one_that_reads_slowly_is_probed() {
    let rig = rig(2);
    let sums = rig.put(AT, 4, 7);
    takes(&rig, &[SLOW, QUICK]);
    (0..2 * SAMPLES_MIN + 4).for_each(|_| rig.read(AT, &sums, 7));
    assert!(is_slow(&rig, 0), "{:?}", rig.mirror.health()[0].pace);
    (0..1000).for_each(|_| rig.read(AT, &sums, 7));
    assert!(is_slow(&rig, 0), "{:?}", rig.mirror.health()[0].pace);
    takes(&rig, &[QUICK, QUICK]);
    (0..2000).for_each(|_| rig.read(AT, &sums, 7));
    assert_eq!((is_slow(&rig, 0), told(&rig)), (false, vec![(What::Slow, 0), (What::Quick, 0)]));
}

#[test]
fn a_slow_one_is_read_where_it_alone_proves_the_block() {
    let rig = rig(2);
    let sums = rig.put(AT, 4, 7);
    takes(&rig, &[QUICK, SLOW]);
    write_much(&rig);
    assert!(is_slow(&rig, 1));
    rig.disks[0].rot(AT + 2, 5);
    rig.read(AT, &sums, 7);
    assert_eq!(rig.counters(0).healed, 1);
    rig.disks[0].faults(|faults| faults.hang = Fault::Next(1));
    rig.read(AT, &sums, 7);
}

#[test]
fn a_hiccup_a_paused_machine_and_a_small_difference_make_nobody_slow() {
    let rig = rig(2);
    for i in 0..100 {
        takes(
            &rig,
            match i % 10 {
                4 => &[QUICK, SLOW],
                1 => &[PAUSE, PAUSE],
                2 => &[QUICK, PAUSE],
                _ => &[QUICK, QUICK],
            },
        );
        rig.put(AT, 1, 1);
    }
    takes(&rig, &[Duration::from_micros(50), FLOOR - QUICK]);
    write_much(&rig);
    takes(&rig, &[SLOW, SLOW * (FACTOR - 1)]);
    write_much(&rig);
    assert!(told(&rig).is_empty() && !is_slow(&rig, 0) && !is_slow(&rig, 1));
}

#[test]
fn nobody_is_slow_alone() {
    let rig = rig(3);
    takes(&rig, &[QUICK, SLOW, SLOW * 10]);
    write_much(&rig);
    assert!(is_slow(&rig, 1) && is_slow(&rig, 2) && !is_slow(&rig, 0));
    rig.mirror.set_out(0, "worn");
    rig.mirror.set_out(2, "worn");
    assert!(!is_slow(&rig, 1), "it is the last one");
    assert_eq!(told(&rig).iter().filter(|(what, _)| *what == What::Quick).count(), 2);
    let sums = rig.put(AT, 4, 9);
    write_much(&rig);
    rig.read(AT, &sums, 9);
    assert!(!is_slow(&rig, 1));
}
