//! Volumes that hold one of everything, as images to be damaged.
//!
//! *Guarantees*: each sample was made by the product itself and is whole; equal in every run. *Assumes*: one thread.
//! *Fails when*: the product cannot make it: a panic, for it has no faults. *Order*: made once, kept.
//! *Not here*: the damage.
//!
//! | sample | has |
//! |---|---|
//! | `clean` | every kind of inode, item and extent; dead lists; orphans |
//! | `log` | the same, and a log with all kinds of entries that waits for replay |
//! | `deep` | a tree of three levels |
//! | `zones` | two levels of space nodes; grows |
//! | `behind` | a degraded history of several epochs, and the replica that it left behind |
//! | `returning` | the same, in the middle of the return |
//! | `three` | three replicas |

use super::survey::Survey;
use super::tour::{Tour, tour};
use super::watched::Watch;
use crate::disk::backing::Backing;
use crate::disk::sim::{CrashPlan, Image, SimDisk, World as Power};
use crate::format::item::Time;
use crate::format::{BLOCK, Geometry, Label, MemberState, ROOT_INO, Root};
use crate::fs::{ACL_ACCESS, ACL_DEFAULT, Caller, Filesystem, FsOptions, SetAttr};
use crate::store::commit::Force;
use crate::store::create::{CreateStore, create};
use crate::store::recover::{OpenStore, Present, Report, examine, open};
use crate::store::{Store, StoreError, StoreOptions};
use crate::world::Seeded;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Deadline of a request; simulated disks answer at once.
pub const DEADLINE: Duration = Duration::from_millis(50);
/// Who makes everything.
pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022, lacks_fsetid: false };

/// Disks to be damaged.
#[derive(Clone)]
pub struct Sample {
    /// What it is.
    pub name: &'static str,
    /// Blocks of each disk.
    pub blocks: u64,
    /// What each disk holds.
    pub images: Vec<Image>,
    /// Where its structures stand.
    pub survey: Arc<Survey>,
    /// What is found in it.
    pub expected: Tour,
    /// Whether opening needs `degraded`.
    pub degraded: bool,
}

/// All samples.
pub fn samples() -> &'static [Sample] {
    static MADE: OnceLock<Vec<Sample>> = OnceLock::new();
    MADE.get_or_init(|| {
        let plain = Shape { blocks: 1400, zone_blocks: 256, replicas: 2, grows: false, files: 24 };
        vec![
            make("clean", &plain, true, &|_| {}),
            make("log", &plain, false, &|_| {}),
            make("deep", &Shape { blocks: 3000, zone_blocks: 1000, files: 620, ..plain }, true, &|_| {}),
            make("zones", &Shape { blocks: 36_000, grows: true, ..plain }, false, &|_| {}),
            make("behind", &plain, true, &|disks| leave_behind(disks)),
            make("returning", &plain, true, &|disks| {
                leave_behind(disks);
                begin_return(disks);
            }),
            make("three", &Shape { replicas: 3, ..plain }, false, &|_| {}),
        ]
    })
}

/// A sample of disks that stand somewhere else, such as a golden volume.
///
/// # Errors
/// The volume cannot be opened.
pub fn sample_of(name: &'static str, blocks: u64, images: Vec<Image>) -> Result<Sample, String> {
    let disks = disks_of(blocks, &images);
    let watch = Watch::new(blocks);
    let (store, _) = open_on(&disks, &watch, true, true).map_err(|error| format!("{name}: {error}"))?;
    let expected = tour(&Arc::new(store)).map_err(|error| format!("{name}: {error}"))?;
    let survey = Arc::new(Survey::of(&images[0]));
    Ok(Sample { name, blocks, images, survey, expected, degraded: false })
}

#[derive(Clone, Copy)]
struct Shape {
    blocks: u64,
    zone_blocks: u32,
    replicas: usize,
    grows: bool,
    files: usize,
}

/// Disks that hold `images`.
pub fn disks_of(blocks: u64, images: &[Image]) -> Vec<Arc<SimDisk>> {
    let power = Power::new(7);
    images.iter().map(|image| power.disk_from(blocks, image.clone())).collect()
}

/// How the store of a sample behaves: little memory, so that more is read.
fn options(read_only: bool) -> StoreOptions {
    StoreOptions {
        read_only,
        pages_max: 256,
        pages_start: 64,
        items_bytes_max: 1 << 20,
        placed_max: 512,
        cache_nodes: 256,
        window: 3,
        resync_rate: 0,
    }
}

