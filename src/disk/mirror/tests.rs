//! The mirror on simulated disks: each rule of recovery, of leaving, and of the deadline.
use super::*;
use crate::disk::sim::{CrashPlan, Fault, SimDisk, World};
use crate::disk::{Buf, Op, Slice};
use crate::format::{Addr, BLOCK, Uuid};

const HOUR: Duration = Duration::from_secs(3600);
const AT: Addr = 1000;

struct Rig {
    world: World,
    disks: Vec<Arc<SimDisk>>,
    mirror: Mirror,
}

fn name(slot: usize) -> ReplicaName {
    ReplicaName { uuid: Uuid([slot as u8 + 1; 16]), path: format!("/disk/{slot}") }
}

fn geometry() -> Geometry {
    Geometry::new(4096, 1024, 64).unwrap()
}

fn mirror_of(disks: &[Arc<SimDisk>]) -> Mirror {
    let backing = |disk: &Arc<SimDisk>| -> Arc<dyn Backing> { disk.clone() };
    let replicas = disks.iter().enumerate().map(|(slot, disk)| (name(slot), backing(disk), true)).collect();
    Mirror::new(VolumeSeed::new(Uuid([9; 16])), geometry(), replicas, HOUR)
}

fn rig(replicas: usize) -> Rig {
    let world = World::new(1);
    let disks: Vec<_> = (0..replicas).map(|_| world.disk(4096)).collect();
    let mirror = mirror_of(&disks);
    Rig { world, disks, mirror }
}

fn content(blocks: usize, tag: u8) -> Buf {
    let mut buf = Buf::zeroed(blocks * BLOCK);
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i / BLOCK) as u8 ^ (i % 251) as u8 ^ tag;
    }
    buf
}

impl Rig {
    /// Write content and give its checksums.
    fn put(&self, addr: Addr, blocks: usize, tag: u8) -> Vec<u64> {
        let buf = content(blocks, tag);
        self.mirror.write(vec![(addr, Slice::whole(buf.clone()))]).unwrap();
        sums(addr, &buf)
    }
    fn read(&self, addr: Addr, sums: &[u64], tag: u8) {
        assert!(*self.mirror.read(addr, sums).unwrap() == *content(sums.len(), tag), "wrong bytes");
    }
    fn counters(&self, slot: usize) -> ReplicaCounters {
        self.mirror.health()[slot].counters
    }
    fn state(&self, slot: usize) -> ReplicaState {
        self.mirror.health()[slot].state
    }
}

fn sums(addr: Addr, buf: &Buf) -> Vec<u64> {
    let seed = VolumeSeed::new(Uuid([9; 16]));
    (0..buf.blocks()).map(|i| seed.checksum(addr + i as u64, buf.block(i))).collect()
}

#[test]
fn what_was_written_is_read_and_both_replicas_hold_it() {
    let rig = rig(2);
    for blocks in [1, 7, 64, 600] {
        let sums = rig.put(AT, blocks, blocks as u8);
        rig.read(AT, &sums, blocks as u8);
    }
    rig.mirror.flush().unwrap();
    assert_eq!(rig.disks[0].snapshot(), rig.disks[1].snapshot());
    assert!(rig.counters(0).reads > 0 && rig.counters(1).reads > 0, "reads are balanced");
    assert_eq!(rig.mirror.members(), Members { in_sync: 0b11, generation: 1 });
}

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
            // Reads take turns: one of two asks the damaged one.
            rig.read(AT, &sums, 2);
            rig.read(AT, &sums, 2);
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
    rig.read(AT, &sums, 1);
    rig.read(AT, &sums, 1);
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
            rig.read(addr, sums, tag);
            rig.read(addr, sums, tag);
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
    rig.read(AT, &sums, 1);
    rig.read(AT, &sums, 1);
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
        rig.read(AT, &sums, 1);
        rig.read(AT, &sums, 1);
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
fn a_failed_write_or_flush_puts_that_replica_out_and_the_last_one_latches() {
    for flush in [false, true] {
        let rig = rig(2);
        let sums = rig.put(AT, 8, 1);
        let fail = |slot: usize| {
            rig.disks[slot]
                .faults(|f| if flush { f.fail_flushes = Fault::Next(1) } else { f.fail_writes = Fault::Next(1) });
        };
        let step = || {
            rig.mirror.write(vec![(AT + 50, Slice::whole(content(1, 9)))])?;
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
        rig.mirror.write(vec![(AT, Slice::whole(content(1, 1)))]),
        Err(DiskError::NoReplica(cause)) if cause.contains("replica 2")
    ));
    assert_eq!(rig.mirror.members().in_sync, 0b111);
}

