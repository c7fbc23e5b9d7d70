//! Forks on simulated disks: recognised in every order, compared, decided; cut everywhere.

use super::super::scrub;
use super::*;
use crate::disk::sim::{CrashPlan, SimDisk, World as Power};
use crate::format::{Geometry, Label, ROOT_INO};
use crate::fs::{Caller, Filesystem, FsOptions, SetAttr};
use crate::store::create::{CreateStore, create};
use crate::store::recover::{choose, examine, open};
use crate::world::Seeded;
use std::collections::BTreeMap;

const WAIT: Duration = Duration::from_secs(1);
const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0, lacks_fsetid: false };

type State = BTreeMap<String, Vec<u8>>;

/// A volume on simulated disks, with one clock and one source of identities for all its mounts.
struct Split {
    power: Power,
    disks: Vec<Arc<SimDisk>>,
    world: Arc<dyn World>,
}

fn small() -> StoreOptions {
    StoreOptions { pages_max: 256, pages_start: 64, cache_nodes: 256, ..StoreOptions::default() }
}

fn path(disk: usize) -> PathBuf {
    format!("/disk/{disk}").into()
}

impl Split {
    fn new(seed: u64, replicas: usize) -> Split {
        let power = Power::new(seed);
        let disks: Vec<Arc<SimDisk>> = (0..replicas).map(|_| power.disk(4096)).collect();
        let world: Arc<dyn World> = Arc::new(Seeded::new(seed));
        let make = CreateStore {
            geometry: Geometry::new(4096, 512, 64).unwrap(),
            name: "test".into(),
            grows: true,
            root_items: Filesystem::root_items(world.now(), 0, 0),
            deadline: WAIT,
        };
        let split = Split { power, disks, world: world.clone() };
        let backings = (0..replicas).map(|disk| (path(disk).display().to_string(), split.backing(disk))).collect();
        create(backings, make, world).unwrap();
        split
    }

    fn backing(&self, disk: usize) -> Arc<dyn Backing> {
        self.disks[disk].reopen()
    }

    fn present(&self, which: &[usize]) -> Vec<Present> {
        let one = |disk: &usize| {
            let backing = self.backing(*disk);
            let found = examine(&*backing, WAIT).unwrap();
            Present { path: path(*disk).display().to_string(), backing, found }
        };
        which.iter().map(one).collect()
    }

    fn mount(&self, which: &[usize], degraded: bool) -> Result<Arc<Store>, StoreError> {
        let options = OpenStore { degraded, deadline: WAIT, store: small(), on_shrink: None, hold: false };
        open(self.present(which), options, self.world.clone()).map(|(store, _)| Arc::new(store))
    }

    /// Mount these alone, write a file with this name and content, unmount.
    fn write(&self, which: &[usize], name: &str, byte: u8) {
        let store = self.mount(which, true).unwrap();
        put(&store, name, &[byte; 9000]);
        store.commit(Force::Clean).unwrap();
    }

    fn resolve(&self, which: &[usize]) -> Resolve {
        Resolve::new(self.present(which)).unwrap()
    }

    fn host(&self) -> Host<'static> {
        Host {
            claim: &|_| Ok(()),
            admit: &|_| Ok(()),
            world: self.world.clone(),
            seen: 0,
            on_shrink: None,
            store: small(),
        }
    }

    fn keep(&self, which: &[usize], keep: usize) -> Result<KeepReport, StoreError> {
        self.resolve(which).keep(&path(keep), self.host(), &mut |_| true)
    }

    fn compare(&self, which: &[usize]) -> Vec<SideReport> {
        self.resolve(which).compare(None, &self.world).unwrap()
    }

    /// All are in sync without a word, each alone holds `expected`, and nothing is damaged.
    fn is_whole(&self, expected: &State, context: &str) {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        let store = self.mount(&all, false).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.mirror().members().count(), all.len(), "{context}");
        let report = scrub::run(&store, &mut |_| true);
        assert_eq!((report.detected, report.lost, report.failed), (0, 0, 0), "{context}: {report}");
        assert!(state(&store) == *expected, "{context}");
        store.commit(Force::Clean).unwrap();
        drop(store);
        for disk in all {
            let store = look_at(self, &[disk]).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(state(&store) == *expected, "{context}: {disk} alone");
        }
    }
}

