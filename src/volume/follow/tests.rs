//! Following on simulated disks: what is sent, what stands there after a cut at any write, who is refused.

use super::*;
use crate::disk::sim::{CrashPlan, Fault, SimDisk};
use crate::format::MemberState;
use crate::store::recover::{OpenStore, Present, examine};
use crate::store::tests::{Rig, byte_at, write};
use crate::store::{Store, StoreOptions};
use crate::volume::replace::back::bring_back;
use crate::volume::scrub;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A store whose second disk is warm.
fn warm(rig: &Rig) -> Store {
    let (store, _) = rig.open(false).unwrap();
    for ino in 100..140 {
        write(&store, ino, 0, 8, 1).unwrap();
    }
    store.commit(Force::Always).unwrap();
    assert!(store.set_role(1, Role::Warm).unwrap());
    store.mirror().release(1);
    store
}

fn change(store: &Store, byte: u8) {
    for ino in 100..110 {
        write(store, ino, u64::from(byte) % 8, 1, byte).unwrap();
    }
    store.commit(Force::Always).unwrap();
}

fn follow_now(
    store: &Store,
    disk: &Arc<SimDisk>,
    last: Option<Followed>,
) -> Result<(FollowReport, Followed), StoreError> {
    let backing = disk.reopen();
    let found = examine(&*backing, SECOND).unwrap();
    let done = follow(store, 1, ("/disk/1", &*backing, &found), last, &mut |_| true);
    backing.close();
    done
}

/// The disk alone, as somebody sees it who has lost all others.
fn alone(rig: &Rig, disk: &Arc<SimDisk>) -> Store {
    let backing = disk.reopen();
    let found = examine(&*backing, SECOND).unwrap();
    let present = vec![Present { path: "/disk/1".into(), backing, found }];
    let store = StoreOptions { read_only: true, ..StoreOptions::default() };
    let options = OpenStore { degraded: true, deadline: SECOND, store, on_shrink: None, hold: false };
    let world = Arc::new(crate::world::Seeded::new(rig.seed + 9));
    crate::store::recover::open_or_follower(present, options, world, true).unwrap().0
}

/// Every byte of the ten files that change, and of one that does not.
fn content(store: &Store) -> Vec<u8> {
    (100..111)
        .flat_map(|ino| (0..8).map(move |block| (ino, block)))
        .map(|(ino, block)| byte_at(store, ino, block))
        .collect()
}

#[test]
fn it_holds_the_whole_state_and_is_sent_what_changed() {
    let rig = Rig::new(1, 2);
    let store = warm(&rig);
    change(&store, 2);
    let (first, last) = follow_now(&store, &rig.disks[1], None).unwrap();
    assert!(first.since_group > 0 && first.lost == 0, "{first:?}");
    assert_eq!(content(&alone(&rig, &rig.disks[1])), content(&store));
    change(&store, 3);
    assert_ne!(content(&alone(&rig, &rig.disks[1])), content(&store), "nobody waits for it");
    let (second, last) = follow_now(&store, &rig.disks[1], Some(last)).unwrap();
    assert_eq!(second.since_group, first.group);
    assert!(second.blocks_copied < 120, "40 files of 8 blocks lie there: {second:?}");
    assert_eq!(content(&alone(&rig, &rig.disks[1])), content(&store));
    let (idle, _) = follow_now(&store, &rig.disks[1], Some(last)).unwrap();
    assert_eq!(idle.blocks_copied, 0, "nothing has changed");
    let root = store.durable_root();
    assert_eq!((root.members[1].state, root.members[1].role), (MemberState::Out, Role::Warm));
    assert_eq!(root.members[1].synced_txg, last.txg);
}

#[test]
fn one_that_becomes_hot_is_sent_what_it_has_not() {
    let rig = Rig::new(2, 2);
    let store = warm(&rig);
    change(&store, 2);
    follow_now(&store, &rig.disks[1], None).unwrap();
    change(&store, 3);
    assert!(store.set_role(1, Role::Hot).unwrap());
    let backing = rig.disks[1].reopen();
    let found = examine(&*backing, SECOND).unwrap();
    let report = bring_back(&store, 1, "/disk/1".into(), backing, &found, &mut |_| true).unwrap();
    assert!(report.since_group > 0 && report.lost == 0 && report.blocks_missed < 240, "{report:?}");
    let scrubbed = scrub::run(&store, &mut |_| true);
    assert_eq!((scrubbed.detected, scrubbed.lost), (0, 0), "{scrubbed}");
    assert_eq!(store.mirror().members().in_sync, 0b11);
}

