//! Random operations, drawn so that they meet: few names, few files, all sizes.
//!
//! *Guarantees*: equal seeds, weights and states give equal operations; files stay below [`FILE_MAX`].
//! *Assumes*: nothing. *Fails when*: never. *Order*: none. *Not here*: what operations do.

use super::model::{Content, Node, Op, State};
use crate::disk::sim::Random;
use crate::format::BLOCK;
use crate::fs::{RENAME_EXCHANGE, RENAME_NOREPLACE};

/// Bytes of the largest file: 160 blocks.
pub const FILE_MAX: u64 = 160 * BLOCK as u64;
const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "photos", "mail", "a-rather-long-name.tar.gz"];
const XATTRS: [&str; 4] = ["user.a", "user.b", "security.x", "user.long"];

/// How often each kind of operation is drawn, and how large writes are: drawn once for each history.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// Writes, truncates, allocations, copies, reads.
    pub files: u64,
    /// Names made, moved and removed.
    pub names: u64,
    /// Modes, owners, times, extended attributes.
    pub attributes: u64,
    /// fsync.
    pub fsyncs: u64,
    /// Barriers: sync, and commits that shrink the window.
    pub syncs: u64,
    /// Write-out, reclaim.
    pub background: u64,
    /// Pins and what unpins, handles closed.
    pub holders: u64,
    /// Large writes: the volume fills up.
    pub greedy: bool,
}

impl Weights {
    /// The usual mixture.
    pub fn usual(greedy: bool) -> Weights {
        Weights { files: 42, names: 20, attributes: 7, fsyncs: 15, syncs: 5, background: 5, holders: 5, greedy }
    }

    /// A mixture of one history: now and then of one kind nearly nothing, or much.
    pub fn draw(random: &mut Random, greedy: bool) -> Weights {
        let mut around = |usual: u64| match random.below(6) {
            0 => usual / 8,
            1 => usual * 4,
            _ => usual,
        };
        Weights {
            files: around(42) + 1,
            names: around(20) + 1,
            attributes: around(7),
            fsyncs: around(15),
            syncs: around(5),
            background: around(5),
            holders: around(5),
            greedy,
        }
    }
}

fn name(random: &mut Random) -> String {
    (*random.pick(&NAMES)).to_owned()
}

/// How many, small ones more often, unless the history is a greedy one.
fn length(random: &mut Random, greedy: bool) -> u64 {
    let block = BLOCK as u64;
    if greedy && random.below(2) == 0 {
        return random.range(20 * block, 60 * block);
    }
    match random.below(10) {
        0..3 => random.range(1, 200),
        3..6 => random.range(1, block + 1),
        6 => block,
        7 => random.range(1, 4) * block,
        8 => random.range(1, 16 * block),
        _ => random.range(1, 60 * block),
    }
}

/// Where: at the start, at the end, inside, beyond, often aligned.
fn offset(random: &mut Random, size: u64) -> u64 {
    let block = BLOCK as u64;
    let at = match random.below(8) {
        0 => 0,
        1..3 => size,
        3 => size.saturating_sub(random.below(300)),
        4..6 => random.below(size + 1),
        6 => random.below(size + 1) / block * block,
        _ => size + random.below(20 * block),
    };
    at.min(FILE_MAX - 1)
}

fn range(random: &mut Random, size: u64, greedy: bool) -> (u64, u64) {
    let offset = offset(random, size);
    let mut length = length(random, greedy);
    if random.below(8) == 0 {
        length = (offset + length).next_multiple_of(BLOCK as u64) - offset;
    }
    (offset, length.min(FILE_MAX - offset))
}

fn rename(state: &State, random: &mut Random) -> Op {
    let dirs = state.inos(|node| node.is_dir() && node.nlink > 0);
    let mut side = || {
        let dir = *random.pick(&dirs);
        let names: Vec<_> = state.names(dir).keys().cloned().collect();
        let exists = !names.is_empty() && random.below(3) > 0;
        (dir, if exists { random.pick(&names).clone() } else { name(random) })
    };
    let ((dir, name), (new_dir, new_name)) = (side(), side());
    let flags = [0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE][random.below(4) as usize];
    Op::Rename { dir, name, new_dir, new_name, flags }
}

fn allocate(random: &mut Random, ino: u64, size: u64, greedy: bool) -> Op {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    let modes = [0, libc::FALLOC_FL_KEEP_SIZE, PUNCH, PUNCH, ZERO, ZERO | libc::FALLOC_FL_KEEP_SIZE];
    let (offset, length) = range(random, size, greedy);
    Op::Allocate { ino, offset, length, mode: *random.pick(&modes) }
}

