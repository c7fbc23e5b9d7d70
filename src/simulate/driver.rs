//! Runs operations on a filesystem and on the model, and compares.
//!
//! *Guarantees*: every result of the filesystem was compared with the model's; [`Driver::states`] holds every state
//! since the volume was opened, and [`Driver::floor`] and [`Driver::durable`] say what was acknowledged as durable.
//! *Assumes*: one thread; the store's own threads do not run. *Fails when*: the filesystem and the model disagree:
//! a text that says how. Power cuts end [`Driver::run`] early, without failure.
//! *Order*: none. *Not here*: what may survive a crash (`judge`).

use super::generate::Weights;
use super::model::{Content, Node, Op, State, bytes};
use crate::disk::sim::{Random, World as Power};
use crate::error::errno;
use crate::format::ROOT_INO;
use crate::format::item::Time;
use crate::fs::api::StoreApi;
use crate::fs::{Caller, Filesystem, FsError, FsOptions, SetAttr, TimeOrNow};
use crate::store::Store;
use crate::store::commit::Force;
use crate::store::delta::Committed;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who does everything.
pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };
/// Operations between two comparisons of everything.
const COMPARE_EVERY: usize = 16;

/// A mounted filesystem beside its model.
pub struct Driver {
    /// The store below.
    pub store: Arc<Store>,
    filesystem: Filesystem,
    power: Power,
    handles: BTreeMap<u64, Vec<u64>>,
    pins: Vec<Arc<Committed>>,
    /// The bytes of files when they were last compared, and the last one that was compared in turn.
    compared: BTreeMap<u64, Arc<Vec<u8>>>,
    turn: u64,
    /// Every state since the volume was opened; the first is the one that was found.
    pub states: Vec<State>,
    /// Index of the newest state whose names and attributes are known to be durable.
    pub floor: usize,
    /// For each inode the index of the newest state whose bytes of it are known to be durable (else 0).
    pub durable: BTreeMap<u64, usize>,
    /// Every operation so far, for reports.
    pub log: Vec<Op>,
    /// Calls that failed for lack of room.
    pub no_space: usize,
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn describe(error: &FsError) -> String {
    format!("{error} (errno {})", errno(error))
}

impl Driver {
    /// Mount; the model begins with what is there.
    ///
    /// # Errors
    /// The filesystem cannot be read.
    pub fn new(store: Store, power: &Power) -> Result<Driver, String> {
        let store = Arc::new(store);
        let filesystem = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default())
            .map_err(|error| format!("mounting: {error}"))?;
        let mut driver = Driver {
            store,
            filesystem,
            power: power.clone(),
            handles: BTreeMap::new(),
            pins: Vec::new(),
            compared: BTreeMap::new(),
            turn: 0,
            states: Vec::new(),
            floor: 0,
            durable: BTreeMap::new(),
            log: Vec::new(),
            no_space: 0,
        };
        let found = driver.look()?;
        driver.states.push(found);
        Ok(driver)
    }

    /// The newest state of the model.
    pub fn now(&self) -> &State {
        self.states.last().expect("there is a first state")
    }

    /// Up to `count` operations, drawn by `weights`; ends early when the power is cut.
    ///
    /// # Errors
    /// Filesystem and model disagree.
    pub fn run(&mut self, random: &mut Random, count: usize, weights: &Weights) -> Result<(), String> {
        self.go(random, count, weights)?;
        if self.power.is_cut() {
            return Ok(());
        }
        let outcome = self.compare();
        if self.power.is_cut() { Ok(()) } else { outcome }
    }

    /// As `run`, but everything is compared only now and then.
    ///
    /// # Errors
    /// Filesystem and model disagree.
    pub fn go(&mut self, random: &mut Random, count: usize, weights: &Weights) -> Result<(), String> {
        for _ in 0..count {
            let op = super::generate::next(self.now(), random, weights);
            let outcome = self.step(&op);
            if self.power.is_cut() {
                // Also when looking at what it did failed: reading may repair, and so write.
                return Ok(());
            }
            outcome?;
        }
        Ok(())
    }

