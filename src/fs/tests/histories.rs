//! Random histories against the model; power cuts; threads.
//!
//! Goal: after any history the filesystem is what the model says, down to error numbers, and the checker finds
//! nothing. After a power cut the namespace is what it was after one of the operations, none that an fsync or sync
//! acknowledged is missing, and bytes that were synced and not touched since are there.

use super::model::{Body, Model};
use super::*;
use crate::disk::sim::Random;
use crate::store::engine::Engine;

/// Open handles: (inode, handle).
type Handles = Vec<(u64, u64)>;

struct History {
    rig: Rig,
    fs: Filesystem,
    random: Random,
    model: Model,
    handles: Handles,
    /// For each file: the number of the last operation that touched its bytes.
    touched: BTreeMap<u64, usize>,
    /// For each file: the number of operations done before its last fsync or sync.
    durable: BTreeMap<u64, usize>,
    /// Operations that are acknowledged as durable.
    acknowledged: usize,
    /// The model after each operation.
    snapshots: Vec<Model>,
}

const NAMES: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"a much longer name than the others", b"\xff\xfe", b"f"];
const FILE_MAX: u64 = 40_000;

impl History {
    fn new(rig: Rig, seed: u64) -> History {
        let fs = rig.mount();
        let model = Model::new();
        let snapshots = vec![model.clone()];
        let (touched, durable) = (BTreeMap::new(), BTreeMap::new());
        let random = Random::new(seed);
        History { rig, fs, random, model, handles: vec![], touched, durable, acknowledged: 0, snapshots }
    }

    /// One operation on both; `false`: the power is out.
    fn step(&mut self) -> bool {
        let (expected, outcome) = match self.random.below(100) {
            0..35 => self.make_or_remove(),
            35..50 => self.rename(),
            50..80 => self.change_bytes(),
            80..86 => self.change_xattr(),
            86..92 => self.open_or_release(),
            92..97 => self.sync(),
            _ => (Ok(()), self.fs.reclaim_step().map(|_| ())),
        };
        let outcome = outcome.map_err(|error| crate::error::errno(&error));
        if outcome != expected && self.rig.power.is_cut() {
            return false;
        }
        assert_eq!(outcome, expected, "operation {}", self.snapshots.len());
        self.snapshots.push(self.model.clone());
        true
    }