/// An operation on the content of a file.
fn on_file(state: &State, random: &mut Random, files: &[u64], greedy: bool) -> Op {
    let ino = *random.pick(files);
    let size = state.nodes[&ino].size();
    match random.below(16) {
        0..8 => {
            let (offset, length) = range(random, size, greedy);
            let fill = if random.below(12) == 0 { 0 } else { random.bits() | 1 };
            Op::Write { ino, offset, length, fill }
        }
        8..10 => Op::Truncate { ino, size: offset(random, size) },
        10 => Op::Truncate { ino, size: 0 },
        11..13 => allocate(random, ino, size, greedy),
        13 => {
            let to = *random.pick(files);
            let (from_offset, length) = range(random, size, greedy);
            let to_offset = offset(random, state.nodes[&to].size()).min(FILE_MAX - length);
            Op::Copy { from: ino, from_offset, to, to_offset, length }
        }
        14 => Op::Open { ino },
        _ => {
            let (offset, length) = range(random, size, greedy);
            Op::Read { ino, offset, length: length as u32 }
        }
    }
}

/// An operation on names.
fn on_names(state: &State, random: &mut Random) -> Op {
    let dirs = state.inos(|node| node.is_dir() && node.nlink > 0);
    let dir = *random.pick(&dirs);
    let name = name(random);
    let mode = random.below(0o1000) as u32;
    let nodes = state.nodes.len();
    match random.below(16) {
        0..4 => Op::Create { dir, name, mode },
        4 if dirs.len() < 5 => Op::Mkdir { dir, name, mode },
        5 => Op::Symlink { dir, name, length: random.range(1, 300), fill: random.bits() | 1 },
        6 if nodes < 20 => Op::Fifo { dir, name },
        7 => {
            let linked = state.inos(|node| !node.is_dir());
            if linked.is_empty() {
                return Op::Create { dir, name, mode };
            }
            Op::Link { ino: *random.pick(&linked), dir, name }
        }
        8..11 => Op::Unlink { dir, name },
        11 => Op::Rmdir { dir, name },
        _ => rename(state, random),
    }
}

fn on_attributes(state: &State, random: &mut Random) -> Op {
    let all: Vec<u64> = state.inos(|node: &Node| !matches!(node.content, Content::Link(_)));
    let ino = *random.pick(&all);
    let name = (*random.pick(&XATTRS)).to_owned();
    match random.below(6) {
        0 => Op::Chmod { ino, mode: random.below(0o10000) as u32 },
        1 => Op::Chown { ino, uid: random.below(3) as u32 * 1000, gid: random.below(3) as u32 * 1000 },
        2 => Op::SetTimes {
            ino,
            sec: random.below(1 << 34) as i64 - (1 << 32),
            nsec: random.below(1_000_000_000) as u32,
        },
        3..5 => {
            let longest = if name == "user.long" { 5000 } else { 100 };
            Op::SetXattr { ino, name, length: random.below(longest), fill: random.bits() | 1 }
        }
        _ => Op::RemoveXattr { ino, name },
    }
}

/// The next operation.
pub fn next(state: &State, random: &mut Random, weights: &Weights) -> Op {
    let greedy = weights.greedy;
    let files = state.inos(|node| node.file().is_some());
    let Weights { files: on_files, names, attributes, fsyncs, syncs, background, holders, .. } = *weights;
    let kinds = [on_files, names, attributes, fsyncs, syncs, background, holders];
    let mut at = random.below(kinds.iter().sum());
    let kind = kinds.iter().position(|weight| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    });
    match kind {
        Some(0) if !files.is_empty() => on_file(state, random, &files, greedy),
        Some(0 | 1) if state.nodes.len() > 22 => {
            let dirs = state.inos(|node| node.is_dir() && node.nlink > 0);
            let dir = *random.pick(&dirs);
            let names: Vec<_> = state.names(dir).keys().cloned().collect();
            if names.is_empty() { Op::Sync } else { Op::Unlink { dir, name: random.pick(&names).clone() } }
        }
        Some(0 | 1) => on_names(state, random),
        Some(2) => on_attributes(state, random),
        Some(3) => {
            let all: Vec<u64> = state.nodes.keys().copied().collect();
            Op::Fsync { ino: *random.pick(&all) }
        }
        Some(4) => {
            if random.below(5) == 0 {
                Op::Squeeze
            } else {
                Op::Sync
            }
        }
        Some(5) => {
            if random.below(5) < 3 {
                Op::Place
            } else {
                Op::Reclaim
            }
        }
        _ => match random.below(5) {
            0 => Op::Pin,
            1 if random.below(3) == 0 => Op::Unpin,
            1 => Op::Sync,
            _ => {
                let open: Vec<u64> = state.opens.keys().copied().collect();
                if open.is_empty() { Op::Place } else { Op::Release { ino: *random.pick(&open) } }
            }
        },
    }
}
