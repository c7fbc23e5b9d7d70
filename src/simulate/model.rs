//! A filesystem as a plain map in memory: what every operation must do.
//!
//! *Guarantees*: [`State::apply`] gives the result that the filesystem must give, error by error, and changes exactly
//! the nodes that it must change. *Assumes*: permissions are the kernel's; inode numbers are told by the filesystem.
//! *Fails when*: the operation must fail: the errno. *Order*: none. *Not here*: room, time, durability, blocks.

use crate::format::item::Time;
use crate::format::{BLOCK, ROOT_INO};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A name; any bytes would do, but these can be read in reports.
pub type Name = String;

/// An operation of a history.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // As the methods of `fs::Filesystem`.
pub enum Op {
    Create {
        dir: u64,
        name: Name,
        mode: u32,
    },
    Mkdir {
        dir: u64,
        name: Name,
        mode: u32,
    },
    Symlink {
        dir: u64,
        name: Name,
        length: u64,
        fill: u64,
    },
    Fifo {
        dir: u64,
        name: Name,
    },
    Link {
        ino: u64,
        dir: u64,
        name: Name,
    },
    Unlink {
        dir: u64,
        name: Name,
    },
    Rmdir {
        dir: u64,
        name: Name,
    },
    Rename {
        dir: u64,
        name: Name,
        new_dir: u64,
        new_name: Name,
        flags: u32,
    },
    /// The bytes are those of the seed `fill`; 0: zeros.
    Write {
        ino: u64,
        offset: u64,
        length: u64,
        fill: u64,
    },
    Truncate {
        ino: u64,
        size: u64,
    },
    Allocate {
        ino: u64,
        offset: u64,
        length: u64,
        mode: i32,
    },
    Copy {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    },
    Chmod {
        ino: u64,
        mode: u32,
    },
    Chown {
        ino: u64,
        uid: u32,
        gid: u32,
    },
    /// Last change of content.
    SetTimes {
        ino: u64,
        sec: i64,
        nsec: u32,
    },
    SetXattr {
        ino: u64,
        name: Name,
        length: u64,
        fill: u64,
    },
    RemoveXattr {
        ino: u64,
        name: Name,
    },
    Open {
        ino: u64,
    },
    Release {
        ino: u64,
    },
    Read {
        ino: u64,
        offset: u64,
        length: u32,
    },
    Fsync {
        ino: u64,
    },
    Sync,
    /// A commit that wants space back.
    Squeeze,
    /// Write-out in the background.
    Place,
    /// Reclaim in the background.
    Reclaim,
    /// A reader pins the durable state, for a while.
    Pin,
    Unpin,
}

impl Op {
    /// Whether it leaves what there is as it was, in every case.
    pub fn changes_nothing(&self) -> bool {
        matches!(
            self,
            Op::Read { .. } | Op::Fsync { .. } | Op::Sync | Op::Squeeze | Op::Place | Op::Reclaim | Op::Pin | Op::Unpin
        )
    }
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File(Arc<Vec<u8>>),
    /// Names and inodes.
    Directory(BTreeMap<Name, u64>),
    /// A symbolic link.
    Link(Vec<u8>),
    /// Anything else.
    Special,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub content: Content,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Links.
    pub nlink: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Name, Vec<u8>>,
    /// As the filesystem said after the operation that set it.
    pub mtime: Time,
    /// As `mtime`.
    pub ctime: Time,
}

/// All inodes at one moment.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// By number.
    pub nodes: BTreeMap<u64, Arc<Node>>,
    /// Handles.
    pub opens: BTreeMap<u64, u32>,
}

/// The bytes of a write: those of the seed `fill` in the first block, and in each further one the same but for its
/// first eight.
pub fn bytes(length: u64, fill: u64) -> Vec<u8> {
    let length = length as usize;
    let mut out = vec![0; length];
    if fill == 0 {
        return out;
    }
    let first = length.min(BLOCK);
    crate::disk::sim::Random::new(fill).fill(&mut out[..first]);
    for at in (BLOCK..length).step_by(BLOCK) {
        let end = length.min(at + BLOCK);
        out.copy_within(..end - at, at);
        let head = (fill ^ at as u64).to_le_bytes();
        let marked = head.len().min(end - at);
        out[at..at + marked].copy_from_slice(&head[..marked]);
    }
    out
}