#[test]
fn cut_at_any_write_it_holds_the_old_state_or_the_new_one() {
    let (mut old_seen, mut new_seen) = (0, 0);
    for cut in 0.. {
        let mut rig = Rig::new(3, 2);
        let store = warm(&rig);
        change(&store, 2);
        let (_, last) = follow_now(&store, &rig.disks[1], None).unwrap();
        let old = content(&store);
        change(&store, 3);
        change(&store, 4);
        let new = content(&store);
        rig.power.cut_at(Some(rig.power.io_count() + cut));
        let whole = follow_now(&store, &rig.disks[1], Some(last)).is_ok() && !rig.power.is_cut();
        drop(store);
        rig.crash(if cut % 2 == 0 { CrashPlan::DropAll } else { CrashPlan::Random });
        let is = content(&alone(&rig, &rig.disks[1]));
        assert!(is == old || is == new, "after a cut at write {cut}");
        old_seen += usize::from(is == old);
        new_seen += usize::from(is == new);
        if whole {
            break;
        }
    }
    assert!(old_seen > 5 && new_seen > 0, "{old_seen} old, {new_seen} new");
}

#[test]
fn what_was_written_apart_does_not_follow() {
    let rig = Rig::new(4, 2);
    let store = warm(&rig);
    follow_now(&store, &rig.disks[1], None).unwrap();
    let backing = rig.disks[1].reopen();
    let found = examine(&*backing, SECOND).unwrap();
    let options =
        OpenStore { degraded: true, deadline: SECOND, store: StoreOptions::default(), on_shrink: None, hold: false };
    let world = Arc::new(crate::world::Seeded::new(77));
    let present = vec![Present { path: "/disk/1".into(), backing, found }];
    let (other, _) = crate::store::recover::open_or_follower(present, options, world, true).unwrap();
    change(&other, 9);
    drop(other);
    change(&store, 5);
    let content = |disk: &SimDisk| disk.addresses().into_iter().map(|addr| disk.peek(addr)).collect::<Vec<_>>();
    let before = content(&rig.disks[1]);
    let refused = follow_now(&store, &rig.disks[1], None);
    assert!(refused.is_err_and(|why| why.to_string().contains("written apart")));
    assert!(before == content(&rig.disks[1]), "nothing on it is changed");
}

#[test]
fn a_disk_that_loses_a_write_keeps_its_last_root() {
    let rig = Rig::new(5, 2);
    let store = warm(&rig);
    change(&store, 2);
    let (_, last) = follow_now(&store, &rig.disks[1], None).unwrap();
    let old = content(&store);
    change(&store, 3);
    rig.disks[1].faults(|faults| faults.lost_writes = Fault::Always);
    assert!(follow_now(&store, &rig.disks[1], Some(last)).is_err());
    rig.disks[1].relieve(true);
    assert_eq!(content(&alone(&rig, &rig.disks[1])), old);
    assert_eq!(store.durable_root().members[1].synced_txg, last.txg);
}

#[test]
fn a_disk_that_hangs_holds_commits_for_no_longer_than_they_may() {
    let rig = Rig::new(6, 2);
    let store = warm(&rig);
    change(&store, 2);
    let backing = rig.disks[1].reopen();
    let found = examine(&*backing, SECOND).unwrap();
    rig.disks[1].faults(|faults| faults.hang = Fault::Always);
    let outcome = follow(&store, 1, ("/disk/1", &*backing, &found), None, &mut |_| true);
    assert!(outcome.is_err_and(|why| why.to_string().contains("does not answer")));
    change(&store, 3);
    assert_eq!(store.mirror().members().in_sync, 0b01);
}

#[test]
fn the_last_one_in_sync_stays_hot() {
    let rig = Rig::new(7, 2);
    let store = warm(&rig);
    assert!(!store.set_role(0, Role::Cold).unwrap());
    assert_eq!(store.durable_root().members[0].role, Role::Hot);
}

#[test]
fn an_old_copy_is_believed_no_more_than_it_holds() {
    // SEMANTICS: ROLE-2, ROLE-3
    for followed_before in [false, true] {
        let rig = Rig::new(8, 2);
        let store = warm(&rig);
        if followed_before {
            change(&store, 2);
            follow_now(&store, &rig.disks[1], None).unwrap();
        }
        let old = rig.disks[1].snapshot();
        for byte in 3..6 {
            change(&store, byte);
            follow_now(&store, &rig.disks[1], None).unwrap();
        }
        rig.disks[1].restore(old.clone());
        follow_now(&store, &rig.disks[1], None).unwrap();
        assert_eq!(content(&alone(&rig, &rig.disks[1])), content(&store), "followed before: {followed_before}");
        change(&store, 7);
        follow_now(&store, &rig.disks[1], None).unwrap();
        rig.disks[1].restore(old);
        assert!(store.set_role(1, Role::Hot).unwrap());
        let backing = rig.disks[1].reopen();
        let found = examine(&*backing, SECOND).unwrap();
        bring_back(&store, 1, "/disk/1".into(), backing, &found, &mut |_| true).unwrap();
        let scrubbed = scrub::run(&store, &mut |_| true);
        assert_eq!((scrubbed.detected, scrubbed.lost), (0, 0), "followed before: {followed_before}: {scrubbed}");
    }
}
