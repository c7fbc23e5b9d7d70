//! What is known of every file: what may be read there now, and what must be there after a crash.
//!
//! *Guarantees*: three things are kept apart: what was asked for, what a call returned from, and what an fsync has
//! acknowledged. While the mount lives a reader must find what returned; after a crash at least what was acknowledged,
//! and nothing that was never asked for. *Assumes*: one thread changes a file at a time, and notes before it asks.
//! *Fails when*: never; what is found is judged by `verify`.
//! *Order*: [`Known::ask`] before the call, [`Known::done`] after it, [`Known::acknowledged`] after the fsync.
//! *Not here*: names that come and go (`names`).

use super::content::{self, HOLE, Name, Wrong};
use std::path::PathBuf;

/// One thing that changes: what is safe, what came later, whether the last change returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<T> {
    safe: T,
    later: Vec<T>,
    /// The newest of `later` returned; else it may have happened or not.
    sure: bool,
}

impl<T: Copy + PartialEq> Change<T> {
    /// Nothing was asked for yet.
    pub fn new(safe: T) -> Change<T> {
        Change { safe, later: Vec::new(), sure: true }
    }
    /// About to ask for `value`.
    pub fn ask(&mut self, value: T) {
        self.later.push(value);
        self.sure = false;
    }
    /// It returned.
    pub fn done(&mut self) {
        self.sure = true;
    }
    /// An fsync that began after it returned has returned.
    pub fn acknowledged(&mut self) {
        if let (true, Some(last)) = (self.sure, self.later.last()) {
            self.safe = *last;
            self.later.clear();
        }
    }
    /// The newest that was asked for.
    pub fn newest(&self) -> T {
        self.later.last().copied().unwrap_or(self.safe)
    }
    /// What may be found.
    pub fn allowed(&self, after_crash: bool) -> Vec<T> {
        if self.sure && !after_crash {
            return vec![self.newest()];
        }
        std::iter::once(self.safe).chain(self.later.iter().copied()).collect()
    }
    /// This was found after a crash: it is what there is.
    pub fn settle(&mut self, found: T) {
        *self = Change::new(found);
    }
}

/// A file whose every byte is known.
#[derive(Debug)]
pub struct Known {
    /// Number of the file: part of its bytes.
    pub file: u64,
    /// Path below the mount point.
    pub path: PathBuf,
    seed: u64,
    exists: Change<bool>,
    length: Change<u64>,
    blocks: Vec<Change<u64>>,
}