    fn dir(&mut self) -> u64 {
        let dirs = self.model.of_kind(|node| node.is_dir());
        *self.random.pick(&dirs)
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.random.below(NAMES.len() as u64) as usize]
    }

    fn open_inodes(&self) -> Vec<u64> {
        self.handles.iter().map(|(ino, _)| *ino).collect()
    }

    fn make_or_remove(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let (dir, name) = (self.dir(), self.name());
        let may = self.model.may_make(dir, name);
        let made = |history: &mut History, made: Result<Attr, FsError>, body: Body| {
            let made = made.map(|attr| {
                if may.is_ok() {
                    history.touched.insert(attr.ino, history.snapshots.len());
                    history.model.make(dir, name, attr.ino, body);
                }
            });
            (may, made)
        };
        match self.random.below(9) {
            0..3 => {
                let attr = self.fs.mknod(dir, name, S_IFREG | 0o644, 0, &USER);
                made(self, attr, Body::File(vec![]))
            }
            3 | 4 => {
                let attr = self.fs.mkdir(dir, name, 0o755, &USER);
                made(self, attr, Body::Directory { entries: BTreeMap::new(), parent: dir })
            }
            5 => {
                let target = vec![b't'; self.random.range(1, 4000) as usize];
                let attr = self.fs.symlink(dir, name, &target, &USER);
                made(self, attr, Body::Link(target))
            }
            6 => {
                let files = self.model.of_kind(|node| !node.is_dir() && node.nlink > 0);
                if files.is_empty() {
                    return (Ok(()), Ok(()));
                }
                let ino = *self.random.pick(&files);
                let outcome = self.fs.link(ino, dir, name).map(|_| ());
                (self.committed(outcome.is_ok(), |model, _| model.link(ino, dir, name)), outcome)
            }
            7 => {
                let outcome = self.fs.unlink(dir, name);
                (self.committed(outcome.is_ok(), |model, open| model.unlink(dir, name, open)), outcome)
            }
            _ => {
                let outcome = self.fs.rmdir(dir, name);
                (self.committed(outcome.is_ok(), |model, _| model.rmdir(dir, name)), outcome)
            }
        }
    }

    /// Change the model; if the power went out before the operation was done, not for good.
    fn committed<T>(
        &mut self,
        done: bool,
        change: impl FnOnce(&mut Model, &[u64]) -> Result<T, i32>,
    ) -> Result<T, i32> {
        let open = self.open_inodes();
        let before = (!done).then(|| self.model.clone());
        let outcome = change(&mut self.model, &open);
        if let Some(before) = before {
            self.model = before;
        }
        outcome
    }

    fn rename(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let (from, to) = ((self.dir(), self.name()), (self.dir(), self.name()));
        let flags = *self.random.pick(&[0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]);
        let outcome = self.fs.rename(from.0, from.1, to.0, to.1, flags, &USER);
        (self.committed(outcome.is_ok(), |model, open| model.rename(from, to, flags, open)), outcome)
    }

    fn change_bytes(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let files = self.model.of_kind(|node| matches!(node.body, Body::File(_)));
        if files.is_empty() {
            return (Ok(()), Ok(()));
        }
        let ino = *self.random.pick(&files);
        self.touched.insert(ino, self.snapshots.len());
        let offset = self.random.below(FILE_MAX);
        let length = self.random.range(1, 9000);
        let (from, to) = (offset as usize, (offset + length) as usize);
        let outcome = match self.random.below(6) {
            0..3 => {
                let byte = self.random.bits() as u8;
                let outcome = self.fs.write(ino, offset, &vec![byte; length as usize], false, false).map(|_| ());
                if outcome.is_ok() {
                    let data = self.model.data(ino);
                    data.resize(data.len().max(to), 0);
                    data[from..to].fill(byte);
                }
                outcome
            }
            3 => {
                let wanted = SetAttr { size: Some(offset), ..SetAttr::default() };
                let outcome = self.fs.setattr(ino, &USER, &wanted).map(|_| ());
                if outcome.is_ok() {
                    self.model.data(ino).resize(from, 0);
                }
                outcome
            }
            mode => {
                let keeps = self.random.below(2) == 0;
                let flags = match (mode, keeps) {
                    (4, _) => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    (_, true) => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                    (_, false) => libc::FALLOC_FL_ZERO_RANGE,
                };
                let outcome = self.fs.fallocate(ino, offset, length, flags);
                if outcome.is_ok() {
                    let data = self.model.data(ino);
                    if flags == libc::FALLOC_FL_ZERO_RANGE {
                        data.resize(data.len().max(to), 0);
                    }
                    let end = data.len().min(to);
                    data[from.min(end)..end].fill(0);
                }
                outcome
            }
        };
        if outcome.is_ok() {
            let mut read = vec![];
            let (at, size) = (self.random.below(FILE_MAX), self.random.range(1, 9000));
            if self.fs.read(ino, at, &mut read, size as u32).is_ok() {
                let data = self.model.data(ino);
                let (from, to) = (data.len().min(at as usize), data.len().min((at + size) as usize));
                assert!(read == data[from..to], "bytes {from}..{to} of {ino}");
            }
        }
        (Ok(()), outcome)
    }

    fn change_xattr(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let all = self.model.of_kind(|_| true);
        let ino = *self.random.pick(&all);
        let name: &[u8] = [&b"user.one"[..], b"user.two"][self.random.below(2) as usize];
        if self.random.below(3) == 0 {
            let outcome = self.fs.removexattr(ino, name);
            let had = self.model.nodes[&ino].xattrs.contains_key(name);
            if outcome.is_ok() {
                self.model.node(ino).xattrs.remove(name);
            }
            return (if had { Ok(()) } else { Err(libc::ENODATA) }, outcome);
        }
        let value = vec![self.random.bits() as u8; self.random.below(5000) as usize];
        let outcome = self.fs.setxattr(ino, name, &value, 0, &USER);
        if outcome.is_ok() {
            self.model.node(ino).xattrs.insert(name.to_vec(), value);
        }
        (Ok(()), outcome)
    }

    fn open_or_release(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let files = self.model.of_kind(|node| matches!(node.body, Body::File(_)));
        if self.handles.len() < 5 && !files.is_empty() && self.random.below(2) == 0 {
            let ino = *self.random.pick(&files);
            let opened = self.fs.open(ino, libc::O_RDWR);
            let outcome = opened.map(|handle| self.handles.push((ino, handle)));
            return (Ok(()), outcome);
        }
        if let Some((ino, handle)) = self.handles.pop() {
            self.fs.release(ino, handle);
            if self.model.nodes[&ino].nlink == 0 && !self.open_inodes().contains(&ino) {
                self.model.nodes.remove(&ino);
            }
        }
        (Ok(()), Ok(()))
    }

    fn sync(&mut self) -> (Result<(), i32>, Result<(), FsError>) {
        let files = self.model.of_kind(|node| matches!(node.body, Body::File(_)));
        let done = self.snapshots.len() - 1;
        if files.is_empty() || self.random.below(3) == 0 {
            let outcome = self.fs.sync();
            if outcome.is_ok() {
                self.acknowledged = done;
                self.durable.extend(self.touched.keys().map(|ino| (*ino, done)));
            }
            return (Ok(()), outcome);
        }
        let ino = *self.random.pick(&files);
        let (sender, receiver) = crate::sync::mpsc::channel();
        self.fs.fsync(ino, Box::new(move |outcome| drop(sender.send(outcome))));
        if let Some(real) = &self.rig.real {
            real.log_step();
        }
        let outcome = receiver.try_recv().unwrap();
        if outcome.is_ok() {
            self.acknowledged = done;
            self.durable.insert(ino, done);
        }
        (Ok(()), outcome)
    }

    /// Everything is what the model says, and fsck agrees.
    fn finish(mut self) -> Rig {
        while let Some((ino, handle)) = self.handles.pop() {
            self.fs.release(ino, handle);
            if self.model.nodes.get(&ino).is_some_and(|node| node.nlink == 0) {
                self.model.nodes.remove(&ino);
            }
        }
        settle(&self.fs);
        assert_eq!(difference(&self.fs, &self.model, &|_| true), None);
        assert_eq!(self.rig.store.space().inodes, self.model.nodes.len() as u64);
        self.rig.check();
        self.rig
    }

    /// Cut the power and mount again: see the goal above.
    fn cut(mut self, plan: CrashPlan, seed: u64) {
        drop(self.fs);
        let rig = self.rig.crash(plan, seed);
        let fs = rig.mount();
        settle(&fs);
        let (touched, durable) = (&self.touched, &self.durable);
        let is_safe = |ino: u64| durable.get(&ino).is_some_and(|done| touched[&ino] <= *done);
        let mut differences = vec![];
        for (number, model) in self.snapshots.iter_mut().enumerate().skip(self.acknowledged) {
            model.nodes.retain(|_, node| node.nlink > 0);
            match difference(&fs, model, &is_safe) {
                None => return rig.check(),
                Some(difference) => differences.push((number, difference)),
            }
        }
        panic!("no prefix of history from operation {} on: {differences:#?}", self.acknowledged);
    }
}

