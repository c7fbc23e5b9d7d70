//! Which failure puts a replica out, and how one that was away comes back.
//!
//! Goal: whoever failed a write or a flush is not trusted, the last one latches, and lack of space is no failure.
//! Method: one request of one disk fails; members and causes are compared.

use super::*;

#[test]
fn a_failed_write_or_flush_puts_that_replica_out_and_the_last_one_latches() {
    for flush in [false, true] {
        let rig = rig(2);
        let sums = rig.put(AT, 8, 1);
        let fail = |slot: usize| {
            rig.disks[slot]
                .faults(|f| if flush { f.fail_flushes = Fault::Next(1) } else { f.fail_writes = Fault::Next(1) });
        };
        let step = || {
            rig.mirror.write(blocks(AT + 50, 1, 9))?;
            rig.mirror.flush()
        };
        fail(1);
        step().unwrap();
        assert_eq!(rig.mirror.members().in_sync, 0b01);
        assert_eq!(rig.counters(1).write_failed + rig.counters(1).flush_failed, 1);
        let writes = rig.disks[1].counters().writes;
        step().unwrap();
        assert_eq!(rig.disks[1].counters().writes, writes, "nothing goes to one that is out");
        fail(0);
        assert!(matches!(step(), Err(DiskError::NoReplica(_))));
        // The fault is over, the trust is not.
        assert!(matches!(step(), Err(DiskError::NoReplica(_))));
        assert!(matches!(rig.mirror.flush(), Err(DiskError::NoReplica(_))));
        assert!(rig.mirror.latched().is_some());
        assert_eq!(rig.mirror.members().in_sync, 0b01);
        rig.read(AT, &sums, 1);
    }
}

#[test]
fn when_all_fail_at_once_the_write_fails() {
    let rig = rig(3);
    rig.disks.iter().for_each(|disk| disk.faults(|f| f.fail_writes = Fault::Next(1)));
    assert!(matches!(
        rig.mirror.write(blocks(AT, 1, 1)),
        Err(DiskError::NoReplica(cause)) if cause.contains("replica 2")
    ));
    assert_eq!(rig.mirror.members().in_sync, 0b111);
}

#[test]
fn raw_calls_reach_one_replica_and_failures_have_consequences() {
    let rig = rig(2);
    rig.mirror.write_raw(1, 32, Slice::whole(content(1, 5))).unwrap();
    rig.mirror.flush_raw(1).unwrap();
    assert_eq!(*rig.mirror.read_raw(1, 32, 1).unwrap(), *content(1, 5));
    assert!(rig.mirror.read_raw(0, 32, 1).unwrap().iter().all(|byte| *byte == 0));
    rig.disks[1].faults(|f| f.fail_reads = Fault::Next(1));
    assert!(rig.mirror.read_raw(1, 32, 1).is_err());
    assert_eq!(rig.mirror.members().in_sync, 0b11, "an unproven read is the caller's to judge");
    rig.disks[1].faults(|f| f.fail_flushes = Fault::Next(1));
    assert!(matches!(rig.mirror.flush_raw(1), Err(DiskError::Replica { replica: 1, .. })));
    assert_eq!(rig.mirror.members().in_sync, 0b01);
    rig.disks[0].faults(|f| f.fail_writes = Fault::Next(1));
    assert!(rig.mirror.write_raw(0, 32, Slice::whole(content(1, 5))).is_err());
    assert!(matches!(rig.mirror.flush(), Err(DiskError::NoReplica(_))));
}

/// By choice it is left behind; the last one with room, and all of them together, are not.
#[test]
fn full_may_leave() {
    // SEMANTICS: FULL-1
    let rig = rig(2);
    rig.mirror.leave_full(true);
    rig.disks[1].faults(|f| f.full = true);
    rig.mirror.allocate(2000, 100).unwrap();
    let health = &rig.mirror.health()[1];
    assert!(health.state == ReplicaState::Out && health.cause.starts_with("full:"), "{health:?}");
    rig.disks[0].faults(|f| f.full = true);
    assert!(matches!(rig.mirror.allocate(2200, 100), Err(DiskError::Full { replica: 0, .. })));
    assert_eq!(rig.state(0), ReplicaState::InSync);
    assert_eq!(rig.mirror.latched(), None);
}