/// What a mount of these would show, without writing anything.
fn look_at(split: &Split, which: &[usize]) -> Result<Arc<Store>, StoreError> {
    let present = split.present(which);
    let choice = choose(&present)?;
    let side = Side { root: choice.root, slot: choice.slot, tip: 0, replicas: (0..which.len()).collect() };
    look::open(&present, &side, WAIT, &split.world).map(|(store, _)| store)
}

fn files(store: &Arc<Store>) -> Filesystem {
    Filesystem::new(store.clone(), FsOptions::default()).unwrap()
}

fn put(store: &Arc<Store>, name: &str, bytes: &[u8]) {
    let files = files(store);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    let (attr, handle) = files.create(ROOT_INO, name.as_bytes(), 0o640, flags, &USER).unwrap();
    assert_eq!(files.write(attr.ino, 0, bytes, false, false).unwrap() as usize, bytes.len());
    files.release(attr.ino, handle);
}

fn state(store: &Arc<Store>) -> State {
    let (files, mut found) = (files(store), State::new());
    let mut open = vec![(ROOT_INO, String::new())];
    while let Some((directory, above)) = open.pop() {
        for entry in files.readdir(directory, 0, 1000, false).unwrap() {
            let name = String::from_utf8(entry.name.clone()).unwrap();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{above}/{name}");
            let mut bytes = Vec::new();
            match entry.file_type {
                4 => open.push((entry.ino, path.clone())),
                8 => files.read(entry.ino, 0, &mut bytes, 1 << 20).unwrap(),
                _ => bytes = files.readlink(entry.ino).unwrap(),
            }
            found.insert(path, bytes);
        }
    }
    found
}

fn orders(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![vec![]];
    }
    let with = |first: &usize| {
        let rest: Vec<usize> = of.iter().copied().filter(|one| one != first).collect();
        orders(&rest).into_iter().map(|tail| [vec![*first], tail].concat()).collect::<Vec<_>>()
    };
    of.iter().flat_map(with).collect()
}

/// Goal: who was written apart is recognised, in whatever order replicas were mounted alone, and in whatever order they are
/// given later; who was not is no fork.
#[test]
fn forks_of_three_are_recognised_in_every_order() {
    // SEMANTICS: SPLIT-1
    let alone = orders(&[0, 1, 2]).into_iter().flat_map(|order| [order[..2].to_vec(), order]);
    for (seed, alone) in alone.enumerate() {
        let split = Split::new(seed as u64, 3);
        split.write(&[0, 1, 2], "common", 1);
        for disk in &alone {
            split.write(&[*disk], &format!("of-{disk}"), *disk as u8 + 10);
        }
        for some in [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
            let forks = some.iter().filter(|disk| alone.contains(disk)).count();
            for order in orders(&some) {
                let context = format!("alone {alone:?}, now {order:?}");
                let present = split.present(&order);
                assert_eq!(sides(&present).len(), forks.max(1), "{context}");
                match choose(&present) {
                    Ok(choice) if forks == 1 => {
                        let winner = some.iter().find(|disk| alone.contains(disk)).unwrap();
                        let uuid = present[order.iter().position(|disk| disk == winner).unwrap()].found.label.replica;
                        let slot = choice.root.members.iter().position(|member| member.replica == uuid).unwrap();
                        assert!(choice.members[slot].1, "{context}: the one that went on is in sync");
                    }
                    Err(StoreError::Refused(text)) if forks > 1 => {
                        assert!(text.contains("split brain") && !text.contains('\n'), "{context}: {text}");
                        let named = some.iter().filter(|disk| text.contains(&format!("/disk/{disk} has root"))).count();
                        assert_eq!(named, forks, "{context}: {text}");
                        assert!(text.contains("stablefs resolve /disk/") && text.contains("2 commits since"), "{text}");
                    }
                    other => panic!("{context}: {:?}", other.map(|choice| choice.behind)),
                }
            }
        }
    }
}