/// The replicas among `disks`, looked at through `watch`.
pub fn present(disks: &[Arc<SimDisk>], watch: &Watch) -> Vec<Present> {
    let mut present = Vec::new();
    for (i, disk) in disks.iter().enumerate() {
        let backing: Arc<dyn Backing> = watch.watch(disk.reopen());
        if let Ok(found) = examine(&*backing, DEADLINE) {
            present.push(Present { path: format!("/disk/{i}"), backing, found });
        }
    }
    present
}

/// Open the volume on `disks`.
///
/// # Errors
/// It is refused.
pub fn open_on(
    disks: &[Arc<SimDisk>],
    watch: &Watch,
    degraded: bool,
    read_only: bool,
) -> Result<(Store, Report), StoreError> {
    let options = OpenStore { degraded, deadline: DEADLINE, store: options(read_only), on_shrink: None, hold: false };
    let present = present(disks, watch);
    // Each opening is another one: no epoch comes twice.
    let newest = present.iter().flat_map(|p| &p.found.roots).map(|(_, root)| root.version).max().unwrap_or(0);
    open(present, options, Arc::new(Seeded::new(99 ^ newest.rotate_left(20))))
}

fn make(name: &'static str, shape: &Shape, clean: bool, then: &dyn Fn(&mut Vec<Arc<SimDisk>>)) -> Sample {
    let power = Power::new(1);
    let mut disks: Vec<Arc<SimDisk>> = (0..shape.replicas).map(|_| power.disk(shape.blocks)).collect();
    let geometry = Geometry::new(shape.blocks, shape.zone_blocks, 64).expect("a possible geometry");
    let root_items = Filesystem::root_items(Time { sec: 1_700_000_000, nsec: 0 }, 0, 0);
    let wanted = CreateStore { geometry, name: name.into(), grows: shape.grows, root_items, deadline: DEADLINE };
    let named = disks.iter().enumerate().map(|(i, d)| (format!("/disk/{i}"), d.reopen() as Arc<dyn Backing>));
    create(named.collect(), wanted, Arc::new(Seeded::new(5))).expect("disks without faults");
    let watch = Watch::new(shape.blocks);
    let (store, _) = open_on(&disks, &watch, false, false).expect("a new volume");
    let store = Arc::new(store);
    fill(&store, shape.files);
    if clean {
        store.commit(Force::Clean).expect("a commit");
    } else {
        log_some(&store);
    }
    drop(store);
    disks = power.revive(CrashPlan::KeepAll);
    then(&mut disks);
    let images: Vec<Image> = disks.iter().map(|disk| disk.snapshot()).collect();
    let degraded = name == "behind" || name == "returning";
    let sample = sample_of(name, shape.blocks, images).expect("a whole volume");
    Sample { degraded, ..sample }
}

/// Bytes in which each block is another one.
pub fn content(length: usize, fill: u8) -> Vec<u8> {
    (0..length).map(|i| fill.wrapping_add((i / 97) as u8).wrapping_mul(31) ^ (i / BLOCK) as u8).collect()
}

/// An ACL: owner, one user, group, mask, other.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 5, 1000), (4, 4, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

fn put(fs: &Filesystem, parent: u64, name: &str, data: &[u8]) -> u64 {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    let (attr, handle) = fs.create(parent, name.as_bytes(), 0o644, flags, &CALLER).expect("create");
    for (i, piece) in data.chunks(65_536).enumerate() {
        fs.write(attr.ino, i as u64 * 65_536, piece, false, false).expect("write");
    }
    fs.release(attr.ino, handle);
    attr.ino
}