    /// Everything so far is known to be durable: a clean unmount.
    pub fn all_is_durable(&mut self) {
        self.floor = self.states.len() - 1;
        self.durable = self.now().nodes.keys().map(|ino| (*ino, self.floor)).collect();
    }

    /// One operation.
    ///
    /// # Errors
    /// Filesystem and model disagree.
    pub fn step(&mut self, op: &Op) -> Result<(), String> {
        self.log.push(op.clone());
        let mut outcome = self.call(op);
        let full = outcome.as_ref().is_err_and(|error| errno(error) == libc::ENOSPC);
        let may_be_full = needs_room(op, self.now());
        if full && !may_be_full && !self.pins.is_empty() && !self.power.is_cut() {
            // What readers hold does not come back before they let go; then it must, and the reserve does.
            self.unpin()?;
            self.store.commit(Force::Reclaim).map_err(|error| format!("a commit for room: {error}"))?;
            outcome = self.call(op);
        }
        if let (true, Ok(_)) = (op.changes_nothing(), &outcome) {
            self.note_durable(op);
            return self.maybe_compare();
        }
        let mut next = self.now().clone();
        let expected = next.apply(op, *outcome.as_ref().unwrap_or(&0));
        let no_room = outcome.as_ref().is_err_and(|error| errno(error) == libc::ENOSPC) && may_be_full;
        match (outcome, expected) {
            (Ok(_), Ok(())) => self.accept(op, next)?,
            (Err(error), Err(code)) if errno(&error) == code => return Ok(()),
            (Err(_), _) if self.power.is_cut() => {
                self.cut_in(op, next);
                return Ok(());
            }
            (Err(_), Err(_)) if no_room => return self.too_early(op),
            (Err(_), Ok(())) if no_room => self.without_room(op, next)?,
            (Ok(_), Err(code)) => return Err(format!("{op:?} succeeded, should fail with errno {code}")),
            (Err(error), Ok(())) => return Err(format!("{op:?} failed: {}", describe(&error))),
            (Err(error), Err(code)) => {
                return Err(format!("{op:?} failed: {}, should fail with errno {code}", describe(&error)));
            }
        }
        self.maybe_compare()
    }

    fn maybe_compare(&mut self) -> Result<(), String> {
        if !self.log.len().is_multiple_of(COMPARE_EVERY) || self.power.is_cut() {
            return Ok(());
        }
        self.compare_changed()
    }

    /// The power failed in `op`: of an operation that takes two steps the first may be in the log.
    fn cut_in(&mut self, op: &Op, next: State) {
        if let Some(half) = self.half(op) {
            self.states.push(half);
            self.states.push(next);
        }
    }

    /// The state after the first of two steps.
    fn half(&self, op: &Op) -> Option<State> {
        let Op::Allocate { ino, offset, length, mode } = op else { return None };
        if mode & libc::FALLOC_FL_ZERO_RANGE == 0 {
            return None;
        }
        let mut half = self.now().clone();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        half.apply(&Op::Allocate { ino: *ino, offset: *offset, length: *length, mode }, 0).ok()?;
        // Its times are not known.
        half.forget_times(*ino);
        Some(half)
    }

    fn accept(&mut self, op: &Op, mut next: State) -> Result<(), String> {
        let touched: Vec<u64> = next
            .nodes
            .iter()
            .filter(|(ino, node)| self.now().nodes.get(*ino).is_none_or(|before| !Arc::ptr_eq(before, node)))
            .map(|(ino, _)| *ino)
            .collect();
        for ino in &touched {
            self.take_times(op, &mut next, *ino)?;
        }
        self.states.extend(self.half(op));
        self.states.push(next);
        Ok(())
    }

