//! One replica more, one less, on simulated disks and on directories.
//!
//! Goal: nobody serves before it was proven and named; nobody who left is taken for a member; slots never move.
//! Method: every position and state of the one that leaves, mounts of every subset in every order, roots looked at.

use super::super::replace::tests::{disturb, lose_second, name, on_directories, small_fill, state};
use super::super::{FormatOptions, OpenOptions, format, open_store, scrub};
use super::*;
use crate::disk::sim::{CrashPlan, Fault, Image, Random, SimDisk};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{ItemKind, Key, MemberState, Root, Uuid};
use crate::store::StoreOptions;
use crate::store::recover::{OpenStore, Present, Report, examine};
use crate::store::tests::{Rig, byte_at, put, write};
use std::path::PathBuf;

fn go(_: &Progress) -> bool {
    true
}

fn attach(rig: &mut Rig, store: &Store, number: u8) -> Arc<SimDisk> {
    let disk = rig.power.disk(4096);
    let report = resync(store, Place::New, name(number), disk.clone(), &mut go).unwrap();
    assert_eq!(report.lost, 0);
    rig.disks.push(disk.clone());
    disk
}

fn three(seed: u64) -> (Rig, Store) {
    let mut rig = Rig::new(seed, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    attach(&mut rig, &store, 50);
    assert_eq!(store.mirror().members().in_sync, 0b111);
    (rig, store)
}

fn present(rig: &Rig, which: &[usize]) -> Vec<Present> {
    let one = |i: &usize| {
        let backing = rig.disks[*i].reopen();
        let found = examine(&*backing, Duration::from_secs(1)).unwrap();
        Present { path: format!("/disk/{i}"), backing: backing as Arc<dyn Backing>, found }
    };
    which.iter().map(one).collect()
}

fn open_these(rig: &Rig, which: &[usize], degraded: bool, accept_stale: bool) -> Result<(Store, Report), StoreError> {
    let options = OpenStore {
        degraded,
        deadline: Duration::from_secs(1),
        store: StoreOptions { window: 2, ..StoreOptions::default() },
        on_shrink: None,
        hold: true,
    };
    let world = Arc::new(crate::world::Seeded::new(rig.seed + 77 + which[0] as u64));
    open_store(present(rig, which), options, None, accept_stale, world, &|_| Ok(()))
}

fn states(store: &Store) -> Vec<MemberState> {
    store.durable_root().members.iter().map(|m| m.state).collect()
}

fn nothing_is_damaged(store: &Store) {
    let report = scrub::run(store, &mut go);
    assert_eq!((report.detected, report.lost, report.failed), (0, 0, 0), "{report}");
}

#[test]
fn a_third_replica_joins_under_load_and_holds_everything() {
    let mut rig = Rig::new(1, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    let disk = rig.power.disk(4096);
    let mut round = 0;
    let report = resync(&store, Place::New, name(1), disk.clone(), &mut |_| {
        round += 1;
        disturb(&store, round);
        assert_eq!(store.mirror().members().in_sync, 0b11, "not before it was proven");
        assert_eq!(store.durable_root().members.len(), 2, "no root names it before");
        assert!(examine(&*disk, Duration::from_secs(1)).is_err(), "what is cut here is no replica");
        true
    });
    let report = report.unwrap();
    assert!(report.blocks_proven > 200 && report.summary.contains("present and correct"), "{report:?}");
    assert_eq!(states(&store), [MemberState::InSync; 3]);
    disturb(&store, 2);
    let expected = state(&store);
    nothing_is_damaged(&store);
    store.commit(Force::Clean).unwrap();
    drop(store);
    rig.disks.push(disk);
    assert!(open_these(&rig, &[0, 1], false, false).is_err(), "one that is in sync is missing");
    let (store, report) = open_these(&rig, &[2, 0, 1], false, false).unwrap();
    assert!(report.behind.is_empty() && state(&store) == expected);
    drop(store);
    rig.disks[0].faults(|faults| faults.gone = true);
    rig.disks[1].faults(|faults| faults.gone = true);
    rig.disks = vec![rig.disks[2].clone()];
    let (store, _) = rig.open(true).unwrap();
    assert!(state(&store) == expected, "read back from the new replica alone");
}

#[test]
fn an_attach_that_fails_on_the_way_harms_nobody() {
    let mut rig = Rig::new(2, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    for way in 0..5 {
        let disk = rig.power.disk(4096);
        let mut round = 0;
        let error = resync(&store, Place::New, name(10 + way), disk.clone(), &mut |_| {
            round += 1;
            disturb(&store, round);
            if round == 4 {
                disk.faults(|f| match way {
                    0 => f.gone = true,
                    1 => f.fail_writes = Fault::Always,
                    2 => f.fail_flushes = Fault::Always,
                    3 => f.hang = Fault::Always,
                    _ => {}
                });
            }
            way != 4 || round < 6
        });
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("/disk/new") && text.contains("attach again"), "{text}");
        assert_eq!((store.mirror().members().in_sync, store.mirror().replicas()), (0b11, 2));
        assert_eq!(states(&store), [MemberState::InSync; 2]);
        disturb(&store, 2);
    }
    attach(&mut rig, &store, 9);
    nothing_is_damaged(&store);
}

/// The disk fails between the root that names it and the one that calls it in sync: it is no member again.
#[test]
fn one_that_fails_when_it_has_been_named_is_none_again() {
    let rig = Rig::new(3, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    let disk = rig.power.disk(4096);
    let mut armed = false;
    let version = std::cell::Cell::new(0);
    let outcome = resync(&store, Place::New, name(3), disk.clone(), &mut |progress| {
        // The flush of the labels, that of the first root, then none.
        if progress.what == "waiting for readers" || progress.what == "proving" {
            version.set(store.durable_root().version);
            if !armed && progress.done > 200 {
                armed = true;
                disk.faults(|f| f.fail_flushes = Fault::Once(3));
            }
        }
        true
    });
    let Err(error) = outcome else { panic!("it does not fail where it should") };
    assert!(error.to_string().contains("attach again"), "{error}");
    let root = store.durable_root();
    assert_eq!(store.mirror().members().in_sync, 0b11);
    assert!(root.members.iter().skip(2).all(|m| m.state == MemberState::Detached), "{:?}", root.members);
    assert!(root.version > version.get());
    put(&store, Key::new(900, ItemKind::Xattr, 0), b"goes on").unwrap();
    store.commit(Force::Always).unwrap();
    drop(store);
    assert_eq!(rig.open(false).unwrap().0.mirror().members().in_sync, 0b11);
}

/// How the one that is to be detached is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    InSync,
    Out,
    Released,
    Sent,
    Missing,
}

#[test]
fn one_is_detached_in_every_state_and_position() {
    for (seed, found) in
        [Found::InSync, Found::Out, Found::Released, Found::Sent, Found::Missing].into_iter().enumerate()
    {
        for slot in 0..3 {
            detach_case(10 + seed as u64 * 3 + slot as u64, slot, found);
        }
    }
}

fn detach_case(seed: u64, slot: usize, found: Found) {
    let context = format!("slot {slot}, {found:?}");
    let (mut rig, mut store) = three(seed);
    let others: Vec<usize> = (0..3).filter(|i| *i != slot).collect();
    let uuid = store.durable_root().members[slot].replica;
    match found {
        Found::InSync => {}
        Found::Out => store.mirror().set_out(slot, "test"),
        Found::Released => {
            store.mirror().set_out(slot, "test");
            store.declare().unwrap();
            store.mirror().release(slot);
        }
        Found::Sent => assert!(store.send_away(slot, "test", true).unwrap()),
        Found::Missing => {
            drop(store);
            store = open_these(&rig, &others, true, false).unwrap().0;
        }
    }
    put(&store, Key::new(901, ItemKind::Xattr, 0), b"before").unwrap();
    store.commit(Force::Always).unwrap();
    let before = store.durable_root();
    let (health, told) = leave(&store, slot).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(health.name.uuid, uuid, "{context}");
    let wanted = match found {
        Found::InSync | Found::Out | Found::Sent => Some(true),
        Found::Released | Found::Missing => None,
    };
    assert_eq!(told, wanted, "{context}");
    let root = store.durable_root();
    assert_eq!(root.members[slot].state, MemberState::Detached, "{context}");
    assert!(!root.members[slot].offline, "{context}");
    assert_eq!(store.mirror().members().count(), 2, "{context}");
    assert!(store.mirror().backing(slot).is_none(), "{context}");
    // The set in sync shrank, or it had before.
    assert_eq!(root.epoch().id != before.epoch().id, found == Found::InSync, "{context}");
    let written = rig.disks[slot].counters().writes;
    put(&store, Key::new(900, ItemKind::Xattr, 0), b"acknowledged").unwrap();
    store.fsync_wait(900).unwrap();
    assert_eq!(rig.disks[slot].counters().writes, written, "{context}: nothing goes to it");
    // Not closed in order: the log is replayed.
    drop(store);
    rig.crash(CrashPlan::Random);
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let (store, report) = open_these(&rig, &order, false, false).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!((store.mirror().members().count(), report.missing), (2, 0), "{context}");
        let named = report.behind.iter().find(|(path, _)| *path == format!("/disk/{slot}"));
        let why = &named.unwrap_or_else(|| panic!("{context}: {report:?}")).1;
        assert!(why.contains("was detached at root"), "{context}: {why}");
        assert_eq!(byte_at_key(&store, 900), Some(b"acknowledged".to_vec()), "{context}");
        assert_eq!(store.mirror().health()[slot].state, ReplicaState::Detached, "{context}");
        nothing_is_damaged(&store);
        store.commit(Force::Clean).unwrap();
    }
    for order in [[0, 1], [1, 0]] {
        let these = order.map(|i| others[i]);
        let (store, report) = open_these(&rig, &these, false, false).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!((store.mirror().members().count(), report.missing, report.behind.len()), (2, 0, 0), "{context}");
        store.commit(Force::Clean).unwrap();
    }
    // With one of the others it is named as well, and serves nothing.
    let (store, report) =
        open_these(&rig, &[slot, others[1]], true, false).unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!((store.mirror().members().count(), report.behind.len()), (1, 1), "{context}");
    drop(store);
    alone_is_refused(&rig, slot, told == Some(true), &context);
}

fn byte_at_key(store: &Store, ino: u64) -> Option<Vec<u8>> {
    store.get(Key::new(ino, ItemKind::Xattr, 0)).unwrap().map(|value| value.to_vec())
}

/// It says of itself that it is none, unless nobody could tell it; and shows what it held if a person insists.
fn alone_is_refused(rig: &Rig, slot: usize, told: bool, context: &str) {
    let kept: Vec<Image> = rig.disks.iter().map(|disk| disk.snapshot()).collect();
    assert!(open_these(rig, &[slot], false, false).is_err(), "{context}: alone");
    if told {
        let why = open_these(rig, &[slot], true, false).map(drop).unwrap_err().to_string();
        assert!(why.contains("was detached at root") && why.contains("accept_stale"), "{context}: {why}");
    }
    let newest = present(rig, &[slot])[0].found.roots[0].1.version;
    let (store, _) = open_these(rig, &[slot], true, true).unwrap_or_else(|e| panic!("{context}, accept_stale: {e}"));
    assert_eq!(store.mirror().members().count(), 1, "{context}");
    assert!(store.durable_root().version > newest, "{context}: no version is used twice");
    assert!(state(&store).1.len() >= 120 && byte_at_key(&store, 900).is_none(), "{context}: what it held");
    nothing_is_damaged(&store);
    store.commit(Force::Clean).unwrap();
    drop(store);
    let other = usize::from(slot == 0);
    let both = open_these(rig, &[slot, other], true, true).map(drop).unwrap_err().to_string();
    assert!(both.contains("written apart"), "{context}: {both}");
    kept.into_iter().zip(&rig.disks).for_each(|(image, disk)| disk.restore(image));
}

#[test]
fn the_last_in_sync_stays_whatever_is_beside_it() {
    let rig = Rig::new(40, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    lose_second(&rig, &store);
    let text = leave(&store, 0).map(drop).unwrap_err().to_string();
    assert!(text.contains("only replica in sync"), "{text}");
    assert_eq!((store.mirror().members().in_sync, states(&store)[0]), (1, MemberState::InSync));
    put(&store, Key::new(900, ItemKind::Xattr, 0), b"goes on").unwrap();
    store.commit(Force::Always).unwrap();
    leave(&store, 1).unwrap();
    assert!(leave(&store, 0).is_err());
    assert_eq!(states(&store), [MemberState::InSync, MemberState::Detached]);
}

/// Slots of those that left are taken again, the others' never change, and there are never more than four.
#[test]
fn gaps_are_filled_and_nobody_moves() {
    let (mut rig, store) = three(41);
    attach(&mut rig, &store, 51);
    assert_eq!(store.mirror().members().in_sync, 0b1111);
    let more = resync(&store, Place::New, name(52), rig.power.disk(4096), &mut go);
    assert!(more.unwrap_err().to_string().contains("4 replicas"));
    let uuids = |store: &Store| store.durable_root().members.iter().map(|m| m.replica).collect::<Vec<_>>();
    let before = uuids(&store);
    leave(&store, 1).unwrap();
    leave(&store, 2).unwrap();
    assert_eq!(uuids(&store), before, "who left is remembered until another one comes");
    assert_eq!(store.mirror().members().in_sync, 0b1001);
    // Replace goes on as before, with gaps beside it.
    let taken = rig.power.disk(4096);
    resync(&store, Place::Taken(3), name(53), taken.clone(), &mut go).unwrap();
    assert_eq!(store.mirror().replicas(), 4);
    attach(&mut rig, &store, 54);
    assert_eq!(store.mirror().members().in_sync, 0b1011);
    let now = uuids(&store);
    assert_eq!(now, [before[0], Uuid([54; 16]), before[2], Uuid([53; 16])]);
    store.mirror().set_out(0, "test");
    disturb(&store, 1);
    nothing_is_damaged(&store);
    let expected = state(&store);
    store.commit(Force::Clean).unwrap();
    drop(store);
    // Former ones, members and one that is out, all given.
    rig.disks.push(taken);
    let all: Vec<usize> = (0..rig.disks.len()).rev().collect();
    let (store, report) = open_these(&rig, &all, false, false).unwrap();
    assert_eq!(store.mirror().members().in_sync, 0b1010);
    assert_eq!((report.missing, report.behind.len()), (0, 4), "{report:?}");
    assert!(state(&store) == expected);
    nothing_is_damaged(&store);
}

/// The root that calls the new one in sync, or the one that names it, reached it alone when the power failed, and it is absent
/// at the next mount: what is acknowledged then counts, in whatever order all are given later.
#[test]
fn a_root_that_only_the_new_one_got_is_no_second_history() {
    for turned in [false, true] {
        let (mut rig, store) = three(42);
        let joined = store.durable_root();
        let (slot, _) = store.newest_root();
        drop(store);
        rig.disks = rig.disks.iter().map(|disk| disk.reopen()).collect();
        assert!(rig.disks[0].stale(Root::addr(slot)) && rig.disks[1].stale(Root::addr(slot)));
        let (store, report) = open_these(&rig, &[0, 1], false, false).unwrap();
        assert_eq!((report.version + 1, report.missing), (joined.version, 0), "the root before calls it returning");
        put(&store, Key::new(900, ItemKind::Xattr, 0), b"acknowledged").unwrap();
        store.fsync_wait(900).unwrap();
        drop(store);
        let order: &[usize] = if turned { &[2, 1, 0] } else { &[0, 1, 2] };
        let (store, report) = open_these(&rig, order, false, false).unwrap_or_else(|e| panic!("turned: {turned}: {e}"));
        assert!(byte_at_key(&store, 900).is_some(), "turned: {turned}");
        assert_eq!(report.behind.len(), 1, "turned: {turned}: the new one is behind");
        assert_eq!(store.mirror().members().in_sync, 0b11);
    }
}

/// A replica that is on its way never has a root that those in sync lack: it might be absent next time, and they go on with
/// another root of that version.
#[test]
fn roots_reach_those_in_sync_first() {
    let newest = |image: &Image, label: &crate::format::Label| {
        let root =
            |slot: usize| Root::decode(&image.get(&Root::addr(slot))?[..], slot, label.volume, &label.geometry).ok();
        (0..ROOT_SLOTS).filter_map(root).map(|root| root.version).max().unwrap_or(0)
    };
    let mut cuts = 0;
    for cut in 1.. {
        let rig = Rig::new(43, 2);
        let (store, _) = rig.open(false).unwrap();
        write(&store, 20, 0, 4, 1).unwrap();
        store.commit(Force::Always).unwrap();
        let new = rig.power.disk(4096);
        store.mirror().attach(name(43), new.clone());
        write(&store, 20, 2, 4, 2).unwrap();
        rig.power.cut_at(Some(rig.power.io_count() + cut));
        let done = store.commit(Force::Always);
        // What no flush covered survives on the new one only.
        let drop_all = |disk: &Arc<SimDisk>| disk.crash_image(CrashPlan::DropAll, &mut Random::new(1));
        let theirs = rig.disks.iter().map(|disk| newest(&drop_all(disk), store.label())).max().unwrap();
        let own = newest(&new.crash_image(CrashPlan::KeepAll, &mut Random::new(1)), store.label());
        assert!(own <= theirs, "cut {cut}: root {own} is on the new one only, the others have {theirs}");
        cuts += 1;
        if done.is_ok() {
            break;
        }
    }
    assert!(cuts > 10, "{cuts}");
}

fn refusal<T: std::fmt::Debug>(result: Result<T, StoreError>, part: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(part) && !text.contains('\n'), "{text}");
}

fn directory(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn directories_come_and_go() {
    let root = tempfile::tempdir().unwrap();
    crate::volume::witness::SCRATCH.set(Some(root.path().join("state")));
    let (mut paths, volume) = on_directories(root.path());
    let expected = state(&volume.store);
    let at = |name: &str| directory(root.path(), name);
    let (c, d, e) = (at("c"), at("d"), at("e"));
    refusal(volume.attach(&paths[1], false, &mut go), "is replica 1 of this volume already");
    refusal(volume.attach(&root.path().join("nowhere"), false, &mut go), "no such file");
    // Foreign data, and another volume's replica.
    std::fs::write(c.join("mine.txt"), b"foreign").unwrap();
    refusal(volume.attach(&c, false, &mut go), "--force");
    assert_eq!(std::fs::read(c.join("mine.txt")).unwrap(), b"foreign");
    let make = FormatOptions { size_bytes: Some(32 << 20), label: String::new(), force: false, uid: 0, gid: 0 };
    format(&[d.clone(), e.clone()], &make).unwrap();
    refusal(volume.attach(&d, false, &mut go), "another volume");
    let report = volume.attach(&d, true, &mut go).unwrap();
    assert!(report.blocks_copied > 100 && report.lost == 0, "{report:?}");
    volume.attach(&c, true, &mut go).unwrap();
    assert_eq!(volume.mirror.members().count(), 4);
    refusal(volume.attach(&e, true, &mut go), "4 replicas");
    // By path, and by number.
    let gone = volume.detach(paths[1].to_str().unwrap()).unwrap();
    assert!(gone.told && gone.in_sync == 3 && gone.summary.contains("held on 3 replicas"), "{gone:?}");
    refusal(volume.detach("1"), "no replica");
    refusal(volume.offline("1", false), "no replica");
    let status = volume.status();
    assert_eq!((status.replicas.len(), status.state.as_str()), (3, "healthy"), "{status:?}");
    assert_eq!(volume.status().replicas.iter().map(|r| r.slot).collect::<Vec<_>>(), [0, 2, 3]);
    // It may come back as a new one, without a word: what was on it is past.
    volume.attach(&paths[1], false, &mut go).unwrap();
    // One that was sent away is told at its place.
    volume.offline("2", false).unwrap();
    let gone = volume.detach(d.to_str().unwrap()).unwrap();
    assert!(gone.told && gone.detached == d.display().to_string(), "{gone:?}");
    assert!(gone.mount.contains(c.to_str().unwrap()) && !gone.mount.contains(d.to_str().unwrap()), "{gone:?}");
    assert!(state(&volume.store) == expected);
    volume.close().unwrap();
    paths.push(c);
    let degraded = OpenOptions { degraded: true, ..OpenOptions::default() };
    refusal(Volume::open(std::slice::from_ref(&d), &degraded).map(drop), "was detached at root");
    let all = [&paths[..], &[d]].concat();
    let volume = Volume::open(&all, &OpenOptions::default()).unwrap();
    assert_eq!((volume.mirror.members().in_sync, volume.report.behind.len()), (0b1011, 1), "{:?}", volume.report);
    assert!(state(&volume.store) == expected);
    nothing_is_damaged(&volume.store);
    // To one, and back to two.
    volume.detach("0").unwrap();
    volume.detach("3").unwrap();
    assert_eq!(volume.status().state, "degraded", "held once");
    refusal(volume.detach("1"), "only replica in sync");
    volume.close().unwrap();
    let volume = Volume::open(&paths[1..2], &OpenOptions::default()).unwrap();
    volume.attach(&e, true, &mut go).unwrap();
    assert_eq!(volume.status().state, "healthy");
    assert!(state(&volume.store) == expected);
    volume.close().unwrap();
}

/// What a killed attach left at the place is taken up by the next one without a word; and is no replica before.
#[test]
fn an_attach_that_was_killed_is_begun_again() {
    let root = tempfile::tempdir().unwrap();
    let (paths, volume) = on_directories(root.path());
    let c = directory(root.path(), "c");
    let mut steps = 0;
    refusal(
        volume.attach(&c, false, &mut |_| {
            steps += 1;
            steps < 4
        }),
        "attach again",
    );
    assert!(c.join("stablefs.data").metadata().unwrap().len() > 0, "something was there");
    volume.close().unwrap();
    refusal(
        Volume::open(std::slice::from_ref(&c), &OpenOptions { degraded: true, ..OpenOptions::default() }).map(drop),
        "label",
    );
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    assert_eq!(volume.store.durable_root().members.len(), 2);
    volume.attach(&c, false, &mut go).unwrap();
    nothing_is_damaged(&volume.store);
    volume.close().unwrap();
}

/// Written alone after it was detached: whoever attaches it is told.
#[test]
fn one_that_was_written_apart_is_not_attached_without_a_word() {
    let root = tempfile::tempdir().unwrap();
    crate::volume::witness::SCRATCH.set(Some(root.path().join("state")));
    let (paths, volume) = on_directories(root.path());
    volume.detach("1").unwrap();
    volume.close().unwrap();
    let anyway = OpenOptions { degraded: true, accept_stale: true, ..OpenOptions::default() };
    let apart = Volume::open(&paths[1..], &anyway).unwrap();
    write(&apart.store, 20, 0, 1, 99).unwrap();
    apart.close().unwrap();
    // This host has seen two histories now, and knows which came last.
    refusal(Volume::open(&paths[..1], &OpenOptions::default()).map(drop), "left behind");
    let volume = Volume::open(&paths[..1], &anyway).unwrap();
    refusal(volume.attach(&paths[1], false, &mut go), "written apart");
    volume.attach(&paths[1], true, &mut go).unwrap();
    assert_ne!(byte_at(&volume.store, 20, 0), 99);
    volume.close().unwrap();
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    assert_eq!(volume.mirror.members().count(), 2);
    volume.close().unwrap();
}

#[test]
fn a_root_that_names_nobody_is_no_root() {
    let mut root = crate::format::root::tests::sample();
    root.members.iter_mut().for_each(|m| m.state = MemberState::Detached);
    let geometry = crate::format::Geometry::new(16384, 32000, 256).unwrap();
    assert!(Root::decode(&root.encode(3), 3, root.volume, &geometry).is_err());
    root.members[0].state = MemberState::InSync;
    assert_eq!(Root::decode(&root.encode(3), 3, root.volume, &geometry), Ok(root));
}
