//! The reference: a map from inode number to what the inode is.

use std::collections::BTreeMap;

/// Content of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Directory { entries: BTreeMap<Vec<u8>, u64>, parent: u64 },
    File(Vec<u8>),
    Link(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub body: Body,
    pub nlink: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A whole filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub nodes: BTreeMap<u64, Node>,
}

pub type Outcome<T> = Result<T, i32>;

impl Node {
    fn new(body: Body) -> Node {
        let nlink = if matches!(body, Body::Directory { .. }) { 2 } else { 1 };
        Node { body, nlink, xattrs: BTreeMap::new() }
    }
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }
}

impl Model {
    pub fn new() -> Model {
        let root = Node::new(Body::Directory { entries: BTreeMap::new(), parent: 1 });
        Model { nodes: BTreeMap::from([(1, root)]) }
    }

    pub fn entries(&self, dir: u64) -> &BTreeMap<Vec<u8>, u64> {
        match &self.nodes[&dir].body {
            Body::Directory { entries, .. } => entries,
            _ => panic!("{dir} is no directory"),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> &mut BTreeMap<Vec<u8>, u64> {
        match &mut self.node(dir).body {
            Body::Directory { entries, .. } => entries,
            _ => panic!("{dir} is no directory"),
        }
    }

    pub fn node(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    pub fn data(&mut self, ino: u64) -> &mut Vec<u8> {
        match &mut self.node(ino).body {
            Body::File(data) => data,
            _ => panic!("{ino} is no file"),
        }
    }

    pub fn of_kind(&self, wanted: impl Fn(&Node) -> bool) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(ino, _)| *ino).collect()
    }

    pub fn find(&self, dir: u64, name: &[u8]) -> Outcome<u64> {
        self.entries(dir).get(name).copied().ok_or(libc::ENOENT)
    }

    /// Whether `name` could be made in `dir`.
    pub fn may_make(&self, dir: u64, name: &[u8]) -> Outcome<()> {
        if self.entries(dir).contains_key(name) { Err(libc::EEXIST) } else { Ok(()) }
    }

    pub fn make(&mut self, dir: u64, name: &[u8], ino: u64, body: Body) {
        let node = Node::new(body);
        self.node(dir).nlink += u32::from(node.is_dir());
        self.entries_mut(dir).insert(name.to_vec(), ino);
        assert!(self.nodes.insert(ino, node).is_none(), "inode number {ino} was handed out twice");
    }

    pub fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> Outcome<()> {
        self.may_make(dir, name)?;
        self.entries_mut(dir).insert(name.to_vec(), ino);
        self.node(ino).nlink += 1;
        Ok(())
    }

    /// Take the name away; a node without names goes, unless it is a file in `open`.
    fn drop_name(&mut self, dir: u64, name: &[u8], open: &[u64]) {
        let ino = self.entries_mut(dir).remove(name).unwrap();
        let node = self.node(ino);
        if node.is_dir() {
            self.nodes.remove(&ino);
            self.node(dir).nlink -= 1;
            return;
        }
        node.nlink -= 1;
        if node.nlink == 0 && !open.contains(&ino) {
            self.nodes.remove(&ino);
        }
    }

    pub fn unlink(&mut self, dir: u64, name: &[u8], open: &[u64]) -> Outcome<()> {
        let ino = self.find(dir, name)?;
        if self.nodes[&ino].is_dir() {
            return Err(libc::EISDIR);
        }
        self.drop_name(dir, name, open);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: u64, name: &[u8]) -> Outcome<()> {
        let ino = self.find(dir, name)?;
        if !self.nodes[&ino].is_dir() {
            return Err(libc::ENOTDIR);
        }
        if !self.entries(ino).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.drop_name(dir, name, &[]);
        Ok(())
    }

    fn is_at_or_below(&self, dir: u64, above: u64) -> bool {
        let mut at = dir;
        loop {
            if at == above {
                return true;
            }
            match &self.nodes[&at].body {
                Body::Directory { parent, .. } if at != 1 => at = *parent,
                _ => return false,
            }
        }
    }

    fn set_parent(&mut self, ino: u64, new: u64, old: u64) {
        if let Body::Directory { parent, .. } = &mut self.node(ino).body {
            *parent = new;
            self.node(old).nlink -= 1;
            self.node(new).nlink += 1;
        }
    }

    pub fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32, open: &[u64]) -> Outcome<()> {
        let source = self.find(from.0, from.1)?;
        let target = self.find(to.0, to.1).ok();
        let exchange = flags == super::RENAME_EXCHANGE;
        if exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        if flags == super::RENAME_NOREPLACE && target.is_some() {
            return Err(libc::EEXIST);
        }
        if target == Some(source) {
            return Ok(());
        }
        let is_dir = self.nodes[&source].is_dir();
        if from.0 != to.0 && is_dir && self.is_at_or_below(to.0, source) {
            return Err(libc::EINVAL);
        }
        if let (true, Some(target)) = (exchange, target) {
            if from.0 != to.0 && self.nodes[&target].is_dir() && self.is_at_or_below(from.0, target) {
                return Err(libc::EINVAL);
            }
            self.entries_mut(from.0).insert(from.1.to_vec(), target);
            self.entries_mut(to.0).insert(to.1.to_vec(), source);
            self.set_parent(target, from.0, to.0);
            self.set_parent(source, to.0, from.0);
            return Ok(());
        }
        if let Some(target) = target {
            match (is_dir, self.nodes[&target].is_dir()) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.entries(target).is_empty() => return Err(libc::ENOTEMPTY),
                _ => self.drop_name(to.0, to.1, open),
            }
        }
        self.entries_mut(from.0).remove(from.1);
        self.entries_mut(to.0).insert(to.1.to_vec(), source);
        self.set_parent(source, to.0, from.0);
        Ok(())
    }
}