    /// What `op` has acknowledged.
    fn note_durable(&mut self, op: &Op) {
        match op {
            Op::Fsync { ino } => {
                self.floor = self.states.len() - 1;
                self.durable.insert(*ino, self.floor);
            }
            Op::Sync | Op::Squeeze => self.all_is_durable(),
            _ => {}
        }
    }

    /// Compare the attributes of an inode that was touched, and take its times over.
    fn take_times(&mut self, op: &Op, next: &mut State, ino: u64) -> Result<(), String> {
        if self.power.is_cut() {
            next.forget_times(ino);
            return Ok(());
        }
        let attr =
            self.filesystem.getattr(ino).map_err(|e| format!("after {op:?}: getattr {ino}: {}", describe(&e)))?;
        let node = Arc::make_mut(next.nodes.get_mut(&ino).expect("it was touched"));
        let is = (attr.mode, attr.uid, attr.gid, attr.nlink, attr.size);
        let should = (node.mode, node.owner.0, node.owner.1, node.nlink, node.size());
        if is != should {
            return Err(format!(
                "after {op:?}: inode {ino} has (mode, owner, group, links, size) {is:?}, should have {should:?}"
            ));
        }
        (node.mtime, node.ctime) = (attr.mtime, attr.ctime);
        Ok(())
    }

    /// There was no room for `op`: there is little then.
    fn too_early(&self, op: &Op) -> Result<(), String> {
        let free = self.store.space().free;
        let needed = room(op) + 64;
        if free > needed {
            return Err(format!("{op:?} found no room, but {free} blocks are free for at most {needed}"));
        }
        Ok(())
    }

    fn without_room(&mut self, op: &Op, next: State) -> Result<(), String> {
        self.no_space += 1;
        self.too_early(op)?;
        // Zeroing a range punches it first, and may then find no room to allocate it.
        if let (Some(mut half), Op::Allocate { ino, .. }) = (self.half(op), op) {
            let file = |state: &State| state.nodes[ino].file().cloned().expect("it is a file");
            let found = self.read_file(*ino, file(&next).len() as u64 + 1)?;
            if found != **file(self.now()) {
                self.take_times(op, &mut half, *ino)?;
                self.states.push(half);
            } else {
                self.refresh(op, *ino)?;
            }
        }
        Ok(())
    }

    /// The times of `ino` may have changed without its content.
    fn refresh(&mut self, op: &Op, ino: u64) -> Result<(), String> {
        let mut next = self.now().clone();
        self.take_times(op, &mut next, ino)?;
        self.states.push(next);
        Ok(())
    }

    fn call(&mut self, op: &Op) -> Result<u64, FsError> {
        match op {
            Op::Open { ino } => {
                let handle = self.filesystem.open(*ino, libc::O_RDWR)?;
                self.handles.entry(*ino).or_default().push(handle);
            }
            Op::Release { ino } => {
                let handle = self.handles.get_mut(ino).and_then(Vec::pop).expect("only what is open is closed");
                self.filesystem.release(*ino, handle);
            }
            Op::Read { ino, offset, length } => {
                let mut out = Vec::new();
                self.filesystem.read(*ino, *offset, &mut out, *length)?;
                let file = self.now().nodes[ino].file().expect("files are read");
                let from = (*offset as usize).min(file.len());
                let to = (from + *length as usize).min(file.len());
                assert!(out == file[from..to], "{op:?} gave wrong bytes");
            }
            Op::Fsync { ino } => {
                fsync(&self.filesystem, *ino)?;
            }
            Op::Sync => self.filesystem.sync()?,
            Op::Squeeze => {
                self.store.commit(Force::Reclaim)?;
                self.filesystem.sync()?;
            }
            Op::Place => drop(self.store.place_step()?),
            Op::Reclaim => drop(self.filesystem.reclaim_step()?),
            Op::Pin if self.pins.len() < 2 => self.pins.push(self.store.view().committed.clone()),
            Op::Unpin => {
                if let Some(pinned) = self.pins.pop() {
                    super::pinned::prove(&self.store, &pinned.root)?;
                }
            }
            Op::Pin => {}
            Op::Copy { .. } => {
                let copied = perform(&self.filesystem, op)?;
                assert_eq!(copied, self.now().copied(op), "{op:?} copies what there is");
            }
            _ => return perform(&self.filesystem, op),
        }
        Ok(0)
    }

