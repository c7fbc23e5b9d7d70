//! What the mutator found, each by its name.
//!
//! Each of these made the product panic, loop, or write what it could not read before it was fixed.

use super::{guarded, memory};
use stablefs::disk::sim::Random;
use stablefs::format::block::HEADER;
use stablefs::format::item::{Dirent, FileMap, Inode};
use stablefs::format::{BLOCK, ItemKind};
use stablefs::fs::{Caller, Filesystem, FsOptions};
use stablefs::simulate::mutate::canvas::{Canvas, put};
use stablefs::simulate::mutate::damage::Damage;
use stablefs::simulate::mutate::sample::{Sample, disks_of, open_on, samples};
use stablefs::simulate::mutate::survey::Survey;
use stablefs::simulate::mutate::watched::Watch;
use stablefs::simulate::mutate::{Case, Tally};
use stablefs::store::walk::Part;
use std::sync::Arc;

const ALL: usize = 64;

fn sample(name: &str) -> &'static Sample {
    samples().iter().find(|sample| sample.name == name).expect("a sample")
}

/// Index of the first place that is `part`; of roots the newest.
fn first(sample: &Sample, part: Part) -> usize {
    sample.survey.places.iter().position(|place| place.part == part).expect("every sample has one")
}

/// A case in which `act` changed bytes of the place `index` on the disks `sides`, sealed again.
fn changed<'a>(
    sample: &'a Sample,
    sides: u32,
    index: usize,
    act: &dyn Fn(&mut [u8; BLOCK], &mut Canvas<'_>),
) -> Case<'a> {
    Case::made(sample, sides, &|canvas| {
        let addr = canvas.survey.places[index].addr;
        let mut block = canvas.block(addr);
        act(&mut block, canvas);
        canvas.set(addr, block);
        canvas.reseal(index, ALL);
        vec![Damage { what: "by hand".into(), place: index, depth: ALL, spreads: true }]
    })
}

/// Walk over it with several kinds of work in it.
fn walk(case: &Case<'_>) -> Tally {
    let mut sum = Tally::default();
    for seed in [0, 1, 4, 12] {
        sum.add(&guarded(case, seed).unwrap_or_else(|text| panic!("{text}")));
    }
    sum
}

/// A field of the newest root, on all disks.
fn root_field(name: &str, at: usize, value: u64) -> Tally {
    let _alone = memory::alone();
    let sample = sample(name);
    walk(&changed(sample, (1 << sample.images.len()) - 1, first(sample, Part::Root), &|block, _| {
        put(block, at, 8, value);
    }))
}

/// Change the value of the first item of `kind` for which `pick` gives a new one, on all disks.
#[allow(clippy::type_complexity)]
fn item_value<'a>(sample: &'a Sample, kind: ItemKind, pick: &dyn Fn(u64, &[u8]) -> Option<Vec<u8>>) -> Case<'a> {
    for (index, place) in sample.survey.places.iter().enumerate().filter(|(_, place)| place.part == Part::Leaf) {
        let block = sample.images[0].get(&place.addr).map_or([0; BLOCK], |block| **block);
        for (_, key, range) in Survey::items(&block).into_iter().filter(|(_, key, _)| key.kind == kind) {
            if let Some(value) = pick(key.ino, &block[range.clone()]) {
                assert_eq!(value.len(), range.len());
                return changed(sample, 3, index, &|block, _| block[range.clone()].copy_from_slice(&value));
            }
        }
    }
    panic!("no such item");
}

#[test]
fn a_dead_list_that_names_itself_ends() {
    let _alone = memory::alone();
    for (name, counts) in [("clean", u64::MAX), ("behind", 1 << 40), ("log", 1000)] {
        let sample = sample(name);
        let place = first(sample, Part::DeadList);
        let case = Case::made(sample, (1 << sample.images.len()) - 1, &|canvas| {
            assert!(canvas.make_ring(place), "a checksum that is its own can be found");
            let root = canvas.survey.places[first(sample, Part::Root)].addr;
            (0..canvas.survey.root.dead.len()).for_each(|i| canvas.put(root, 2048 + 64 * i + 48, 8, counts));
            canvas.reseal(place, ALL);
            vec![Damage { what: "a ring".into(), place, depth: ALL, spreads: true }]
        });
        walk(&case);
    }
}

#[test]
fn counters_of_a_root_at_their_ends() {
    for value in [u64::MAX, u64::MAX - 1, 1 << 63, 0] {
        root_field("clean", 80, value); // mounts
        root_field("log", 112, value); // inodes
        root_field("log", 128, value); // first log record
        root_field("zones", 192, value); // free blocks
        root_field("clean", 2048 + 48, value); // blocks of the first dead list
    }
    for value in [u64::MAX / 2 - 1, u64::MAX / 2 - 2] {
        root_field("clean", 72, value); // group
    }
    let near = u64::MAX / 4 + (1 << 32) - 1;
    root_field("clean", 104, near);
}

#[test]
fn a_next_inode_number_that_is_taken_is_passed_over() {
    for value in [0, 1, 16, 17, 40] {
        root_field("clean", 104, value);
        root_field("log", 104, value);
    }
}

#[test]
fn a_dead_list_of_a_group_to_come_is_refused() {
    let _alone = memory::alone();
    let sample = sample("clean");
    let place = first(sample, Part::Root);
    let next = sample.survey.root.txg + 1;
    let tally = walk(&changed(sample, 3, place, &|block, _| {
        put(block, 2048 + 32, 8, next);
    }));
    assert!(tally.refused > 0 || tally.latched == 0, "{tally:?}");
}

