//! What the mirror tells of what happened.
//!
//! Goal: each change of state is told once, with its cause and the file that was read, and telling holds nobody up.
//! Method: replicas are made to fail by hand; the queue is read when it is over.

use super::*;

fn told(rig: &Rig) -> Vec<Happened> {
    let (events, dropped) = rig.mirror.listen(Duration::ZERO);
    assert_eq!(dropped, 0);
    events
}

fn moves(events: &[Happened]) -> Vec<(usize, Option<ReplicaState>, Option<ReplicaState>)> {
    let states = events.iter().filter(|one| one.what == What::State);
    states.map(|one| (one.replica.as_ref().unwrap().0, one.from, one.to)).collect()
}

#[test]
fn every_way_of_a_replica_is_told() {
    use ReplicaState::{InSync, Out, Returning};
    let rig = rig(2);
    assert!(told(&rig).is_empty(), "nothing has happened");
    rig.disks[1].faults(|f| f.gone = true);
    rig.put(AT, 4, 1);
    let events = told(&rig);
    assert_eq!(moves(&events), [(1, Some(InSync), Some(Out))]);
    assert!(events[0].cause.contains("a write failed"), "{}", events[0].cause);
    assert_eq!(events[0].replica.as_ref().unwrap().1.path, "/disk/1");
    rig.mirror.set_out(1, "again");
    assert!(told(&rig).is_empty(), "it was out already");
    rig.mirror.start_returning(1, name(1), rig.world.disk(4096));
    rig.mirror.join(1);
    assert_eq!(moves(&told(&rig)), [(1, Some(Out), Some(Returning)), (1, Some(Returning), Some(InSync))]);
    // Another one in its place, by the slot and beside it.
    rig.mirror.set_out(1, "worn");
    rig.mirror.start_returning(1, name(5), rig.world.disk(4096));
    rig.mirror.join(1);
    let events = told(&rig);
    assert_eq!(
        moves(&events),
        [
            (1, Some(InSync), Some(Out)),
            (1, Some(Out), None),
            (1, None, Some(Returning)),
            (1, Some(Returning), Some(InSync))
        ]
    );
    assert_eq!(events[1].replica.as_ref().unwrap().1.uuid, name(1).uuid);
    assert_eq!(events[2].replica.as_ref().unwrap().1.uuid, name(5).uuid);
    let slot = rig.mirror.attach(name(6), rig.world.disk(4096));
    assert!(rig.mirror.take_over(slot, 0).is_some());
    let slot = rig.mirror.attach(name(7), rig.world.disk(4096));
    assert!(rig.mirror.detach(slot));
    assert_eq!(
        moves(&told(&rig)),
        [
            (2, None, Some(Returning)),
            (0, Some(InSync), None),
            (0, Some(Returning), Some(InSync)),
            (2, None, Some(Returning)),
            (2, Some(Returning), None)
        ]
    );
    assert!(rig.mirror.health().iter().all(|one| one.state == InSync));
}

#[test]
fn the_first_omission_and_the_file_are_told_once() {
    let rig = rig(2);
    let sums = rig.put(AT, 8, 1);
    for block in [2, 5] {
        rig.disks[1].rot(AT + block, 1);
        for _ in 0..2 {
            rig.mirror.read_for(AT, &sums, 77).unwrap();
        }
    }
    let events = told(&rig);
    assert_eq!(events.len(), 1, "{events:?}");
    let first = &events[0];
    assert_eq!((first.what, first.owner, first.addr), (What::Omission, 77, AT + 2));
    assert_eq!(first.replica.as_ref().unwrap().0, 1);
    // A replica that cannot take its repair goes out, and the file is known.
    rig.disks[0].rot(AT + 1, 1);
    rig.disks[0].faults(|f| f.read_only = true);
    for _ in 0..2 {
        rig.mirror.read_for(AT, &sums, 78).unwrap();
    }
    let events = told(&rig);
    assert_eq!(
        events.iter().map(|one| (one.what, one.owner)).collect::<Vec<_>>(),
        [(What::Omission, 78), (What::State, 78)]
    );
}

#[test]
fn a_lost_block_is_told_once_and_a_failed_volume_too() {
    let rig = rig(2);
    let sums = rig.put(AT, 4, 1);
    rig.disks.iter().for_each(|disk| disk.rot(AT + 2, 1));
    for _ in 0..5 {
        assert!(rig.mirror.read_for(AT, &sums, 9).is_err());
    }
    let events = told(&rig);
    assert_eq!(events.iter().map(|one| (one.what, one.addr, one.owner)).collect::<Vec<_>>(), [(What::Lost, AT + 2, 9)]);
    rig.disks.iter().for_each(|disk| disk.faults(|f| f.gone = true));
    for _ in 0..3 {
        assert!(rig.mirror.write(blocks(AT, 1, 2)).is_err());
    }
    let told: Vec<What> = told(&rig).iter().map(|one| one.what).collect();
    assert_eq!(told, [What::Failed]);
}

#[test]
fn what_nobody_listens_to_is_bounded_and_the_newest_stays() {
    let rig = rig(2);
    for _ in 0..WAITING_MAX {
        rig.mirror.set_out(1, "flapping");
        rig.mirror.start_returning(1, name(1), rig.world.disk(4096));
    }
    rig.mirror.set_out(1, "the last");
    let (events, dropped) = rig.mirror.listen(Duration::ZERO);
    assert_eq!((events.len(), dropped), (WAITING_MAX, WAITING_MAX as u64 + 1));
    assert_eq!(events.last().unwrap().cause, "the last");
    // Woken before it listens, it does not wait.
    rig.mirror.wake_listener();
    assert!(rig.mirror.listen(HOUR).0.is_empty());
}
