//! What the tables cannot show: damage that comes while a change waits for its commit, a root that can be read again, and
//! space that is lost on a volume without a log.

use super::cell::{self, Fault, Verdict};
use super::scene::{self, CALLER, Content, Row, Scene, bytes};
use stablefs::disk::sim::CrashPlan;
use stablefs::error::errno;
use stablefs::format::{BLOCK, ItemKind, Key, ROOT_INO};
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Filesystem, FsOptions};
use stablefs::simulate::{Bench, clean};
use stablefs::store::Store;
use stablefs::store::commit::Force;
use std::sync::Arc;

fn mount(bench: &mut Bench) -> (Arc<Store>, Filesystem) {
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    let store = Arc::new(store);
    let fs = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default()).unwrap();
    (store, fs)
}

fn row<'a>(scene: &'a Scene, name: &str) -> &'a Row {
    scene.rows.iter().find(|row| row.name == name).expect("a row")
}

fn read(fs: &Filesystem, ino: u64, size: usize) -> Result<Vec<u8>, i32> {
    let mut out = Vec::new();
    fs.read(ino, 0, &mut out, size as u32).map(|()| out).map_err(|error| errno(&error))
}

#[test]
fn what_is_lost_before_its_commit_costs_that_inode_alone() {
    let scene = scene::make();
    let mut bench = scene::bench(&scene.setup, &scene.images);
    // Nothing stays in memory from the change to its commit.
    bench.setup.store.cache_nodes = 1;
    let (store, fs) = mount(&mut bench);
    store.commit(Force::Always).unwrap();
    let leaf = row(&scene, "leaf: inodes and inline data");
    let model = &scene.states.last().unwrap().1;
    let small = |ino: &u64| matches!(&model[ino].content, Content::File(bytes) if bytes.len() == 1500);
    let lost = *model.keys().find(|ino| small(ino) && leaf.hit.has(**ino)).unwrap();
    let kept = *model.keys().find(|ino| small(ino) && !leaf.hit.has(**ino)).unwrap();
    for ino in [lost, kept] {
        fs.write(ino, 0, &[7; 100], false, false).unwrap();
    }
    for disk in &bench.disks {
        disk.junk(leaf.addr);
    }
    assert_eq!(fs.sync().map_err(|error| errno(&error)), Err(libc::EIO), "somebody must be told");
    store.check_alive().unwrap();
    fs.sync().unwrap();
    assert!(store.fsync_wait(lost).is_err(), "and whoever asks for this file");
    store.fsync_wait(kept).unwrap();
    drop((store, fs));
    let (store, fs) = mount(&mut bench);
    assert_eq!(read(&fs, lost, 100), Err(libc::EIO));
    assert_eq!(read(&fs, kept, 100), Ok(vec![7; 100]));
    fs.create(ROOT_INO, b"new", 0o644, libc::O_RDWR, &CALLER).unwrap();
    fs.sync().unwrap();
    store.check_alive().unwrap();
}

#[test]
fn a_lost_leaf_costs_only_the_names_in_it_when_the_log_is_replayed() {
    let scene = scene::make();
    let mut bench = scene::bench(&scene.setup, &scene.images);
    let (store, fs) = mount(&mut bench);
    let wide = fs.mkdir(ROOT_INO, b"wide", 0o755, &CALLER).unwrap().ino;
    let make = |name: String| fs.create(wide, name.as_bytes(), 0o644, libc::O_RDWR, &CALLER).unwrap().0.ino;
    for i in 0..300 {
        make(format!("committed {i}"));
    }
    store.commit(Force::Always).unwrap();
    let of_wide = |kind| move |(key, _): &(Key, _)| key.ino == wide && key.kind == kind;
    let mut leaves = scene::nodes(&store).into_iter().filter(|node| node.level == 0);
    let lost = leaves.find(|leaf| leaf.items.iter().all(of_wide(ItemKind::Dirent))).expect("a leaf of names alone");
    let logged: Vec<u64> = (0..60).map(|i| make(format!("logged {i}"))).collect();
    store.fsync_wait(logged[59]).unwrap();
    drop((store, fs));
    bench.disks = bench.power.revive(CrashPlan::KeepAll);
    bench.disks.iter().for_each(|disk| disk.junk(lost.ptr.addr));
    let (store, fs) = mount(&mut bench);
    store.commit(Force::Always).unwrap();
    let look = |i: u32| fs.lookup(wide, format!("logged {i}").as_bytes()).map(drop).map_err(|error| errno(&error));
    let found: Vec<Result<(), i32>> = (0..60).map(look).collect();
    let count = |wanted| found.iter().filter(|one| **one == wanted).count();
    assert_eq!(count(Ok(())) + count(Err(libc::EIO)), 60, "{found:?}");
    assert!(count(Ok(())) > 0 && count(Err(libc::EIO)) > 0, "{found:?}");
    assert!(store.fsync_wait(wide).is_err(), "who asks for the directory is told");
    store.fsync_wait(logged[59]).unwrap();
}

