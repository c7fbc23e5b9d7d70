//! A walk over everything in a mounted filesystem, and work in it, that takes errors for answers.
//!
//! *Guarantees*: bounded by what is mounted and by the constants below; equal content gives an equal [`Tour`].
//! *Assumes*: one thread; nothing of what is mounted. *Fails when*: the root directory cannot be read.
//! *Order*: depth first, by cookie. *Not here*: whether errors are right (`mutate`).

use super::sample::{CALLER, content};
use crate::disk::sim::Random;
use crate::format::{BLOCK, ROOT_INO};
use crate::fs::{Attr, Filesystem, FsError, FsOptions, SetAttr};
use crate::store::Store;
use crate::store::commit::Force;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;

/// Deepest directory that is entered.
const DEPTH_MAX: usize = 12;
/// Most names that are looked at.
const NAMES_MAX: usize = 4000;
/// Bytes read in one go.
const READ_MAX: u32 = 1 << 18;
/// Stretches of data that are read of one file.
const STRETCHES_MAX: usize = 64;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Directory and cookie of each name on the way, from the root.
    pub way: Vec<(u64, u64)>,
    /// Its inode.
    pub ino: u64,
    /// Everything about it in a line, or the error.
    pub what: String,
}

/// Everything by path.
pub type Tour = BTreeMap<Vec<u8>, Seen>;

/// Mount `store`, for nothing but looking.
fn mount(store: &Arc<Store>) -> Result<Filesystem, FsError> {
    Filesystem::new(store.clone(), FsOptions { noatime: true, writeback_cache: false })
}

/// Look at everything.
///
/// # Errors
/// There is no root directory.
pub fn tour(store: &Arc<Store>) -> Result<Tour, FsError> {
    let fs = mount(store)?;
    let _ = fs.statfs();
    let mut out = Tour::new();
    let mut entered = BTreeSet::new();
    let mut waiting = vec![(Vec::new(), Vec::new(), ROOT_INO)];
    out.insert(b"/".to_vec(), Seen { way: Vec::new(), ino: ROOT_INO, what: describe(&fs, ROOT_INO) });
    while let Some((path, way, dir)) = waiting.pop() {
        if way.len() >= DEPTH_MAX || !entered.insert(dir) {
            continue;
        }
        let mut after = 0;
        while let Ok(entries) = fs.readdir(dir, after, 50, true) {
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            for entry in entries.iter().filter(|entry| entry.cookie > 2) {
                let path = [&path[..], b"/", &entry.name].concat();
                let mut way: Vec<(u64, u64)> = way.clone();
                way.push((dir, entry.cookie));
                let found = fs.lookup(dir, &entry.name).map(|attr| attr.ino);
                let what = describe(&fs, entry.ino);
                if entry.file_type == 4 || found.is_err() {
                    waiting.push((path.clone(), way.clone(), entry.ino));
                }
                out.insert(path, Seen { way, ino: entry.ino, what });
            }
            if out.len() > NAMES_MAX {
                return Ok(out);
            }
        }
    }
    Ok(out)
}

/// What stands at each path of `expected`, found by name.
///
/// # Errors
/// There is no root directory.
pub fn revisit(store: &Arc<Store>, expected: &Tour) -> Result<BTreeMap<Vec<u8>, String>, FsError> {
    let fs = mount(store)?;
    let find = |path: &[u8]| -> Result<u64, FsError> {
        let mut at = ROOT_INO;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = fs.lookup(at, name)?.ino;
        }
        Ok(at)
    };
    let look = |path: &Vec<u8>| match find(path) {
        Ok(ino) => describe(&fs, ino),
        Err(error) => format!("error: {error}"),
    };
    Ok(expected.keys().map(|path| (path.clone(), look(path))).collect())
}

/// Everything about an inode.
fn describe(fs: &Filesystem, ino: u64) -> String {
    match fs.getattr(ino).and_then(|attr| Ok((inside(fs, &attr)?, attr))) {
        Ok((inside, attr)) => format!(
            "{:o} links {} size {} blocks {} owner {}:{} device {} mtime {:?} {inside}",
            attr.mode, attr.nlink, attr.size, attr.blocks512, attr.uid, attr.gid, attr.rdev, attr.mtime
        ),
        Err(error) => format!("error: {error}"),
    }
}