/// Otherwise it stays, nobody gets more, and that is told once, as is its end.
#[test]
fn full_is_told() {
    let rig = rig(2);
    let told = || rig.mirror.listen(Duration::ZERO).0.iter().map(|one| one.what).collect::<Vec<_>>();
    rig.disks[1].faults(|f| f.full = true);
    for _ in 0..3 {
        assert!(matches!(rig.mirror.allocate(2000, 100), Err(DiskError::Full { replica: 1, .. })));
    }
    assert!(rig.state(1) == ReplicaState::InSync && rig.mirror.health()[1].is_full);
    assert_eq!(told(), [What::Full]);
    rig.disks[1].faults(|f| f.full = false);
    rig.mirror.allocate(2000, 100).unwrap();
    assert!(!rig.mirror.health()[1].is_full);
    assert_eq!(told(), [What::Room]);
}

/// One on its way back has no room: it goes, and nobody is told ENOSPC.
#[test]
fn full_and_returning_costs_nobody_anything() {
    let rig = rig(2);
    rig.mirror.set_out(1, "worn");
    let disk = rig.world.disk(4096);
    disk.faults(|f| f.full = true);
    rig.mirror.start_returning(1, name(1), disk);
    rig.mirror.allocate(2000, 100).unwrap();
    assert_eq!(rig.state(1), ReplicaState::Out);
}

#[test]
fn full_is_not_broken() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    rig.disks[1].faults(|f| f.full = true);
    assert!(matches!(rig.mirror.allocate(2000, 8), Err(DiskError::Full { replica: 1, .. })));
    assert_eq!(rig.mirror.members().in_sync, 0b11);
    rig.mirror.check();
    assert_eq!(rig.mirror.health()[1].bytes_free_below, Some(0));
    // Overwriting what has space goes on; a write that finds none, though the twin took it, is a replica behind.
    rig.put(AT, 8, 2);
    rig.put(2000, 1, 1);
    assert_eq!(rig.mirror.members().in_sync, 0b01);
    assert!(rig.mirror.health()[1].cause.starts_with("full:"), "{}", rig.mirror.health()[1].cause);
    // With all full the write fails, and nothing else.
    rig.disks[0].faults(|f| f.full = true);
    let full = rig.mirror.write(blocks(3000, 1, 1));
    assert!(matches!(full, Err(DiskError::Full { replica: 0, .. })));
    assert!(rig.mirror.latched().is_none());
    rig.disks[0].faults(|f| f.full = false);
    rig.mirror.allocate(3000, 1).unwrap();
    rig.put(3000, 1, 1);
    assert_eq!(*rig.mirror.read(AT, &sums[..1]).err().unwrap().to_string(), *{
        let detail = "replica 0: does not match its checksum, replica 1: does not match its checksum";
        format!("block {AT} is damaged on every replica ({detail})")
    });
}

#[test]
fn read_only_below_is_told_in_its_own_words() {
    let rig = rig(2);
    rig.disks[0].faults(|f| f.read_only = true);
    rig.put(AT, 8, 1);
    assert!(rig.mirror.health()[0].cause.starts_with("read-only:"), "{}", rig.mirror.health()[0].cause);
    assert_eq!(rig.mirror.members().in_sync, 0b10);
}

#[test]
fn a_disk_that_is_gone_costs_nothing() {
    let rig = rig(2);
    let sums = rig.put(AT, 300, 1);
    rig.disks[0].faults(|f| f.gone = true);
    rig.read_in_turns(AT, &sums, 1);
    assert_eq!(rig.mirror.members().in_sync, 0b10, "a failed repair has told");
    rig.put(AT, 300, 2);
    rig.mirror.flush().unwrap();
}

