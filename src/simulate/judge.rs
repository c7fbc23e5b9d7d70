//! What may be found after a crash.
//!
//! *Guarantees*: [`judge`] accepts exactly this: names and attributes as after some operation that is not older than
//! the last acknowledged fsync; each block of each file from some moment between its last acknowledged fsync and that
//! operation; a file shorter than it was then only if its growth had not been synced.
//! *Assumes*: the driver's states are complete. *Fails when*: nothing fits: how the likeliest states differ.
//! *Order*: none. *Not here*: blocks on disk (`store::check`).

use super::driver::Driver;
use super::model::{Content, Node, State};
use crate::format::item::Time;
use crate::format::{BLOCK, all_zero};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A time that nobody knows.
const UNKNOWN: Time = Time { sec: i64::MIN, nsec: 0 };

impl State {
    /// The times of `ino` are not known.
    pub fn forget_times(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let node = Arc::make_mut(node);
            (node.mtime, node.ctime) = (UNKNOWN, UNKNOWN);
        }
    }
}

/// What is known before the crash, without the filesystem itself.
pub struct Known {
    states: Vec<State>,
    floor: usize,
    durable: BTreeMap<u64, usize>,
}

impl Known {
    /// Take it from `driver`.
    pub fn take(driver: Driver) -> Known {
        Known { states: driver.states, floor: driver.floor, durable: driver.durable }
    }
    /// What was known when there were these states, and this was acknowledged.
    pub fn at(states: &[State], floor: usize, durable: &BTreeMap<u64, usize>) -> Known {
        Known { states: states.to_vec(), floor, durable: durable.clone() }
    }
    /// Whether anything was acknowledged as durable.
    pub fn acknowledged(&self) -> bool {
        self.floor > 0
    }
}

fn same_time(a: Time, b: Time) -> bool {
    a == UNKNOWN || b == UNKNOWN || a == b
}

/// Everything but the bytes of files.
fn same_attributes(ino: u64, should: &Node, is: &Node) -> Result<(), String> {
    let fail = |what: &str, should: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
        let cut = |text: String| text.chars().take(200).collect::<String>();
        Err(format!("inode {ino} has {what} {}, should have {}", cut(format!("{is:?}")), cut(format!("{should:?}"))))
    };
    if (should.mode, should.owner, should.nlink) != (is.mode, is.owner, is.nlink) {
        return fail(
            "(mode, owner, links)",
            &(should.mode, should.owner, should.nlink),
            &(is.mode, is.owner, is.nlink),
        );
    }
    match (&should.content, &is.content) {
        (Content::File(_), Content::File(_)) => {}
        (a, b) if a == b => {}
        (a, b) => return fail("content", a, b),
    }
    if should.xattrs != is.xattrs {
        return fail("attributes", &should.xattrs, &is.xattrs);
    }
    if !same_time(should.mtime, is.mtime) || !same_time(should.ctime, is.ctime) {
        return fail("times", &(should.mtime, should.ctime), &(is.mtime, is.ctime));
    }
    Ok(())
}

/// Compares the bytes of a file: inode, what they should be, what they are.
type CompareFile<'a> = dyn FnMut(u64, &Arc<Vec<u8>>, &Arc<Vec<u8>>) -> Result<(), String> + 'a;

/// Names and attributes; calls `file` for each file.
fn compare(should: &State, is: &State, file: &mut CompareFile<'_>, orphans: bool) -> Result<(), String> {
    let expected = should.nodes.iter().filter(|(_, node)| orphans || node.nlink > 0);
    for (ino, node) in expected.clone() {
        let Some(found) = is.nodes.get(ino) else { return Err(format!("inode {ino} is missing")) };
        same_attributes(*ino, node, found)?;
    }
    if expected.count() != is.nodes.len() {
        let extra = is.nodes.keys().find(|ino| should.nodes.get(ino).is_none_or(|node| node.nlink == 0));
        return Err(format!("inode {extra:?} should not be there"));
    }
    for (ino, node) in should.nodes.iter() {
        if let (Some(a), Some(b)) = (node.file(), is.nodes.get(ino).and_then(|node| node.file())) {
            file(*ino, a, b)?;
        }
    }
    Ok(())
}

/// Whether `is` is exactly `should`.
///
/// # Errors
/// The first difference.
pub fn same(should: &State, is: &State) -> Result<(), String> {
    let mut file = |ino: u64, should: &Arc<Vec<u8>>, is: &Arc<Vec<u8>>| {
        if Arc::ptr_eq(should, is) || should == is {
            return Ok(());
        }
        let at = should.iter().zip(is.iter()).position(|(a, b)| a != b);
        Err(format!("inode {ino} has {} bytes, should have {}; first difference at {at:?}", is.len(), should.len()))
    };
    compare(should, is, &mut file, true)
}

