//! The deadline: a replica that does not answer is timed out if another one answered, and only then.
//!
//! Goal: one that hangs costs nobody anything, and while all hang everybody waits. Method: disks hang at a request until
//! the test lets them go; one test waits by the clock.

use super::*;
use crate::disk::Done;
use crate::disk::backing::{Answer, request};
use crate::disk::sim::Faults;

fn assert_unproven(proofs: &[Proof], count: usize) {
    assert_eq!(proofs.len(), count);
    assert!(proofs.iter().all(|proof| matches!(proof, Proof::Unproven(_))), "{proofs:?}");
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
    assert_unproven(&proofs, 4);
    assert_eq!((rig.mirror.members().in_sync, rig.counters(1).omissions()), (0b01, 0));
}

/// Run `work` on another thread; `meanwhile` runs once all disks hang.
fn hung(rig: &Rig, work: impl FnOnce(&Rig) + Send, meanwhile: impl FnOnce(&Rig)) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(rig));
        while rig.disks.iter().any(|disk| disk.in_flight() == 0) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(5));
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
    held: Mutex<Vec<(Op, Answer)>>,
}

impl Backing for Silent {
    fn submit(&self, op: Op) -> Ticket {
        let (ticket, answer) = request();
        self.held.lock().push((op, answer));
        ticket
    }
    fn facts(&self) -> BackingFacts {
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
    let write = || blocks(AT, 1, 1);
    let replicas: Vec<(_, Arc<dyn Backing>, _)> = vec![(name(0), quiet, true), (name(1), world.disk(4096), true)];
    let mirror = mirror_over(replicas, Duration::from_millis(20));
    mirror.write(write()).unwrap();
    assert_eq!((mirror.members().in_sync, mirror.health()[0].in_flight), (0b10, 1));
    // All silent for many deadlines: nobody misses.
    let replicas: Vec<(_, Arc<dyn Backing>, _)> = vec![(name(0), other.clone(), true)];
    let mirror = mirror_over(replicas, Duration::from_millis(1));
    thread::scope(|scope| {
        let worker = scope.spawn(|| mirror.write(write()));
        thread::sleep(Duration::from_millis(30));
        assert!(!worker.is_finished());
        other.held.lock().pop().unwrap().1.give(Ok(Done::Nothing));
        worker.join().unwrap().unwrap();
    });
    assert_eq!(mirror.members().in_sync, 1);
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
        assert_unproven(&proofs, 900);
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
    assert_unproven(&proofs, 2500);
    assert!(rig.disks[1].in_flight() <= 4, "{} requests hang", rig.disks[1].in_flight());
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
        rig.disks.iter().for_each(|disk| disk.faults(|f| *f = Faults::default()));
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
    let result = ends(move || rig.mirror.write(blocks(AT, 1, 1)));
    assert!(matches!(result, Err(DiskError::NoReplica(_))), "{result:?}");
}
