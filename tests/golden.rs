//! Volumes that older releases wrote stay readable.
//!
//! Goal: format version 1 is what `tests/golden/` holds, for ever. Method: a volume of 16 MiB was made once, with a fixed
//! seed, on two simulated disks, and closed in two ways: in order, and by a power cut with a log to replay. The test
//! opens what is stored, compares every file, and lets the checker prove every block.
//!
//! `STABLEFS_GOLDEN=write cargo test --test golden` writes them anew: only with a new format version, beside the old.

use stablefs::disk::Backing;
use stablefs::disk::sim::{Blocks, CrashPlan, Image, SimDisk, World as Power};
use stablefs::format::item::Time;
use stablefs::format::{Addr, BLOCK, Geometry};
use stablefs::fs::{Attr, Caller, Filesystem, FsOptions};
use stablefs::store::check::{CheckOptions, StoreSource, check};
use stablefs::store::create::{CreateStore, create};
use stablefs::store::recover::{OpenStore, Present, examine, open};
use stablefs::store::{Store, StoreOptions};
use stablefs::world::Seeded;
use std::fmt::Write;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const BLOCKS: u64 = 4096;
const WAIT: Duration = Duration::from_secs(1);
const SEED: u64 = 20_261_123;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn backings(disks: &[Arc<SimDisk>]) -> Vec<(String, Arc<dyn Backing>)> {
    let named = disks.iter().enumerate();
    named.map(|(i, disk)| (format!("golden-{i}"), disk.reopen() as Arc<dyn Backing>)).collect()
}

fn open_store(disks: &[Arc<SimDisk>], read_only: bool) -> (Arc<Store>, u64) {
    let present = backings(disks).into_iter().map(|(path, backing)| {
        let found = examine(&*backing, WAIT).expect("a replica");
        Present { path, backing, found }
    });
    let store = StoreOptions { read_only, ..StoreOptions::default() };
    let options = OpenStore { degraded: false, deadline: WAIT, store, on_shrink: None, hold: false };
    let (store, report) = open(present.collect(), options, Arc::new(Seeded::new(SEED + 1))).expect("a volume");
    (Arc::new(store), report.replayed)
}

/// Bytes that compress to nothing here: the stored volume stays small. Every block is another one all the same.
fn content(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    for (i, chunk) in out.chunks_mut(1024).enumerate() {
        let text = format!("piece {i} of {len}\n");
        let count = text.len().min(chunk.len());
        chunk[..count].copy_from_slice(&text.as_bytes()[..count]);
    }
    out
}

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022, lacks_fsetid: false };

/// Name in the root directory and length of each file.
fn files() -> Vec<(String, usize)> {
    let sizes = [0, 1, 100, 1920, 1921, 4096, 4097, 65_536, 100_001];
    let mut all: Vec<_> = sizes.iter().map(|len| (format!("file-{len}"), *len)).collect();
    all.extend((0..150).map(|i| (format!("small-{i:03}"), 40 + i)));
    all
}

/// Fill a volume; the last steps are made durable by fsync alone.
fn fill(fs: &Filesystem, store: &Store) {
    let make = |parent: u64, name: &str, data: &[u8]| -> Attr {
        let (attr, handle) = fs.create(parent, name.as_bytes(), 0o644, libc_o_rdwr(), &CALLER).expect("create");
        for (i, piece) in data.chunks(65_536).enumerate() {
            fs.write(attr.ino, i as u64 * 65_536, piece, false, false).expect("write");
        }
        fs.release(attr.ino, handle);
        attr
    };
    for (name, len) in files() {
        make(1, &name, &content(len));
    }
    store.sync().expect("sync");
    let dir = fs.mkdir(1, b"dir", 0o755, &CALLER).expect("mkdir").ino;
    let linked = make(dir, "linked", &content(5000)).ino;
    fs.link(linked, 1, b"second-name").expect("link");
    fs.symlink(dir, b"symlink", b"../file-100", &CALLER).expect("symlink");
    fs.mknod(dir, b"fifo", 0o010_600, 0, &CALLER).expect("mknod");
    fs.setxattr(linked, b"user.small", b"value", 0, &CALLER).expect("setxattr");
    fs.setxattr(linked, b"user.large", &content(4000), 0, &CALLER).expect("setxattr");
    let sparse = make(dir, "sparse", b"").ino;
    fs.write(sparse, 1 << 20, b"far out", false, false).expect("write");
    fs.fallocate(sparse, 0, 8192, 1).expect("fallocate"); // keep size: reserved blocks
    fs.unlink(1, b"small-149").expect("unlink");
    fs.rename(1, b"small-148", dir, b"moved", 0, &CALLER).expect("rename");
    store.sync().expect("sync");
    let logged = make(1, "logged", &content(3000)).ino;
    store.fsync_wait(logged).expect("fsync");
}