/// Goal: each of them can win, whatever the order; the others then hold the same, and nothing else.
#[test]
fn any_of_three_can_win() {
    // SEMANTICS: SPLIT-2
    for keep in 0..3 {
        for (seed, order) in orders(&[0, 1, 2]).into_iter().enumerate() {
            let split = Split::new(100 + seed as u64, 3);
            split.write(&[0, 1, 2], "common", 1);
            for disk in &order {
                split.write(&[*disk], &format!("of-{disk}"), *disk as u8 + 10);
            }
            let expected = state(&look_at(&split, &[keep]).unwrap());
            let highest = split.resolve(&order).highest();
            let report = split.keep(&order, keep).unwrap();
            assert_eq!((report.brought.len(), report.left.len()), (2, 0), "{report:?}");
            assert!(report.version > highest, "versions are never used twice");
            assert!(report.brought.iter().all(|brought| brought.since_group == 0 && brought.blocks_copied > 2));
            split.is_whole(&expected, &format!("{keep} wins, written in order {order:?}"));
        }
    }
}

/// Goal: a third replica that was brought up to one side is of that side; one that stayed away with the other side's roots is
/// still a fork after the others have been decided.
#[test]
fn who_joined_a_side_is_of_that_side() {
    let split = Split::new(7, 3);
    split.write(&[0, 1, 2], "common", 1);
    split.write(&[0], "of-0", 10);
    split.write(&[1, 2], "of-1-and-2", 11);
    let compared = split.compare(&[2, 0, 1]);
    assert_eq!(compared.len(), 2, "{compared:#?}");
    let pair = compared.iter().find(|side| side.changed.contains(&"/of-1-and-2".into())).unwrap();
    assert_eq!(pair.beside.len(), 1, "{pair:?}");
    let refused = |result: Result<KeepReport, StoreError>, says: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    };
    refused(split.keep(&[0, 1], 1), "was in sync with /disk/1 is not given");
    let expected = state(&look_at(&split, &[0]).unwrap());
    split.keep(&[0, 1], 0).unwrap();
    for order in orders(&[0, 1, 2]) {
        assert_eq!(sides(&split.present(&order)).len(), 2, "the third one knows nothing of it");
    }
    assert!(choose(&split.present(&[1, 2])).is_err(), "1 is of the side of 0 now");
    refused(split.keep(&[1, 0], 2), "is none of the replicas");
    split.keep(&[0, 1, 2], 1).unwrap();
    split.is_whole(&expected, "the side of 0");
}

/// Goal: what each side shows as changed is what was changed there, and nothing that the other one changed.
#[test]
fn a_comparison_shows_what_each_side_changed() {
    // SEMANTICS: SPLIT-1
    let split = Split::new(3, 2);
    let store = split.mount(&[0, 1], false).unwrap();
    for number in 0..150 {
        put(&store, &format!("old-{number}"), &[number; 5000]);
    }
    files(&store).mkdir(ROOT_INO, b"folder", 0o755, &USER).unwrap();
    store.commit(Force::Clean).unwrap();
    drop(store);
    split.write(&[0], "old-7", 70);
    let store = split.mount(&[0], true).unwrap();
    files(&store).unlink(ROOT_INO, b"old-8").unwrap();
    store.commit(Force::Clean).unwrap();
    drop(store);
    // The other one: a crash leaves the last of it in the log.
    let store = split.mount(&[1], true).unwrap();
    let names = files(&store);
    let folder = names.lookup(ROOT_INO, b"folder").unwrap().ino;
    names.symlink(folder, b"link", b"target", &USER).unwrap();
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    names.setattr(names.lookup(ROOT_INO, b"old-9").unwrap().ino, &USER, &mode).unwrap();
    store.commit(Force::Always).unwrap();
    put(&store, "logged", b"in the log alone");
    let logged = names.lookup(ROOT_INO, b"logged").unwrap().ino;
    store.fsync_wait(logged).unwrap();
    drop((names, store));

    for order in [[0, 1], [1, 0]] {
        let compared = split.compare(&order);
        let of = |disk: usize| compared.iter().find(|side| Path::new(&side.replica) == path(disk)).unwrap();
        let changed = |disk: usize| {
            let mut paths = of(disk).changed.clone();
            paths.sort();
            paths
        };
        assert_eq!(changed(0), ["/", "/old-7"], "{compared:#?}");
        assert_eq!(changed(1), ["/", "/folder/", "/folder/link", "/logged", "/old-9"], "{compared:#?}");
        assert!(compared.iter().all(|side| side.unreadable.is_empty() && !side.more && side.commits_since.is_some()));
        assert_eq!(of(0).parted_after, of(1).parted_after);
    }
    // Nothing was written by looking.
    assert_eq!(sides(&split.present(&[0, 1])).len(), 2);
}

