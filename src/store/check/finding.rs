//! What a check can find, graded and in words.
//!
//! *Guarantees*: every finding names what is known of replica, block, structure, inode and path. One damaged block
//! on one replica is one [`Finding::Block`]. *Assumes*: nothing. *Fails when*: never. *Order*: none.
//! *Not here*: what to do about it ([`super::Repairs`]).

use crate::disk::{Damage, Recipe};
use crate::format::{Addr, Corrupt, Key};
use std::fmt::{self, Display, Formatter};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is at risk, or it is already repaired.
    Warning,
    /// Something is wrong; repair loses nothing.
    Error,
    /// Bytes are lost or at risk.
    Fatal,
}

/// What a block is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Structure {
    /// A copy of the label.
    Label,
    /// The root, in this slot.
    Root {
        /// 0 to 15.
        slot: usize,
    },
    /// A node of the tree.
    Node {
        /// 0: leaf.
        level: u8,
    },
    /// Content of a file.
    Data {
        /// Which block of the file.
        block: u64,
    },
    /// A node above bitmaps.
    SpaceNode {
        /// 1: just above bitmaps.
        level: usize,
        /// Which one.
        index: u64,
    },
    /// A zone's bitmap.
    Bitmap {
        /// The zone.
        zone: u64,
    },
    /// A block of a dead list.
    DeadList,
    /// Blocks that a dead list names.
    Dead,
}

impl Structure {
    /// Name of its kind, for statistics.
    pub fn kind(&self) -> &'static str {
        match self {
            Structure::Label => "label",
            Structure::Root { .. } => "root",
            Structure::Node { .. } => "tree node",
            Structure::Data { .. } => "file data",
            Structure::SpaceNode { .. } => "space node",
            Structure::Bitmap { .. } => "bitmap",
            Structure::DeadList => "dead list",
            Structure::Dead => "dead run",
        }
    }
}

impl Display for Structure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Structure::Root { slot } => write!(f, "root in slot {slot}"),
            Structure::Node { level: 0 } => f.write_str("leaf of the tree"),
            Structure::Node { level } => write!(f, "tree node at level {level}"),
            Structure::Data { block } => write!(f, "file data (block {block} of the file)"),
            Structure::SpaceNode { level, index } => write!(f, "space node {index} at level {level}"),
            Structure::Bitmap { zone } => write!(f, "bitmap of zone {zone}"),
            _ => f.write_str(self.kind()),
        }
    }
}

/// An inode and, where hints lead to it, its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Inode number.
    pub ino: u64,
    /// A path that leads to it, as of the check.
    pub path: Option<String>,
}

impl Owner {
    /// Not looked up yet.
    pub fn new(ino: u64) -> Owner {
        Owner { ino, path: None }
    }
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path} (inode {})", self.ino),
            None => write!(f, "inode {}", self.ino),
        }
    }
}

