//! Paths of inodes, from their hints.
//!
//! *Guarantees*: a path that is returned led to the inode when it was looked up; looking it up is bounded.
//! *Assumes*: the walk over blocks is over, so that reading (which may repair) hides nothing from it.
//! *Fails when*: a hint leads nowhere or a node cannot be read: no path. *Order*: the cache's lock is a leaf.
//! *Not here*: which inodes are worth a path.

use super::CheckSource;
use crate::format::item::Dirent;
use crate::format::{Addr, BlockPtr, Inode, ItemKind, Key, ROOT_INO, Uuid, node};
use crate::store::StoreError;
use crate::store::tree::{self, CachedNode, Cursor, NodeStore};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Nodes kept: 8 MiB.
const NODES_KEPT: usize = 1024;
/// Longest chain of parents that is followed.
const DEPTH_MAX: usize = 1024;
/// Entries of a directory that are searched where the hint is stale.
const ENTRIES_SEARCHED: usize = 10_000;

/// Reads the tree again without proving every replica.
pub(super) struct Paths<'a> {
    source: &'a dyn CheckSource,
    nodes: Mutex<HashMap<Addr, Arc<CachedNode>>>,
}

impl<'a> Paths<'a> {
    pub fn new(source: &'a dyn CheckSource) -> Paths<'a> {
        Paths { source, nodes: Mutex::default() }
    }

    /// The attributes of an inode.
    pub fn inode(&self, ino: u64) -> Option<Inode> {
        let value = tree::get(self, self.source.root().tree, Key::inode(ino)).ok()??;
        Inode::decode(&value).ok()
    }

    /// A path that leads to `ino`.
    pub fn path(&self, ino: u64) -> Option<String> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        while at != ROOT_INO {
            if names.len() == DEPTH_MAX {
                return None;
            }
            let inode = self.inode(at)?;
            names.push(self.name(inode.parent, inode.parent_cookie, at)?);
            at = inode.parent;
        }
        if names.is_empty() {
            return Some("/".into());
        }
        let shown = |name: &Vec<u8>| String::from_utf8_lossy(name).escape_debug().to_string();
        Some(names.iter().rev().map(|name| format!("/{}", shown(name))).collect())
    }

    /// The name of `ino` in `parent`.
    fn name(&self, parent: u64, cookie: u64, ino: u64) -> Option<Vec<u8>> {
        let top = self.source.root().tree;
        let hint = tree::get(self, top, Key::new(parent, ItemKind::Dirent, cookie)).ok()?;
        if let Some(entry) = hint.and_then(|value| Dirent::decode(&value).ok()).filter(|entry| entry.ino == ino) {
            return Some(entry.name);
        }
        let mut cursor = Cursor::new(self, top, Key::new(parent, ItemKind::Dirent, 0));
        for _ in 0..ENTRIES_SEARCHED {
            let (key, value) = cursor.next().ok()??;
            if key.ino != parent || key.kind != ItemKind::Dirent {
                return None;
            }
            if let Some(entry) = Dirent::decode(&value).ok().filter(|entry| entry.ino == ino) {
                return Some(entry.name);
            }
        }
        None
    }
}

impl NodeStore for Paths<'_> {
    fn volume(&self) -> Uuid {
        self.source.label().volume
    }

    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        if let Some(node) = self.nodes.lock().get(&ptr.addr) {
            return Ok(node.clone());
        }
        let buf = self.source.read(ptr.addr, &[ptr.sum])?;
        let node = node::decode(&buf, self.volume(), ptr, level)
            .map_err(|corrupt| StoreError::Corrupt { addr: ptr.addr, corrupt })?;
        let node = Arc::new(CachedNode { block: buf.to_vec(), node });
        let mut nodes = self.nodes.lock();
        if nodes.len() >= NODES_KEPT {
            nodes.clear();
        }
        nodes.insert(ptr.addr, node.clone());
        Ok(node)
    }
}