    /// Readers prove what they hold, and let go.
    ///
    /// # Errors
    /// It is no longer whole.
    pub fn unpin(&mut self) -> Result<(), String> {
        for pinned in std::mem::take(&mut self.pins) {
            let proven = super::pinned::prove(&self.store, &pinned.root);
            proven.map_err(|error| format!("a state that was pinned is no longer whole: {error}"))?;
        }
        Ok(())
    }

    /// Finish the background's work.
    ///
    /// # Errors
    /// It fails.
    pub fn settle(&mut self) -> Result<(), String> {
        self.unpin()?;
        for _ in 0..1000 {
            if !self.filesystem.reclaim_step().map_err(|e| format!("reclaim: {}", describe(&e)))? {
                return Ok(());
            }
        }
        Err("reclaim never ends".into())
    }

    /// Everything settled and durable: the checker finds nothing, and what is there is what the model says.
    ///
    /// # Errors
    /// Something is wrong.
    pub fn finish(&mut self) -> Result<(), String> {
        self.settle()?;
        self.store.commit(Force::IfChanged).map_err(|error| format!("the last commit: {error}"))?;
        self.compare()?;
        super::clean(&self.store)
    }

    fn read_file(&self, ino: u64, most: u64) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        let read = self.filesystem.read(ino, 0, &mut out, most as u32);
        read.map(|()| out).map_err(|e| format!("reading inode {ino}: {}", describe(&e)))
    }

    /// Everything in the filesystem, as a state.
    ///
    /// # Errors
    /// It cannot be read, or contradicts itself.
    pub fn look(&self) -> Result<State, String> {
        self.look_but_for(&BTreeMap::new())
    }

    /// As `look`, but the bytes of the files in `known` are not read.
    fn look_but_for(&self, known: &BTreeMap<u64, Arc<Vec<u8>>>) -> Result<State, String> {
        let mut state = State::default();
        let mut waiting = vec![ROOT_INO];
        while let Some(ino) = waiting.pop() {
            if state.nodes.contains_key(&ino) {
                continue;
            }
            let node = self.look_at(ino, known.get(&ino))?;
            if let Content::Directory(names) = &node.content {
                waiting.extend(names.values());
            }
            state.nodes.insert(ino, Arc::new(node));
        }
        Ok(state)
    }

    fn look_at(&self, ino: u64, known: Option<&Arc<Vec<u8>>>) -> Result<Node, String> {
        let fs = &self.filesystem;
        let fail = |what: &str, e: FsError| format!("{what} inode {ino}: {}", describe(&e));
        let attr = fs.getattr(ino).map_err(|e| fail("getattr", e))?;
        let content = match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let entries = fs.readdir(ino, 0, 1000, false).map_err(|e| fail("listing", e))?;
                Content::Directory(entries.into_iter().skip(2).map(|e| (text(&e.name), e.ino)).collect())
            }
            libc::S_IFREG if known.is_some() => Content::File(Arc::clone(known.expect("checked"))),
            libc::S_IFREG => Content::File(Arc::new(self.read_file(ino, u64::from(u32::MAX))?)),
            libc::S_IFLNK => Content::Link(fs.readlink(ino).map_err(|e| fail("readlink", e))?),
            _ => Content::Special,
        };
        let mut node = Node::new(content, attr.mode, attr.nlink);
        (node.mtime, node.ctime) = (attr.mtime, attr.ctime);
        node.owner = (attr.uid, attr.gid);
        if node.size() != attr.size {
            return Err(format!("inode {ino} says {} bytes, has {}", attr.size, node.size()));
        }
        for name in fs.listxattr(ino).map_err(|e| fail("listxattr", e))?.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let value = fs.getxattr(ino, name).map_err(|e| fail("getxattr", e))?;
            node.xattrs.insert(text(name), value);
        }
        Ok(node)
    }

    /// Compare everything with the model.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self) -> Result<(), String> {
        self.compare_but_for(&BTreeMap::new())
    }

    /// As `compare`, but of the files that are as they were at the last time only one, each in turn, is read.
    fn compare_changed(&mut self) -> Result<(), String> {
        let files = |state: &State| -> BTreeMap<u64, Arc<Vec<u8>>> {
            state.nodes.iter().filter_map(|(ino, node)| Some((*ino, node.file()?.clone()))).collect()
        };
        let now = files(self.now());
        let mut known = now.clone();
        known.retain(|ino, bytes| self.compared.get(ino).is_some_and(|last| Arc::ptr_eq(last, bytes)));
        let turn = known.keys().find(|ino| **ino > self.turn).or(known.keys().next()).copied();
        if let Some(ino) = turn {
            self.turn = ino;
            known.remove(&ino);
        }
        self.compare_but_for(&known)?;
        self.compared = now;
        Ok(())
    }

    fn compare_but_for(&self, known: &BTreeMap<u64, Arc<Vec<u8>>>) -> Result<(), String> {
        let mut found = self.look_but_for(known)?;
        for (ino, node) in &self.now().nodes {
            if node.nlink == 0 {
                // Nothing leads to it, but it is open.
                found.nodes.insert(*ino, Arc::new(self.look_at(*ino, known.get(ino))?));
            }
        }
        super::judge::same(self.now(), &found)?;
        let read = self.now().inos(|node| node.file().is_some());
        read.into_iter().filter(|ino| !known.contains_key(ino)).try_for_each(|ino| self.compare_holes(ino))
    }

    /// What `lseek` calls a hole holds only zeros.
    fn compare_holes(&self, ino: u64) -> Result<(), String> {
        let file = self.now().nodes[&ino].file().expect("only files have holes");
        let mut at = 0;
        while at < file.len() {
            let data = match self.filesystem.lseek(ino, at as i64, libc::SEEK_DATA, true) {
                Ok(data) => data as usize,
                Err(FsError::NoSuchOffset) => file.len(),
                Err(error) => return Err(format!("SEEK_DATA in inode {ino}: {}", describe(&error))),
            };
            if !crate::format::all_zero(&file[at..data]) {
                return Err(format!("SEEK_DATA of inode {ino} skips data in {at}..{data}"));
            }
            if data == file.len() {
                break;
            }
            let hole = self.filesystem.lseek(ino, data as i64, libc::SEEK_HOLE, true).map_err(|e| describe(&e))?;
            at = (hole as usize).max(data + 1);
        }
        Ok(())
    }
}