impl Node {
    /// A new inode of type and permissions `mode`.
    pub fn new(content: Content, mode: u32, nlink: u32) -> Node {
        Node {
            content,
            mode,
            owner: (0, 0),
            nlink,
            xattrs: BTreeMap::new(),
            mtime: Time::default(),
            ctime: Time::default(),
        }
    }
    /// As stat(2) shows it.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Directory(names) => names.len() as u64,
            Content::Link(target) => target.len() as u64,
            Content::Special => 0,
        }
    }
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }
    /// Bytes, if it is a file.
    pub fn file(&self) -> Option<&Arc<Vec<u8>>> {
        match &self.content {
            Content::File(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl State {
    /// An empty filesystem whose root is as `root` says.
    pub fn new(root: Node) -> State {
        State { nodes: BTreeMap::from([(ROOT_INO, Arc::new(root))]), opens: BTreeMap::new() }
    }

    /// Entries of a directory.
    pub fn names(&self, dir: u64) -> &BTreeMap<Name, u64> {
        match &self.nodes[&dir].content {
            Content::Directory(names) => names,
            _ => panic!("inode {dir} of the model is no directory"),
        }
    }

    /// What `name` stands for.
    pub fn find(&self, dir: u64, name: &str) -> Option<u64> {
        self.names(dir).get(name).copied()
    }

    /// Inodes that `wanted` chooses.
    pub fn inos(&self, wanted: impl Fn(&Node) -> bool) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(ino, _)| *ino).collect()
    }

    /// The inode, to be changed; touching it at all counts as a change.
    fn touch(&mut self, ino: u64) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).expect("operations name inodes of the model"))
    }

    fn touch_names(&mut self, dir: u64) -> &mut BTreeMap<Name, u64> {
        match &mut self.touch(dir).content {
            Content::Directory(names) => names,
            _ => panic!("inode {dir} of the model is no directory"),
        }
    }

    fn touch_file(&mut self, ino: u64) -> &mut Vec<u8> {
        match &mut self.touch(ino).content {
            Content::File(bytes) => Arc::make_mut(bytes),
            _ => panic!("inode {ino} of the model is no file"),
        }
    }

    fn is_below(&self, dir: u64, above: u64) -> bool {
        let mut at = dir;
        loop {
            if at == above {
                return true;
            }
            let parent = self.nodes.iter().find(|(_, node)| match &node.content {
                Content::Directory(names) => names.values().any(|ino| *ino == at),
                _ => false,
            });
            match parent {
                Some((ino, _)) => at = *ino,
                None => return false,
            }
        }
    }

    fn make(&mut self, dir: u64, name: &Name, ino: u64, mut node: Node) -> Result<(), i32> {
        if self.find(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        let parent = self.touch(dir);
        parent.nlink += u32::from(node.is_dir());
        if parent.mode & libc::S_ISGID != 0 {
            node.owner.1 = parent.owner.1;
        }
        self.touch_names(dir).insert(name.clone(), ino);
        self.nodes.insert(ino, Arc::new(node));
        Ok(())
    }

    fn drop_link(&mut self, ino: u64) {
        let node = self.touch(ino);
        node.nlink = if node.is_dir() { 0 } else { node.nlink - 1 };
        self.end(ino);
    }

    fn end(&mut self, ino: u64) {
        if self.nodes[&ino].nlink == 0 && !self.opens.contains_key(&ino) {
            self.nodes.remove(&ino);
        }
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.nodes[&ino].is_dir()
    }

    fn rename(&mut self, (dir, name): (u64, &Name), (to, new): (u64, &Name), flags: u32) -> Result<(), i32> {
        let exchange = flags & crate::fs::RENAME_EXCHANGE != 0;
        let source = self.find(dir, name).ok_or(libc::ENOENT)?;
        let target = self.find(to, new);
        if exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        if flags & crate::fs::RENAME_NOREPLACE != 0 && target.is_some() {
            return Err(libc::EEXIST);
        }
        if target == Some(source) {
            return Ok(());
        }
        let source_is_dir = self.is_dir(source);
        if source_is_dir && self.is_below(to, source) {
            return Err(libc::EINVAL);
        }
        match target {
            Some(target) if exchange && self.is_dir(target) && self.is_below(dir, target) => return Err(libc::EINVAL),
            Some(target) if !exchange => match (source_is_dir, self.is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.names(target).is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            },
            _ => {}
        }
        let target_is_dir = target.is_some_and(|ino| self.is_dir(ino));
        self.touch_names(dir).remove(name);
        self.touch(dir).nlink -= u32::from(source_is_dir);
        self.touch(to).nlink += u32::from(source_is_dir);
        self.touch_names(to).insert(new.clone(), source);
        self.touch(source);
        if let Some(target) = target {
            self.touch(to).nlink -= u32::from(target_is_dir);
            if exchange {
                self.touch_names(dir).insert(name.clone(), target);
                self.touch(dir).nlink += u32::from(target_is_dir);
                self.touch(target);
            } else {
                self.drop_link(target);
            }
        }
        Ok(())
    }

    fn allocate(&mut self, ino: u64, offset: u64, length: u64, mode: i32) {
        let end = (offset + length) as usize;
        let file = self.touch_file(ino);
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > file.len() {
            file.resize(end, 0);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let (from, to) = ((offset as usize).min(file.len()), end.min(file.len()));
            file[from..to].fill(0);
        }
    }

    fn put_bytes(&mut self, ino: u64, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let (from, end) = (offset as usize, offset as usize + data.len());
        let Content::File(bytes) = &mut self.touch(ino).content else { panic!("inode {ino} of the model is no file") };
        // Written once, not copied and then changed: it is shared with the states before.
        let mut whole = Vec::with_capacity(end.max(bytes.len()));
        whole.extend_from_slice(&bytes[..from.min(bytes.len())]);
        whole.resize(from, 0);
        whole.extend_from_slice(data);
        whole.extend_from_slice(bytes.get(end..).unwrap_or_default());
        *bytes = Arc::new(whole);
    }

    fn copy(&mut self, (from, from_offset): (u64, u64), (to, to_offset): (u64, u64), length: u64) -> Result<(), i32> {
        let source = self.nodes[&from].file().expect("copies are of files").clone();
        let length = length.min((source.len() as u64).saturating_sub(from_offset));
        let overlap = to_offset < from_offset + length && from_offset < to_offset + length;
        if from == to && overlap && length > 0 {
            return Err(libc::EINVAL);
        }
        self.put_bytes(to, to_offset, &source[from_offset.min(source.len() as u64) as usize..][..length as usize]);
        Ok(())
    }

    /// Bytes that this copy copies.
    pub fn copied(&self, op: &Op) -> u64 {
        let Op::Copy { from, from_offset, length, .. } = op else { return 0 };
        (*length).min(self.nodes[from].size().saturating_sub(*from_offset))
    }

    /// Do `op`. `new_ino`: the number that the filesystem gave to what is made.
    ///
    /// # Errors
    /// The errno that the filesystem must give; nothing has changed then.
    pub fn apply(&mut self, op: &Op, new_ino: u64) -> Result<(), i32> {
        const FILE: u32 = libc::S_IFREG;
        match op {
            Op::Create { dir, name, mode } => {
                let node = Node::new(Content::File(Arc::default()), FILE | mode, 1);
                self.make(*dir, name, new_ino, node)
            }
            Op::Mkdir { dir, name, mode } => {
                let inherited = self.nodes[dir].mode & libc::S_ISGID;
                let node = Node::new(Content::Directory(BTreeMap::new()), libc::S_IFDIR | mode | inherited, 2);
                self.make(*dir, name, new_ino, node)
            }
            Op::Symlink { dir, name, length, fill } => {
                let node = Node::new(Content::Link(bytes(*length, *fill)), libc::S_IFLNK | 0o777, 1);
                self.make(*dir, name, new_ino, node)
            }
            Op::Fifo { dir, name } => {
                self.make(*dir, name, new_ino, Node::new(Content::Special, libc::S_IFIFO | 0o600, 1))
            }
            Op::Link { ino, dir, name } => {
                if self.find(*dir, name).is_some() {
                    return Err(libc::EEXIST);
                }
                if self.nodes[ino].nlink == 0 {
                    return Err(libc::ENOENT);
                }
                self.touch(*ino).nlink += 1;
                self.touch_names(*dir).insert(name.clone(), *ino);
                Ok(())
            }
            Op::Unlink { dir, name } => self.unlink(*dir, name),
            Op::Rmdir { dir, name } => self.rmdir(*dir, name),
            Op::Rename { dir, name, new_dir, new_name, flags } => {
                self.rename((*dir, name), (*new_dir, new_name), *flags)
            }
            Op::Write { ino, offset, length, fill } => {
                self.put_bytes(*ino, *offset, &bytes(*length, *fill));
                Ok(())
            }
            Op::Truncate { ino, size } => {
                self.touch_file(*ino).resize(*size as usize, 0);
                Ok(())
            }
            Op::Allocate { ino, offset, length, mode } => {
                self.allocate(*ino, *offset, *length, *mode);
                Ok(())
            }
            Op::Copy { from, from_offset, to, to_offset, length } => {
                self.copy((*from, *from_offset), (*to, *to_offset), *length)
            }
            Op::Chmod { ino, mode } => {
                let node = self.touch(*ino);
                node.mode = node.mode & libc::S_IFMT | mode;
                Ok(())
            }
            Op::Chown { ino, uid, gid } => {
                let node = self.touch(*ino);
                node.owner = (*uid, *gid);
                if !node.is_dir() {
                    // As chown(2): set-user-ID goes, and set-group-ID where the group may execute.
                    let group_runs = node.mode & libc::S_IXGRP != 0;
                    node.mode &= !(libc::S_ISUID | if group_runs { libc::S_ISGID } else { 0 });
                }
                Ok(())
            }
            Op::SetTimes { ino, .. } => {
                self.touch(*ino);
                Ok(())
            }
            Op::SetXattr { ino, name, length, fill } => {
                self.touch(*ino).xattrs.insert(name.clone(), bytes(*length, *fill));
                Ok(())
            }
            Op::RemoveXattr { ino, name } => {
                if !self.nodes[ino].xattrs.contains_key(name) {
                    return Err(libc::ENODATA);
                }
                self.touch(*ino).xattrs.remove(name);
                Ok(())
            }
            Op::Open { ino } => {
                *self.opens.entry(*ino).or_insert(0) += 1;
                Ok(())
            }
            Op::Release { ino } => {
                let count = self.opens.get_mut(ino).expect("only what is open is closed");
                *count -= 1;
                if *count == 0 {
                    self.opens.remove(ino);
                    self.end(*ino);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn unlink(&mut self, dir: u64, name: &Name) -> Result<(), i32> {
        let ino = self.find(dir, name).ok_or(libc::ENOENT)?;
        if self.is_dir(ino) {
            return Err(libc::EISDIR);
        }
        self.touch_names(dir).remove(name);
        self.drop_link(ino);
        Ok(())
    }

    fn rmdir(&mut self, dir: u64, name: &Name) -> Result<(), i32> {
        let ino = self.find(dir, name).ok_or(libc::ENOENT)?;
        if !self.is_dir(ino) {
            return Err(libc::ENOTDIR);
        }
        if !self.names(ino).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.touch_names(dir).remove(name);
        self.touch(dir).nlink -= 1;
        self.drop_link(ino);
        Ok(())
    }
}
