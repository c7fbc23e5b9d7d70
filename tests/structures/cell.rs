//! One cell: damage, mount, use, scrub, fsck, mount again; and what came of it.

use super::scene::{self, CALLER, Content, Hit, Item, Model, Row, Scene, XATTR, bytes};
use stablefs::disk::sim::{Block, Image};
use stablefs::error::errno;
use stablefs::format::{BLOCK, ORPHANS, ROOT_INO};
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Filesystem, FsError, FsOptions, SetAttr};
use stablefs::simulate::{Bench, examine_store};
use stablefs::store::Store;
use stablefs::store::check::{Finding, Outcome};
use stablefs::store::commit::Force;
use stablefs::volume::fsck::FsckReport;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is done to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Zeros,
    Junk,
    BitFlip,
    Stale,
    Misdirected,
    Torn,
    ReadError,
    LostWrite,
}

impl Fault {
    pub const ALL: [Fault; 8] = [
        Fault::Zeros,
        Fault::Junk,
        Fault::BitFlip,
        Fault::Stale,
        Fault::Misdirected,
        Fault::Torn,
        Fault::ReadError,
        Fault::LostWrite,
    ];
    pub fn name(self) -> &'static str {
        match self {
            Fault::Zeros => "zeros",
            Fault::Junk => "junk",
            Fault::BitFlip => "bit flip",
            Fault::Stale => "stale",
            Fault::Misdirected => "misdirected",
            Fault::Torn => "torn",
            Fault::ReadError => "read error",
            Fault::LostWrite => "lost write",
        }
    }
}

/// When the damaged copy was correct again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Healed {
    /// Before the power cut: the write was found to be lost.
    AtOnce,
    Mount,
    Read,
    Scrub,
    /// Not at all: changes wrote the block anew elsewhere before anything needed that copy.
    Changes,
    /// Nothing needs this block; it is written anew before anything does.
    NotNeeded,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The fault changes nothing: the same bytes stood there before.
    Same,
    Healed(Healed),
    /// Calls that need the block fail; nothing else does.
    Error,
    /// No call fails; some free space is out of use until fsck -y.
    Space,
    /// It cannot be mounted. Whether fsck -y mends it, and to what state.
    Refused(Option<&'static str>),
    /// An older state is there, whole.
    Back(&'static str),
}

pub struct Cell {
    pub verdict: Verdict,
    /// Calls that answered EIO.
    pub calls: BTreeSet<&'static str>,
    /// Exit codes of fsck without and with -y, after the use; `None`: it ended with an error.
    pub fsck: [Option<u8>; 2],
    /// Why it could not be mounted.
    pub refusal: Option<String>,
}

/// The bytes of `row` after `fault`, on `disk`; `None`: a read error.
fn damaged(row: &Row, fault: Fault, now: &Block, disk: usize) -> Option<Block> {
    let mut block = *now;
    let part = row.part.clone();
    let from = |other: &Block| {
        let mut block = *now;
        block[part.clone()].copy_from_slice(&other[part.clone()]);
        block
    };
    Some(match fault {
        Fault::Zeros => from(&[0; BLOCK]),
        Fault::Junk => from(&bytes(8000 + disk as u64, BLOCK).try_into().expect("a block")),
        Fault::BitFlip => {
            block[part.start + part.len() / 3] ^= 4 << disk;
            block
        }
        Fault::Stale => from(&row.stale[disk]),
        Fault::Misdirected => from(&row.other[disk]),
        Fault::Torn => torn(row, now, disk),
        Fault::ReadError => return None,
        Fault::LostWrite => unreachable!("made by writing"),
    })
}

/// Some sectors as they were before, the others new.
fn torn(row: &Row, now: &Block, disk: usize) -> Block {
    const SECTOR: usize = 512;
    let mut block = *now;
    let differs = |at: &usize| now[*at..at + SECTOR] != row.stale[disk][*at..at + SECTOR];
    let sectors: Vec<usize> = (0..BLOCK).step_by(SECTOR).filter(differs).collect();
    let inside = |at: &&usize| **at < row.part.end && *at + SECTOR > row.part.start;
    let count = sectors.iter().filter(inside).count();
    for at in sectors.iter().filter(inside).skip(count / 2) {
        let (from, to) = ((*at).max(row.part.start), (at + SECTOR).min(row.part.end));
        block[from..to].copy_from_slice(&row.stale[disk][from..to]);
    }
    block
}

/// Disks with the damage on those numbered `which`; `None`: it would change nothing.
fn damage(scene: &Scene, row: &Row, fault: Fault, which: &[usize]) -> Option<Bench> {
    if fault == Fault::LostWrite {
        let images = scene::with_lost_write(scene, row, which);
        let at = |image: &Image| image.get(&row.addr).map(|block| **block);
        let same = row.writes == [0, 0] && images.iter().map(at).eq(scene.images.iter().map(at));
        return (!same).then(|| scene::bench(&scene.setup, &images));
    }
    let bench = scene::bench(&scene.setup, &scene.images);
    let mut changed = false;
    for disk in which {
        let now = bench.disks[*disk].peek(row.addr);
        match damaged(row, fault, &now, *disk) {
            Some(block) => {
                changed |= block != now;
                bench.disks[*disk].poke(row.addr, block);
            }
            None => {
                changed = true;
                bench.disks[*disk].faults(|faults| _ = faults.unreadable.insert(row.addr));
            }
        }
    }
    changed.then_some(bench)
}

/// A mounted volume under test.
pub struct Bed<'a> {
    pub store: Arc<Store>,
    fs: Filesystem,
    pub hit: &'a Hit,
    /// That answered EIO.
    pub calls: BTreeSet<&'static str>,
    /// Blocks of files that could not be read.
    unread: BTreeSet<(u64, u64)>,
}