#[test]
fn one_hung_replica_costs_nobody_anything() {
    for flush in [false, true] {
        let rig = rig(2);
        let sums = rig.put(AT, 600, 1);
        rig.disks[0].faults(|f| if flush { f.hang_flushes = Fault::Always } else { f.hang = Fault::Always });
        let sums_new = rig.put(2000, 600, 2);
        rig.mirror.flush().unwrap();
        assert_eq!(rig.mirror.members().in_sync, 0b10);
        assert_eq!(rig.counters(0).deadline_missed, 1);
        assert!(rig.mirror.health()[0].in_flight > 0);
        rig.read(AT, &sums, 1);
        rig.read(2000, &sums_new, 2);
        // Only one probe: while it hangs it is not asked again.
        let in_flight = rig.mirror.health()[0].in_flight;
        assert!(matches!(rig.mirror.read_raw(0, AT, 1), Err(DiskError::Replica { replica: 0, .. })));
        assert_eq!(rig.mirror.health()[0].in_flight, in_flight);
    }
}

#[test]
fn a_hung_read_is_hedged() {
    let rig = rig(2);
    let sums = rig.put(AT, 600, 1);
    rig.disks[1].faults(|f| f.hang = Fault::Always);
    for _ in 0..3 {
        rig.read(AT, &sums[..4], 1);
    }
    assert_eq!((rig.mirror.members().in_sync, rig.counters(1).deadline_missed), (0b01, 1));
    assert_eq!(*rig.mirror.read(AT, &sums).unwrap(), *content(600, 1));
}

#[test]
fn a_hung_repair_or_proof_is_the_replicas_fault_only_if_a_twin_answers() {
    let rig = rig(2);
    let sums = rig.put(AT, 4, 1);
    rig.disks[1].faults(|f| f.hang = Fault::Always);
    let proofs = rig.mirror.prove(1, AT, &sums, true);
    assert!(proofs.iter().all(|proof| matches!(proof, Proof::Unproven(_))), "{proofs:?}");
    assert_eq!((rig.mirror.members().in_sync, rig.counters(1).omissions()), (0b01, 0));
}

/// Run `work` on another thread; `meanwhile` runs once all disks hang.
fn hung(rig: &Rig, work: impl FnOnce(&Rig) + Send, meanwhile: impl FnOnce(&Rig)) {
    crate::sync::thread::scope(|scope| {
        let worker = scope.spawn(|| work(rig));
        while rig.disks.iter().any(|disk| disk.in_flight() == 0) {
            crate::sync::thread::yield_now();
        }
        crate::sync::thread::sleep(Duration::from_millis(5));
        assert!(!worker.is_finished(), "nobody is timed out while all hang");
        meanwhile(rig);
    });
}

#[test]
fn while_all_hang_everybody_waits_and_the_first_answer_decides() {
    let rig = rig(2);
    rig.disks.iter().for_each(|disk| disk.faults(|f| f.hang = Fault::Next(1)));
    hung(
        &rig,
        |rig| drop(rig.put(AT, 8, 1)),
        |rig| {
            assert_eq!(rig.mirror.members().in_sync, 0b11);
            rig.disks[1].release_hung();
        },
    );
    assert_eq!(rig.mirror.members().in_sync, 0b10);
    assert_eq!(rig.counters(0).deadline_missed, 1);
}

#[test]
fn the_last_replica_is_never_timed_out() {
    let rig = rig(1);
    let sums = rig.put(AT, 8, 1);
    rig.disks[0].faults(|f| f.hang = Fault::Next(1));
    hung(&rig, |rig| rig.read(AT, &sums, 1), |rig| _ = rig.disks[0].release_hung());
    rig.disks[0].faults(|f| f.hang_flushes = Fault::Next(1));
    hung(&rig, |rig| rig.mirror.flush().unwrap(), |rig| _ = rig.disks[0].release_hung());
    rig.disks[0].faults(|f| f.hang = Fault::Next(1));
    hung(&rig, |rig| drop(rig.mirror.read_raw(0, AT, 1).unwrap()), |rig| _ = rig.disks[0].release_hung());
    assert_eq!(rig.mirror.members(), Members { in_sync: 1, generation: 1 });
    assert_eq!(rig.counters(0).deadline_missed, 0);
}

/// A backing whose answers come only when the test says so; unlike a simulated hang, waiting is by the clock.
struct Silent {
    disk: Arc<SimDisk>,
    held: Mutex<Vec<(Op, crate::disk::backing::Answer)>>,
}

