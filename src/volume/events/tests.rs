//! The recorder on directories: what is remembered, what stands on the replicas, and what it never costs.

use super::super::{FormatOptions, OpenOptions, Volume, format};
use super::*;
use crate::disk::{Buf, Slice};
use crate::format::BLOCK;
use crate::store::commit::Force;
use std::path::{Path, PathBuf};

fn made(root: &Path, size_bytes: u64) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = ["a", "b"].iter().map(|name| root.join(name)).collect();
    paths.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let make = FormatOptions { size_bytes: Some(size_bytes), label: String::new(), force: false, uid: 0, gid: 0 };
    format(&paths, &make).unwrap();
    paths
}

fn opened(paths: &[PathBuf], options: &OpenOptions) -> Volume {
    let volume = Volume::open(paths, options).unwrap();
    volume.start().unwrap();
    volume.record(None).unwrap();
    volume
}

fn open(paths: &[PathBuf]) -> Volume {
    opened(paths, &OpenOptions::default())
}

fn kinds(volume: &Volume) -> Vec<String> {
    volume.events(0).events.into_iter().map(|event| event.event).collect()
}

/// What the newest events say, once there are `count`.
fn wait_for(volume: &Volume, count: usize) -> Vec<EventReport> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let log = volume.events(0);
        if log.events.len() >= count {
            return log.events;
        }
        assert!(Instant::now() < until, "{count} events did not come: {log:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn on_replicas(volume: &Volume) -> Vec<u64> {
    let end = Key::new(ORPHANS, ItemKind::Xattr, u64::MAX);
    let items = volume.store.scan(event_key(0), end, 10_000).unwrap();
    items.iter().map(|(key, value)| decode(*key, value).unwrap().0).collect()
}

#[test]
fn events_are_there_after_a_mount_and_on_one_replica_alone() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 64 << 20);
    let volume = open(&paths);
    assert_eq!(kinds(&volume), ["mounted", "state", "state"], "both are in sync for the first time");
    volume.mirror.set_out(1, "taken away");
    let events = wait_for(&volume, 4);
    let out = events.last().unwrap();
    assert_eq!((out.from.as_str(), out.to.as_str(), out.cause.as_str()), ("in sync", "out", "taken away"));
    assert_eq!(out.replica.as_ref().unwrap().path, paths[1].display().to_string());
    assert!(
        volume.status().availability.replicas[0].figures.outages
            + volume.status().availability.replicas[1].figures.outages
            == 1
    );
    volume.close().unwrap();
    std::fs::rename(&paths[1], root.path().join("away")).unwrap();
    let volume = opened(&paths[..1], &OpenOptions { degraded: true, ..OpenOptions::default() });
    let after = volume.events(0).events;
    assert_eq!(after[..4], events);
    assert_eq!(after[4].event, "unmounted");
    assert_eq!(after[5].event, "mounted");
    assert_eq!((after[6].from.as_str(), after[6].to.as_str()), ("out", "missing"));
    assert_eq!(after.len(), 7, "{after:#?}");
    let numbers: Vec<u64> = after.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=7).collect::<Vec<u64>>());
    assert_eq!(volume.events(5).events[..], after[5..]);
    volume.close().unwrap();
}

#[test]
fn the_newest_are_kept_and_nothing_more() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 64 << 20);
    let volume = open(&paths);
    wait_for(&volume, 3);
    let mut told = 3;
    for round in 0..EVENTS_MAX + 200 {
        volume.note_scrub(&ScrubReport { summary: format!("scrub {round}"), ..ScrubReport::default() });
        told += 1;
        if round % 32 == 31 {
            // The recorder's queue is bounded, too.
            let until = Instant::now() + Duration::from_secs(60);
            while volume.events(told - 1).events.is_empty() {
                assert!(Instant::now() < until, "event {told} did not come");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    volume.close().unwrap();
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    let kept = on_replicas(&volume);
    let last = told + 1; // it was unmounted
    assert_eq!(kept, (last - EVENTS_MAX + 1..=last).collect::<Vec<u64>>());
    volume.record(None).unwrap();
    let log = volume.events(0);
    assert_eq!((log.events.len() as u64, log.dropped, log.unwritten), (EVENTS_MAX, 0, 0));
    let newest = &log.events[log.events.len() - 5..];
    assert_eq!(newest[0].cause, format!("scrub {}", EVENTS_MAX + 199));
    assert_eq!((newest[1].event.as_str(), newest[2].event.as_str()), ("unmounted", "mounted"));
    assert!(newest[3..].iter().all(|event| event.from == "in sync" && event.to == "in sync"), "{newest:?}");
    assert!(volume.availability().replicas.iter().all(|one| one.figures.outages == 0 && one.figures.up_ms > 0));
    volume.close().unwrap();
}

#[test]
fn a_volume_that_was_not_closed_is_said_to_have_been_recovered() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 64 << 20);
    let volume = open(&paths);
    wait_for(&volume, 3);
    volume.store.sync().unwrap();
    let copies: Vec<PathBuf> = ["c", "d"].iter().map(|name| root.path().join(name)).collect();
    for (path, copy) in paths.iter().zip(&copies) {
        std::fs::create_dir(copy).unwrap();
        std::fs::copy(path.join("stablefs.data"), copy.join("stablefs.data")).unwrap();
    }
    volume.close().unwrap();
    let volume = open(&copies);
    assert_eq!(kinds(&volume), ["mounted", "state", "state", "recovered", "mounted"]);
    let recovered = &volume.events(0).events[3];
    let last_root_ns = recovered.detail["last_root_ns"];
    assert!(last_root_ns > 0 && last_root_ns <= recovered.time_ns, "{recovered:?}");
    assert_eq!(volume.availability().reads.outages, 1);
    volume.close().unwrap();
}