/// What became of a damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Another replica proves it; not repaired.
    Damaged(Damage),
    /// Repaired from another replica and proven again.
    Healed(Damage),
    /// No replica proves it.
    Lost(Damage),
    /// No replica proved it; put together from what the copies have left, written and proven again.
    Combined(Damage, Recipe),
    /// No replica proves it, but it can be put together; not written.
    Combinable(Damage, Recipe),
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields' names and the text of `Display` say it.
pub enum Finding {
    /// A block on one replica does not match the pointer that names it.
    Block {
        replica: usize,
        replica_name: String,
        addr: Addr,
        structure: Structure,
        owner: Option<Owner>,
        outcome: Outcome,
    },
    /// A replica could not be asked about some blocks.
    Unproven { replica: usize, replica_name: String, blocks: u64, first: Addr, reason: String },
    /// A block that replicas prove could not be read, or none could be asked.
    Unreadable { addr: Addr, structure: Structure, owner: Option<Owner>, error: String },
    /// A proven block breaks a rule of its structure.
    Invalid { addr: Addr, structure: Structure, owner: Option<Owner>, corrupt: Corrupt },
    /// Something is said to stand where nothing of its kind can.
    OutsideZones { addr: Addr, blocks: u64, structure: Structure, owner: Option<Owner> },
    /// Blocks that something else uses already.
    UsedTwice { addr: Addr, blocks: u64, structure: Structure, owner: Option<Owner> },
    /// Blocks in use that the bitmap calls free: a new write may hit them.
    NotAllocated { zone: u64, addr: Addr, blocks: u64 },
    /// Blocks that nothing uses and that the bitmap calls allocated.
    Leaked { zone: u64, addr: Addr, blocks: u64 },
    /// A count of free blocks differs from what is below.
    FreeCount { structure: Structure, says: u64, is: u64 },
    /// Blocks in use stand in a unit that is marked as having no space below.
    Unbacked { zone: u64, addr: Addr, units: u32 },
    /// The root's count of blocks with space below differs.
    BackedCount { says: u64, is: u64 },
    /// The root's count of blocks in a dead list differs.
    DeadCount { addr: Addr, says: u64, is: u64 },
    /// The root's count of inodes differs.
    InodeCount { says: u64, is: u64 },
    /// An inode number that was never handed out.
    InodeNumber { owner: Owner, next: u64 },
    /// An item whose value or place breaks a rule.
    BadItem { owner: Owner, key: Key, corrupt: Corrupt },
    /// Items of an inode that does not exist.
    Ownerless { ino: u64, items: u64 },
    /// An inode's link count differs from its names.
    LinkCount { owner: Owner, says: u32, is: u32 },
    /// A directory's size differs from its entries.
    DirectorySize { owner: Owner, says: u64, is: u64 },
    /// A file's count of blocks differs from its extents.
    FileBlocks { owner: Owner, says: u64, is: u64 },
    /// Two extents cover the same block of a file.
    ExtentOverlap { owner: Owner, block: u64 },
    /// An extended attribute lacks a part or has one too many.
    Xattr { owner: Owner, key: Key, rule: &'static str },
    /// An entry stands under a cookie that its name does not have.
    Cookie { directory: Owner, name: Vec<u8>, cookie: u64 },
    /// A name stands in a directory twice.
    DuplicateName { directory: Owner, name: Vec<u8> },
    /// An entry names an inode that does not exist.
    Dangling { directory: Owner, name: Vec<u8>, ino: u64 },
    /// An entry says another file type than the inode.
    EntryType { directory: Owner, name: Vec<u8>, ino: u64, says: u8, is: u8 },
    /// A directory has more than one name; this is one that is not its own.
    SecondName { directory: Owner, name: Vec<u8>, ino: u64 },
    /// A directory names another parent than the one whose entry leads to it.
    ParentField { owner: Owner, says: u64, is: u64 },
    /// An inode without links that is not on the list of orphans: its space would never be reclaimed.
    OrphanMissing { owner: Owner },
    /// The list of orphans names an inode that does not exist.
    OrphanDangling { ino: u64 },
    /// The list of orphans names an inode that has a name.
    OrphanNamed { owner: Owner },
    /// An inode with links that no entry names.
    Unreachable { owner: Owner },
    /// A directory whose chain of parents is a ring.
    Ring { owner: Owner },
    /// Parts of the volume could not be read, so that counts and absences were not judged.
    Incomplete,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        use Finding::*;
        match self {
            Block { outcome: Outcome::Healed(_) | Outcome::Combined(..), .. } => Severity::Warning,
            Block { outcome: Outcome::Damaged(_) | Outcome::Combinable(..), .. } => Severity::Error,
            Block { outcome: Outcome::Lost(_), .. } => Severity::Fatal,
            Unreadable { .. } | Invalid { .. } | OutsideZones { .. } | UsedTwice { .. } => Severity::Fatal,
            NotAllocated { .. } => Severity::Fatal,
            Leaked { .. } | BackedCount { .. } | InodeCount { .. } | Incomplete => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// Whether healing, or a commit of [`super::Repairs`], puts it right without loss.
    pub fn is_repairable(&self) -> bool {
        use Finding::*;
        match self {
            Block { outcome, .. } => !matches!(outcome, Outcome::Lost(_)),
            Unproven { .. } | Unreadable { .. } | Invalid { .. } | OutsideZones { .. } | UsedTwice { .. } => false,
            BadItem { key, .. } => key.kind != crate::format::ItemKind::Inode,
            ExtentOverlap { .. } | DeadCount { .. } | Incomplete => false,
            _ => true,
        }
    }

    /// The inodes that it names, to look up their paths.
    pub(super) fn owners(&mut self) -> Option<&mut Owner> {
        use Finding::*;
        match self {
            Block { owner, .. } | Unreadable { owner, .. } | Invalid { owner, .. } => owner.as_mut(),
            OutsideZones { owner, .. } | UsedTwice { owner, .. } => owner.as_mut(),
            InodeNumber { owner, .. } | BadItem { owner, .. } | LinkCount { owner, .. } => Some(owner),
            DirectorySize { owner, .. } | FileBlocks { owner, .. } | ExtentOverlap { owner, .. } => Some(owner),
            Xattr { owner, .. } | ParentField { owner, .. } | OrphanMissing { owner } => Some(owner),
            OrphanNamed { owner } | Unreachable { owner } | Ring { owner } => Some(owner),
            Cookie { directory, .. } | DuplicateName { directory, .. } | Dangling { directory, .. } => Some(directory),
            EntryType { directory, .. } | SecondName { directory, .. } => Some(directory),
            Unproven { .. } | NotAllocated { .. } | Leaked { .. } | FreeCount { .. } | Unbacked { .. } => None,
            BackedCount { .. } | DeadCount { .. } | InodeCount { .. } | Ownerless { .. } => None,
            OrphanDangling { .. } | Incomplete => None,
        }
    }
}

/// A name as it can be shown on a terminal.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

fn of(owner: &Option<Owner>) -> String {
    owner.as_ref().map(|owner| format!(" of {owner}")).unwrap_or_default()
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            Block { replica, replica_name, addr, structure, owner, outcome } => {
                let (damage, end) = match outcome {
                    Outcome::Damaged(damage) => (damage, "another replica has it"),
                    Outcome::Healed(damage) => (damage, "healed from another replica"),
                    Outcome::Lost(damage) => (damage, "lost: no replica proves it"),
                    Outcome::Combined(damage, _) => (damage, "no replica proved it; put together from their parts"),
                    Outcome::Combinable(damage, _) => {
                        (damage, "no replica proves it; it can be put together from their parts")
                    }
                };
                let owner = of(owner);
                write!(f, "replica {replica} ({replica_name}): block {addr}, {structure}{owner}, {damage}; {end}")
            }
            Unproven { replica, replica_name, blocks, first, reason } => {
                write!(f, "replica {replica} ({replica_name}): {blocks} blocks not proven, first {first}: {reason}")
            }
            Unreadable { addr, structure, owner, error } => {
                write!(f, "block {addr}, {structure}{}: {error}", of(owner))
            }
            Invalid { addr, structure, owner, corrupt } => {
                write!(f, "block {addr}, {structure}{}, proves itself but is wrong: {corrupt}", of(owner))
            }
            OutsideZones { addr, blocks, structure, owner } => {
                write!(f, "{structure}{}: {blocks} blocks at {addr} cannot hold it", of(owner))
            }
            UsedTwice { addr, blocks, structure, owner } => {
                write!(f, "{structure}{}: {blocks} blocks at {addr} belong to something else, too", of(owner))
            }
            _ => self.fmt_space(f),
        }
    }
}