#[test]
fn a_root_that_can_be_read_again_is_never_taken_for_a_later_one() {
    let scene = scene::make();
    let newest = row(&scene, "root, newest");
    let mut bench = scene::bench(&scene.setup, &scene.images);
    for disk in &bench.disks {
        disk.faults(|faults| _ = faults.unreadable.insert(newest.addr));
    }
    let Err(refused) = bench.open(&[0, 1], false) else { panic!("what follows the lost root was replayed") };
    assert!(refused.to_string().contains("was durable and is on none"), "{refused}");
    assert_eq!(bench.fsck(true).unwrap().exit_code, 1);
    let (store, fs) = mount(&mut bench);
    let (attr, _) = fs.create(ROOT_INO, b"after the loss", 0o644, libc::O_RDWR, &CALLER).unwrap();
    let content = bytes(1, 3 * BLOCK);
    fs.write(attr.ino, 0, &content, false, false).unwrap();
    store.fsync_wait(attr.ino).unwrap();
    drop((store, fs));
    bench.disks = bench.power.revive(CrashPlan::DropAll);
    let readable = bench.disks.iter().all(|disk| {
        disk.faults(|faults| faults.unreadable.clear());
        disk.peek(newest.addr)[..4] == *b"SFSb"
    });
    assert!(readable, "the lost root is there again");
    let (store, fs) = mount(&mut bench);
    assert_eq!(fs.lookup(ROOT_INO, b"after the loss").unwrap().ino, attr.ino);
    assert_eq!(read(&fs, attr.ino, content.len()), Ok(content));
    clean(&store).unwrap();
}

#[test]
fn lost_space_of_a_volume_without_a_log_costs_space() {
    let mut scene = scene::make();
    let mut bench = scene::bench(&scene.setup, &scene.images);
    let (store, fs) = mount(&mut bench);
    while fs.reclaim_step().unwrap() {}
    store.commit(Force::Clean).unwrap();
    let (root, geometry) = (store.durable_root(), store.label().geometry.clone());
    drop((store, fs));
    let level_1 = scene::below_top(&bench, &geometry, &root);
    scene.images = bench.disks.iter().map(|disk| disk.snapshot()).collect();
    let mut row = row(&scene, "space node, top, current slot").clone();
    row.addr = geometry.space_node(2, 0, root.space.slot);
    let cell = cell::run(&scene, &row, Fault::Junk, &[0, 1]).unwrap();
    assert_eq!(cell.verdict, Verdict::Refused(Some("the last record of the log")));
    assert!(cell.refusal.unwrap().contains("`stablefs fsck -y` finds it out"));

    // 125 of 130 zones: what is left is less than the reserve, which deletes may use.
    let addr = geometry.space_node(1, 0, level_1[0].slot);
    let mut bench = scene::bench(&scene.setup, &scene.images);
    bench.disks[0].junk(addr);
    bench.disks[1].zero(addr);
    let (store, fs) = mount(&mut bench);
    let model = &scene.states.last().unwrap().1;
    let big = model.iter().find(|(_, item)| item.name == "big").unwrap();
    assert_eq!(read(&fs, *big.0, BLOCK).map(Content::File), Ok(first_block(&big.1.content)));
    fs.unlink(ROOT_INO, b"big").unwrap();
    fs.sync().unwrap();
    let made = fs.create(ROOT_INO, b"new", 0o644, libc::O_RDWR, &CALLER);
    assert_eq!(made.map_err(|error| errno(&error)), Err(libc::ENOSPC));
    store.commit(Force::Clean).unwrap();
    drop((store, fs));
    assert_eq!(bench.fsck(true).unwrap().exit_code, 1);
    let (store, fs) = mount(&mut bench);
    fs.create(ROOT_INO, b"new", 0o644, libc::O_RDWR, &CALLER).unwrap();
    fs.sync().unwrap();
    clean(&store).unwrap();
}

fn first_block(content: &Content) -> Content {
    let Content::File(bytes) = content else { panic!("a file") };
    Content::File(bytes[..BLOCK].to_vec())
}