fn fill(store: &Arc<Store>, files: usize) {
    let fs = Filesystem::new(store.clone(), FsOptions { noatime: true, writeback_cache: false }).expect("a root");
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, &CALLER).expect("mkdir").ino;
    let below = fs.mkdir(dir, b"below", 0o2775, &CALLER).expect("mkdir").ino;
    let deepest = fs.mkdir(below, b"deepest", 0o700, &CALLER).expect("mkdir").ino;
    fs.setxattr(below, ACL_DEFAULT, &acl(), 0, &CALLER).expect("a default ACL");
    for i in 0..files {
        let parent = *[ROOT_INO, dir, below, deepest].get(i % 5).unwrap_or(&dir);
        put(&fs, parent, &format!("file-{i}-with-a-name"), &content(i * 37 % 500, i as u8));
        if i % 100 == 99 {
            store.sync().expect("sync");
        }
    }
    put(&fs, dir, "block", &content(4096, 1));
    let large = put(&fs, dir, "large", &content(150_000, 2));
    put(&fs, ROOT_INO, "half-inline", &content(1900, 3));
    let linked = put(&fs, below, "linked", &content(5000, 4));
    fs.link(linked, ROOT_INO, b"second").expect("link");
    fs.link(linked, deepest, b"third").expect("link");
    fs.symlink(dir, b"short-link", b"../half-inline", &CALLER).expect("symlink");
    fs.symlink(dir, b"long-link", &[b'x'; 3000], &CALLER).expect("symlink");
    fs.mknod(dir, b"fifo", libc::S_IFIFO | 0o600, 0, &CALLER).expect("mknod");
    fs.mknod(dir, b"device", libc::S_IFBLK | 0o600, 0x0803, &CALLER).expect("mknod");
    fs.setxattr(linked, b"user.small", b"value", 0, &CALLER).expect("setxattr");
    fs.setxattr(linked, b"user.large", &content(4000, 5), 0, &CALLER).expect("setxattr");
    fs.setxattr(large, ACL_ACCESS, &acl(), 0, &CALLER).expect("an ACL");
    let sparse = put(&fs, dir, "sparse", b"begin");
    fs.write(sparse, 1 << 40, b"far out", false, false).expect("write");
    fs.fallocate(sparse, 8192, 40_000, libc::FALLOC_FL_KEEP_SIZE).expect("fallocate");
    let pieces = put(&fs, dir, "pieces", b"");
    for i in 0..12 {
        fs.write(pieces, i * 12_288, &content(5000, i as u8), false, false).expect("write");
        if i % 4 == 3 {
            store.sync().expect("sync");
        }
    }
    for name in ["orphan-1", "orphan-2"] {
        let ino = put(&fs, ROOT_INO, name, &content(9000, 6));
        fs.open(ino, libc::O_RDWR).expect("open");
        fs.unlink(ROOT_INO, name.as_bytes()).expect("unlink");
    }
    store.sync().expect("sync");
    fs.unlink(ROOT_INO, b"file-0-with-a-name").expect("unlink");
    fs.write(large, 40_000, &content(30_000, 7), false, false).expect("write");
    store.sync().expect("sync");
    fs.rename(dir, b"file-1-with-a-name", below, b"renamed", 0, &CALLER).expect("rename");
    fs.setattr(large, &CALLER, &SetAttr { size: Some(130_001), ..SetAttr::default() }).expect("truncate");
    store.sync().expect("sync");
}

/// Changes that only the log makes durable: all kinds of entries.
fn log_some(store: &Arc<Store>) {
    let fs = Filesystem::new(store.clone(), FsOptions { noatime: true, writeback_cache: false }).expect("a root");
    let dir = fs.lookup(ROOT_INO, b"dir").expect("dir").ino;
    let small = put(&fs, ROOT_INO, "logged", &content(3000, 8));
    store.fsync_wait(small).expect("fsync");
    let large = put(&fs, dir, "logged-large", &content(120_000, 9));
    fs.fallocate(large, 131_072, 20_000, 0).expect("fallocate");
    store.fsync_wait(large).expect("fsync");
    fs.fallocate(large, 4096, 8192, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).expect("punch");
    fs.unlink(ROOT_INO, b"half-inline").expect("unlink");
    fs.setxattr(small, b"user.logged", b"yes", 0, &CALLER).expect("setxattr");
    store.fsync_wait(large).expect("fsync");
}

/// Two degraded mounts of disk 0 alone, with changes.
fn leave_behind(disks: &mut [Arc<SimDisk>]) {
    for round in 0..2 {
        let watch = Watch::new(disks[0].blocks());
        let (store, _) = open_on(&disks[..1], &watch, true, false).expect("one is left");
        let store = Arc::new(store);
        let fs = Filesystem::new(store.clone(), FsOptions::default()).expect("a root");
        put(&fs, ROOT_INO, &format!("alone-{round}"), &content(6000, round));
        store.commit(if round == 0 { Force::Always } else { Force::Clean }).expect("a commit");
    }
}

/// As if the replica left behind were on its way back: the newest root says so on both.
fn begin_return(disks: &mut [Arc<SimDisk>]) {
    let label = Label::decode(&disks[0].peek(0), 0).expect("a label");
    let decode = |slot: usize| Root::decode(&disks[0].peek(Root::addr(slot)), slot, label.volume, &label.geometry);
    let newest = (0..16).filter_map(|slot| Some((slot, decode(slot).ok()?))).max_by_key(|(_, root)| root.version);
    let (slot, mut root) = newest.expect("a root");
    root.members[1].state = MemberState::Returning;
    let block: [u8; BLOCK] = root.encode(slot).try_into().expect("one block");
    disks.iter().for_each(|disk| disk.poke(Root::addr(slot), block));
}