fn libc_o_rdwr() -> i32 {
    rustix::fs::OFlags::RDWR.bits() as i32
}

fn read(fs: &Filesystem, parent: u64, name: &str) -> (Attr, Vec<u8>) {
    let attr = fs.lookup(parent, name.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut out = Vec::new();
    while (out.len() as u64) < attr.size {
        let mut piece = Vec::new();
        fs.read(attr.ino, out.len() as u64, &mut piece, 65_536).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!piece.is_empty(), "{name} ends early");
        out.extend(piece);
    }
    (attr, out)
}

fn compare(fs: &Filesystem) {
    for (name, len) in files().iter().filter(|(name, _)| !matches!(name.as_str(), "small-148" | "small-149")) {
        let (attr, found) = read(fs, 1, name);
        assert!(found == content(*len), "{name}");
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.nlink), (0o100_644, 1000, 100, 1), "{name}");
    }
    let dir = fs.lookup(1, b"dir").expect("dir").ino;
    let (linked, found) = read(fs, dir, "linked");
    assert!(found == content(5000));
    assert_eq!((fs.lookup(1, b"second-name").expect("a link").ino, linked.nlink), (linked.ino, 2));
    assert_eq!(fs.readlink(fs.lookup(dir, b"symlink").expect("symlink").ino).expect("a target"), b"../file-100");
    assert_eq!(fs.lookup(dir, b"fifo").expect("fifo").mode, 0o010_600);
    assert_eq!(fs.getxattr(linked.ino, b"user.small").expect("an attribute"), b"value");
    assert!(fs.getxattr(linked.ino, b"user.large").expect("an attribute") == content(4000));
    let (sparse, found) = read(fs, dir, "sparse");
    assert_eq!((sparse.size, &found[1 << 20..]), ((1 << 20) + 7, &b"far out"[..]));
    assert!(found[..1 << 20].iter().all(|byte| *byte == 0));
    assert!(read(fs, dir, "moved").1 == content(188));
    assert!(fs.lookup(1, b"small-149").is_err() && fs.lookup(1, b"small-148").is_err());
    assert!(read(fs, 1, "logged").1 == content(3000));
    let names = fs.readdir(1, 0, 10_000, false).expect("a listing").len();
    assert_eq!(names, 2 + files().len() - 2 + 3);
}

/// One line for each block that is not zero: address, then runs `offset:hex` of bytes that are not.
fn encode(images: &[Image]) -> String {
    let mut out = String::new();
    for (replica, image) in images.iter().enumerate() {
        let mut addrs: Vec<Addr> = image.keys().copied().collect();
        addrs.sort_unstable();
        for addr in addrs {
            let block = &image[&addr];
            let twin = images[0].get(&addr);
            if block.iter().all(|byte| *byte == 0) || (replica > 0 && twin.is_some_and(|twin| twin == block)) {
                continue;
            }
            let _ = write!(out, "{replica} {addr}"); // a String takes everything
            let mut at = 0;
            while at < BLOCK {
                if block[at] == 0 {
                    at += 1;
                    continue;
                }
                // A run goes on over up to three zeros.
                let mut end = at + 1;
                while end < BLOCK && block[end..BLOCK.min(end + 4)].iter().any(|byte| *byte != 0) {
                    end += 1;
                }
                let _ = write!(out, " {at}:");
                block[at..end].iter().for_each(|byte| {
                    let _ = write!(out, "{byte:02x}");
                });
                at = end;
            }
            out.push('\n');
        }
    }
    out
}

