//! Many threads on trees of their own and in a folder that they share, each of which knows exactly what it should find.

use super::bed::{Bed, Scale, bytes, can_mount, can_work_hard, scale};
use super::tally::Tally;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
    fn one_of<'a, T>(&mut self, all: impl ExactSizeIterator<Item = &'a T>) -> Option<&'a T> {
        let mut all = all;
        let n = self.below(all.len());
        all.nth(n)
    }
}

/// What a thread knows of its own tree and of its own names in the folder that all share.
struct Tree {
    dice: Dice,
    root: PathBuf,
    shared: PathBuf,
    me: usize,
    next: u64,
    folders: BTreeSet<PathBuf>,
    /// Which file each name stands for; hard links stand for the same.
    names: BTreeMap<PathBuf, u64>,
    contents: BTreeMap<u64, Vec<u8>>,
    symlinks: BTreeMap<PathBuf, PathBuf>,
    operations: BTreeMap<&'static str, u64>,
}

/// Largest file that a thread makes.
const LARGEST: usize = 300_000;
/// Names that all threads contend for: who makes the link holds it.
const PRIZES: usize = 3;
static HELD: [AtomicU64; PRIZES] = [const { AtomicU64::new(0) }; PRIZES];

impl Tree {
    fn new(mnt: &Path, me: usize, seed: u64) -> Tree {
        let (root, shared) = (mnt.join(format!("tree-{me}")), mnt.join("shared"));
        fs::create_dir(&root).unwrap();
        Tree {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            folders: BTreeSet::from([root.clone()]),
            root,
            shared,
            me,
            next: 0,
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            symlinks: BTreeMap::new(),
            operations: BTreeMap::new(),
        }
    }
    /// A name that was never used, in one of the own folders or in the shared one.
    fn new_name(&mut self) -> PathBuf {
        self.next += 1;
        let name = format!("{}-{}", self.me, self.next);
        if self.dice.below(4) == 0 {
            return self.shared.join(name);
        }
        self.dice.one_of(self.folders.iter()).unwrap().join(name)
    }
    fn some_file(&mut self) -> Option<(PathBuf, u64)> {
        let name = self.dice.one_of(self.names.keys().collect::<Vec<_>>().iter())?.to_path_buf();
        let file = self.names[&name];
        Some((name, file))
    }
    fn links(&self, file: u64) -> u64 {
        self.names.values().filter(|other| **other == file).count() as u64
    }
    /// One name of a file is gone.
    fn forget(&mut self, name: &Path) {
        let file = self.names.remove(name).unwrap();
        if self.links(file) == 0 {
            self.contents.remove(&file);
        }
    }
    fn step(&mut self) {
        type Work = fn(&mut Tree) -> Option<()>;
        const WORK: &[(&str, usize, Work)] = &[
            ("create", 12, Tree::create),
            ("write", 14, Tree::write),
            ("truncate", 5, Tree::truncate),
            ("read", 12, Tree::read),
            ("rename", 9, Tree::rename),
            ("replace", 5, Tree::rename_over),
            ("link", 5, Tree::link),
            ("unlink", 9, Tree::unlink),
            ("unlink open", 3, Tree::unlink_open),
            ("mkdir", 3, Tree::make_folder),
            ("rmdir", 2, Tree::remove_folder),
            ("move folder", 2, Tree::move_folder),
            ("symlink", 3, Tree::symlink),
            ("list", 3, Tree::list),
            ("contend", 6, Tree::contend),
            ("fsync", 1, Tree::sync),
        ];
        let mut at = self.dice.below(WORK.iter().map(|(_, weight, _)| weight).sum());
        for (what, weight, work) in WORK {
            if at < *weight {
                if work(self).is_some() {
                    *self.operations.entry(what).or_default() += 1;
                }
                return;
            }
            at -= weight;
        }
    }
    fn some_bytes(&mut self) -> Vec<u8> {
        let len = [0, 10, 900, 4096, 20_000, 90_000][self.dice.below(6)];
        let len = self.dice.below(len + 1);
        bytes(self.dice.0, len)
    }
    fn create(&mut self) -> Option<()> {
        if self.names.len() > 400 {
            return self.unlink();
        }
        let (name, data) = (self.new_name(), self.some_bytes());
        fs::File::create_new(&name).unwrap().write_all_at(&data, 0).unwrap();
        self.names.insert(name, self.next);
        self.contents.insert(self.next, data);
        Some(())
    }
    fn write(&mut self) -> Option<()> {
        let (name, file) = self.some_file()?;
        let data = self.some_bytes();
        let held = self.contents.get_mut(&file).unwrap();
        let at = if self.dice.below(3) == 0 { held.len() } else { self.dice.below(held.len() + 50_000) };
        if at + data.len() > LARGEST || data.is_empty() {
            return None;
        }
        fs::File::options().write(true).open(&name).unwrap().write_all_at(&data, at as u64).unwrap();
        held.resize(held.len().max(at + data.len()), 0);
        held[at..at + data.len()].copy_from_slice(&data);
        Some(())
    }
    fn truncate(&mut self) -> Option<()> {
        let (name, file) = self.some_file()?;
        let held = self.contents.get_mut(&file).unwrap();
        let len = self.dice.below((held.len() + 10_000).min(LARGEST));
        fs::File::options().write(true).open(&name).unwrap().set_len(len as u64).unwrap();
        held.resize(len, 0);
        Some(())
    }
    fn read(&mut self) -> Option<()> {
        let (name, file) = self.some_file()?;
        self.check(&name, file);
        Some(())
    }
    #[track_caller]
    fn check(&self, name: &Path, file: u64) {
        let found = fs::read(name).unwrap_or_else(|error| panic!("{}: {error}", name.display()));
        assert!(found == self.contents[&file], "{} reads as other bytes", name.display());
        assert_eq!(fs::metadata(name).unwrap().nlink(), self.links(file), "links of {}", name.display());
    }
    fn rename(&mut self) -> Option<()> {
        let (old, file) = self.some_file()?;
        let new = self.new_name();
        fs::rename(&old, &new).unwrap();
        assert_eq!(fs::symlink_metadata(&old).unwrap_err().kind(), ErrorKind::NotFound, "{}", old.display());
        self.names.remove(&old);
        self.names.insert(new, file);
        Some(())
    }
    fn rename_over(&mut self) -> Option<()> {
        let ((old, file), (new, victim)) = (self.some_file()?, self.some_file()?);
        fs::rename(&old, &new).unwrap();
        // Two names of one file: rename(2) does nothing.
        if file != victim {
            self.forget(&new);
            self.names.remove(&old);
            self.names.insert(new.clone(), file);
        }
        self.check(&new, file);
        Some(())
    }
    fn link(&mut self) -> Option<()> {
        let (old, file) = self.some_file()?;
        let new = self.new_name();
        fs::hard_link(&old, &new).unwrap();
        self.names.insert(new, file);
        Some(())
    }
    fn unlink(&mut self) -> Option<()> {
        let (name, _) = self.some_file()?;
        fs::remove_file(&name).unwrap();
        self.forget(&name);
        Some(())
    }
    fn unlink_open(&mut self) -> Option<()> {
        let (name, file) = self.some_file()?;
        let mut open = fs::File::open(&name).unwrap();
        fs::remove_file(&name).unwrap();
        let mut found = Vec::new();
        open.read_to_end(&mut found).unwrap();
        assert!(found == self.contents[&file], "{}: other bytes once its name was gone", name.display());
        self.forget(&name);
        Some(())
    }
    fn make_folder(&mut self) -> Option<()> {
        self.next += 1;
        let name = format!("d{}", self.next);
        let new = self.dice.one_of(self.folders.iter()).unwrap().join(name);
        if self.folders.len() > 60 || new.components().count() > 20 {
            return None;
        }
        fs::create_dir(&new).unwrap();
        self.folders.insert(new);
        Some(())
    }
    fn some_folder(&mut self) -> Option<PathBuf> {
        let folder = self.dice.one_of(self.folders.iter())?.clone();
        (folder != self.root).then_some(folder)
    }
    fn remove_folder(&mut self) -> Option<()> {
        let folder = self.some_folder()?;
        let below = |path: &&PathBuf| path.parent() == Some(&folder);
        let used =
            self.folders.iter().find(below).or(self.names.keys().find(below)).or(self.symlinks.keys().find(below));
        match (fs::remove_dir(&folder), used) {
            (Ok(()), None) => assert!(self.folders.remove(&folder)),
            (Err(error), Some(_)) => assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty),
            (Ok(()), Some(entry)) => panic!("{} went with {} in it", folder.display(), entry.display()),
            (Err(error), None) => panic!("{} is empty: {error}", folder.display()),
        }
        Some(())
    }
    fn move_folder(&mut self) -> Option<()> {
        let old = self.some_folder()?;
        let place = self.dice.one_of(self.folders.iter()).unwrap().clone();
        self.next += 1;
        let new = place.join(format!("m{}", self.next));
        if new.components().count() > 20 {
            return None;
        }
        let done = fs::rename(&old, &new);
        if place.starts_with(&old) {
            assert_eq!(done.unwrap_err().kind(), ErrorKind::InvalidInput, "a folder below itself");
            return Some(());
        }
        done.unwrap();
        let moved = |path: &PathBuf| {
            path.strip_prefix(&old)
                .map_or(path.clone(), |rest| if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) })
        };
        self.folders = self.folders.iter().map(moved).collect();
        self.names = self.names.iter().map(|(path, file)| (moved(path), *file)).collect();
        self.symlinks = self.symlinks.iter().map(|(path, target)| (moved(path), target.clone())).collect();
        Some(())
    }
    fn symlink(&mut self) -> Option<()> {
        if self.symlinks.len() > 50 {
            let name = self.symlinks.keys().next().unwrap().clone();
            fs::remove_file(&name).unwrap();
            self.symlinks.remove(&name);
            return Some(());
        }
        let (name, target) = (self.new_name(), PathBuf::from(format!("to/{}", "x".repeat(self.dice.below(200)))));
        std::os::unix::fs::symlink(&target, &name).unwrap();
        self.symlinks.insert(name, target);
        Some(())
    }
    /// Each of the own entries stands in a folder exactly once, whatever the others do there.
    fn list(&mut self) -> Option<()> {
        let folder =
            if self.dice.below(2) == 0 { self.shared.clone() } else { self.dice.one_of(self.folders.iter())?.clone() };
        self.check_list(&folder);
        Some(())
    }
    #[track_caller]
    fn check_list(&self, folder: &Path) {
        let own = format!("{}-", self.me);
        let mut found: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        if folder == self.shared {
            found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&own));
        }
        found.sort();
        let below = |path: &&PathBuf| path.parent() == Some(folder);
        let mut wanted: Vec<PathBuf> = self.folders.iter().filter(below).cloned().collect();
        wanted.extend(self.names.keys().filter(below).cloned());
        wanted.extend(self.symlinks.keys().filter(below).cloned());
        wanted.sort();
        assert!(found == wanted, "{} holds {found:?} and not {wanted:?}", folder.display());
    }
    /// Of all who link or rename to one name without replacing, one gets it until it lets go.
    fn contend(&mut self) -> Option<()> {
        let (name, file) = self.some_file()?;
        let prize = self.dice.below(PRIZES);
        let at = self.shared.join(format!("prize-{prize}"));
        match fs::hard_link(&name, &at) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
            Ok(()) => {
                let before = HELD[prize].swap(self.me as u64 + 1, Ordering::SeqCst);
                assert_eq!(before, 0, "two threads hold prize {prize}");
                let found = fs::read(&at).unwrap();
                assert!(found == self.contents[&file], "prize {prize} is not what was linked");
                HELD[prize].store(0, Ordering::SeqCst);
                fs::remove_file(&at).unwrap();
            }
        }
        Some(())
    }
    fn sync(&mut self) -> Option<()> {
        let (name, _) = self.some_file()?;
        fs::File::open(&name).unwrap().sync_all().unwrap();
        Some(())
    }
    /// All that it knows is as it knows it, and nothing else is there.
    #[track_caller]
    fn check_all(&self) {
        for (name, file) in &self.names {
            self.check(name, *file);
        }
        for (name, target) in &self.symlinks {
            assert_eq!(&fs::read_link(name).unwrap(), target);
        }
        for folder in self.folders.iter().chain([&self.shared]) {
            self.check_list(folder);
        }
    }
}