fn inside(fs: &Filesystem, attr: &Attr) -> Result<String, FsError> {
    let ino = attr.ino;
    let mut hash = siphasher::sip::SipHasher24::new();
    match attr.mode & libc::S_IFMT {
        libc::S_IFREG => read_all(fs, attr, &mut hash)?,
        libc::S_IFLNK => hash.write(&fs.readlink(ino)?),
        libc::S_IFDIR => drop(fs.lookup(ino, b"..")),
        _ => {}
    }
    for name in fs.listxattr(ino)?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        hash.write(name);
        hash.write(&fs.getxattr(ino, name)?);
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// The beginning, the end, and the first stretches of data of a file, however large it says it is.
fn read_all(fs: &Filesystem, attr: &Attr, hash: &mut dyn Hasher) -> Result<(), FsError> {
    let mut piece = Vec::new();
    for at in [0, attr.size.saturating_sub(5000), attr.size] {
        fs.read(attr.ino, at, &mut piece, READ_MAX)?;
        hash.write(&piece);
    }
    let mut at = 0;
    for _ in 0..STRETCHES_MAX {
        let data = match fs.lseek(attr.ino, at, libc::SEEK_DATA, false) {
            Ok(data) => data,
            Err(FsError::NoSuchOffset) => return Ok(()),
            Err(error) => return Err(error),
        };
        let hole = fs.lseek(attr.ino, i64::try_from(data).unwrap_or(i64::MAX), libc::SEEK_HOLE, false)?;
        hash.write_u64(data);
        fs.read(attr.ino, data, &mut piece, READ_MAX.min(u32::try_from(hole - data).unwrap_or(READ_MAX)))?;
        hash.write(&piece);
        at = i64::try_from(hole.max(data + 1)).unwrap_or(i64::MAX);
    }
    Ok(())
}

/// Change much of what is there, ignoring errors; then fsync and commit. Gives what the last commit said.
pub fn work(store: &Arc<Store>, tour: &Tour, random: &mut Random) -> Result<(), String> {
    let Ok(fs) = Filesystem::new(store.clone(), FsOptions::default()) else { return Ok(()) };
    let names: Vec<(&Vec<u8>, &Seen)> = tour.iter().filter(|(_, seen)| !seen.way.is_empty()).collect();
    for step in 1..=40 {
        if names.is_empty() {
            break;
        }
        let (path, seen) = *random.pick(&names);
        let (other_path, other) = *random.pick(&names);
        let name = last_name(path);
        let dir = seen.way.last().map_or(ROOT_INO, |way| way.0);
        let other_dir = other.way.last().map_or(ROOT_INO, |way| way.0);
        one(&fs, random, &One { dir, name, ino: seen.ino, other_dir, other_name: last_name(other_path), other, step });
        match random.below(12) {
            0 => drop(store.fsync_wait(seen.ino)),
            1 => drop(store.sync()),
            2 => drop(fs.reclaim_step()),
            3 => drop(store.place_step()),
            _ => {}
        }
    }
    for _ in 0..20 {
        if !fs.reclaim_step().unwrap_or(true) {
            break;
        }
    }
    drop(store.commit(Force::Reclaim));
    drop(fs);
    store.commit(Force::Always).map_err(|error| error.to_string())
}

struct One<'a> {
    dir: u64,
    name: &'a [u8],
    ino: u64,
    other_dir: u64,
    other_name: &'a [u8],
    other: &'a Seen,
    step: u64,
}

fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// One operation; its errors are nobody's.
fn one(fs: &Filesystem, random: &mut Random, on: &One<'_>) {
    let fresh = format!("new-{}", on.step);
    let offset = *random.pick(&[0, 100, 4096, 60_000, 1 << 40, (1 << 62) + 5]);
    let data = content(*random.pick(&[10, 4096, 9000, 70_000]), on.step as u8);
    let ino = on.ino;
    match random.below(18) {
        0 => drop(fs.unlink(on.dir, on.name)),
        1 => drop(fs.rmdir(on.dir, on.name)),
        2 => drop(fs.rename(on.dir, on.name, on.other_dir, on.other_name, 0, &CALLER)),
        3 => drop(fs.rename(on.dir, on.name, on.other_dir, fresh.as_bytes(), 0, &CALLER)),
        4 => drop(fs.rename(on.dir, on.name, on.other_dir, on.other_name, crate::fs::RENAME_EXCHANGE, &CALLER)),
        5 => drop(fs.rename(on.dir, on.name, on.other.ino, fresh.as_bytes(), 0, &CALLER)),
        6 => drop(fs.link(ino, on.other_dir, fresh.as_bytes())),
        7 => {
            if let Ok((attr, handle)) = fs.create(on.dir, fresh.as_bytes(), 0o644, libc::O_RDWR, &CALLER) {
                drop(fs.write(attr.ino, offset, &data, false, false));
                fs.release(attr.ino, handle);
            }
        }
        8 => {
            if let Ok((attr, handle)) = fs.create(on.dir, on.name, 0o644, libc::O_RDWR | libc::O_CREAT, &CALLER) {
                fs.release(attr.ino, handle);
            }
        }
        9 => drop(fs.mkdir(on.dir, fresh.as_bytes(), 0o755, &CALLER)),
        10 => drop(fs.symlink(on.dir, fresh.as_bytes(), b"target", &CALLER)),
        11 | 12 => drop(fs.write(ino, offset, &data, true, false)),
        13 => {
            let size = *random.pick(&[0, 1, 4096, 50_000, i64::MAX as u64 - 5000, BLOCK as u64 * 3]);
            drop(fs.setattr(ino, &CALLER, &SetAttr { size: Some(size), ..SetAttr::default() }));
        }
        14 => drop(fs.setattr(ino, &CALLER, &SetAttr { mode: Some(0o4755), uid: Some(7), ..SetAttr::default() })),
        15 => {
            let mode = *random.pick(&[
                0,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_ZERO_RANGE,
                libc::FALLOC_FL_KEEP_SIZE,
            ]);
            drop(fs.fallocate(ino, offset, 20_000, mode));
        }
        16 => {
            drop(fs.setxattr(ino, b"user.small", &data[..data.len().min(5000)], 0, &CALLER));
            drop(fs.removexattr(ino, b"user.large"));
        }
        _ => drop(fs.copy_file_range(ino, 0, on.other.ino, offset, 30_000)),
    }
}
