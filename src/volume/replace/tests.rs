//! Replace on simulated disks: whatever happens on the way, nothing is lost that was not lost before.

use super::super::scrub::{self, tests::census};
use super::super::{FormatOptions, OpenOptions, Volume, format};
use super::*;
use crate::disk::sim::{CrashPlan, Fault, SimDisk};
use crate::format::{ItemKind, Key, Uuid};
use crate::store::tests::{Rig, put, write};
use crate::store::{Need, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(in crate::volume) type State = (BTreeMap<(u64, u64), u8>, Vec<(Key, Value)>);

pub(in crate::volume) fn small_fill(store: &Store) {
    for i in 0..120 {
        put(store, Key::new(100 + i, ItemKind::Xattr, 0), &[i as u8; 1500]).unwrap();
    }
    for ino in 20..24 {
        for block in 0..40 {
            write(store, ino, if ino % 2 == 0 { block } else { block * 7 % 40 }, 1, (ino + block) as u8).unwrap();
        }
        store.commit(Force::IfChanged).unwrap();
    }
    let mut transaction = store.begin(Need { items: 1, may_use_reserve: true, ..Need::default() }).unwrap();
    transaction.punch(22, 10, 20);
    transaction.commit();
    store.commit(Force::IfChanged).unwrap();
}

/// Everything in the volume.
pub(in crate::volume) fn state(store: &Store) -> State {
    let mut blocks = BTreeMap::new();
    for ino in 20..50 {
        let mut at = 0;
        while let Some(block) = store.next_data(ino, at).unwrap() {
            let mut out = [0; BLOCK];
            store.read_file(ino, block * BLOCK as u64, &mut out).unwrap();
            blocks.insert((ino, block), out[7]);
            at = block + 1;
        }
    }
    let items = store.scan(Key::new(60, ItemKind::Inode, 0), Key::new(2000, ItemKind::Inode, 0), 10_000).unwrap();
    (blocks, items)
}

pub(in crate::volume) fn name(number: u8) -> ReplicaName {
    ReplicaName { uuid: Uuid([number; 16]), path: format!("/disk/new{number}") }
}

/// Work that goes on beside a resync: overwrites in the middle of extents, frees, fsyncs, commits.
pub(in crate::volume) fn disturb(store: &Store, round: u64) {
    let ino = 20 + round % 6;
    write(store, ino, round * 11 % 40, 1 + round % 5, round as u8).unwrap();
    put(store, Key::new(100 + round * 7 % 130, ItemKind::Xattr, 0), &[round as u8; 900]).unwrap();
    match round % 5 {
        0 => store.fsync_wait(ino).unwrap(),
        1 => {
            let mut transaction = store.begin(Need { items: 1, may_use_reserve: true, ..Need::default() }).unwrap();
            transaction.punch(20 + round * 3 % 6, round % 30, round % 30 + 4);
            transaction.commit();
        }
        _ => store.commit(Force::Always).unwrap(),
    }
}

pub(in crate::volume) fn lose_second(rig: &Rig, store: &Store) {
    rig.disks[1].faults(|f| f.gone = true);
    write(store, 25, 0, 1, 1).unwrap();
    store.commit(Force::Always).unwrap();
    assert_eq!(store.mirror().members().in_sync, 1);
}

/// Run a resync that is disturbed at each pause.
fn run(store: &Store, place: Place, number: u8, disk: &Arc<SimDisk>) -> Result<ReplaceReport, StoreError> {
    let mut round = 0;
    resync(store, place, name(number), disk.clone(), &mut |_| {
        round += 1;
        disturb(store, round);
        true
    })
}

/// The first disk reads nothing any more: all must come from the second one.
fn read_back_from_second(mut rig: Rig, store: Store, disk: Arc<SimDisk>) {
    let expected = state(&store);
    assert!(expected.0.len() > 100 && expected.1.len() >= 120);
    assert_eq!(store.mirror().members().in_sync, 0b11);
    let report = scrub::run(&store, &mut |_| true);
    assert_eq!((report.detected, report.lost), (0, 0), "{report}");
    store.commit(Force::Clean).unwrap();
    drop(store);
    let root = rig.disks.remove(0);
    rig.disks = vec![root, disk];
    rig.crash_kept();
    rig.disks[0].faults(|f| f.fail_reads = Fault::Always);
    let alone = vec![rig.disks[1].clone()];
    let both = std::mem::replace(&mut rig.disks, alone);
    let (store, _) = rig.open(true).unwrap();
    assert!(state(&store) == expected, "read back from the new replica alone");
    drop((store, both));
}

impl Rig {
    /// Fresh handles of these disks, as after the daemon's death.
    fn crash_kept(&mut self) {
        self.disks = self.disks.iter().map(|disk| disk.reopen()).collect();
    }
}

#[test]
fn a_new_replica_takes_the_place_of_a_dead_one_under_load() {
    let rig = Rig::new(1, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    lose_second(&rig, &store);
    let disk = rig.power.disk(4096);
    let report = run(&store, Place::Free(1), 1, &disk).unwrap();
    assert!(report.blocks_copied > 150 && report.blocks_proven > 200, "{report:?}");
    assert_eq!((report.lost, report.rounds), (0, 1));
    read_back_from_second(rig, store, disk);
}

#[test]
fn a_replica_in_sync_stays_so_until_the_new_one_takes_its_place() {
    let rig = Rig::new(2, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    let disk = rig.power.disk(4096);
    let mut round = 0;
    let report = resync(&store, Place::Taken(1), name(2), disk.clone(), &mut |_| {
        round += 1;
        disturb(&store, round);
        assert_eq!(store.mirror().members().in_sync, 0b11);
        assert_eq!(store.durable_root().members.len(), 2);
        true
    });
    assert_eq!(report.unwrap().lost, 0);
    assert_eq!(store.mirror().replicas(), 2);
    assert_eq!(store.durable_root().members[1].replica, Uuid([2; 16]));
    let old = crate::store::recover::examine(&*rig.disks[1].reopen(), Duration::from_secs(1)).unwrap();
    assert_eq!(old.roots[0].1.members[1].replica, Uuid([2; 16]), "the old one knows that it was replaced");
    disturb(&store, 3);
    read_back_from_second(rig, store, disk);
}

/// Found by `tests/exhaustive.rs`, case `nth:2:0:ReadError@88`: the new replica joined while a reader held an older
/// state, whose blocks it never got; one read error on the other replica was an error for that reader.
#[test]
fn readers_of_older_states_are_waited_for() {
    let rig = Rig::new(13, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    let mut reader = Some(store.view().committed.clone());
    write(&store, 20, 0, 20, 77).unwrap();
    store.commit(Force::Always).unwrap();
    let mut waited = 0;
    let report = resync(&store, Place::Taken(1), name(3), rig.power.disk(4096), &mut |progress| {
        if progress.what == "waiting for readers" {
            assert_ne!(store.durable_root().members[1].replica, Uuid([3; 16]), "not before the reader is gone");
            waited += 1;
            let held = reader.take().unwrap();
            crate::simulate::pinned::prove(&store, &held.root).unwrap();
        }
        true
    });
    assert_eq!((report.unwrap().lost, waited), (0, 1));
}

#[test]
fn what_fails_on_the_way_harms_nobody() {
    for place in [Place::Free(1), Place::Taken(1)] {
        let rig = Rig::new(3, 2);
        let (store, _) = rig.open(false).unwrap();
        small_fill(&store);
        if place == Place::Free(1) {
            lose_second(&rig, &store);
        }
        let before = store.mirror().members().in_sync;
        for way in 0..5 {
            let disk = rig.power.disk(4096);
            let mut round = 0;
            let error = resync(&store, place, name(10 + way), disk.clone(), &mut |_| {
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
            assert!(text.starts_with("/disk/new") && text.contains("replace again"), "{text}");
            assert_eq!(store.mirror().members().in_sync, before);
            disturb(&store, 2);
        }
        let full = rig.power.disk(4096);
        full.faults(|f| f.full = true);
        assert!(run(&store, place, 8, &full).is_err());
        let disk = rig.power.disk(4096);
        run(&store, place, 9, &disk).unwrap();
        read_back_from_second(rig, store, disk);
    }
}

#[test]
fn writes_that_never_arrived_are_found_by_the_proof() {
    let rig = Rig::new(4, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    lose_second(&rig, &store);
    let disk = rig.power.disk(4096);
    let mut lost = false;
    let report = resync(&store, Place::Free(1), name(4), disk.clone(), &mut |progress| {
        if !lost && progress.what == "copying" {
            disk.faults(|f| f.lost_writes = Fault::Next(12));
            lost = true;
        }
        true
    })
    .unwrap();
    assert!(lost && report.rounds == 2, "{report:?}");
    read_back_from_second(rig, store, disk);
}

#[test]
fn blocks_that_nobody_has_are_listed_and_skipped() {
    let rig = Rig::new(5, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    lose_second(&rig, &store);
    let data = census(&store).blocks.into_iter().filter(|(_, part)| *part == Part::Data).map(|(addr, _)| addr);
    let rotten: Vec<Addr> = data.step_by(9).collect();
    rotten.iter().for_each(|addr| rig.disks[0].junk(*addr));
    let disk = rig.power.disk(4096);
    let report = resync(&store, Place::Free(1), name(5), disk, &mut |_| true).unwrap();
    assert_eq!(report.lost, rotten.len() as u64);
    assert_eq!(report.lost_paths.len(), rotten.len());
    assert_eq!(store.mirror().members().in_sync, 0b11);
    let scrubbed = scrub::run(&store, &mut |_| true);
    assert_eq!((scrubbed.lost, scrubbed.healed), (rotten.len() as u64, 0), "{scrubbed}");
}

#[test]
fn a_replica_that_was_left_behind_keeps_what_is_right_on_it() {
    let rig = Rig::new(6, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    lose_second(&rig, &store);
    rig.disks[1].faults(|f| f.gone = false);
    let census = census(&store).blocks;
    // The survivor's copy of these is gone; the one that was left behind still has them.
    let data: Vec<Addr> = census.iter().filter(|(_, p)| **p == Part::Data).map(|(a, _)| *a).take(9).collect();
    data.iter().for_each(|addr| rig.disks[0].junk(*addr));
    store.mirror().release(1);
    let disk = rig.disks[1].reopen();
    let report = resync(&store, Place::Free(1), name(6), disk.clone(), &mut |_| true).unwrap();
    assert!(report.blocks_copied < 60 && report.lost == 0, "{report:?}");
    let scrubbed = scrub::run(&store, &mut |_| true);
    assert_eq!((scrubbed.healed, scrubbed.lost), (data.len() as u64, 0), "{scrubbed}");
    read_back_from_second(rig, store, disk);
}

/// A resync that is cut at its `cut`-th write; returns how many it took.
fn cut_resync(seed: u64, place: Place, cut: Option<u64>, plan: CrashPlan) -> u64 {
    let mut rig = Rig::new(seed, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    if let Place::Free(_) = place {
        lose_second(&rig, &store);
    }
    store.sync().unwrap();
    let expected = state(&store);
    let disk = rig.power.disk(4096);
    let before = rig.power.io_count();
    rig.power.cut_at(cut.map(|cut| before + cut));
    let mut round = 0;
    let result = resync(&store, place, name(7), disk, &mut |_| {
        round += 1;
        // Only what is not compared.
        let _ = write(&store, 55, round % 9, 1, 3).and_then(|()| store.commit(Force::Always));
        true
    });
    let took = rig.power.io_count() - before;
    // The last writes only tell the replaced one.
    assert!(result.is_ok() || rig.power.is_cut(), "{:?}", result.err());
    drop(store);
    rig.crash(plan);
    let [first, second, new] = <[Arc<SimDisk>; 3]>::try_from(std::mem::take(&mut rig.disks)).ok().unwrap();
    rig.disks = match place {
        Place::Free(_) => vec![first.clone(), new.clone()],
        Place::Taken(_) | Place::New => vec![first.clone(), second.clone(), new.clone()],
    };
    let context = format!("{place:?} cut {cut:?} {plan:?}");
    let (store, _) = rig.open(false).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(state(&store) == expected, "{context}");
    let members = store.mirror().members();
    assert!(place == Place::Free(1) || members.count() == 2, "{context}: never fewer in sync");
    if members.count() == 1 {
        store.mirror().release(1);
        resync(&store, Place::Free(1), name(8), new.reopen(), &mut |_| true)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    assert!(state(&store) == expected, "{context}");
    let report = scrub::run(&store, &mut |_| true);
    assert_eq!((report.lost, report.failed, store.mirror().members().count()), (0, 0, 2), "{context}: {report}");
    took
}

#[test]
fn power_cut_at_every_few_writes_of_a_resync() {
    for (seed, place) in [(7, Place::Free(1)), (8, Place::Taken(1))] {
        let total = cut_resync(seed, place, None, CrashPlan::KeepAll);
        // Each of the last writes, where labels and roots are; every few before.
        let cuts = (1..total).step_by(9).chain(total.saturating_sub(40)..=total);
        for (i, cut) in cuts.enumerate() {
            cut_resync(seed, place, Some(cut), if i % 3 == 0 { CrashPlan::DropAll } else { CrashPlan::Random });
        }
    }
}

/// A volume on directories, with something in it.
pub(in crate::volume) fn on_directories(root: &std::path::Path) -> (Vec<PathBuf>, Volume) {
    let paths: Vec<PathBuf> = ["a", "b"].iter().map(|name| root.join(name)).collect();
    paths.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let make = FormatOptions { size_bytes: Some(64 << 20), label: "test".into(), force: false, uid: 0, gid: 0 };
    format(&paths, &make).unwrap();
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    volume.start().unwrap();
    small_fill(&volume.store);
    (paths, volume)
}

fn refusal(result: Result<ReplaceReport, StoreError>, part: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(part) && !text.contains('\n'), "{text}");
}

#[test]
fn an_emptied_directory_is_replaced_by_itself_and_then_by_another() {
    let root = tempfile::tempdir().unwrap();
    let (paths, volume) = on_directories(root.path());
    let expected = state(&volume.store);
    let go = &mut |_: &Progress| true;
    refusal(volume.replace("7", &paths[1], go), "no replica");
    refusal(volume.replace(paths[1].to_str().unwrap(), &paths[1], go), "nothing to replace");
    refusal(volume.replace("1", &paths[0], go), "is replica 0 of this volume");
    refusal(volume.replace("1", &root.path().join("nowhere"), go), "no such file");
    std::fs::remove_file(paths[1].join("stablefs.data")).unwrap();
    let report = volume.replace(paths[1].to_str().unwrap(), &paths[1], go).unwrap();
    assert!(report.blocks_copied > 100 && report.rounds == 1, "{report:?}");
    assert_eq!(volume.mirror.members().count(), 2);

    let other = root.path().join("c");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("mine.txt"), b"foreign").unwrap();
    refusal(volume.replace("0", &other, go), "is not empty");
    std::fs::remove_file(other.join("mine.txt")).unwrap();
    volume.replace("0", &other, go).unwrap();
    let scrubbed = volume.scrub(go).unwrap();
    assert_eq!((scrubbed.detected, scrubbed.complete), (0, true), "{scrubbed}");
    assert!(state(&volume.store) == expected);
    let alone = volume.begin_work("test").unwrap();
    refusal(volume.replace("0", &paths[0], go), "is running");
    drop(alone);
    volume.close().unwrap();

    assert!(Volume::open(&paths, &OpenOptions::default()).is_err(), "the replaced one is none any more");
    let volume = Volume::open(&[other, paths[1].clone()], &OpenOptions::default()).unwrap();
    assert!(state(&volume.store) == expected);
    // What was replaced may come back, in the place of another one.
    volume.replace("1", &paths[0], go).unwrap();
    volume.close().unwrap();
}

/// A new replica that fails between its proof and its root: the old one stays, by name too.
#[test]
fn a_take_over_that_did_not_happen_renames_nobody() {
    let rig = Rig::new(21, 2);
    let (store, _) = rig.open(false).unwrap();
    small_fill(&store);
    let before = store.durable_root();
    let slot = store.mirror().attach(name(21), rig.power.disk(4096));
    store.mirror().set_out(slot, "failed just now");
    let taken = store.change_members(|mirror| mirror.take_over(slot, 0)).unwrap();
    assert!(taken.is_none());
    let after = store.durable_root();
    assert_eq!(after.members[0].replica, before.members[0].replica, "the old one was not replaced");
    assert_eq!(after.epoch().id, before.epoch().id, "nobody was left behind");
    drop(store);
    assert_eq!(rig.open(false).unwrap().0.mirror().members().in_sync, 0b11);
}

/// The root that calls the new replica in sync reached it alone when the power failed, and it is absent at the next
/// mount: what is acknowledged then counts, in whatever order the two are given later.
#[test]
fn a_root_that_only_the_new_replica_got_is_no_second_history() {
    for turned in [false, true] {
        let mut rig = Rig::new(22, 2);
        let (store, _) = rig.open(false).unwrap();
        small_fill(&store);
        lose_second(&rig, &store);
        let new = rig.power.disk(4096);
        resync(&store, Place::Free(1), name(22), new.clone(), &mut |_| true).unwrap();
        let joined = store.durable_root();
        drop(store);
        let first = rig.disks[0].reopen();
        let slot = crate::store::recover::examine(&*first, Duration::from_secs(1)).unwrap().roots[0].0;
        assert!(first.stale(crate::format::Root::addr(slot)));
        rig.disks = vec![first.clone()];
        rig.seed += 100;
        let (store, report) = rig.open(false).unwrap();
        assert_eq!((report.version + 1, report.missing), (joined.version, 0), "the root before");
        put(&store, Key::new(900, ItemKind::Xattr, 0), b"acknowledged").unwrap();
        store.fsync_wait(900).unwrap();
        drop(store);
        rig.disks = vec![first, new];
        if turned {
            rig.disks.reverse();
        }
        let (store, report) = rig.open(false).unwrap_or_else(|error| panic!("turned: {turned}: {error}"));
        assert!(store.get(Key::new(900, ItemKind::Xattr, 0)).unwrap().is_some(), "turned: {turned}");
        assert_eq!(report.behind.len(), 1, "turned: {turned}: the new one is behind");
    }
}