#[test]
fn a_label_of_a_giant_volume_costs_nothing() {
    let _alone = memory::alone();
    for name in ["clean", "zones", "log"] {
        for (blocks, zone_blocks) in [(1 << 48, 256), ((1 << 48) - 1, 32_000), (1 << 40, 256), (70_000, 256)] {
            let sample = sample(name);
            let case = Case::made(sample, 3, &|canvas| {
                for place in [0, 1] {
                    let addr = canvas.survey.places[place].addr;
                    canvas.put(addr, 128, 8, blocks);
                    canvas.put(addr, 136, 4, zone_blocks);
                    canvas.reseal(place, ALL);
                }
                vec![Damage { what: format!("{blocks} blocks"), place: 0, depth: ALL, spreads: true }]
            });
            walk(&case);
        }
    }
}

#[test]
fn a_name_of_an_inode_without_links_is_stale() {
    let _alone = memory::alone();
    let sample = sample("clean");
    let case = item_value(sample, ItemKind::Inode, &|ino, value| {
        let inode = Inode::decode(value).ok()?;
        (ino > 20 && inode.is_file() && inode.nlink == 1).then(|| Inode { nlink: 0, ..inode }.encode())
    });
    walk(&case);
    let disks = disks_of(sample.blocks, &case.images);
    let (store, _) = open_on(&disks, &Watch::new(sample.blocks), false, false).expect("it opens");
    let fs = Filesystem::new(Arc::new(store), FsOptions::default()).expect("a root");
    let guard = memory::Guarded::begin(0);
    for (path, seen) in sample.expected.iter().filter(|(_, seen)| !seen.way.is_empty()) {
        let name = path.rsplit(|byte| *byte == b'/').next().expect("a name");
        let dir = seen.way.last().expect("not the root").0;
        // Without O_EXCL: opens what is there.
        if let Ok((attr, handle)) = fs.create(dir, name, 0o600, libc::O_RDWR, &Caller::default()) {
            fs.release(attr.ino, handle);
        }
    }
    guard.end();
}

#[test]
fn a_file_that_occupies_more_than_there_is() {
    let _alone = memory::alone();
    for blocks in [u64::MAX, 1 << 61, 1 << 63, 0] {
        let case =
            item_value(sample("clean"), ItemKind::FileMap, &|ino, _| (ino > 20).then(|| FileMap { blocks }.encode()));
        walk(&case);
    }
}

#[test]
fn an_inode_number_at_the_end_of_numbers() {
    let _alone = memory::alone();
    for ino in [u64::MAX, u64::MAX - 1, u64::MAX / 4, u64::MAX / 4 - 1] {
        let sample = sample("clean");
        let leaf = sample.survey.places.iter().rposition(|place| place.part == Part::Leaf).expect("a leaf");
        // The last items of the tree go to that number.
        let case = changed(sample, 3, leaf, &|block, _| {
            let items = Survey::items(block);
            let last = items.last().expect("an item").1.ino;
            for (at, _, _) in items.iter().filter(|(_, key, _)| key.ino == last) {
                put(block, *at, 8, ino);
            }
        });
        walk(&case);
        let case = item_value(sample, ItemKind::Dirent, &|_, value| {
            let entry = Dirent::decode(value).ok()?;
            Some(Dirent { ino, ..entry }.encode())
        });
        walk(&case);
    }
}

#[test]
fn replicas_that_contradict_each_other_are_refused() {
    let _alone = memory::alone();
    // The same version, another tree; the same sequence, other changes; the same volume, another hash key.
    let root = sample("clean");
    let case = changed(root, 1, first(root, Part::Root), &|block, _| {
        put(block, 112, 8, 7);
    });
    let mut contradictions = vec![case];
    let log = sample("log");
    contradictions.push(changed(log, 2, first(log, Part::LogRecord), &|block, _| {
        let at = 144 + 1 + 24 + 2;
        block[at + 5] ^= 1;
    }));
    contradictions.push(Case::made(root, 2, &|canvas| {
        for place in [0, 1] {
            canvas.put(canvas.survey.places[place].addr, 144, 8, 5);
            canvas.reseal(place, ALL);
        }
        vec![Damage { what: "hash key".into(), place: 0, depth: ALL, spreads: true }]
    }));
    for case in &contradictions {
        let tally = walk(case);
        assert_eq!(tally.refused, tally.cases, "{tally:?}");
        let watch = Watch::new(case.sample.blocks);
        let error = open_on(&disks_of(case.sample.blocks, &case.images), &watch, true, false).err().expect("refused");
        // Two roots of one version that differ may as well be two histories.
        let told = error.to_string();
        assert!(told.contains("forged") || told.contains("were written apart"), "{told}");
    }
}

#[test]
fn bitmaps_put_right_leave_alone_what_was_handed_out() {
    let _alone = memory::alone();
    // A log whose replay replaces blocks, beside a bitmap that fsck must put right in a later round.
    let sample = sample("log");
    let bitmap = first(sample, Part::Bitmap);
    for at in 100..104 {
        let case = changed(sample, 3, bitmap, &|block, canvas| {
            block[at] ^= 0xff;
            let record = first(sample, Part::LogRecord);
            let addr = canvas.survey.places[record].addr;
            let mut random = Random::new(at as u64);
            let mut bytes = canvas.block(addr);
            bytes[HEADER + 16] ^= random.below(2) as u8;
            canvas.set(addr, bytes);
            canvas.reseal(record, ALL);
        });
        walk(&case);
    }
}
