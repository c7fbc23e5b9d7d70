//! Scrub on simulated disks: what was injected is detected and healed, and nothing else.

use super::*;
use crate::disk::sim::Random;
use crate::format::{ItemKind, Key};
use crate::store::commit::Force;
use crate::store::tests::{Rig, byte_at, put, write};
use crate::store::{Need, Store};

/// Every block in use, by part.
#[derive(Default)]
pub(crate) struct Census {
    pub blocks: BTreeMap<Addr, Part>,
    pub shown_twice: u64,
    pub unreadable: u64,
}

impl Sink for Census {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        for piece in pieces {
            for i in 0..piece.sums.len() as u64 {
                self.shown_twice += u64::from(self.blocks.insert(piece.addr + i, piece.part).is_some());
            }
        }
        ControlFlow::Continue(())
    }
    fn unreadable(&mut self, _: Part, _: Addr, _: u64, _: &StoreError) {
        self.unreadable += 1;
    }
    fn pause(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

pub(crate) fn census(store: &Store) -> Census {
    let mut census = Census::default();
    assert!(store.walk(&mut census).is_continue());
    for proof in [store.prove_labels(&[0], false), store.prove_roots(&[0], false), store.prove_log(&[0], false)] {
        census.blocks.extend(proof.into_iter().map(|p| (p.addr, p.part)));
    }
    census
}

/// Thousands of blocks of every kind, some freed, a log record live.
pub(crate) fn fill(store: &Store) {
    for i in 0..1600 {
        put(store, Key::new(100 + i, ItemKind::Xattr, 0), &[i as u8; 1500]).unwrap();
    }
    for ino in 20..24 {
        for block in 0..150 {
            // Every other file in an order that leaves short extents.
            write(store, ino, if ino % 2 == 0 { block } else { block * 37 % 150 }, 1, ino as u8).unwrap();
            if ino % 2 == 1 && block % 30 == 0 {
                store.commit(Force::IfChanged).unwrap();
            }
        }
    }
    store.commit(Force::IfChanged).unwrap();
    let mut transaction = store.begin(Need { items: 1, may_use_reserve: true, ..Need::default() }).unwrap();
    transaction.punch(22, 10, 60);
    transaction.commit();
    store.commit(Force::IfChanged).unwrap();
    write(store, 30, 0, 3, 9).unwrap();
    store.fsync_wait(30).unwrap();
}

fn scrub(store: &Store) -> ScrubReport {
    run(store, &mut |_| true)
}

#[test]
fn copies_that_could_not_be_asked_for_are_counted() {
    let rig = Rig::new(31, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let mut asked = 0;
    let report = run(&store, &mut |_| {
        asked += 1;
        if asked == 3 {
            rig.disks[1].faults(|f| f.hang = crate::disk::sim::Fault::Always);
        }
        true
    });
    assert!(report.complete && report.unproven > 0 && report.lost == 0, "{report}");
    assert!(report.to_string().contains("not proven = "), "{report}");
}

#[test]
fn the_walk_shows_each_allocated_block_once() {
    let rig = Rig::new(1, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let census = census(&store);
    assert_eq!((census.shown_twice, census.unreadable), (0, 0));
    let geometry = &store.label().geometry;
    let root = store.durable_root();
    let dead: u64 = root.dead.iter().map(|head| head.blocks).sum();
    // The live record's three pages are in the record itself, so what is allocated is reachable or dead.
    let in_zones = census.blocks.iter().filter(|(addr, part)| geometry.holds_data(**addr, 1) && **part != Part::Bitmap);
    let allocated = store.allocator().total() - root.space.free;
    assert_eq!(in_zones.count() as u64 + dead, allocated);
    let kinds: BTreeSet<Part> = census.blocks.values().copied().collect();
    assert_eq!(kinds.len(), 9, "{kinds:?}");
}

#[test]
fn what_was_rotten_is_detected_and_healed_and_nothing_else() {
    let rig = Rig::new(2, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let census = census(&store);
    let clean = scrub(&store);
    assert_eq!((clean.detected, clean.lost, clean.complete), (0, 0, true), "{clean}");
    assert_eq!(clean.blocks, census.blocks.len() as u64);
    let mut random = Random::new(9);
    for disk in [0, 1] {
        let mut injected = 0;
        for (addr, part) in &census.blocks {
            let always = !matches!(part, Part::Data | Part::Leaf | Part::Root);
            if always || random.chance(800_000) {
                match random.below(3) {
                    0 => rig.disks[disk].faults(|f| {
                        f.unreadable.insert(*addr);
                    }),
                    1 => rig.disks[disk].poke(*addr, [0; 4096]),
                    _ => rig.disks[disk].junk(*addr),
                }
                injected += 1;
            }
        }
        assert!(injected > 1000);
        let report = scrub(&store);
        assert_eq!(
            (report.detected, report.healed, report.lost, report.failed),
            (injected, injected, 0, 0),
            "{report}"
        );
        assert!(report.structures.iter().all(|s| s.detected > 0 && s.healed == s.detected), "{report:?}");
        assert_eq!(report.replicas[1 - disk].detected, 0);
        let again = scrub(&store);
        assert_eq!((again.detected, again.blocks), (0, clean.blocks), "{again}");
    }
    for addr in census.blocks.iter().filter(|(_, part)| **part != Part::Label).map(|(addr, _)| *addr) {
        assert!(rig.disks[0].peek(addr) == rig.disks[1].peek(addr), "block {addr}");
    }
    assert_eq!(store.mirror().members().count(), 2);
}

#[test]
fn both_replicas_rotten_in_different_blocks_and_some_in_the_same() {
    let rig = Rig::new(3, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let census = census(&store);
    let data: Vec<Addr> = census.blocks.iter().filter(|(_, p)| **p == Part::Data).map(|(a, _)| *a).collect();
    for (i, addr) in data.iter().enumerate() {
        if i % 50 == 7 {
            rig.disks[0].junk(*addr);
            rig.disks[1].junk(*addr);
        } else {
            rig.disks[i % 2].junk(*addr);
        }
    }
    let both = (0..data.len()).filter(|i| i % 50 == 7).count() as u64;
    let report = scrub(&store);
    assert_eq!(report.lost, both, "{report}");
    assert_eq!((report.detected, report.healed), (data.len() as u64 + both, data.len() as u64 - both), "{report}");
    assert_eq!(report.lost_paths.len() as u64, both);
    assert!(report.lost_paths.iter().all(|line| line.contains("file data at block")), "{:?}", report.lost_paths);
    assert!(report.complete);
}

/// Sectors before `cut` on one disk, the others on the other one.
fn hurt_in_halves(rig: &Rig, addr: Addr) {
    let cut = 512 * (1 + addr as usize % 7);
    for (i, disk) in rig.disks.iter().enumerate() {
        let mut block = disk.peek(addr);
        let part = if i == addr as usize % 2 { 0..cut } else { cut..4096 };
        block[part].iter_mut().for_each(|byte| *byte ^= 0x55);
        disk.poke(addr, block);
    }
}

/// Goal: every kind of block that the walk shows is put together where its copies are damaged in different sectors, and the
/// report tells of each. Method: all of them at once, cut at each sector.
#[test]
fn different_sectors_on_both_replicas_are_put_together() {
    // SEMANTICS: HEAL-5
    let mut rig = Rig::new(41, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let walked = |part: &Part| !matches!(part, Part::Label | Part::Root | Part::LogRecord);
    let hurt: Vec<Addr> =
        census(&store).blocks.iter().filter(|(_, part)| walked(part)).map(|(addr, _)| *addr).collect();
    let right: Vec<_> = hurt.iter().map(|addr| rig.disks[0].peek(*addr)).collect();
    hurt.iter().for_each(|addr| hurt_in_halves(&rig, *addr));
    let report = scrub(&store);
    let count = hurt.len() as u64;
    assert_eq!((report.combined, report.lost, report.failed, report.unreached), (count, 0, 0, 0), "{report:?}");
    assert_eq!((report.detected, report.healed), (2 * count, 2 * count), "{report}");
    for part in ["space node", "bitmap", "dead list", "inner node", "leaf", "file data"] {
        assert!(report.structures.iter().any(|one| one.name == part && one.healed > 0), "{part}: {report:?}");
    }
    assert!(report.to_string().contains("put together = "), "{report}");
    assert_eq!(report.combined_from.len(), LINES_MAX);
    let says = |line: &String| line.contains(": sectors ") && line.contains("replica 0") && line.contains("replica 1");
    assert!(report.combined_from.iter().all(says), "{:?}", report.combined_from);
    assert!(report.notes.iter().any(|note| note.contains("2^32")), "{:?}", report.notes);
    assert_eq!(scrub(&store).detected, 0);
    drop(store);
    rig.crash(crate::disk::sim::CrashPlan::DropAll);
    for disk in &rig.disks {
        assert!(
            hurt.iter().zip(&right).all(|(addr, right)| disk.peek(*addr) == *right),
            "what was put together is durable"
        );
    }
    let (store, _) = rig.open(false).unwrap();
    assert_eq!((byte_at(&store, 20, 0), byte_at(&store, 30, 2)), (20, 9));
}

/// What both lack in the same sector stays lost, and what is left of it stays as it is.
#[test]
fn the_same_sector_on_both_replicas_stays_lost() {
    let rig = Rig::new(42, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let data: Vec<Addr> = census(&store).blocks.iter().filter(|(_, p)| **p == Part::Data).map(|(a, _)| *a).collect();
    hurt_in_halves(&rig, data[0]);
    hurt_in_halves(&rig, data[0]);
    assert_eq!(scrub(&store).detected, 0, "harm done twice is undone");
    rig.disks.iter().for_each(|disk| disk.rot(data[1], 9));
    hurt_in_halves(&rig, data[1]);
    let before = rig.disks[0].peek(data[1]);
    let report = scrub(&store);
    assert_eq!((report.lost, report.combined, report.lost_paths.len()), (1, 0, 1), "{report}");
    assert!(rig.disks[0].peek(data[1]) == before);
}

#[test]
fn three_replicas_count_each_damaged_copy() {
    let rig = Rig::new(4, 3);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let data: Vec<Addr> = census(&store).blocks.iter().filter(|(_, p)| **p == Part::Data).map(|(a, _)| *a).collect();
    for addr in &data {
        rig.disks[0].junk(*addr);
        rig.disks[1].junk(*addr);
    }
    let report = scrub(&store);
    assert_eq!((report.detected, report.healed, report.lost), (2 * data.len() as u64, 2 * data.len() as u64, 0));
}

#[test]
fn a_lost_leaf_costs_only_what_hangs_on_it() {
    let rig = Rig::new(5, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let leaf = *census(&store).blocks.iter().find(|(_, p)| **p == Part::Leaf).unwrap().0;
    store.commit(Force::Clean).unwrap();
    drop(store);
    for disk in &rig.disks {
        disk.junk(leaf);
    }
    let (store, _) = rig.open(false).unwrap();
    let report = scrub(&store);
    assert_eq!((report.lost, report.notes.len(), report.complete), (1, 1, true), "{report:?}");
}

#[test]
fn scrub_goes_on_while_files_change_and_stops_when_asked() {
    let rig = Rig::new(6, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let mut round = 0_u64;
    let report = run(&store, &mut |_| {
        round += 1;
        write(&store, 20 + round % 4, round * 13 % 150, 1, (20 + round % 4) as u8).unwrap();
        store.commit(Force::Always).unwrap();
        true
    });
    assert_eq!((report.detected, report.complete), (0, true), "{report}");
    assert_eq!(byte_at(&store, 20, 0), 20);
    let stopped = run(&store, &mut |_| false);
    assert!(!stopped.complete && stopped.blocks < report.blocks);
}

/// What was shown: address and checksum; changes files at each pause.
struct Disturbed<'a> {
    shown: BTreeSet<(Addr, u64)>,
    pauses: u64,
    hook: &'a mut dyn FnMut(u64),
}

impl Sink for Disturbed<'_> {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        for piece in pieces {
            self.shown.extend(piece.sums.iter().enumerate().map(|(i, sum)| (piece.addr + i as u64, *sum)));
        }
        ControlFlow::Continue(())
    }
    fn unreadable(&mut self, part: Part, addr: Addr, _: u64, error: &StoreError) {
        panic!("{} at {addr}: {error}", part.name());
    }
    fn pause(&mut self) -> ControlFlow<()> {
        self.pauses += 1;
        (self.hook)(self.pauses);
        ControlFlow::Continue(())
    }
}

fn walk(store: &Store, hook: &mut dyn FnMut(u64)) -> BTreeSet<(Addr, u64)> {
    let mut sink = Disturbed { shown: BTreeSet::new(), pauses: 0, hook };
    assert!(store.walk(&mut sink).is_continue());
    sink.shown
}

#[test]
fn an_extent_that_is_cut_behind_the_cursor_is_not_missed() {
    for leading in 0..14 {
        let rig = Rig::new(7, 2);
        let (store, _) = rig.open(false).unwrap();
        for i in 0..leading {
            put(&store, Key::new(4 + i, ItemKind::Xattr, 0), &[1; 1900]).unwrap();
        }
        for part in 0..40 {
            write(&store, 30, part * 64, 64, part as u8 + 1).unwrap();
        }
        for i in 0..60 {
            put(&store, Key::new(100 + i, ItemKind::Xattr, 0), &[1; 1900]).unwrap();
        }
        store.commit(Force::Always).unwrap();
        let before = walk(&store, &mut |_| {});
        // Each extent loses a block near its end: what is left of its head has a smaller key.
        let shown = walk(&store, &mut |pause| {
            if pause < 4 {
                (0..40).for_each(|part| write(&store, 30, part * 64 + 63 - pause, 1, 200).unwrap());
                store.commit(Force::Always).unwrap();
            }
        });
        let after = walk(&store, &mut |_| {});
        let missed: Vec<_> = after.intersection(&before).filter(|block| !shown.contains(block)).collect();
        assert!(missed.is_empty(), "leading {leading}: {} of {} were missed", missed.len(), after.len());
    }
}

/// Found by `tests/exhaustive.rs`, case `nth:1:0:LostWrite@35`: the report said healed, and a power cut brought the
/// damage back.
#[test]
fn what_a_scrub_healed_survives_a_power_cut() {
    let mut rig = Rig::new(12, 2);
    let (store, _) = rig.open(false).unwrap();
    write(&store, 20, 0, 9, 1).unwrap();
    store.commit(Force::Always).unwrap();
    let census = census(&store);
    let data: Vec<Addr> = census.blocks.iter().filter(|(_, part)| **part == Part::Data).map(|(a, _)| *a).collect();
    data.iter().for_each(|addr| rig.disks[1].junk(*addr));
    assert_eq!(scrub(&store).healed, data.len() as u64);
    drop(store);
    rig.crash(crate::disk::sim::CrashPlan::DropAll);
    let (store, _) = rig.open(false).unwrap();
    assert_eq!(scrub(&store).detected, 0);
}

/// A node that proves itself and breaks a rule: what hangs on it was not reached, and the scrub is no success.
#[test]
fn a_subtree_that_was_not_reached_is_counted() {
    let rig = Rig::new(32, 2);
    let (store, _) = rig.open(false).unwrap();
    fill(&store);
    let node = *census(&store).blocks.iter().find(|(_, part)| **part == Part::Leaf).unwrap().0;
    let mut told = run(&store, &mut |_| true);
    assert_eq!(told.unreached, 0, "{told}");
    rig.disks.iter().for_each(|disk| disk.junk(node));
    told = run(&store, &mut |_| true);
    assert!(told.unreached > 0 && told.to_string().contains("not reached = "), "{told}");
}
