//! Writers, fsyncs and commits at once; replicas that go, hang and come back meanwhile; then a power cut.
//!
//! Goal: whatever the order, an acknowledged fsync survives on each replica that the newest durable root calls in sync, the
//! rest is a prefix of history, no late write damages anything, and the checker finds nothing. Method: cut the power at a
//! write that the seed chooses (or at the end), open each replica in sync alone, and all together, and judge (`deeds`).

use crate::deeds::Deeds;
use crate::explorer::{Scenario, explore, happened, seed};
use crate::volume::{CALLER, Volume, setup};
use stablefs::disk::backing::{Backing, Op};
use stablefs::disk::sim::{CrashPlan, Fate, Fault, Faults, Image, Random, SimDisk, World};
use stablefs::disk::{ReplicaHealth, ReplicaName, ReplicaState};
use stablefs::format::root::MemberState;
use stablefs::format::{BLOCK, ROOT_INO, Root};
use stablefs::fs::{Filesystem, FsError};
use stablefs::simulate::driver::Driver;
use stablefs::simulate::model::bytes;
use stablefs::simulate::{Bench, Setup, clean};
use stablefs::store::commit::Force;
use stablefs::store::recover::{Found, examine};
use stablefs::store::{Store, StoreError};
use stablefs::sync::thread;
use stablefs::volume::replace::{Place, resync};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BLOCKS: u64 = 1500;
const WAIT: Duration = Duration::from_millis(50);

/// What happens beside the writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Commits and write-out.
    Commits,
    /// And replicas that are put out, die, return, and are exchanged.
    Replicas,
    /// And a disk that hangs, is out, and answers late.
    Hang,
}

/// The store's own threads, or one that does their work.
fn start_commits(volume: &mut Volume, random: &mut Random) -> Option<thread::JoinHandle<()>> {
    if random.below(2) == 0 {
        volume.start_engine();
        return None;
    }
    let (store, power, mut random) = (volume.store.clone(), volume.bench.power.clone(), random.fork());
    Some(thread::spawn(move || {
        for _ in 0..random.range(1, 6) {
            let force = *random.pick(&[Force::Always, Force::IfChanged, Force::Reclaim]);
            let done = if random.below(3) == 0 { store.place_step().map(drop) } else { store.commit(force) };
            match done {
                Ok(()) => happened("a commit beside writers"),
                Err(error) => assert!(power.is_cut(), "{force:?} failed although a replica lives: {error}"),
            }
        }
    }))
}

/// Somebody who changes replicas.
struct Keeper {
    store: Arc<Store>,
    power: World,
    random: Random,
    /// The disk in each slot.
    disks: Vec<Arc<SimDisk>>,
    /// A slot whose disk was made to fail, and has not been put out for it yet.
    failing: Option<usize>,
}

impl Keeper {
    fn new(volume: &Volume, random: &mut Random) -> Keeper {
        Keeper {
            store: volume.store.clone(),
            power: volume.bench.power.clone(),
            random: random.fork(),
            disks: volume.bench.disks.clone(),
            failing: None,
        }
    }

    /// Bring `disk` into `place`. Refused while something may still land there; and a test may stop it.
    fn bring(&mut self, place: Place, path: String, disk: &Arc<SimDisk>) -> bool {
        let stops_at = self.random.below(40);
        let mut steps = 0;
        let mut progress = |_: &_| {
            steps += 1;
            steps != stops_at
        };
        let name = ReplicaName { uuid: self.store.world().uuid(), path };
        let Err(error) = resync(&self.store, place, name, disk.clone(), &mut progress) else {
            happened(if matches!(place, Place::Taken(_)) { "a replica exchanged" } else { "a replica brought back" });
            return true;
        };
        let refused = error.to_string().contains("have not come back");
        if refused {
            happened("refused while requests hang");
        }
        assert!(refused || steps == stops_at || self.power.is_cut(), "a replica could not be brought back: {error}");
        false
    }

    fn return_to(&mut self, slot: usize) {
        let old = self.store.mirror().health()[slot].name.path.clone();
        self.store.mirror().release(slot);
        let mut gone = false;
        self.disks[slot].faults(|faults| gone = faults.gone);
        if !gone && self.random.below(3) > 0 {
            let same = self.disks[slot].reopen();
            if self.bring(Place::Free(slot), old, &same) {
                self.disks[slot] = same;
            }
        } else {
            self.disks[slot] = self.new_disk();
            let disk = self.disks[slot].clone();
            self.bring(Place::Free(slot), format!("/new/{}", disk.facts().path), &disk);
        }
    }