/// Goal: threads that make, move, link, write, cut and delete in trees of their own and in a folder that they share find
/// exactly what they know, during it, afterwards, and after a remount. Method: each keeps a model; prizes show that one wins.
#[test]
fn suite_parallel_trees_are_what_each_thread_knows() {
    // SEMANTICS: NS-1, NS-2, NS-3
    if scale() != Scale::All || !can_work_hard() {
        return;
    }
    let tally = Tally::begin(280, "parallel trees");
    let bed = Bed::mounted("4G");
    fs::create_dir(bed.at("shared")).unwrap();
    let (threads, steps, rounds) = (8, 12_000, 3);
    let seed = 20_261_123;
    let mut trees: Vec<Tree> = (0..threads).map(|me| Tree::new(&bed.mnt, me, seed + me as u64)).collect();
    for _ in 0..rounds {
        std::thread::scope(|scope| {
            for tree in &mut trees {
                scope.spawn(move || (0..steps).for_each(|_| tree.step()));
            }
        });
        trees.iter().for_each(Tree::check_all);
        bed.umount_and_check();
        bed.mount("").ok();
        trees.iter().for_each(Tree::check_all);
    }
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, count) in trees.iter().flat_map(|tree| &tree.operations) {
        *sums.entry(what).or_default() += count;
    }
    println!("{sums:?}");
    assert!(sums.len() == 16 && sums.values().all(|count| *count > 100), "{sums:?}");
    let total: u64 = sums.values().sum();
    bed.umount_and_check();
    tally.end(
        rounds,
        0,
        0,
        &format!("{total} operations of {threads} threads, each against its own model; compared again after remounts"),
    );
}