/// The first thing in which `fs` is not what `model` says; bytes of files only where `sees_bytes`.
fn difference(fs: &Filesystem, model: &Model, sees_bytes: &dyn Fn(u64) -> bool) -> Option<String> {
    for (ino, node) in model.nodes.iter().filter(|(_, node)| node.nlink > 0) {
        let attr = match fs.getattr(*ino) {
            Ok(attr) => attr,
            Err(error) => return Some(format!("inode {ino}: {error}")),
        };
        if attr.nlink != node.nlink {
            return Some(format!("inode {ino} has {} links, not {}", attr.nlink, node.nlink));
        }
        let names = fs.listxattr(*ino).unwrap();
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let xattrs: BTreeMap<_, _> = names.map(|name| (name.to_vec(), fs.getxattr(*ino, name).unwrap())).collect();
        if xattrs != node.xattrs {
            return Some(format!("inode {ino}: attributes {:?}", xattrs.keys()));
        }
        match &node.body {
            Body::Directory { entries, parent } => {
                let found = fs.readdir(*ino, 0, 1000, false).unwrap();
                let found: BTreeMap<_, _> = found.into_iter().skip(2).map(|e| (e.name, e.ino)).collect();
                if found != *entries || fs.lookup(*ino, b"..").unwrap().ino != *parent {
                    return Some(format!("directory {ino}: {found:?}, not {entries:?}"));
                }
            }
            Body::File(data) if sees_bytes(*ino) => {
                if read_all(fs, *ino) != *data {
                    return Some(format!("file {ino}: other bytes"));
                }
            }
            Body::File(_) => {}
            Body::Link(target) => {
                if fs.readlink(*ino).ok().as_ref() != Some(target) {
                    return Some(format!("link {ino}: another target"));
                }
            }
        }
    }
    None
}

#[test]
fn random_histories_end_as_the_model_says() {
    for seed in 0..60 {
        let mut history = History::new(Rig::memory().1, seed);
        for _ in 0..400 {
            assert!(history.step(), "seed {seed}");
        }
        history.finish();
    }
}

#[test]
fn random_histories_on_disks_end_as_the_model_says() {
    for seed in 0..25 {
        let mut history = History::new(Rig::disks(seed), 1000 + seed);
        for _ in 0..300 {
            assert!(history.step(), "seed {seed}");
        }
        let model = history.model.clone();
        let rig = history.finish();
        // And again after a mount that has to read everything from disk.
        let rig = rig.crash(CrashPlan::DropAll, seed);
        let named = Model { nodes: model.nodes.into_iter().filter(|(_, node)| node.nlink > 0).collect() };
        assert_eq!(difference(&rig.mount(), &named, &|_| true), None, "seed {seed}");
    }
}

