//! What threads did to a volume, and what may be left of it after a crash.
//!
//! Goal: an acknowledged fsync survives; the names that survive are a prefix of history; no block is torn or older than
//! what was synced. Method: each thread makes, writes, moves, removes and syncs files of its own in one shared directory,
//! so what is found says how far each thread had come; between threads only real time orders deeds.

use crate::explorer::happened;
use crate::volume::CALLER;
use stablefs::disk::sim::{Random, World};
use stablefs::format::{BLOCK, ROOT_INO};
use stablefs::fs::{Filesystem, FsError};
use stablefs::simulate::model::{State, bytes};
use stablefs::store::StoreError;
use stablefs::sync::{mpsc, thread};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Blocks of the longest file.
const BLOCKS_MAX: u64 = 24;

/// Something that a thread does to its file number `file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Make {
        file: u64,
    },
    /// Whole blocks from `first` on get bytes that only this deed writes.
    Write {
        file: u64,
        first: u64,
        blocks: u64,
        version: u64,
    },
    Move {
        file: u64,
    },
    Remove {
        file: u64,
    },
    Sync {
        file: u64,
    },
}

/// A deed, and when; without an end if it failed, because the power was cut.
#[derive(Debug, Clone, Copy)]
struct Done {
    deed: Deed,
    begun: usize,
    ended: Option<usize>,
}

impl Done {
    fn is_before(&self, other: &Done) -> bool {
        self.ended.is_some_and(|ended| ended < other.begun)
    }
    fn is_acknowledged_sync(&self) -> bool {
        matches!(self.deed, Deed::Sync { .. }) && self.ended.is_some()
    }
}

/// All that was done, by thread. Real mutexes: they are never held over a step.
#[derive(Default)]
pub struct Deeds(Vec<Arc<Mutex<Vec<Done>>>>);

/// Names that one thread's files have: by file, how often it was moved.
type Names = BTreeMap<u64, u64>;

fn name(thread: usize, file: u64, moves: u64) -> String {
    format!("thread {thread} file {file} move {moves}")
}

/// One thread.
struct Worker {
    thread: usize,
    fs: Arc<Filesystem>,
    power: World,
    random: Random,
    names: Names,
    inos: BTreeMap<u64, u64>,
    done: Arc<Mutex<Vec<Done>>>,
    version: u64,
}

impl Worker {
    fn draw(&mut self) -> Deed {
        let random = &mut self.random;
        let files: Vec<u64> = self.names.keys().copied().collect();
        if files.is_empty() {
            return Deed::Make { file: self.inos.len() as u64 };
        }
        let file = *random.pick(&files);
        match random.below(10) {
            0 => Deed::Make { file: self.inos.len() as u64 },
            1 => Deed::Move { file },
            2 if files.len() > 1 => Deed::Remove { file },
            2..6 => {
                self.version += 1;
                let version = (self.thread as u64 + 1) << 32 | self.version;
                let blocks = *random.pick(&[1, 1, 2, 5, 18]);
                Deed::Write { file, first: random.below(BLOCKS_MAX + 1 - blocks), blocks, version }
            }
            _ => Deed::Sync { file },
        }
    }

    fn perform(&mut self, deed: Deed) -> Result<(), FsError> {
        let (fs, thread) = (&self.fs, self.thread);
        let known = |file: u64| name(thread, file, self.names[&file]).into_bytes();
        match deed {
            Deed::Make { file } => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let (attr, handle) = fs.create(ROOT_INO, name(thread, file, 0).as_bytes(), 0o644, flags, &CALLER)?;
                self.inos.insert(file, attr.ino);
                self.names.insert(file, 0);
                self.fs.release(attr.ino, handle);
            }
            Deed::Write { file, first, blocks, version } => {
                let data = bytes(BLOCK as u64, version).repeat(blocks as usize);
                let written = fs.write(self.inos[&file], first * BLOCK as u64, &data, false, false)?;
                assert_eq!(written as usize, data.len(), "writes of this size are whole");
            }
            Deed::Move { file } => {
                let moves = self.names[&file] + 1;
                let to = name(thread, file, moves);
                fs.rename(ROOT_INO, &known(file), ROOT_INO, to.as_bytes(), 0, &CALLER)?;
                self.names.insert(file, moves);
            }
            Deed::Remove { file } => {
                fs.unlink(ROOT_INO, &known(file))?;
                self.names.remove(&file);
            }
            Deed::Sync { file } => {
                let (sender, receiver) = mpsc::channel();
                fs.fsync(self.inos[&file], Box::new(move |outcome| drop(sender.send(outcome))));
                receiver.recv().expect("an fsync is answered")?;
            }
        }
        Ok(())
    }

    fn work(mut self, count: u64) {
        for _ in 0..count {
            let deed = self.draw();
            let begun = shuttle::current::context_switches();
            let at = {
                let mut done = self.done.lock().expect("not poisoned");
                done.push(Done { deed, begun, ended: None });
                done.len() - 1
            };
            if let Err(error) = self.perform(deed) {
                let may_need_room = !matches!(deed, Deed::Sync { .. } | Deed::Remove { .. });
                if matches!(error, FsError::Store(StoreError::NoSpace)) && may_need_room {
                    // Nothing was done.
                    happened("no room");
                    self.done.lock().expect("not poisoned").pop();
                    continue;
                }
                assert!(self.power.is_cut(), "{deed:?} failed although a replica lives: {error}");
                return;
            }
            self.done.lock().expect("not poisoned")[at].ended = Some(shuttle::current::context_switches());
            if matches!(deed, Deed::Sync { .. }) {
                happened("an fsync was acknowledged");
            }
        }
    }
}