impl Known {
    /// A file that is not there yet.
    pub fn new(seed: u64, file: u64, path: PathBuf) -> Known {
        Known { file, path, seed, exists: Change::new(false), length: Change::new(0), blocks: Vec::new() }
    }
    /// Length that was asked for last.
    pub fn length(&self) -> u64 {
        self.length.newest()
    }
    /// About to write `versions` to the blocks from `first` on, to byte `end` of the file, creating it if need be;
    /// returns the bytes.
    pub fn ask(&mut self, first: u64, version: u64, end: u64) -> Vec<u8> {
        let from = first * content::BLOCK as u64;
        let mut bytes = vec![0; (end - from) as usize];
        for (block, out) in (first..).zip(bytes.chunks_mut(content::BLOCK)) {
            let at = block as usize;
            while self.blocks.len() <= at {
                self.blocks.push(Change::new(HOLE));
            }
            self.blocks[at].ask(version);
            content::fill(self.name(block), version, out);
        }
        if !self.exists.newest() {
            self.exists.ask(true);
        }
        if end > self.length.newest() {
            self.length.ask(end);
        }
        bytes
    }
    /// About to remove it.
    pub fn ask_removal(&mut self) {
        self.exists.ask(false);
    }
    /// What was asked for returned.
    pub fn done(&mut self, first: u64, count: usize) {
        self.exists.done();
        self.length.done();
        self.blocks.iter_mut().skip(first as usize).take(count).for_each(Change::done);
    }
    /// An fsync of it, begun when nothing was under way, returned.
    pub fn acknowledged(&mut self) {
        self.exists.acknowledged();
        self.length.acknowledged();
        self.blocks.iter_mut().for_each(Change::acknowledged);
    }
    /// An fsync of another file returned: it covers names (SEMANTICS DUR-2).
    pub fn acknowledged_name(&mut self) {
        self.exists.acknowledged();
    }
    /// Newest version of a block.
    pub fn version(&self, block: u64) -> u64 {
        self.blocks.get(block as usize).map_or(HOLE, Change::newest)
    }
    /// Whether it may be there, and whether it may be absent.
    pub fn presence(&self, after_crash: bool) -> (bool, bool) {
        let allowed = self.exists.allowed(after_crash);
        (allowed.contains(&true), allowed.contains(&false))
    }
    /// Judge what was found at the place of this file; `None`: there is no such file. Returns what is wrong.
    pub fn judge(&self, found: Option<&[u8]>, after_crash: bool) -> Vec<String> {
        let say = |text: String| vec![format!("{}: {text}", self.path.display())];
        let (may_exist, may_lack) = self.presence(after_crash);
        let Some(found) = found else {
            return if may_lack { Vec::new() } else { say("is gone".into()) };
        };
        if !may_exist {
            return say("is there although it was removed".into());
        }
        let lengths = self.length.allowed(after_crash);
        let (least, most) = (lengths.iter().min().copied(), lengths.iter().max().copied());
        let length = found.len() as u64;
        if Some(length) < least || Some(length) > most {
            return say(format!("is {length} bytes long, allowed are {least:?} to {most:?}"));
        }
        let blocks = (0..).zip(found.chunks(content::BLOCK));
        blocks
            .filter_map(|(block, bytes)| self.check(block, bytes, after_crash).err())
            .map(|wrong| format!("{}: {wrong}", self.path.display()))
            .collect()
    }
    /// Which version a block is.
    fn check(&self, block: u64, bytes: &[u8], after_crash: bool) -> Result<u64, Wrong> {
        let nothing = Change::new(HOLE);
        let change = self.blocks.get(block as usize).unwrap_or(&nothing);
        content::check(self.name(block), &change.allowed(after_crash), bytes)
    }
    /// After a crash: what was found (and judged to be right) is what there is.
    pub fn settle(&mut self, found: Option<&[u8]>) {
        let bytes = found.unwrap_or_default();
        let versions: Vec<u64> = (0..)
            .zip(bytes.chunks(content::BLOCK))
            .map(|(block, bytes)| self.check(block, bytes, true).unwrap_or(HOLE))
            .collect();
        self.exists.settle(found.is_some());
        self.length.settle(bytes.len() as u64);
        self.blocks = versions.into_iter().map(Change::new).collect();
    }
    fn name(&self, block: u64) -> Name {
        Name { seed: self.seed, file: self.file, block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use content::BLOCK;

    fn written(versions: &[u64]) -> (Known, Vec<u8>) {
        let mut known = Known::new(1, 2, "f".into());
        let mut bytes = Vec::new();
        for version in versions {
            bytes = known.ask(0, *version, 3 * BLOCK as u64);
            known.done(0, 3);
        }
        (known, bytes)
    }

    #[test]
    fn what_returned_must_be_read_while_the_mount_lives() {
        let (mut known, one) = written(&[1]);
        known.acknowledged();
        let two = known.ask(0, 2, 3 * BLOCK as u64);
        // Under way: either.
        assert!(known.judge(Some(&one), false).is_empty() && known.judge(Some(&two), false).is_empty());
        known.done(0, 3);
        assert!(known.judge(Some(&two), false).is_empty());
        let wrong = known.judge(Some(&one), false);
        assert!(wrong.len() == 3 && wrong[0].contains("version 1"), "{wrong:?}");
        // After a crash either, as no fsync followed.
        assert!(known.judge(Some(&one), true).is_empty() && known.judge(Some(&two), true).is_empty());
        known.acknowledged();
        assert_eq!(known.judge(Some(&one), true).len(), 3);
        assert_eq!(known.judge(None, true).len(), 1);
        assert_eq!(known.judge(Some(&two[..5000]), true).len(), 1);
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let (known, mut bytes) = written(&[1]);
        bytes[2 * BLOCK + 77] ^= 0x10;
        let wrong = known.judge(Some(&bytes), false);
        assert!(wrong.len() == 1 && wrong[0].contains("block 2, byte 77"), "{wrong:?}");
    }

    #[test]
    fn what_was_never_acknowledged_may_be_missing_after_a_crash_but_not_be_junk() {
        let (mut known, bytes) = written(&[1]);
        assert!(known.judge(None, true).is_empty());
        assert!(known.judge(Some(&bytes[..BLOCK]), true).is_empty());
        assert_eq!(known.judge(Some(&vec![7; BLOCK]), true).len(), 1);
        assert_eq!(known.judge(Some(&vec![0; 4 * BLOCK]), true).len(), 1, "longer than ever");
        known.settle(Some(&bytes[..BLOCK]));
        assert!(known.judge(Some(&bytes[..BLOCK]), false).is_empty());
        assert_eq!(known.judge(Some(&bytes), false).len(), 1);
    }
}