/// Both disks. Replica 1 differs from replica 0 where it has lines of its own.
fn decode(text: &str) -> [Image; 2] {
    let mut disks = [Blocks::default(), Blocks::default()];
    for line in text.lines() {
        let mut words = line.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
        let (replica, addr) = (number() as usize, number());
        let mut block = [0; BLOCK];
        for run in words {
            let (at, hex) = run.split_once(':').expect("offset:hex");
            let at: usize = at.parse().expect("an offset");
            for i in 0..hex.len() / 2 {
                block[at + i] = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex");
            }
        }
        let block = Arc::new(block);
        disks[replica].insert(addr, block.clone());
        if replica == 0 {
            disks[1].insert(addr, block);
        }
    }
    disks.map(Arc::new)
}

fn make_images(clean: bool) -> Vec<Image> {
    let power = Power::new(SEED);
    let disks: Vec<_> = (0..2).map(|_| power.disk(BLOCKS)).collect();
    let make = CreateStore {
        geometry: Geometry::new(BLOCKS, 2000, 128).expect("a possible volume"),
        name: "golden".into(),
        grows: true,
        root_items: Filesystem::root_items(Time { sec: 1_700_000_000, nsec: 0 }, 0, 0),
        deadline: WAIT,
    };
    create(backings(&disks), make, Arc::new(Seeded::new(SEED))).expect("a volume");
    let (store, _) = open_store(&disks, false);
    let fs = Filesystem::new(store.clone(), FsOptions::default()).expect("a filesystem");
    fill(&fs, &store);
    if clean {
        store.commit(stablefs::store::commit::Force::Clean).expect("commit");
    }
    drop(fs);
    power.revive(CrashPlan::KeepAll).iter().map(|disk| disk.snapshot()).collect()
}

#[test]
fn the_golden_volumes_are_read() {
    if std::env::var("STABLEFS_GOLDEN").as_deref() == Ok("write") {
        for (name, clean) in [("v1-clean.txt", true), ("v1-log.txt", false)] {
            fs::write(folder().join(name), encode(&make_images(clean))).expect("written");
        }
    }
    for (name, replayed) in [("v1-clean.txt", false), ("v1-log.txt", true)] {
        let text = fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.len() < 200_000, "{name} has grown to {} bytes", text.len());
        for read_only in [true, false] {
            let power = Power::new(1);
            let disks: Vec<_> = decode(&text).into_iter().map(|image| power.disk_from(BLOCKS, image)).collect();
            let before: Vec<Image> = disks.iter().map(|disk| disk.snapshot()).collect();
            let (store, records) = open_store(&disks, read_only);
            assert_eq!(records > 0, replayed, "{name}: {records} records were replayed");
            let fs = Filesystem::new(store.clone(), FsOptions::default()).expect("a filesystem");
            compare(&fs);
            drop(fs);
            let options = CheckOptions { parallel: false, ..CheckOptions::default() };
            let report = check(&StoreSource::new(&store), &options, &mut |_| ControlFlow::Continue(()));
            assert!(report.is_clean(), "{name}: {:?}", report.findings);
            if read_only {
                let after: Vec<Image> = disks.iter().map(|disk| disk.snapshot()).collect();
                assert!(before == after, "{name}: a volume that was opened for reading was written to");
            }
        }
    }
}

#[test]
fn volumes_are_made_as_the_golden_ones_were() {
    // Not a promise to users, but a change here means that the format or the seed's use has changed: look twice.
    let images = make_images(true);
    let text = fs::read_to_string(folder().join("v1-clean.txt")).expect("v1-clean.txt");
    let golden = decode(&text);
    for (addr, block) in golden[0].iter().filter(|(addr, _)| Geometry::label_copies().contains(addr)) {
        assert!(images[0].get(addr) == Some(block), "the label at block {addr} differs");
    }
    // A stored volume is read back as it was.
    let again = decode(&encode(&images));
    for (image, again) in images.iter().zip(&again) {
        let zero = [0; BLOCK];
        assert!(image.iter().all(|(addr, block)| **again.get(addr).unwrap_or(&Arc::new(zero)) == **block));
    }
}