impl Deeds {
    /// Start `threads` threads that do up to `count` deeds each.
    pub fn begin(
        &mut self,
        fs: &Arc<Filesystem>,
        power: &World,
        random: &mut Random,
        (threads, count): (usize, u64),
    ) -> Vec<thread::JoinHandle<()>> {
        (0..threads)
            .map(|thread| {
                let done = Arc::<Mutex<Vec<Done>>>::default();
                self.0.push(done.clone());
                let worker = Worker {
                    thread,
                    fs: fs.clone(),
                    power: power.clone(),
                    random: random.fork(),
                    names: Names::new(),
                    inos: BTreeMap::new(),
                    done,
                    version: 0,
                };
                thread::spawn(move || worker.work(count))
            })
            .collect()
    }

    fn all(&self) -> Vec<Vec<Done>> {
        self.0.iter().map(|done| done.lock().expect("not poisoned").clone()).collect()
    }

    /// Whether `found` may be left after a crash.
    pub fn judge(&self, found: &State) -> Result<(), String> {
        let all = self.all();
        let report = |what: String| {
            let lines: Vec<String> = all.iter().enumerate().map(|(t, done)| format!("  {t}: {done:?}")).collect();
            format!("{what}\nfound {:?}\ndone\n{}", found.names(ROOT_INO).keys(), lines.join("\n"))
        };
        // How far each thread may have come.
        let mut reached: Vec<Vec<usize>> = Vec::new();
        for (thread, done) in all.iter().enumerate() {
            let fits: Vec<usize> = (0..=done.len()).filter(|count| names_are(thread, &done[..*count], found)).collect();
            if fits.is_empty() {
                return Err(report(format!("the names of thread {thread} were never like that")));
            }
            reached.push(fits);
        }
        if !consistent(&all, &reached, &mut Vec::new()) {
            return Err(report("what is there is no prefix of history, or lacks what an fsync acknowledged".into()));
        }
        for (thread, done) in all.iter().enumerate() {
            judge_bytes(thread, done, found).map_err(&report)?;
        }
        Ok(())
    }
}

/// Whether thread `thread` has the names in `found` that it has after `done`.
fn names_are(thread: usize, done: &[Done], found: &State) -> bool {
    let mut names = Names::new();
    for one in done {
        match one.deed {
            Deed::Make { file } => drop(names.insert(file, 0)),
            Deed::Move { file } => *names.get_mut(&file).expect("only what is there is moved") += 1,
            Deed::Remove { file } => drop(names.remove(&file)),
            Deed::Write { .. } | Deed::Sync { .. } => {}
        }
    }
    let should: Vec<String> = names.iter().map(|(file, moves)| name(thread, *file, *moves)).collect();
    let prefix = format!("thread {thread} ");
    let is = found.names(ROOT_INO).keys().filter(|name| name.starts_with(&prefix));
    should.iter().all(|name| found.find(ROOT_INO, name).is_some()) && is.count() == should.len()
}

/// Whether some choice of how far each thread came holds whatever came before what it holds, and before each
/// acknowledged fsync.
fn consistent(all: &[Vec<Done>], reached: &[Vec<usize>], chosen: &mut Vec<usize>) -> bool {
    if chosen.len() < all.len() {
        return reached[chosen.len()].iter().any(|count| {
            chosen.push(*count);
            let good = consistent(all, reached, chosen);
            chosen.pop();
            good
        });
    }
    let must_hold: Vec<&Done> = all
        .iter()
        .zip(chosen.iter())
        .flat_map(|(done, count)| done.iter().enumerate().filter(move |(i, d)| i < count || d.is_acknowledged_sync()))
        .map(|(_, done)| done)
        .collect();
    all.iter()
        .zip(chosen.iter())
        .all(|(done, count)| done[*count..].iter().all(|missing| !must_hold.iter().any(|held| missing.is_before(held))))
}

/// Each block of each file that is there is one that was written since the last fsync of it, or the last before.
fn judge_bytes(thread: usize, done: &[Done], found: &State) -> Result<(), String> {
    let made = done.iter().filter_map(|one| match one.deed {
        Deed::Make { file } => Some(file),
        _ => None,
    });
    for file in made {
        let moves = (0..=done.len() as u64).find_map(|moves| found.find(ROOT_INO, &name(thread, file, moves)));
        let Some(ino) = moves else { continue };
        let content = found.nodes[&ino].file().expect("it is a file");
        let synced = done.iter().rposition(|one| one.deed == Deed::Sync { file } && one.is_acknowledged_sync());
        for block in 0..BLOCKS_MAX {
            let wrote = |one: &Done| match one.deed {
                Deed::Write { file: of, first, blocks, version } if of == file => {
                    (first..first + blocks).contains(&block).then_some(version)
                }
                _ => None,
            };
            let (before, after) = done.split_at(synced.map_or(0, |at| at + 1));
            let mut may: Vec<u64> = after.iter().filter_map(wrote).collect();
            may.push(before.iter().rev().find_map(wrote).unwrap_or(0));
            let at = (block as usize * BLOCK).min(content.len());
            let is = &content[at..(at + BLOCK).min(content.len())];
            let good = may.iter().any(|version| match version {
                0 => is.iter().all(|byte| *byte == 0),
                version => is == bytes(BLOCK as u64, *version),
            });
            if !good {
                return Err(format!(
                    "block {block} ({} bytes) of file {file} of thread {thread} is none of the versions {may:x?}",
                    is.len()
                ));
            }
        }
    }
    Ok(())
}