impl Finding {
    fn fmt_space(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            NotAllocated { zone, addr, blocks } => {
                write!(f, "zone {zone}: {blocks} blocks in use are marked free, first {addr}")
            }
            Leaked { zone, addr, blocks } => {
                write!(f, "zone {zone}: {blocks} blocks are marked allocated and not in use, first {addr}")
            }
            FreeCount { structure, says, is } => write!(f, "{structure}: says {says} free blocks, has {is}"),
            Unbacked { zone, addr, units } => {
                write!(f, "zone {zone}: {units} units in use are marked as without space below, first at {addr}")
            }
            BackedCount { says, is } => write!(f, "root: says {says} blocks have space below, {is} have"),
            DeadCount { addr, says, is } => write!(f, "dead list at {addr}: says {says} blocks, has {is}"),
            InodeCount { says, is } => write!(f, "root: says {says} inodes, has {is}"),
            _ => self.fmt_item(f),
        }
    }

    fn fmt_item(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            InodeNumber { owner, next } => write!(f, "{owner}: never handed out (the next is {next})"),
            BadItem { owner, key, corrupt } => {
                write!(f, "{owner}: item {:?} at {} is wrong: {corrupt}", key.kind, key.off)
            }
            Ownerless { ino, items } => write!(f, "inode {ino} does not exist, but has {items} items"),
            LinkCount { owner, says, is } => write!(f, "{owner}: says {says} links, has {is}"),
            DirectorySize { owner, says, is } => write!(f, "directory {owner}: says {says} entries, has {is}"),
            FileBlocks { owner, says, is } => write!(f, "{owner}: says {says} blocks, has {is}"),
            ExtentOverlap { owner, block } => write!(f, "{owner}: two extents cover block {block}"),
            Xattr { owner, key, rule } => write!(f, "{owner}: extended attribute at {:#x}: {rule}", key.off),
            Cookie { directory, name, cookie } => {
                write!(f, "directory {directory}: \"{}\" stands under the wrong cookie {cookie:#x}", shown(name))
            }
            DuplicateName { directory, name } => {
                write!(f, "directory {directory}: \"{}\" stands there twice", shown(name))
            }
            Dangling { directory, name, ino } => {
                write!(f, "directory {directory}: \"{}\" names inode {ino}, which does not exist", shown(name))
            }
            EntryType { directory, name, ino, says, is } => write!(
                f,
                "directory {directory}: \"{}\" says that inode {ino} is of type {says:#x}, it is {is:#x}",
                shown(name)
            ),
            SecondName { directory, name, ino } => {
                write!(f, "directory {directory}: \"{}\" is a second name of directory {ino}", shown(name))
            }
            ParentField { owner, says, is } => {
                write!(f, "directory {owner}: says its parent is inode {says}, it is {is}")
            }
            OrphanMissing { owner } => write!(f, "{owner}: has no link and is not on the list of orphans"),
            OrphanDangling { ino } => write!(f, "list of orphans: inode {ino} does not exist"),
            OrphanNamed { owner } => write!(f, "{owner}: is on the list of orphans and has a name"),
            Unreachable { owner } => write!(f, "{owner}: no directory names it"),
            Ring { owner } => write!(f, "directory {owner}: is its own ancestor"),
            _ => f.write_str("parts could not be read: counts, and what is missing, were not judged"),
        }
    }
}