pub type Check<T> = Result<T, String>;

pub fn mount<'a>(bench: &mut Bench, hit: &'a Hit) -> Result<Bed<'a>, String> {
    let (store, report) = bench.open(&[0, 1], false).map_err(|error| error.to_string())?;
    if !report.behind.is_empty() {
        return Err(format!("a replica was put aside: {:?}", report.behind));
    }
    let store = Arc::new(store);
    let fs = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default());
    let fs = fs.map_err(|error| error.to_string())?;
    Ok(Bed { store, fs, hit, calls: BTreeSet::new(), unread: BTreeSet::new() })
}

impl Bed<'_> {
    /// The outcome of a call that needs what lies with `inos`. `None`: EIO, and it may.
    fn call<T>(&mut self, name: &'static str, inos: &[u64], outcome: Result<T, FsError>) -> Check<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if errno(&error) == libc::EIO && inos.iter().any(|ino| self.hit.has(*ino)) => {
                self.calls.insert(name);
                Ok(None)
            }
            Err(error) => Err(format!("{name} of {inos:?}: {error}")),
        }
    }

    fn read_bytes(&mut self, ino: u64, wanted: &[u8]) -> Check<()> {
        let mut out = Vec::new();
        for (block, part) in wanted.chunks(BLOCK).enumerate() {
            let outcome = self.fs.read(ino, (block * BLOCK) as u64, &mut out, BLOCK as u32);
            match self.call("read", &[ino], outcome)? {
                Some(()) if out != part => return Err(format!("wrong bytes in block {block} of {ino}")),
                Some(()) => {}
                None => drop(self.unread.insert((ino, block as u64))),
            }
        }
        Ok(())
    }

    fn read_item(&mut self, ino: u64, item: &Item) -> Check<()> {
        let found = self.fs.lookup(item.dir, item.name.as_bytes());
        if let Some(attr) = self.call("lookup", &[item.dir, ino], found)?
            && attr.ino != ino
        {
            return Err(format!("{} is {}, not {ino}", item.name, attr.ino));
        }
        let attr = self.fs.getattr(ino);
        let Some(attr) = self.call("getattr", &[ino], attr)? else { return Ok(()) };
        match &item.content {
            Content::File(bytes) if attr.size != bytes.len() as u64 => {
                return Err(format!("{ino} has {} bytes, not {}", attr.size, bytes.len()));
            }
            Content::File(bytes) => self.read_bytes(ino, bytes)?,
            Content::Link(target) => {
                let found = self.fs.readlink(ino);
                if self.call("readlink", &[ino], found)?.is_some_and(|found| found != *target) {
                    return Err(format!("wrong target of {ino}"));
                }
            }
            Content::Directory => {}
        }
        if let Some(value) = &item.xattr {
            let found = self.fs.getxattr(ino, XATTR);
            if self.call("getxattr", &[ino], found)?.is_some_and(|found| found != *value) {
                return Err(format!("wrong attribute of {ino}"));
            }
        }
        Ok(())
    }

    /// Everything is as `model` says, but what may be lost.
    fn compare(&mut self, model: &Model) -> Check<()> {
        for (ino, item) in model {
            self.read_item(*ino, item)?;
        }
        let dirs = model.iter().filter(|(_, item)| item.content == Content::Directory).map(|(ino, _)| *ino);
        for dir in dirs.chain([ROOT_INO]) {
            let listed = self.fs.readdir(dir, 2, 100_000, false);
            let Some(listed) = self.call("readdir", &[dir], listed)? else { continue };
            let found: BTreeSet<(Vec<u8>, u64)> = listed.into_iter().map(|entry| (entry.name, entry.ino)).collect();
            let inside = model.iter().filter(|(_, item)| item.dir == dir);
            let wanted: BTreeSet<_> = inside.map(|(ino, item)| (item.name.clone().into_bytes(), *ino)).collect();
            if found != wanted {
                let odd: Vec<_> = found.symmetric_difference(&wanted).take(4).collect();
                return Err(format!("entries of {dir} are others: {odd:?}"));
            }
        }
        Ok(())
    }

    /// Change every file, one way each; what is damaged, every way.
    fn change(&mut self, model: &mut Model) -> Check<()> {
        let all: Vec<(u64, Item)> = model.iter().map(|(ino, item)| (*ino, item.clone())).collect();
        for (index, (ino, item)) in all.iter().enumerate() {
            let hurt = self.hit.has(*ino) || self.hit.has(item.dir);
            for way in 0..7 {
                if hurt || index % 7 == way {
                    self.change_one(model, *ino, way)?;
                }
            }
            if index % 40 == 0 {
                self.sync()?;
            }
        }
        self.sync()
    }

    fn change_one(&mut self, model: &mut Model, ino: u64, way: usize) -> Check<()> {
        let Some(item) = model.get_mut(&ino) else { return Ok(()) };
        let (dir, name) = (item.dir, item.name.clone());
        let is_dir = item.content == Content::Directory;
        let data = bytes(9000 + ino, 700);
        match (way, &mut item.content) {
            (0, Content::File(content)) => {
                let at = 10.min(content.len());
                let done = self.fs.write(ino, at as u64, &data, false, false);
                if self.call("write", &[ino], done)?.is_some() {
                    put(content, at, &data);
                }
            }
            (1, Content::File(content)) => {
                let at = content.len();
                let done = self.fs.write(ino, at as u64, &data, false, false);
                if self.call("append", &[ino], done)?.is_some() {
                    put(content, at, &data);
                }
            }
            (2, Content::File(content)) => {
                let size = content.len() as u64 * 2 / 3;
                let done = self.fs.setattr(ino, &CALLER, &SetAttr { size: Some(size), ..SetAttr::default() });
                if self.call("truncate", &[ino], done)?.is_some() {
                    content.truncate(size as usize);
                }
            }
            (3, _) => {
                let done = self.fs.setxattr(ino, XATTR, &data, 0, &CALLER);
                if self.call("setxattr", &[ino], done)?.is_some() {
                    item.xattr = Some(data);
                }
            }
            (4, _) if !is_dir => {
                let new = format!("{name} renamed");
                let done = self.fs.rename(dir, name.as_bytes(), dir, new.as_bytes(), 0, &CALLER);
                if self.call("rename", &[ino, dir], done)?.is_some() {
                    item.name = new;
                }
            }
            (5, Content::File(content)) => {
                let whole = bytes(9500 + ino, 2 * BLOCK);
                let done = self.fs.write(ino, 0, &whole, false, false);
                if self.call("overwrite", &[ino], done)?.is_some() {
                    put(content, 0, &whole);
                }
                let synced = self.fsync(ino);
                self.call("fsync", &[ino], synced)?;
            }
            (6, _) if !is_dir => {
                let done = self.fs.unlink(dir, name.as_bytes());
                if self.call("unlink", &[ino, dir, ORPHANS], done)?.is_some() {
                    model.remove(&ino);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fsync(&self, ino: u64) -> Result<(), FsError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.fs.fsync(ino, Box::new(move |outcome| drop(sender.send(outcome))));
        receiver.recv().expect("an answer")
    }

    fn sync(&self) -> Check<()> {
        self.fs.sync().map_err(|error| format!("sync: {error}"))?;
        self.store.check_alive().map_err(|error| format!("latched: {error}"))
    }

    /// New files can be made, wherever their directory can be written.
    fn create(&mut self, model: &mut Model, tag: &str) -> Check<()> {
        let dirs: Vec<u64> =
            model.iter().filter(|(_, i)| i.content == Content::Directory).map(|(ino, _)| *ino).collect();
        for dir in dirs.into_iter().chain([ROOT_INO]) {
            let name = format!("made {tag}");
            let made = self.fs.create(dir, name.as_bytes(), 0o644, libc::O_RDWR, &CALLER);
            let Some((attr, handle)) = self.call("create", &[dir], made)? else { continue };
            let content = bytes(attr.ino, 3 * BLOCK + 5);
            self.fs.write(attr.ino, 0, &content, false, false).map_err(|error| format!("a new file: {error}"))?;
            self.fsync(attr.ino).map_err(|error| format!("fsync of a new file: {error}"))?;
            self.fs.release(attr.ino, handle);
            model.insert(attr.ino, Item { dir, name, content: Content::File(content), xattr: None });
        }
        self.sync()
    }

    /// Reclaim what has no name; it ends, whatever is lost.
    fn reclaim(&mut self) -> Check<()> {
        for _ in 0..10_000 {
            match self.fs.reclaim_step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if errno(&error) == libc::EIO && self.hit.keys.is_some() => {
                    self.calls.insert("(reclaim)");
                    if self.hit.has(ORPHANS) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(format!("reclaim: {error}")),
            }
        }
        Err("reclaim does not end".into())
    }

    /// Scrub finds nothing but the damage of `row`. Says whether all it found is healed.
    fn scrub(&self, row: &Row) -> Check<bool> {
        let report = examine_store(&self.store, true);
        let mut healed = true;
        for finding in &report.findings {
            match finding {
                Finding::Block { addr, outcome: Outcome::Healed(_), .. } if *addr == row.addr => {}
                Finding::Block { addr, outcome: Outcome::Lost(_), .. } if *addr == row.addr => healed = false,
                Finding::Incomplete => healed = false,
                // A value in pieces, of which one lay there.
                Finding::BadItem { owner, .. } if self.hit.has(owner.ino) => {}
                // Left allocated by a list or a bitmap that is lost.
                Finding::Leaked { .. } | Finding::FreeCount { .. } if row.hit.keys.is_none() => healed = false,
                other => return Err(format!("scrub: {other}")),
            }
        }
        Ok(healed)
    }
}

fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    content.resize(content.len().max(at + data.len()), 0);
    content[at..at + data.len()].copy_from_slice(data);
}

/// What fsck says without and with `-y`.
pub fn fsck_reports(bench: &mut Bench) -> [Check<FsckReport>; 2] {
    [false, true].map(|repair| bench.fsck(repair).map_err(|error| error.to_string()))
}

fn fsck(bench: &mut Bench) -> [Option<u8>; 2] {
    fsck_reports(bench).map(|report| report.ok().map(|report| report.exit_code))
}

/// Which of the states of the history this is.
pub fn find_state(bed: &mut Bed<'_>, scene: &Scene) -> Check<(&'static str, Model)> {
    let mut first = None;
    for (name, model) in scene.states.iter().rev() {
        (bed.calls, bed.unread) = Default::default();
        match bed.compare(model) {
            Ok(()) => return Ok((name, model.clone())),
            Err(text) => drop(first.get_or_insert(text)),
        }
    }
    Err(first.expect("there are states"))
}

/// Whether the copies of `row` on the disks `which` are the `good` ones.
fn is_whole(bench: &Bench, row: &Row, good: &[Block], which: &[usize]) -> bool {
    let bad = |disk: &usize| {
        let mut readable = true;
        bench.disks[*disk].faults(|faults| readable = !faults.unreadable.contains(&row.addr));
        !readable || bench.disks[*disk].peek(row.addr)[row.part.clone()] != good[*disk][row.part.clone()]
    };
    !which.iter().any(bad)
}

/// Run the cell.
///
/// # Errors
/// Something happened that no cell may show.
pub fn run(scene: &Scene, row: &Row, fault: Fault, which: &[usize]) -> Check<Cell> {
    let mut cell = Cell { verdict: Verdict::Same, calls: BTreeSet::new(), fsck: [None; 2], refusal: None };
    let Some(mut bench) = damage(scene, row, fault, which) else { return Ok(cell) };
    let at = |image: &Image| image.get(&row.addr).map_or([0; BLOCK], |block| **block);
    let mut good: Vec<Block> = scene.images.iter().map(at).collect();
    if fault == Fault::LostWrite && which.len() == 1 && row.writes != [0, 0] {
        // Made anew: items stand in records in any order.
        good = vec![bench.disks[1 - which[0]].peek(row.addr); 2];
    }
    let at_once = is_whole(&bench, row, &good, which);
    let mut bed = match mount(&mut bench, &row.hit) {
        Ok(bed) => bed,
        Err(why) => {
            cell.verdict = Verdict::Refused(None);
            cell.refusal = Some(why);
            cell.fsck = fsck(&mut bench);
            if let Ok(mut bed) = mount(&mut bench, &row.hit) {
                let (name, mut model) = find_state(&mut bed, scene).map_err(|text| format!("after fsck -y: {text}"))?;
                bed.create(&mut model, "after fsck")?;
                cell.verdict = Verdict::Refused(Some(name));
            }
            return Ok(cell);
        }
    };
    let at_mount = is_whole(&bench, row, &good, which);
    let (state, mut model) = match find_state(&mut bed, scene) {
        Ok(found) => found,
        Err(text) => return Err(format!("no state of the history: {text}")),
    };
    if row.hit.data.is_some() && bed.unread.len() > 1 {
        return Err(format!("more than one block cannot be read: {:?}", bed.unread));
    }
    let by_reading = is_whole(&bench, row, &good, which);
    if which == [0] {
        // On the other disk it is met by changes first.
        bed.scrub(row).map_err(|text| format!("first {text}"))?;
    }
    let by_scrub = is_whole(&bench, row, &good, which);
    bed.create(&mut model, "before")?;
    bed.change(&mut model)?;
    bed.create(&mut model, "after")?;
    bed.reclaim()?;
    bed.sync()?;
    bed.compare(&model).map_err(|text| format!("after the changes: {text}"))?;
    let healed = bed.scrub(row)?;
    let at_end = is_whole(&bench, row, &good, which);
    cell.calls = std::mem::take(&mut bed.calls);
    bed.store.commit(Force::Clean).map_err(|error| format!("the last commit: {error}"))?;
    drop(bed);
    cell.fsck = fsck(&mut bench);
    let mut bed = mount(&mut bench, &row.hit).map_err(|text| format!("mounting again: {text}"))?;
    bed.compare(&model).map_err(|text| format!("mounted again: {text}"))?;
    bed.create(&mut model, "at last")?;
    let whole = examine_store(&bed.store, false).is_clean();
    cell.calls.append(&mut bed.calls);
    let stage = match () {
        () if at_once => Healed::AtOnce,
        () if at_mount => Healed::Mount,
        () if by_reading => Healed::Read,
        () if by_scrub || at_end => Healed::Scrub,
        () if which == [1] => Healed::Changes,
        () => Healed::NotNeeded,
    };
    cell.verdict = match () {
        () if state != scene.states.last().expect("states").0 => Verdict::Back(state),
        () if cell.calls.is_empty() && healed && whole => Verdict::Healed(stage),
        () if cell.calls.is_empty() && whole && cell.fsck[1].is_some_and(|code| code < 4) => Verdict::Space,
        () => Verdict::Error,
    };
    Ok(cell)
}
