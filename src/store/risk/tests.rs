//! The count of what is missed against a walk that looks at everything.

use super::*;
use crate::format::root::tests::sample;
use crate::format::{Addr, ItemKind, Key};
use crate::store::StoreError;
use crate::store::commit::Force;
use crate::store::tests::{Rig, put, write};
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Need, Store};
use std::ops::ControlFlow;

/// Blocks of nodes, data and dead lists that a walk shows.
#[derive(Default)]
struct Shown(u64);

impl Sink for Shown {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        let counted = pieces.iter().filter(|piece| !matches!(piece.part, Part::Bitmap | Part::SpaceNode));
        self.0 += counted.map(|piece| piece.sums.len() as u64).sum::<u64>();
        ControlFlow::Continue(())
    }
    fn unreadable(&mut self, part: Part, addr: Addr, _: u64, error: &StoreError) {
        panic!("{part:?} at {addr}: {error}");
    }
    fn pause(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[track_caller]
fn is_exact(store: &Store) -> u64 {
    let root = store.durable_root();
    let mut shown = Shown::default();
    assert!(store.walk_since(root.members[1].synced_txg, &mut shown).is_continue());
    assert_eq!(root.members[1].missed, Some(shown.0), "after group {}", root.txg);
    shown.0
}

fn disturb(store: &Store, round: u64) {
    write(store, 20 + round % 6, round * 11 % 60, 1 + round % 5, round as u8).unwrap();
    put(store, Key::new(100 + round * 7 % 130, ItemKind::Xattr, 0), &[round as u8; 900]).unwrap();
    match round % 4 {
        0 => store.fsync_wait(20 + round % 6).unwrap(),
        1 => {
            let mut change = store.begin(Need { items: 1, may_use_reserve: true, ..Need::default() }).unwrap();
            change.punch(20 + round * 3 % 6, round % 30, round % 30 + 9);
            change.commit();
        }
        _ => {}
    }
}

/// Goal: while a replica is away the count is what a walk finds, group by group, also after a power cut and a replay.
#[test]
fn the_count_is_what_a_walk_finds() {
    let rig = Rig::new(11, 2);
    let (store, _) = rig.open(false).unwrap();
    (0..80).for_each(|round| disturb(&store, round));
    store.commit(Force::Always).unwrap();
    assert_eq!(store.durable_root().members[1].missed, None, "nobody is away");
    assert_eq!(store.durable_root().at_risk_since_ns, 0);
    rig.disks[1].faults(|faults| faults.gone = true);
    let mut most = 0;
    for round in 80..200 {
        disturb(&store, round);
        if round % 3 == 0 {
            store.commit(Force::Always).unwrap();
            most = most.max(is_exact(&store));
        }
    }
    assert!(most > 60, "{most} blocks: nothing much was counted");
    let since = store.durable_root().at_risk_since_ns;
    assert!(since > 0 && since == store.durable_root().members[1].since_ns);
    disturb(&store, 200);
    drop(store);
    let (store, report) = rig.open(true).unwrap();
    assert!(report.replayed > 0, "the log is part of it");
    is_exact(&store);
    assert_eq!(store.durable_root().at_risk_since_ns, since, "a mount does not begin it anew");
    assert_eq!(store.named_root().members, store.durable_root().members);
    disturb(&store, 201);
    store.commit(Force::Always).unwrap();
    is_exact(&store);
}

#[test]
fn what_is_not_known_stays_so_and_nothing_goes_below_zero() {
    let mut root = sample();
    root.members[0].state = MemberState::Out;
    root.members[1].state = MemberState::Returning;
    (root.members[1].synced_txg, root.members[1].missed) = (5, Some(4));
    let freed = vec![Run { addr: 100, blocks: 30, birth: 6 }, Run { addr: 200, blocks: 7, birth: 5 }];
    let grown = Grown::new(&[Span { addr: 900, blocks: 3 }], freed);
    assert_eq!(grown.count(&mut root, 7, 1000), 3, "what was born in group 6 was on it");
    assert_eq!((root.members[0].missed, root.members[1].missed), (None, Some(0)));
    Grown::new(&[Span { addr: 900, blocks: 3 }], Vec::new()).count(&mut root, 7, 2);
    assert_eq!(root.members[1].missed, Some(2), "more than there is cannot be missed");
}

#[test]
fn one_that_follows_misses_what_was_made_since() {
    let mut member = sample().members[0];
    (member.state, member.synced_txg, member.missed) = (MemberState::Out, 5, Some(40));
    let made: VecDeque<(Txg, u64)> = [(7, 10), (8, 3), (9, 4)].into();
    holds(&mut member, 7, &made);
    assert_eq!((member.synced_txg, member.missed), (7, Some(7)));
    holds(&mut member, 8, &VecDeque::new());
    assert_eq!(member.missed, Some(7), "no more than before");
    holds(&mut member, 5, &made);
    assert_eq!(member.missed, None, "of group 6 nothing is known");
    holds(&mut member, 9, &made);
    assert_eq!(member.missed, Some(0));
}

#[test]
fn the_time_at_risk_begins_once_and_ends_when_all_are_in_sync() {
    let mut root = sample();
    note_since(&mut root);
    assert_eq!(root.at_risk_since_ns, 0);
    (root.members[1].state, root.members[1].since_ns) = (MemberState::Out, 70);
    note_since(&mut root);
    (root.members[1].state, root.members[1].since_ns) = (MemberState::Returning, 90);
    note_since(&mut root);
    assert_eq!(root.at_risk_since_ns, 70, "on its way back it is at risk still");
    root.members[1].state = MemberState::InSync;
    note_since(&mut root);
    assert_eq!(root.at_risk_since_ns, 0);
}