    fn new_disk(&self) -> Arc<SimDisk> {
        self.power.disk(BLOCKS)
    }

    fn exchange(&mut self, slot: usize) {
        let disk = self.new_disk();
        if self.bring(Place::Taken(slot), format!("/new/{}", disk.facts().path), &disk) {
            self.disks[slot] = disk;
        }
    }

    fn state(&self, slot: usize) -> ReplicaState {
        self.store.mirror().health()[slot].state
    }

    fn act(&mut self) {
        if let Some(slot) = self.failing.take_if(|slot| self.store.mirror().members().contains(*slot)) {
            // One fault at a time.
            self.failing = Some(slot);
            return self.store.mirror().check();
        }
        let slot = self.random.below(2) as usize;
        if self.state(1 - slot) != ReplicaState::InSync {
            return self.return_to(1 - slot);
        }
        if self.state(slot) != ReplicaState::InSync {
            return self.return_to(slot);
        }
        match self.random.below(4) {
            0 => {
                happened("a replica put out");
                return self.store.mirror().set_out(slot, "put out by the test");
            }
            1 => self.disks[slot].faults(|faults| faults.gone = true),
            2 => self.disks[slot].faults(|faults| faults.fail_flushes = Fault::Next(1)),
            _ => return self.exchange(slot),
        }
        self.failing = Some(slot);
    }
}

/// A file that is written again and again, so that all free addresses are used in turn.
struct Churn {
    store: Arc<Store>,
    fs: Arc<Filesystem>,
    power: World,
    ino: u64,
}

impl Churn {
    fn new(volume: &Volume) -> Churn {
        let (attr, handle) = volume.fs.create(ROOT_INO, b"churn", 0o644, libc::O_RDWR, &CALLER).expect("room");
        volume.fs.release(attr.ino, handle);
        let (store, fs, power) = (volume.store.clone(), volume.fs.clone(), volume.bench.power.clone());
        Churn { store, fs, power, ino: attr.ino }
    }

    fn overwrite(&self, random: &mut Random) {
        let data = bytes(BLOCK as u64, random.range(1, 1 << 40)).repeat(24);
        let written = self.fs.write(self.ino, 0, &data, false, false);
        match written.map(drop).and_then(|()| Ok(self.store.commit(Force::Reclaim)?)) {
            Ok(()) => happened("addresses used up"),
            Err(FsError::Store(StoreError::NoSpace)) => happened("no room"),
            Err(error) => assert!(self.power.is_cut(), "churning failed although a replica lives: {error}"),
        }
    }
}

/// Put replicas out, let them die, bring them back.
fn start_keeper(volume: &Volume, random: &mut Random) -> thread::JoinHandle<()> {
    let mut keeper = Keeper::new(volume, random);
    thread::spawn(move || {
        for _ in 0..keeper.random.range(1, 6) {
            if keeper.power.is_cut() {
                return;
            }
            keeper.act();
            for _ in 0..keeper.random.below(20) {
                thread::yield_now();
            }
        }
    })
}

/// One disk hangs; somebody uses up addresses meanwhile and lets it go on late; somebody brings it back, or another one, as
/// soon as it is allowed.
fn start_hang(volume: &Volume, churn: Churn, random: &mut Random) -> Vec<thread::JoinHandle<()>> {
    let slot = random.below(2) as usize;
    let disk = volume.bench.disks[slot].clone();
    let after = random.below(25) as u32;
    disk.faults(|faults| faults.hang = Fault::Once(after));
    let (late, mut first) = (disk.clone(), random.fork());
    let releaser = thread::spawn(move || {
        for _ in 0..first.range(1, 4) {
            for _ in 0..first.below(300) {
                thread::yield_now();
            }
            for _ in 0..*first.pick(&[0, 1, 4, 12, 20]) {
                churn.overwrite(&mut first);
            }
            if late.release_hung() > 0 {
                happened("requests landed late");
            }
        }
    });
    let mut keeper = Keeper::new(volume, random);
    let returner = thread::spawn(move || {
        for _ in 0..keeper.random.range(20, 200) {
            if keeper.power.is_cut() {
                return;
            }
            if keeper.state(slot) == ReplicaState::Out {
                happened("a replica put out");
                keeper.return_to(slot);
            }
            thread::yield_now();
        }
    });
    vec![releaser, returner]
}