#[test]
fn a_vanished_container_goes_out_at_the_next_check_and_the_last_one_takes_no_writes() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    rig.mirror.check();
    assert_eq!(rig.mirror.members().in_sync, 0b11);
    assert!(rig.mirror.health()[0].bytes_free_below.is_some());
    rig.disks[0].faults(|f| f.fail_checks = Fault::Always);
    rig.mirror.check();
    assert_eq!(rig.mirror.members().in_sync, 0b10);
    assert!(rig.mirror.health()[0].cause.contains("vanished"));
    rig.disks[1].faults(|f| f.fail_checks = Fault::Always);
    rig.mirror.check();
    assert!(matches!(rig.mirror.write(blocks(AT, 1, 1)), Err(DiskError::NoReplica(_))));
    rig.read(AT, &sums, 1);
}

#[test]
fn a_missing_replica_leaves_its_slot_empty() {
    let world = World::new(1);
    let disk: Arc<dyn Backing> = world.disk(4096);
    let replicas = vec![(name(0), None, true), (name(1), Some(disk), true)];
    let mirror = mirror_over(replicas, HOUR);
    assert_eq!((mirror.replicas(), mirror.members().in_sync), (2, 0b10));
    assert_eq!(mirror.health()[0].state, ReplicaState::Missing);
    mirror.write(blocks(AT, 1, 1)).unwrap();
    assert!(matches!(mirror.prove(0, AT, &[1], true)[..], [Proof::Unproven(_)]));
    assert!(matches!(mirror.flush_raw(0), Err(DiskError::Replica { replica: 0, .. })));
    mirror.start_returning(0, name(0), world.disk(4096));
    assert_eq!(mirror.health()[0].state, ReplicaState::Returning);
}

#[test]
fn a_returning_replica_takes_writes_serves_no_reads_and_joins() {
    let rig = rig(2);
    let old = rig.put(AT, 300, 1);
    rig.mirror.set_out(1, "pulled");
    let missed = rig.put(AT + 300, 300, 2);
    rig.mirror.release(1);
    assert!(rig.disks[1].is_closed());
    let back = rig.disks[1].reopen();
    rig.mirror.start_returning(1, name(1), back.clone());
    let new = rig.put(AT + 600, 300, 3);
    rig.mirror.flush().unwrap();
    assert_eq!(back.peek(AT + 600), rig.disks[0].peek(AT + 600));
    let reads = back.counters().reads;
    for (addr, sums, tag) in [(AT, &old, 1), (AT + 300, &missed, 2), (AT + 600, &new, 3)] {
        rig.read_in_turns(addr, sums, tag);
    }
    assert_eq!(back.counters().reads, reads);
    assert!(rig.mirror.prove(1, AT, &old, true).iter().all(|proof| *proof == Proof::Correct));
    assert!(rig.mirror.prove(1, AT + 300, &missed, true).iter().all(|proof| *proof == Proof::Healed(Damage::Zeros)));
    assert!(rig.mirror.prove(1, AT + 600, &new, true).iter().all(|proof| *proof == Proof::Correct));
    let counters = rig.counters(1);
    assert_eq!((counters.copied, counters.omissions()), (300, 0), "what it missed is no damage");
    let before = rig.mirror.members().generation;
    rig.mirror.join(1);
    assert_eq!(rig.mirror.members(), Members { in_sync: 0b11, generation: before + 1 });
    rig.mirror.set_out(0, "its turn");
    for (addr, sums, tag) in [(AT, &old, 1), (AT + 300, &missed, 2), (AT + 600, &new, 3)] {
        rig.read(addr, sums, tag);
    }
}

#[test]
fn a_returning_replica_that_fails_is_out_again() {
    let rig = rig(2);
    rig.mirror.set_out(1, "pulled");
    let back = rig.disks[1].reopen();
    rig.mirror.start_returning(1, name(1), back.clone());
    back.faults(|f| f.fail_writes = Fault::Next(1));
    rig.put(AT, 8, 1);
    assert_eq!(rig.state(1), ReplicaState::Out);
    rig.mirror.join(1);
    assert_eq!(rig.mirror.members().in_sync, 0b01, "it cannot join any more");
}
