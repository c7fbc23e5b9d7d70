//! Operations on a few names, as ACE enumerates them: each with each of its operands.
//!
//! *Guarantees*: [`all`] is the same list in every run and release of this file; [`Act::resolve`] gives an operation
//! of the model that names what is there, or nothing where the operand does not exist or is of another kind.
//! *Assumes*: names as [`Place`] says. *Fails when*: never. *Order*: none.
//! *Not here*: whether an operation succeeds (the model says), sequences and power cuts (`small`).

use crate::format::{BLOCK, ROOT_INO};
use crate::fs::{RENAME_EXCHANGE, RENAME_NOREPLACE};
use crate::simulate::model::{Content, Op, State};

/// A name of the small world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `/foo`; at first a file of two and a half blocks.
    Foo,
    /// `/bar`; at first not there.
    Bar,
    /// `/A`; at first a directory.
    A,
    /// `/A/foo`; at first a file that fits into its item.
    AFoo,
    /// `/A/bar`; at first an empty directory.
    ABar,
}

use Place::{A, ABar, AFoo, Bar, Foo};

const FILES: [Place; 4] = [Foo, Bar, AFoo, ABar];
const ALL: [Place; 5] = [Foo, Bar, A, AFoo, ABar];

impl Place {
    /// Directory and name, if the directory is there.
    fn name(self, state: &State) -> Option<(u64, String)> {
        let name = |dir, name: &str| Some((dir, name.to_owned()));
        match self {
            Foo => name(ROOT_INO, "foo"),
            Bar => name(ROOT_INO, "bar"),
            A => name(ROOT_INO, "A"),
            AFoo | ABar => {
                let dir = state.find(ROOT_INO, "A").filter(|ino| state.nodes[ino].is_dir())?;
                name(dir, if self == AFoo { "foo" } else { "bar" })
            }
        }
    }

    /// What stands there.
    fn ino(self, state: &State) -> Option<u64> {
        let (dir, name) = self.name(state)?;
        state.find(dir, &name)
    }

    /// The file that stands there, and its size.
    fn file(self, state: &State) -> Option<(u64, u64)> {
        let ino = self.ino(state)?;
        state.nodes[&ino].file().map(|bytes| (ino, bytes.len() as u64))
    }
}

/// Which bytes of a file of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// A few at the start.
    Few,
    /// The first block.
    Block,
    /// Across the border of the first two blocks.
    Across,
    /// A few at the end.
    Append,
    /// More than two blocks from the end on.
    AppendBlocks,
    /// A few, with a hole before.
    Beyond,
    /// Inside the first block.
    Inside,
    /// From inside the first block to inside the third one.
    Wide,
}

impl Range {
    /// Offset and length.
    fn of(self, size: u64) -> (u64, u64) {
        match self {
            Range::Few => (0, 60),
            Range::Block => (0, BLOCK as u64),
            Range::Across => (3000, 2000),
            Range::Append => (size, 100),
            Range::AppendBlocks => (size, 9000),
            Range::Beyond => (size + 5000, 300),
            Range::Inside => (1000, 2000),
            Range::Wide => (500, 8500),
        }
    }
}

/// An operation on places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // As the operations of the model.
pub enum Act {
    Create(Place),
    Mkdir(Place),
    Symlink(Place),
    Link(Place, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, u32),
    Write(Place, Range),
    Truncate(Place, u64),
    /// Make it longer by so much.
    Grow(Place, u64),
    Allocate(Place, Range, i32),
    Copy(Place, Place, Range),
    SetXattr(Place, u64),
    RemoveXattr(Place),
    Chmod(Place),
}