/// Goal: while others list a folder, a file that has just lost another name can be linked to. Method: the kernel counts the
/// links itself; a listing at the wrong moment made it believe that none was left, in three of a hundred rounds.
#[test]
fn a_file_that_just_lost_a_name_can_be_linked_to_while_others_list() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    let (own, shared) = (bed.at("own"), bed.at("shared"));
    fs::create_dir(&own).unwrap();
    fs::create_dir(&shared).unwrap();
    let working = AtomicU64::new(2);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while working.load(Ordering::SeqCst) > 0 {
                    fs::read_dir(&shared).unwrap().for_each(|entry| drop(entry.unwrap()));
                }
            });
        }
        for me in 0..2 {
            let (own, shared, working) = (&own, &shared, &working);
            scope.spawn(move || {
                let failed = (0..3_000).find_map(|_| lose_a_name_and_link(own, shared, me).err());
                // Before anything panics: the others look until nobody works.
                working.fetch_sub(1, Ordering::SeqCst);
                assert!(failed.is_none(), "{failed:?}");
            });
        }
    });
    bed.umount_and_check();
}

fn lose_a_name_and_link(own: &Path, shared: &Path, me: u32) -> std::io::Result<()> {
    let (first, second, third) =
        (own.join(format!("a{me}")), shared.join(format!("b{me}")), own.join(format!("c{me}")));
    fs::write(&first, b"")?;
    fs::hard_link(&first, &second)?;
    fs::remove_file(&first)?;
    fs::hard_link(&second, &third)?;
    // The kernel may answer from what a listing is just telling it, one link more; once more, and it asks.
    let links = [fs::metadata(&second)?.nlink(), fs::metadata(&second)?.nlink()];
    if !links.contains(&2) {
        return Err(std::io::Error::other(format!("it has 2 links, not {links:?}")));
    }
    fs::remove_file(&second)?;
    fs::remove_file(&third)
}