/// What stands on disks after the crash.
struct Left {
    /// On each that the newest durable root calls in sync: the newest root that stands on each of them.
    alone: Vec<Image>,
    /// On these and those that the newest root of all calls in sync.
    together: Vec<Image>,
}

fn left_on(disks: &[Arc<SimDisk>]) -> Left {
    let found: Vec<_> = disks.iter().filter_map(|disk| Some((disk, examine(&*disk.reopen(), WAIT).ok()?))).collect();
    let mut roots: Vec<&Root> = found.iter().flat_map(|(_, found)| found.roots.iter().map(|(_, root)| root)).collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.version));
    let calls_in_sync = |root: &Root, found: &Found| {
        let members = root.members.iter().filter(|member| member.state == MemberState::InSync);
        members.into_iter().any(|member| member.replica == found.label.replica)
    };
    let is_durable = |root: &Root| {
        let members = root.members.iter().filter(|member| member.state == MemberState::InSync).count();
        let holds = |found: &Found| found.roots.iter().any(|(_, theirs)| theirs.version == root.version);
        found.iter().filter(|(_, found)| calls_in_sync(root, found) && holds(found)).count() == members
    };
    let durable = roots.iter().find(|root| is_durable(root)).expect("some root is on all that it calls in sync");
    let of = |wanted: &dyn Fn(&Found) -> bool| -> Vec<Image> {
        found.iter().filter(|(_, found)| wanted(found)).map(|(disk, _)| disk.snapshot()).collect()
    };
    Left {
        alone: of(&|found| calls_in_sync(durable, found)),
        together: of(&|found| calls_in_sync(durable, found) || calls_in_sync(roots[0], found)),
    }
}

/// Mount what `images` hold.
fn mount(images: &[Image], degraded: bool) -> Driver {
    let setup = Setup { replicas: images.len().max(2), ..setup(BLOCKS) };
    let mut bench = Bench::with(seed() ^ 0xa1, setup, Random::new(seed()));
    for (disk, image) in bench.disks.iter().zip(images) {
        disk.restore(image.clone());
    }
    let which: Vec<usize> = (0..images.len()).collect();
    let (store, _) = bench.open(&which, degraded).unwrap_or_else(|error| panic!("opening {which:?}: {error}"));
    Driver::new(store, &bench.power).unwrap_or_else(|error| panic!("mounting: {error}"))
}

/// The scenarios here.
pub const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "commits",
        count: 1_500,
        happens: &["an fsync was acknowledged", "a commit beside writers", "the power failed"],
        run: || scenario(Beside::Commits),
    },
    Scenario {
        name: "replicas",
        count: 3_000,
        happens: &[
            "an fsync was acknowledged",
            "a commit beside writers",
            "the power failed",
            "a replica put out",
            "a replica brought back",
            "a replica exchanged",
            "the power failed while a replica was out",
        ],
        run: || scenario(Beside::Replicas),
    },
    Scenario {
        name: "late",
        count: 1_500,
        happens: &[
            "an fsync was acknowledged",
            "no room",
            "a replica put out",
            "a replica brought back",
            "refused while requests hang",
            "requests landed late",
            "a write landed late on a reused address",
        ],
        run: || scenario(Beside::Hang),
    },
];

/// Leave little room, so that blocks which are freed are reused as soon as they may be.
fn fill(volume: &Volume, random: &mut Random) {
    let (attr, handle) = volume.fs.create(ROOT_INO, b"filler", 0o644, libc::O_RDWR, &CALLER).expect("room");
    volume.fs.release(attr.ino, handle);
    let left = random.range(40, 80);
    for block in 0.. {
        let free = volume.fs.statfs().bavail;
        if free <= left {
            break;
        }
        let data = bytes(BLOCK as u64, block + 1).repeat((free - left).min(16) as usize);
        let at = volume.fs.getattr(attr.ino).expect("it is there").size;
        volume.fs.write(attr.ino, at, &data, false, false).expect("room");
    }
    volume.store.commit(Force::Reclaim).expect("disks are whole");
    volume.store.commit(Force::Reclaim).expect("disks are whole");
}