/// Every operation with each of its operands.
pub fn all() -> Vec<Act> {
    let mut acts = Vec::new();
    for place in FILES {
        acts.extend([Act::Create(place), Act::Mkdir(place), Act::Symlink(place), Act::Unlink(place)]);
        let ranges = [Range::Few, Range::Block, Range::Across, Range::Append, Range::AppendBlocks, Range::Beyond];
        acts.extend(ranges.map(|range| Act::Write(place, range)));
        acts.extend([0, 50, BLOCK as u64].map(|size| Act::Truncate(place, size)));
        acts.push(Act::Grow(place, 3000));
        let (keep, punch, zero) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        for (range, mode) in [
            (Range::AppendBlocks, 0),
            (Range::AppendBlocks, keep),
            (Range::Inside, punch | keep),
            (Range::Wide, punch | keep),
            (Range::Wide, zero),
            (Range::Beyond, zero | keep),
        ] {
            acts.push(Act::Allocate(place, range, mode));
        }
        for to in FILES {
            acts.extend([Act::Copy(place, to, Range::Wide), Act::Copy(place, to, Range::Append)]);
            if to != place {
                acts.push(Act::Link(place, to));
            }
        }
    }
    for place in ALL {
        acts.extend([Act::Rmdir(place), Act::Chmod(place), Act::RemoveXattr(place)]);
        acts.extend([Act::SetXattr(place, 20), Act::SetXattr(place, 2500)]);
        for to in ALL.into_iter().filter(|to| *to != place) {
            acts.extend([0, RENAME_NOREPLACE, RENAME_EXCHANGE].map(|flags| Act::Rename(place, to, flags)));
        }
    }
    acts
}

impl Act {
    /// The operation, as far as there is what it needs; `fill`: the bytes that it writes.
    pub fn resolve(self, state: &State, fill: u64) -> Option<Op> {
        let name = |place: Place| place.name(state);
        Some(match self {
            Act::Create(place) => {
                let (dir, name) = name(place)?;
                Op::Create { dir, name, mode: 0o640 }
            }
            Act::Mkdir(place) => {
                let (dir, name) = name(place)?;
                Op::Mkdir { dir, name, mode: 0o750 }
            }
            Act::Symlink(place) => {
                let (dir, name) = name(place)?;
                Op::Symlink { dir, name, length: 40, fill }
            }
            Act::Link(from, to) => {
                let ino = from.ino(state).filter(|ino| !state.nodes[ino].is_dir())?;
                let (dir, name) = name(to)?;
                Op::Link { ino, dir, name }
            }
            Act::Unlink(place) => {
                let (dir, name) = name(place)?;
                Op::Unlink { dir, name }
            }
            Act::Rmdir(place) => {
                let (dir, name) = name(place)?;
                Op::Rmdir { dir, name }
            }
            Act::Rename(from, to, flags) => {
                let ((dir, name), (new_dir, new_name)) = (name(from)?, name(to)?);
                Op::Rename { dir, name, new_dir, new_name, flags }
            }
            _ => return self.resolve_content(state, fill),
        })
    }

    fn resolve_content(self, state: &State, fill: u64) -> Option<Op> {
        // Symbolic links have none of this.
        let node = |place: Place| place.ino(state).filter(|ino| !matches!(state.nodes[ino].content, Content::Link(_)));
        Some(match self {
            Act::Write(place, range) => {
                let (ino, size) = place.file(state)?;
                let (offset, length) = range.of(size);
                Op::Write { ino, offset, length, fill }
            }
            Act::Truncate(place, size) => Op::Truncate { ino: place.file(state)?.0, size },
            Act::Grow(place, more) => {
                let (ino, size) = place.file(state)?;
                Op::Truncate { ino, size: size + more }
            }
            Act::Allocate(place, range, mode) => {
                let (ino, size) = place.file(state)?;
                let (offset, length) = range.of(size);
                Op::Allocate { ino, offset, length, mode }
            }
            Act::Copy(from, to, range) => {
                let ((from, _), (to, to_size)) = (from.file(state)?, to.file(state)?);
                let (from_offset, length) = Range::Wide.of(0);
                let to_offset = if range == Range::Wide { 0 } else { to_size };
                Op::Copy { from, from_offset, to, to_offset, length }
            }
            Act::SetXattr(place, length) => Op::SetXattr { ino: node(place)?, name: "user.a".into(), length, fill },
            Act::RemoveXattr(place) => Op::RemoveXattr { ino: node(place)?, name: "user.a".into() },
            Act::Chmod(place) => Op::Chmod { ino: node(place)?, mode: 0o604 },
            _ => unreachable!("names were resolved before"),
        })
    }
}