/// Do `op`, which needs no handle and no store. Gives the number of what was made, or of bytes copied.
///
/// # Errors
/// As the call.
///
/// # Panics
/// `op` is none of these; or what it says it did is not what was asked.
pub fn perform(fs: &Filesystem, op: &Op) -> Result<u64, FsError> {
    match op {
        Op::Create { dir, name, mode } => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
            let (attr, handle) = fs.create(*dir, name.as_bytes(), *mode, flags, &CALLER)?;
            fs.release(attr.ino, handle);
            Ok(attr.ino)
        }
        Op::Mkdir { dir, name, mode } => fs.mkdir(*dir, name.as_bytes(), *mode, &CALLER).map(|attr| attr.ino),
        Op::Symlink { dir, name, length, fill } => {
            fs.symlink(*dir, name.as_bytes(), &bytes(*length, *fill), &CALLER).map(|attr| attr.ino)
        }
        Op::Fifo { dir, name } => {
            fs.mknod(*dir, name.as_bytes(), libc::S_IFIFO | 0o600, 0, &CALLER).map(|attr| attr.ino)
        }
        Op::Link { ino, dir, name } => fs.link(*ino, *dir, name.as_bytes()).map(|_| 0),
        Op::Unlink { dir, name } => fs.unlink(*dir, name.as_bytes()).map(|()| 0),
        Op::Rmdir { dir, name } => fs.rmdir(*dir, name.as_bytes()).map(|()| 0),
        Op::Rename { dir, name, new_dir, new_name, flags } => {
            fs.rename(*dir, name.as_bytes(), *new_dir, new_name.as_bytes(), *flags, &CALLER).map(|()| 0)
        }
        Op::Write { ino, offset, length, fill } => {
            let done = fs.write(*ino, *offset, &bytes(*length, *fill), false, false)?;
            assert_eq!(u64::from(done), *length, "writes of this size are whole");
            Ok(0)
        }
        Op::Truncate { ino, size } => {
            fs.setattr(*ino, &CALLER, &SetAttr { size: Some(*size), ..SetAttr::default() }).map(|_| 0)
        }
        Op::Allocate { ino, offset, length, mode } => fs.fallocate(*ino, *offset, *length, *mode).map(|()| 0),
        Op::Copy { from, from_offset, to, to_offset, length } => {
            fs.copy_file_range(*from, *from_offset, *to, *to_offset, *length)
        }
        Op::Chmod { ino, mode } => {
            fs.setattr(*ino, &CALLER, &SetAttr { mode: Some(*mode), ..SetAttr::default() }).map(|_| 0)
        }
        Op::Chown { ino, uid, gid } => {
            let owner = SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() };
            fs.setattr(*ino, &CALLER, &owner).map(|_| 0)
        }
        Op::SetTimes { ino, sec, nsec } => {
            let mtime = Time { sec: *sec, nsec: *nsec };
            let times = SetAttr { mtime: Some(TimeOrNow::Time(mtime)), ..SetAttr::default() };
            let attr = fs.setattr(*ino, &CALLER, &times)?;
            assert_eq!(attr.mtime, mtime, "times are what they were set to");
            Ok(0)
        }
        Op::SetXattr { ino, name, length, fill } => {
            fs.setxattr(*ino, name.as_bytes(), &bytes(*length, *fill), 0, &CALLER).map(|()| 0)
        }
        Op::RemoveXattr { ino, name } => fs.removexattr(*ino, name.as_bytes()).map(|()| 0),
        other => panic!("{other:?} needs more than a filesystem"),
    }
}