#[test]
fn a_long_list_is_cut() {
    let split = Split::new(4, 2);
    split.write(&[0, 1], "common", 1);
    let store = split.mount(&[0], true).unwrap();
    (0..PATHS_MAX + 5).for_each(|number| put(&store, &format!("new-{number}"), b"new"));
    store.commit(Force::Clean).unwrap();
    drop(store);
    split.write(&[1], "other", 2);
    let compared = split.compare(&[0, 1]);
    let long = compared.iter().find(|side| Path::new(&side.replica) == path(0)).unwrap();
    assert_eq!((long.changed.len(), long.more), (PATHS_MAX, true));
}

/// Goal: what is given up is saved with its bytes, types and modes; what was not changed is not; a folder that is in use is refused.
#[test]
fn what_is_given_up_is_saved() {
    // SEMANTICS: SPLIT-3
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let split = Split::new(5, 2);
    split.write(&[0, 1], "common", 1);
    split.write(&[0, 1], "rotten", 1);
    split.write(&[0], "of-0", 10);
    let store = split.mount(&[1], true).unwrap();
    let names = files(&store);
    let folder = names.mkdir(ROOT_INO, b"folder", 0o750, &USER).unwrap().ino;
    names.symlink(folder, b"link", b"../of-1", &USER).unwrap();
    names.mknod(folder, b"pipe", 0o010_600, 0, &USER).unwrap();
    let (attr, handle) = names.create(folder, b"holes", 0o644, libc::O_RDWR | libc::O_CREAT, &USER).unwrap();
    names.write(attr.ino, 40_960, b"behind a hole", false, false).unwrap();
    names.setxattr(attr.ino, b"user.name", b"value", 0, &USER).unwrap();
    names.release(attr.ino, handle);
    put(&store, "of-1", &[7; 300_000]);
    store.commit(Force::Clean).unwrap();
    drop((names, store));

    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("saved");
    let save = |target: &Path| split.resolve(&[0, 1]).save(&path(0), target, &split.world, &mut |_| {});
    let reports = save(&target).unwrap();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((report.files, report.directories, report.others, report.unreadable_count), (2, 1, 2, 0), "{report:?}");
    assert_eq!(std::fs::read(target.join("of-1")).unwrap(), vec![7; 300_000]);
    assert_eq!(std::fs::read_link(target.join("folder/link")).unwrap(), Path::new("../of-1"));
    let holes = std::fs::read(target.join("folder/holes")).unwrap();
    assert!(holes[..40_960].iter().all(|byte| *byte == 0) && &holes[40_960..] == b"behind a hole");
    assert_eq!(std::fs::metadata(target.join("folder/pipe")).unwrap().mode() & 0o170_000, 0o010_000);
    assert_eq!(std::fs::metadata(target.join("folder")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(std::fs::metadata(target.join("of-1")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(!target.join("common").exists() && !target.join("of-0").exists());
    let again = save(&target).unwrap_err().to_string();
    assert!(again.contains("is not empty"), "{again}");
    assert_eq!(sides(&split.present(&[0, 1])).len(), 2, "saving decides nothing");
}

/// Goal: of a file that is lost in part, what proves itself is saved, and it is told; names that lead outside do not.
#[test]
fn what_cannot_be_saved_is_told() {
    // SEMANTICS: SPLIT-3
    let split = Split::new(6, 2);
    split.write(&[0, 1], "common", 1);
    split.write(&[0], "of-0", 10);
    split.write(&[1], "of-1", 11);
    let store = look_at(&split, &[1]).unwrap();
    let census = scrub::tests::census(&store).blocks;
    let root = store.durable_root();
    let data: Vec<u64> =
        census.iter().filter(|(_, part)| **part == crate::store::walk::Part::Data).map(|x| *x.0).collect();
    let mut own = Vec::new();
    let mut show = |piece: &crate::store::walk::Piece| {
        if piece.part == crate::store::walk::Part::Data && data.contains(&piece.addr) {
            own.push((piece.ino, piece.addr));
        }
    };
    let _ = store.sample(root.txg, 500, &mut show, &mut || std::ops::ControlFlow::Continue(()));
    let ino = files(&store).lookup(ROOT_INO, b"of-1").unwrap().ino;
    drop(store);
    let (_, rotten) = own.into_iter().find(|(of, _)| *of == ino).unwrap();
    split.disks[1].junk(rotten);
    let scratch = tempfile::tempdir().unwrap();
    let resolve = split.resolve(&[0, 1]);
    let reports = resolve.save(&path(0), &scratch.path().join("saved"), &split.world, &mut |_| {}).unwrap();
    assert_eq!(reports[0].unreadable_count, 1, "{reports:?}");
    assert!(reports[0].unreadable[0].starts_with("/of-1: 1 blocks"), "{reports:?}");
    let saved = std::fs::read(scratch.path().join("saved/of-1")).unwrap();
    assert_eq!(saved.len(), 9000);
    assert!(saved.iter().all(|byte| matches!(byte, 0 | 11)) && saved.contains(&11));
    // A folder in a replica, and a link to one.
    let inside = scratch.path().join("replica");
    std::fs::create_dir(&inside).unwrap();
    std::os::unix::fs::symlink(&inside, scratch.path().join("way")).unwrap();
    let replicas = [inside.display().to_string()];
    for place in [inside.clone(), inside.join("new"), scratch.path().join("way"), scratch.path().join("way/new")] {
        let text = save::prepare(&place, &replicas).unwrap_err().to_string();
        assert!(text.contains("lies in a replica"), "{}: {text}", place.display());
    }
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0);
}

/// One `--keep 0` that is cut at its `cut`-th write, and begun again; returns how many it took.
fn cut_keep(seed: u64, cut: Option<u64>, plan: CrashPlan) -> u64 {
    let mut split = Split::new(seed, 2);
    let store = split.mount(&[0, 1], false).unwrap();
    (0..40).for_each(|number| put(&store, &format!("common-{number}"), &[number; 5000]));
    store.commit(Force::Clean).unwrap();
    drop(store);
    split.write(&[0], "of-0", 10);
    split.write(&[0], "common-3", 13);
    split.write(&[1], "of-1", 11);
    split.write(&[1], "common-4", 14);
    // It ends in its log.
    let store = split.mount(&[0], true).unwrap();
    put(&store, "logged", b"acknowledged");
    store.fsync_wait(files(&store).lookup(ROOT_INO, b"logged").unwrap().ino).unwrap();
    drop(store);
    let expected = state(&look_at(&split, &[0]).unwrap());
    let given_up = state(&look_at(&split, &[1]).unwrap());
    let context = format!("cut {cut:?} {plan:?}");

    let before = split.power.io_count();
    split.power.cut_at(cut.map(|cut| before + cut));
    let result = split.keep(&[0, 1], 0);
    let took = split.power.io_count() - before;
    assert!(split.power.is_cut() || result.is_ok_and(|report| report.left.is_empty()), "{context}");
    split.power.cut_at(None);
    split.disks = split.power.revive(plan);

    let kept = look_at(&split, &[0]).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(state(&kept) == expected, "{context}: the winner lost something");
    drop(kept);
    // The other one alone is what it was before, or nothing, or whole.
    if let Ok(store) = look_at(&split, &[1]) {
        let alone = state(&store);
        assert!(alone == given_up || alone == expected, "{context}: the other one alone is a mixture");
        let report = scrub::run(&store, &mut |_| true);
        assert_eq!(report.lost, 0, "{context}: the other one alone lacks blocks: {report}");
    }
    // Both together: refused, or the winner.
    match look_at(&split, &[1, 0]) {
        Ok(store) => assert!(state(&store) == expected, "{context}: both together"),
        Err(error) => assert!(error.to_string().contains("split brain"), "{context}: {error}"),
    }
    let report = split.keep(&[1, 0], 0).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.left.is_empty(), "{context}: {report:?}");
    split.is_whole(&expected, &context);
    took
}

#[test]
fn power_cut_at_every_few_writes_of_a_decision() {
    // SEMANTICS: SPLIT-2
    let total = cut_keep(11, None, CrashPlan::KeepAll);
    let cuts = (1..total.min(90)).chain((90..total).step_by(11)).chain(total.saturating_sub(40)..=total);
    for (i, cut) in cuts.enumerate() {
        let plan = [CrashPlan::DropAll, CrashPlan::Random, CrashPlan::KeepAll][i % 3];
        cut_keep(11, Some(cut), plan);
    }
}

/// Goal: when a decision was cut, a usual mount finishes it as soon as the other one has given up its own history; its content
/// is believed in nothing.
#[test]
fn a_usual_return_finishes_what_was_cut() {
    let split = Split::new(12, 2);
    split.write(&[0, 1], "common", 1);
    split.write(&[0], "of-0", 10);
    split.write(&[1], "of-1", 11);
    let expected = state(&look_at(&split, &[0]).unwrap());
    let resolve = split.resolve(&[0, 1]);
    let stopped = resolve.keep(&path(0), split.host(), &mut |progress| progress.what != "copying").unwrap();
    assert_eq!((stopped.brought.len(), stopped.left.len()), (0, 1), "{stopped:?}");
    assert!(look_at(&split, &[1]).is_err(), "it passes for nothing alone");
    assert_eq!(split.resolve(&[0, 1]).behind(), ["/disk/1"]);
    let store = split.mount(&[0, 1], false).unwrap();
    let found = examine(&*split.disks[1].reopen(), WAIT).unwrap();
    let report = bring_back(&store, 1, "/disk/1".into(), split.backing(1), &found, &mut |_| true).unwrap();
    assert_eq!(report.since_group, 0, "every block is compared");
    store.commit(Force::Clean).unwrap();
    drop(store);
    split.is_whole(&expected, "after the return");
}

/// Goal: a replica with a root that the others had lost when they went on is shown as a history of its own, and either can win.
#[test]
fn what_the_others_had_lost_is_a_history_too() {
    for keep in [0, 1] {
        let split = Split::new(13, 2);
        split.write(&[0, 1], "common", 1);
        split.write(&[0, 1], "newest", 2);
        let newest = split.present(&[0])[0].found.roots[0].0;
        split.disks[0].rot(Root::addr(newest), 100);
        split.write(&[0], "of-0", 3);
        assert_eq!(sides(&split.present(&[0, 1])).len(), 1, "by its chain it is past");
        let compared = split.compare(&[0, 1]);
        assert_eq!(compared.len(), 2, "{compared:#?}");
        let expected = state(&look_at(&split, &[keep]).unwrap());
        split.keep(&[0, 1], keep).unwrap();
        split.is_whole(&expected, &format!("{keep} wins"));
    }
}

/// Goal: strangers are named for what they are, and nothing is decided with them.
#[test]
fn strangers_are_named() {
    // SEMANTICS: SPLIT-4
    let split = Split::new(14, 2);
    split.write(&[0, 1], "common", 1);
    let old = split.disks[1].snapshot();
    split.write(&[0, 1], "later", 2);
    split.write(&[0, 1], "latest", 3);
    let refusal = |present: Vec<Present>, says: &str| {
        let text = choose(&present).err().unwrap().to_string();
        assert!(text.contains(says) && !text.contains('\n'), "{text}");
        let text = Resolve::new(present).err().unwrap().to_string();
        assert!(text.contains(says), "{text}");
    };
    let with = |mut present: Vec<Present>, other: Vec<Present>| {
        present.extend(other);
        present
    };
    let stranger = Split::new(15, 2);
    refusal(with(split.present(&[0]), stranger.present(&[1])), "replicas of two volumes");
    refusal(with(split.present(&[0]), split.present(&[0])), "are the same replica");
    let copy = Split {
        power: split.power.clone(),
        disks: vec![split.power.disk_from(4096, old.clone())],
        world: split.world.clone(),
    };
    refusal(with(split.present(&[1]), copy.present(&[0])), "or one is a copy of the other");
    // Swapped places are no matter: labels say who they are.
    assert_eq!(split.mount(&[1, 0], false).unwrap().mirror().members().count(), 2);
    // An old copy in its place is behind, and no fork.
    split.disks[1].restore(old);
    assert_eq!(split.compare(&[0, 1]).len(), 1);
    let text = split.mount(&[0, 1], false).err().unwrap().to_string();
    assert!(text.contains("it is an old copy"), "{text}");
    assert_eq!(split.resolve(&[0, 1]).behind(), ["/disk/1"]);
    let told = split.resolve(&[0, 1]).keep(&path(1), split.host(), &mut |_| true).unwrap_err().to_string();
    assert!(told.contains("is behind"), "{told}");
    let expected = state(&look_at(&split, &[0]).unwrap());
    split.keep(&[0, 1], 0).unwrap();
    split.is_whole(&expected, "after the old copy was brought up");
}

/// Goal: two roots of one version that differ are two histories, whoever is given first.
#[test]
fn forged_roots_of_one_version_are_two_histories() {
    let split = Split::new(16, 2);
    split.write(&[0, 1], "common", 1);
    for order in [[0, 1], [1, 0]] {
        let mut present = split.present(&order);
        present[0].found.roots[0].1.mount_count += 1;
        assert_eq!(sides(&present).len(), 2);
    }
    let _: &Label = &split.present(&[0])[0].found.label;
}

/// Goal: of the last group that both have nothing is believed that is not in both histories.
#[test]
fn where_histories_parted_is_not_guessed() {
    use crate::format::root::Epoch;
    use crate::format::{Member, Uuid};
    use crate::store::recover::fork::Parting;
    let (a, b) = (Uuid([1; 16]), Uuid([2; 16]));
    let common = Epoch { id: Uuid([5; 16]), first_version: 1 };
    let side = |own: u8, first_version, of: Uuid, state, synced: (u64, Txg)| {
        let mut root = crate::format::root::tests::sample();
        (root.version, root.txg) = (90, 80);
        root.chain = vec![common, Epoch { id: Uuid([own; 16]), first_version }];
        let member = Member { replica: of, state, synced_version: synced.0, synced_txg: synced.1, ..root.members[0] };
        root.members = vec![member];
        root
    };
    let out = MemberState::Out;
    let mine = side(6, 17, b, out, (15, 10));
    let at = |theirs: &Root| parting(&mine, a, theirs, b);
    let group = |version, group| Parting { version: Some(version), group };
    assert_eq!(at(&side(7, 17, a, out, (15, 10))), group(15, 10));
    assert_eq!(at(&side(7, 18, a, out, (16, 11))), group(15, 10), "one that only it ever had");
    assert_eq!(at(&side(7, 18, a, MemberState::InSync, (0, 0))), group(15, 10), "it has not looked since");
    assert_eq!(at(&side(7, 18, a, out, (0, 0))), group(16, 0), "it should know");
    assert_eq!(at(&side(7, 13, a, out, (40, 35))), group(12, 0), "they were of each other's history meanwhile");
    let mut apart = side(7, 17, a, out, (15, 10));
    apart.chain.remove(0);
    assert_eq!(at(&apart), Parting { version: None, group: 0 }, "too long ago");
}