#[test]
fn an_idle_volume_is_not_written_to_and_a_read_only_one_never() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 64 << 20);
    let volume = open(&paths);
    wait_for(&volume, 3);
    volume.store.sync().unwrap();
    let version = volume.store.durable_root().version;
    for _ in 0..20 {
        let _ = (volume.events(0), volume.status(), volume.availability());
        volume.mirror.wake_listener();
        volume.store.commit(Force::IfChanged).unwrap();
    }
    assert_eq!(volume.store.durable_root().version, version, "asking changed something");
    // Damage that is found is no reason to write, either, until something else is.
    volume.note_scrub(&ScrubReport::default());
    wait_for(&volume, 4);
    volume.store.commit(Force::IfChanged).unwrap();
    assert_eq!(volume.store.durable_root().version, version, "an event of a scrub was a commit");
    volume.close().unwrap();
    let bytes = || paths.iter().map(|path| std::fs::read(path.join("stablefs.data")).unwrap()).collect::<Vec<_>>();
    let before = bytes();
    let volume = opened(&paths, &OpenOptions { read_only: true, ..OpenOptions::default() });
    assert_eq!(kinds(&volume), ["mounted", "state", "state", "scrubbed", "unmounted", "mounted"]);
    assert_eq!(volume.events(5).events[0].detail["read_only"], 1);
    volume.close().unwrap();
    assert!(bytes() == before, "a mount for reading only wrote something");
}

#[test]
fn without_room_events_stay_in_memory_and_are_counted() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 16 << 20);
    let volume = open(&paths);
    wait_for(&volume, 3);
    let mut block = 0;
    // Deep into the reserve, where deletes only may go.
    let need = Need { data_blocks: 1, may_use_reserve: true, ..Need::default() };
    while let Ok(mut change) = volume.store.begin(need) {
        change.write_pages(20, vec![(block, Slice::whole(Buf::zeroed(BLOCK)))], u64::MAX);
        change.commit();
        block += 1;
    }
    let before = on_replicas(&volume).len();
    let until = Instant::now() + Duration::from_secs(60);
    while volume.events(0).unwritten == 0 {
        volume.note_scrub(&ScrubReport::default());
        assert!(Instant::now() < until, "it found room: {} then, {} now", before, on_replicas(&volume).len());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(on_replicas(&volume).len(), before);
    assert!(volume.events(0).events.len() > before, "they are remembered all the same");
    volume.close().unwrap();
    let volume = open(&paths);
    assert_eq!(volume.store.check_alive().map_err(|error| error.to_string()), Ok(()));
    volume.close().unwrap();
}

#[test]
fn what_is_no_event_is_counted_and_harms_no_other() {
    let root = tempfile::tempdir().unwrap();
    let paths = made(root.path(), 64 << 20);
    open(&paths).close().unwrap();
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    let mut change = volume.store.begin(Need { items: 3, ..Need::default() }).unwrap();
    change.put(event_key(2), vec![1, 2, 3]);
    change.put(event_key(EVENT_SEQUENCE_END - 1), Event::new(EventKind::Lost, 5).encode(1));
    change.commit();
    volume.store.commit(Force::Always).unwrap();
    volume.record(None).unwrap();
    assert_eq!(kinds(&volume), ["mounted", "state", "unmounted", "mounted", "state"], "no state of a is on record");
    let log = volume.events(0);
    assert_eq!((log.unreadable, log.events.last().unwrap().sequence), (2, 6));
    volume.close().unwrap();
    // An event with the last number: there are no more, and nothing is written over.
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    let mut change = volume.store.begin(Need { items: 1, ..Need::default() }).unwrap();
    change.put(event_key(EVENT_SEQUENCE_END - 1), Event::new(EventKind::Lost, 5).encode(EVENT_SEQUENCE_END - 1));
    change.commit();
    volume.record(None).unwrap();
    wait_for(&volume, 8);
    let until = Instant::now() + Duration::from_secs(60);
    while volume.events(0).unwritten == 0 {
        assert!(Instant::now() < until, "{:?}", volume.events(0));
        thread::sleep(Duration::from_millis(5));
    }
    volume.close().unwrap();
}