/// Make `ino` durable, and wait for the answer.
///
/// # Errors
/// As fsync(2).
///
/// # Panics
/// Nobody answers.
pub fn fsync(fs: &Filesystem, ino: u64) -> Result<(), FsError> {
    let (sender, receiver) = crate::sync::mpsc::channel();
    fs.fsync(ino, Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv().expect("every fsync is answered")
}

/// Whether the operation may fail for lack of room; what frees space must not.
fn needs_room(op: &Op, state: &State) -> bool {
    match op {
        Op::Create { .. } | Op::Mkdir { .. } | Op::Symlink { .. } | Op::Fifo { .. } | Op::Link { .. } => true,
        Op::Write { .. } | Op::Copy { .. } | Op::SetXattr { .. } => true,
        // What grows may end inside a block that is to be zeroed.
        Op::Truncate { ino, size } => *size > state.nodes[ino].size(),
        Op::Allocate { mode, .. } => mode & libc::FALLOC_FL_PUNCH_HOLE == 0,
        _ => false,
    }
}

/// Blocks that the operation needs at most.
fn room(op: &Op) -> u64 {
    let blocks = |length: u64| length / crate::format::BLOCK as u64 + 2;
    match op {
        Op::Write { length, .. } | Op::Copy { length, .. } | Op::Allocate { length, .. } => blocks(*length),
        _ => 2,
    }
}