#[test]
fn after_a_power_cut_the_namespace_is_a_prefix_of_history() {
    for seed in 0..80 {
        let rig = Rig::disks(seed);
        let start = rig.power.io_count();
        let mut history = History::new(rig, 2000 + seed);
        let plan = *history.random.pick(&[CrashPlan::Random, CrashPlan::DropAll, CrashPlan::KeepAll]);
        history.rig.power.cut_at(Some(start + history.random.below(250)));
        for _ in 0..100 {
            if !history.step() {
                break;
            }
        }
        history.cut(plan, seed);
    }
}

/// Threads make, rename and remove the same few names in a few directories; then the tree must be sound.
#[test]
fn threads_leave_a_sound_tree() {
    for (seed, rig) in [Rig::memory().1, Rig::disks(5)].into_iter().enumerate() {
        let fs = rig.mount();
        // The store's own threads commit and write out meanwhile.
        let engine = rig.real.as_ref().map(|real| Engine::start(real, Duration::from_millis(3)).unwrap());
        let dirs: Vec<u64> =
            (0..3).map(|i| fs.mkdir(ROOT_INO, format!("dir {i}").as_bytes(), 0o755, &USER).unwrap().ino).collect();
        crate::sync::thread::scope(|scope| {
            for thread in 0..4 {
                let (fs, dirs) = (&fs, &dirs);
                let mut random = Random::new(seed as u64 * 10 + thread);
                scope.spawn(move || {
                    for _ in 0..1500 {
                        let outcome = anything(fs, dirs, &mut random);
                        if let Err(error) = outcome {
                            assert!(!matches!(error, FsError::Store(_)), "{error}");
                        }
                    }
                });
            }
        });
        settle(&fs);
        assert_eq!(fs.locks.len(), 0);
        drop(engine);
        rig.check();
    }
}

fn anything(fs: &Filesystem, dirs: &[u64], random: &mut Random) -> Result<(), FsError> {
    let (dir, other) = (*random.pick(dirs), *random.pick(dirs));
    let (name, new_name) = (*random.pick(&NAMES[..4]), *random.pick(&NAMES[..4]));
    match random.below(10) {
        0 | 1 => {
            let (attr, handle) = fs.create(dir, name, 0o644, libc::O_RDWR, &USER)?;
            let written = fs.write(attr.ino, 0, &[1; 5000], false, false);
            fs.release(attr.ino, handle);
            written.map(|_| ())
        }
        2 => fs.mkdir(dir, name, 0o755, &USER).map(|_| ()),
        3 => fs.unlink(dir, name),
        4 => fs.rmdir(dir, name),
        5 => fs.rename(dir, name, other, new_name, 0, &USER),
        6 => fs.rename(dir, name, other, new_name, RENAME_EXCHANGE, &USER),
        7 => {
            // Into and out of directories that come and go.
            let inner = fs.lookup(dir, name)?;
            fs.rename(other, new_name, inner.ino, b"inside", 0, &USER)?;
            fs.rename(inner.ino, b"inside", other, new_name, 0, &USER)
        }
        8 => {
            let ino = fs.lookup(dir, name)?.ino;
            fs.link(ino, other, new_name).map(|_| ())
        }
        _ => {
            fs.readdir(dir, 0, 100, true)?;
            fs.reclaim_step().map(|_| ())
        }
    }
}

/// Reads see all of a write or nothing of it, and changes of attributes by several threads add up.
#[test]
fn reads_are_whole_and_counts_add_up() {
    let rig = Rig::disks(6);
    let fs = rig.mount();
    let ino = fs.mknod(ROOT_INO, b"file", S_IFREG | 0o644, 0, &USER).unwrap().ino;
    fs.write(ino, 100, &[0; 9000], false, false).unwrap();
    let engine = Engine::start(rig.real.as_ref().unwrap(), Duration::from_millis(2)).unwrap();
    crate::sync::thread::scope(|scope| {
        for thread in 0..2_u8 {
            let fs = &fs;
            scope.spawn(move || {
                for round in 0..300_u32 {
                    fs.write(ino, 100, &[round as u8 ^ thread; 9000], false, false).unwrap();
                    fs.link(ino, ROOT_INO, format!("{thread} {round}").as_bytes()).unwrap();
                }
            });
            scope.spawn(move || {
                let mut out = vec![];
                for _ in 0..600 {
                    fs.read(ino, 100, &mut out, 9000).unwrap();
                    assert!(out.iter().all(|byte| *byte == out[0]), "half of a write");
                }
            });
        }
    });
    assert_eq!(fs.getattr(ino).unwrap().nlink, 601);
    assert_eq!(fs.getattr(ROOT_INO).unwrap().size, 601);
    drop(engine);
    rig.check();
}