/// The bytes of block `block` below `size`, zeros beyond the end.
fn block_is(version: &[u8], block: usize, found: &[u8]) -> bool {
    let from = (block * BLOCK).min(version.len());
    let to = (from + found.len()).min(version.len());
    version[from..to] == found[..to - from] && all_zero(&found[to - from..])
}

/// Whether a file may look like `is` if its versions since it was last durable are `versions` (newest first). What a
/// truncate cut off is gone in every later one.
fn file_fits(ino: u64, versions: &[&Arc<Vec<u8>>], is: &[u8]) -> Result<(), String> {
    let size = versions[0].len();
    // How much of each was not cut off since.
    let mut cut = usize::MAX;
    let left: Vec<&[u8]> = versions
        .iter()
        .map(|version| {
            cut = cut.min(version.len());
            &version[..cut]
        })
        .collect();
    // A size that was outgrown since, by what was not synced. (A file that did not exist when it was last durable has a
    // version of no bytes.)
    let outgrown =
        versions.iter().zip(&left).any(|(version, left)| version.len() == is.len() && left.len() == is.len());
    if is.len() != size && !outgrown {
        let sizes: Vec<usize> = versions.iter().map(|version| version.len()).collect();
        return Err(format!("inode {ino} has {} bytes, should have one of {sizes:?}", is.len()));
    }
    for (block, found) in is.chunks(BLOCK).enumerate() {
        if !left.iter().any(|version| block_is(version, block, found)) {
            let zeros = all_zero(found);
            let at = versions.iter().map(|v| {
                let from = (block * BLOCK).min(v.len());
                found.iter().zip(&v[from..]).position(|(a, b)| a != b)
            });
            return Err(format!(
                "block {block} of inode {ino} ({} of {} bytes, zeros: {zeros}) is none of its {} versions; they differ at {:?}",
                found.len(),
                is.len(),
                versions.len(),
                at.collect::<Vec<_>>()
            ));
        }
    }
    Ok(())
}

fn fits(known: &Known, index: usize, found: &State) -> Result<(), String> {
    let mut file = |ino: u64, _: &Arc<Vec<u8>>, is: &Arc<Vec<u8>>| {
        let first = known.durable.get(&ino).copied().unwrap_or(0).min(index);
        let mut versions: Vec<&Arc<Vec<u8>>> = Vec::new();
        for state in known.states[first..=index].iter().rev() {
            let Some(version) = state.nodes.get(&ino).and_then(|node| node.file()) else { break };
            if versions.last().is_none_or(|last| !Arc::ptr_eq(last, version)) {
                versions.push(version);
            }
        }
        file_fits(ino, &versions, is)
    };
    compare(&known.states[index], found, &mut file, false)
}

/// The index of a state that `found` may be.
///
/// # Errors
/// There is none: how the newest ones differ.
pub fn judge(known: &Known, found: &State) -> Result<usize, String> {
    let mut reasons = Vec::new();
    for index in (known.floor..known.states.len()).rev() {
        match fits(known, index, found) {
            Ok(()) => return Ok(index),
            Err(reason) => reasons.push(format!("  state {index}: {reason}")),
        }
    }
    let count = reasons.len();
    reasons.truncate(12);
    Err(format!("what was found is none of {count} states from {} on:\n{}", known.floor, reasons.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a truncate cut off, and what it outlived, may not come back; what was never synced may be lost.
    #[test]
    fn what_was_cut_off_fits_no_later_version() {
        let [old, new] = [1, 2].map(|byte| Arc::new(vec![byte; 3 * BLOCK]));
        let [empty, zeros] = [0, 2 * BLOCK].map(|size| Arc::new(vec![0; size]));
        let cut = [&zeros, &empty, &old];
        assert!(file_fits(7, &cut, &zeros).is_ok());
        assert!(file_fits(7, &cut, &empty).is_ok(), "its growth was not synced");
        assert!(file_fits(7, &cut, &old[..2 * BLOCK]).is_err(), "these bytes were cut off");
        assert!(file_fits(7, &cut, &old).is_err(), "so was this size");
        let written = [&new, &old];
        let mixed = [&old[..BLOCK], &new[BLOCK..]].concat();
        assert!(file_fits(7, &written, &mixed).is_ok());
        let one = Arc::new(old[..BLOCK].to_vec());
        assert!(file_fits(7, &[&new, &one, &old], &[&old[..BLOCK], &new[BLOCK..]].concat()).is_ok());
        assert!(file_fits(7, &[&new, &one, &old], &[&new[..BLOCK], &old[BLOCK..]].concat()).is_err());
    }
}