impl Backing for Silent {
    fn submit(&self, op: crate::disk::Op) -> crate::disk::Ticket {
        let (ticket, answer) = crate::disk::backing::request();
        self.held.lock().push((op, answer));
        ticket
    }
    fn facts(&self) -> crate::disk::BackingFacts {
        self.disk.facts()
    }
    fn in_flight(&self) -> usize {
        self.held.lock().len()
    }
    fn close(&self) {}
    fn is_closed(&self) -> bool {
        false
    }
}

#[test]
fn silence_is_waited_for_by_the_clock_and_only_when_a_twin_answered() {
    let world = World::new(1);
    let silent = || Arc::new(Silent { disk: world.disk(4096), held: Mutex::default() });
    let (quiet, other) = (silent(), silent());
    let seed = VolumeSeed::new(Uuid([9; 16]));
    let write = || vec![(AT, Slice::whole(content(1, 1)))];
    let replicas: Vec<(_, Arc<dyn Backing>, _)> = vec![(name(0), quiet, true), (name(1), world.disk(4096), true)];
    let mirror = Mirror::new(seed, geometry(), replicas, Duration::from_millis(20));
    mirror.write(write()).unwrap();
    assert_eq!((mirror.members().in_sync, mirror.health()[0].in_flight), (0b10, 1));
    // All silent for many deadlines: nobody misses.
    let replicas: Vec<(_, Arc<dyn Backing>, _)> = vec![(name(0), other.clone(), true)];
    let mirror = Mirror::new(seed, geometry(), replicas, Duration::from_millis(1));
    crate::sync::thread::scope(|scope| {
        let worker = scope.spawn(|| mirror.write(write()));
        crate::sync::thread::sleep(Duration::from_millis(30));
        assert!(!worker.is_finished());
        other.held.lock().pop().unwrap().1.give(Ok(crate::disk::Done::Nothing));
        worker.join().unwrap().unwrap();
    });
    assert_eq!(mirror.members().in_sync, 1);
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
    let full = rig.mirror.write(vec![(3000, Slice::whole(content(1, 1)))]);
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
    rig.read(AT, &sums, 1);
    rig.read(AT, &sums, 1);
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
    assert!(matches!(rig.mirror.write(vec![(AT, Slice::whole(content(1, 1)))]), Err(DiskError::NoReplica(_))));
    rig.read(AT, &sums, 1);
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
        rig.read(addr, sums, tag);
        rig.read(addr, sums, tag);
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
fn a_missing_replica_leaves_its_slot_empty() {
    let world = World::new(1);
    let disk: Arc<dyn Backing> = world.disk(4096);
    let replicas = vec![(name(0), None, true), (name(1), Some(disk), true)];
    let mirror = Mirror::new(VolumeSeed::new(Uuid([9; 16])), geometry(), replicas, HOUR);
    assert_eq!((mirror.replicas(), mirror.members().in_sync), (2, 0b10));
    assert_eq!(mirror.health()[0].state, ReplicaState::Missing);
    mirror.write(vec![(AT, Slice::whole(content(1, 1)))]).unwrap();
    assert!(matches!(mirror.prove(0, AT, &[1], true)[..], [Proof::Unproven(_)]));
    assert!(matches!(mirror.flush_raw(0), Err(DiskError::Replica { replica: 0, .. })));
    mirror.start_returning(0, name(0), world.disk(4096));
    assert_eq!(mirror.health()[0].state, ReplicaState::Returning);
}

#[test]
fn concurrent_readers_of_damaged_blocks_repair_each_once() {
    let rig = rig(2);
    let sums = rig.put(AT, 1000, 1);
    (0..1000).for_each(|i| rig.disks[0].rot(AT + i, 1));
    let start = std::sync::Barrier::new(4);
    crate::sync::thread::scope(|scope| {
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

#[test]
fn three_replicas_survive_two_faults() {
    let rig = rig(3);
    let sums = rig.put(AT, 300, 1);
    for i in 0..300 {
        rig.disks[i % 3].junk(AT + i as u64);
        rig.disks[(i + 1) % 3].zero(AT + i as u64);
    }
    for _ in 0..3 {
        rig.read(AT, &sums, 1);
    }
    rig.disks[0].faults(|f| f.hang = Fault::Always);
    rig.disks[1].faults(|f| f.fail_writes = Fault::Always);
    let sums = rig.put(2000, 8, 2);
    assert_eq!(rig.mirror.members().in_sync, 0b100);
    rig.read(2000, &sums, 2);
}

#[test]
fn what_a_flush_acknowledged_survives_a_power_cut_at_any_io_on_every_replica_still_in_sync() {
    for cut in 1..40 {
        let world = World::new(cut);
        let disks: Vec<_> = (0..2).map(|_| world.disk(4096)).collect();
        let mirror = mirror_of(&disks);
        world.cut_at(Some(cut));
        let mut acknowledged = 0;
        for step in 0..8u8 {
            let write = mirror.write(vec![(AT + 10 * u64::from(step), Slice::whole(content(3, step)))]);
            if write.and_then(|()| mirror.flush()).is_err() {
                break;
            }
            acknowledged = step + 1;
        }
        let members = mirror.members();
        assert!(acknowledged == 8 || world.is_cut());
        let fresh = world.revive(CrashPlan::Random);
        for slot in (0..2).filter(|slot| members.contains(*slot)) {
            for step in 0..acknowledged {
                let addr = AT + 10 * u64::from(step);
                assert!((0..3).all(|i| fresh[slot].peek(addr + i) == *content(3, step).block(i as usize)), "cut {cut}");
            }
        }
    }
}

#[test]
fn single_faults_by_chance_never_reach_the_reader() {
    for seed in 0..30 {
        let world = World::new(seed);
        let disks: Vec<_> = (0..2).map(|_| world.disk(4096)).collect();
        let mirror = mirror_of(&disks);
        let mut random = crate::disk::sim::Random::new(seed);
        let chance = 20_000;
        disks[seed as usize % 2].set_rates(crate::disk::sim::Rates {
            read_error: chance,
            write_error: chance / 40,
            flush_error: chance / 40,
            lost_write: chance,
            misdirected_write: chance,
            misdirected_read: chance,
            torn_write: chance,
            lying_flush: chance,
            bit_rot: chance,
            hang: chance / 40,
        });
        let mut held: Vec<(Addr, u8, Vec<u64>)> = Vec::new();
        for step in 0..200u64 {
            if held.is_empty() || random.chance(300_000) {
                let (addr, buf) = (512 + step * 16, content(random.range(1, 16) as usize, step as u8));
                mirror.write(vec![(addr, Slice::whole(buf.clone()))]).unwrap();
                mirror.flush().unwrap();
                held.push((addr, step as u8, sums(addr, &buf)));
            } else {
                let (addr, tag, sums) = random.pick(&held);
                let buf = mirror.read(*addr, sums).unwrap();
                assert!(*buf == *content(sums.len(), *tag), "seed {seed}");
            }
        }
        assert!(mirror.members().contains(1 - seed as usize % 2), "seed {seed}: the good one never leaves");
    }
}

#[test]
fn replicas_opened_for_reading_are_read_around_and_left_as_they_are() {
    use crate::disk::{CreateOptions, Mode, open};
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let all = |mode, create: Option<CreateOptions>| {
        let backing = |slot: usize| (name(slot), open(directories[slot].path(), mode, create).unwrap(), true);
        Mirror::new(VolumeSeed::new(Uuid([9; 16])), geometry(), vec![backing(0), backing(1)], HOUR)
    };
    let mirror = all(Mode::Write, Some(CreateOptions { blocks: 4096, replace: false }));
    let buf = content(700, 1);
    mirror.allocate(AT, 700).unwrap();
    mirror.write(vec![(AT, Slice::whole(buf.clone()))]).unwrap();
    mirror.flush().unwrap();
    mirror.check();
    assert_eq!(mirror.members().in_sync, 0b11);
    assert!(mirror.close(Duration::from_secs(60)).is_empty());
    let container = directories[0].path().join(crate::disk::file::CONTAINER);
    let harm = |at: u64| {
        use std::os::unix::fs::FileExt;
        std::fs::File::options().write(true).open(&container).unwrap().write_all_at(b"junk", at * 4096).unwrap();
    };
    harm(AT + 5);
    let sums = sums(AT, &buf);
    let mirror = all(Mode::ReadOnly, None);
    for _ in 0..2 {
        assert!(*mirror.read(AT, &sums).unwrap() == *buf);
    }
    let health = &mirror.health()[0];
    assert_eq!((health.state, health.counters.healed), (ReplicaState::InSync, 0));
    assert!(health.counters.checksum > 0);
    assert!(mirror.close(Duration::from_secs(60)).is_empty());
    let mirror = all(Mode::Write, None);
    assert_eq!(mirror.prove(0, AT, &sums, true)[5], Proof::Healed(Damage::Checksum));
    assert_eq!(mirror.prove(0, AT, &sums, false), vec![Proof::Correct; 700]);
}

#[test]
fn a_proof_asks_nothing_of_a_replica_that_is_out_and_hangs() {
    let rig = rig(2);
    let sums = rig.put(AT, 900, 3);
    rig.disks[1].faults(|f| f.hang = Fault::Always);
    rig.put(AT + 1000, 1, 4);
    assert_eq!(rig.state(1), ReplicaState::Out);
    let hanging = rig.disks[1].in_flight();
    for heal in [false, true] {
        let proofs = rig.mirror.prove(1, AT, &sums, heal);
        assert!(proofs.len() == 900 && proofs.iter().all(|p| matches!(p, Proof::Unproven(_))));
    }
    assert_eq!(rig.disks[1].in_flight(), hanging, "it was asked for more");
    rig.disks[0].zero(AT);
    let read = rig.mirror.read(AT, &sums[..1]);
    assert!(read.is_err(), "the only copy left is damaged");
    assert_eq!(rig.disks[1].in_flight(), hanging, "it was asked for more");
}

#[test]
fn a_proof_stops_asking_when_the_replica_falls_silent() {
    let rig = rig(2);
    let sums = rig.put(AT, 2500, 3);
    rig.disks[1].faults(|f| f.hang = Fault::Always);
    let proofs = rig.mirror.prove(1, AT, &sums, true);
    assert!(proofs.len() == 2500 && proofs.iter().all(|p| matches!(p, Proof::Unproven(_))));
    assert!(rig.disks[1].in_flight() <= 4, "{} requests hang", rig.disks[1].in_flight());
}

/// A disk whose medium answers ETIMEDOUT, as the kernel does for some that are broken.
struct TimedOut {
    disk: Arc<SimDisk>,
    until_written: std::sync::atomic::AtomicBool,
}

impl Backing for TimedOut {
    fn submit(&self, op: Op) -> crate::disk::Ticket {
        use std::sync::atomic::Ordering::Relaxed;
        match op {
            Op::Write { .. } => self.until_written.store(false, Relaxed),
            Op::Read { .. } | Op::ReadMedium { .. } if self.until_written.load(Relaxed) => {
                let error = std::io::Error::from_raw_os_error(libc::ETIMEDOUT);
                return crate::disk::Ticket::answered(Err(error));
            }
            _ => {}
        }
        self.disk.submit(op)
    }
    fn facts(&self) -> crate::disk::BackingFacts {
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
    let until_written = std::sync::atomic::AtomicBool::new(true);
    let second: Arc<dyn Backing> = Arc::new(TimedOut { disk: rig.disks[1].clone(), until_written });
    let replicas = vec![(name(0), rig.disks[0].clone() as Arc<dyn Backing>, true), (name(1), second, true)];
    let mirror = Mirror::new(VolumeSeed::new(Uuid([9; 16])), geometry(), replicas, HOUR);
    let proofs = mirror.prove(1, AT, &sums, true);
    assert!(matches!(proofs[..], [Proof::Healed(Damage::Unreadable(_))]), "{proofs:?}");
    assert_eq!(mirror.prove(1, AT, &sums, false), [Proof::Correct]);
}

/// Run `work` beside, and fail if it has not come to its end after a time that only a wait without end can take.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("it ends")
}

#[test]
fn a_read_that_hangs_here_and_fails_there_is_an_error() {
    let rig = rig(2);
    let sums = rig.put(AT, 1, 3);
    for (hangs, fails) in [(0, 1), (1, 0)] {
        let disks: Vec<_> = rig.disks.iter().map(|disk| disk.reopen()).collect();
        let mirror = mirror_of(&disks);
        disks[hangs].faults(|f| f.hang = Fault::Always);
        disks[fails].faults(|f| f.fail_reads = Fault::Always);
        let sums = sums.clone();
        let state = ends(move || {
            // They begin at one and at the other.
            let results = [mirror.read(AT, &sums).is_err(), mirror.read(AT, &sums).is_err()];
            (results, mirror.health()[hangs].state)
        });
        assert_eq!(state, ([true, true], ReplicaState::InSync));
        rig.disks.iter().for_each(|disk| disk.faults(|f| *f = crate::disk::sim::Faults::default()));
        disks.iter().for_each(|disk| _ = disk.release_hung());
    }
}

#[test]
fn one_that_returns_and_hangs_is_not_waited_for_when_the_others_have_failed() {
    let rig = rig(2);
    rig.mirror.set_out(1, "test");
    rig.mirror.start_returning(1, name(1), rig.disks[1].reopen());
    rig.disks[0].faults(|f| f.fail_writes = Fault::Always);
    rig.disks[1].faults(|f| f.hang = Fault::Always);
    let result = ends(move || rig.mirror.write(vec![(AT, Slice::whole(content(1, 1)))]));
    assert!(matches!(result, Err(DiskError::NoReplica(_))), "{result:?}");
}