/// Count writes that land late at a data address that was given to other bytes since.
fn watch_late(volume: &Volume) {
    let geometry = volume.store.label().geometry.clone();
    // A real mutex: it is never held over a step.
    let newest = Mutex::new(HashMap::<u64, u64>::new());
    volume.bench.power.listen(Some(Arc::new(move |asked| {
        let Op::Write { addr, data } = asked.op else { return };
        let mut newest = newest.lock().expect("not poisoned");
        let mut reused = false;
        for (at, block) in (*addr..).zip(data.iter().flat_map(|slice| slice.chunks_exact(BLOCK))) {
            let print = BuildHasherDefault::<DefaultHasher>::default().hash_one(block);
            if asked.fate() == Fate::Late {
                reused |= geometry.holds_data(at, 1) && newest.get(&at).is_some_and(|other| *other != print);
            } else {
                newest.insert(at, print);
            }
        }
        if reused {
            happened("a write landed late on a reused address");
        }
    })));
}

fn scenario(beside: Beside) {
    let mut random = Random::new(seed() ^ 0xc4a5);
    let mut volume = Volume::new(seed(), BLOCKS);
    let power = volume.bench.power.clone();
    let churn = (beside == Beside::Hang).then(|| {
        let churn = Churn::new(&volume);
        fill(&volume, &mut random);
        watch_late(&volume);
        churn
    });
    if random.below(3) > 0 {
        let most = if beside == Beside::Hang { 600 } else { 120 };
        power.cut_at(Some(power.io_count() + random.range(1, most)));
    }
    let mut deeds = Deeds::default();
    let size = (random.range(1, 4) as usize, random.range(3, 9));
    let mut threads = deeds.begin(&volume.fs, &power, &mut random, size);
    threads.extend(start_commits(&mut volume, &mut random));
    match churn {
        Some(churn) => threads.extend(start_hang(&volume, churn, &mut random)),
        None if beside == Beside::Replicas => threads.push(start_keeper(&volume, &mut random)),
        None => {}
    }
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    volume.stop_engine();
    let slow: Vec<_> = volume.bench.disks.clone();
    slow.iter().for_each(|disk| {
        disk.faults(|faults| (faults.hang, faults.fail_flushes) = (Fault::Never, Fault::Never));
        disk.release_hung();
    });
    if !power.is_cut() {
        // A disk that failed unnoticed is put out now.
        power.cut_at(None);
        volume.store.mirror().check();
        volume.store.commit(Force::Always).expect("a replica lives");
        clean(&volume.store).unwrap_or_else(|found| panic!("before the power cut: {found}"));
    }
    if power.is_cut() {
        happened("the power failed");
    }
    let is_out = |replica: &ReplicaHealth| replica.state != ReplicaState::InSync;
    if volume.store.mirror().health().iter().any(is_out) {
        happened(if power.is_cut() { "the power failed while a replica was out" } else { "a replica out at the end" });
    }
    let bench = volume.abandon();
    drop(slow);
    let plan = *random.pick(&[CrashPlan::DropAll, CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random]);
    let disks = bench.power.revive(plan);
    // What stands on a disk that failed unnoticed counts as well.
    disks.iter().for_each(|disk| disk.faults(|faults| *faults = Faults::default()));
    let left = left_on(&disks);
    drop(bench);
    let judged = |images: &[Image], degraded: bool, which: &str| {
        let driver = mount(images, degraded);
        deeds.judge(driver.now()).unwrap_or_else(|reason| panic!("{which}: {reason}"));
        clean(&driver.store).unwrap_or_else(|found| panic!("{which}: {found}"));
    };
    for (index, image) in left.alone.iter().enumerate() {
        judged(std::slice::from_ref(image), true, &format!("replica {index} of {} alone", left.alone.len()));
    }
    judged(&left.together, left.together.len() == 1, "all replicas in sync");
}

#[test]
fn what_was_synced_beside_commits_survives() {
    explore(&SCENARIOS[0]);
}

#[test]
fn what_was_synced_survives_on_each_replica_in_sync_while_replicas_come_and_go() {
    explore(&SCENARIOS[1]);
}

#[test]
fn a_late_write_damages_nothing() {
    explore(&SCENARIOS[2]);
}
