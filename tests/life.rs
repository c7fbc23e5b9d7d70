//! Lives of volumes: operations among crashes, faults, late I/O, remounts, degraded mounts, replace, scrub and fsck.
//!
//! Goal: the ordinary weights of the simulator find nothing. Method: `stablefs::simulate::life` for many seeds; a
//! failure names the seed and tells the story. `STABLEFS_SEEDS=7` (or `0..20000`) chooses other seeds.

mod common;

use stablefs::disk::sim::{CrashPlan, SimDisk};
use stablefs::disk::{Backing, BackingFacts, Op, ReplicaName, ReplicaState, Ticket};
use stablefs::format::geometry::ROOT_SLOTS;
use stablefs::format::log::decode_head;
use stablefs::format::{Root, Uuid};
use stablefs::simulate::copies::Copies;
use stablefs::simulate::driver::Driver;
use stablefs::simulate::life::life;
use stablefs::simulate::model::Op as Operation;
use stablefs::simulate::{Ask, Bench, clean};
use stablefs::store::commit::Force;
use stablefs::store::recover::{OpenStore, Present, examine, open};
use stablefs::store::walk::Part;
use stablefs::store::{StoreError, StoreOptions};
use stablefs::volume::replace::{Place, resync};
use stablefs::volume::scrub;
use stablefs::world::Seeded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn many_lives_break_no_promise() {
    let sum = common::run("lives", common::seeds(0..600), life);
    assert!(sum.replaces > 0 && sum.scrubs > 0 && sum.fscks > 0 && sum.degraded > 0 && sum.late > 0, "{sum}");
    assert!(sum.strangers > 0 && sum.stale > 0 && sum.forks > 0, "{sum}");
    // A refusal costs a person: it is for disks that really failed.
    assert!(sum.refused * 50 < sum.mounts && sum.fscks_refused * 20 < sum.fscks, "{sum}");
}

/// A volume with some operations behind it.
fn lived(seed: u64) -> (Bench, Driver) {
    let mut bench = Bench::new(seed);
    let mut driver = bench.mount().unwrap();
    bench.run(&mut driver, 30).unwrap();
    (bench, driver)
}

/// A replace that ends with a disk that loses even the root that calls it in sync: it is not in sync.
#[test]
fn a_disk_that_loses_its_root_is_not_called_in_sync() {
    for seed in 0..10 {
        let (mut bench, mut driver) = lived(seed);
        driver.settle().unwrap();
        let target = bench.power.disk(bench.setup.blocks);
        target.faults(|faults| faults.stuck.extend((0..ROOT_SLOTS).map(Root::addr)));
        bench.disks.push(target.clone());
        let name = ReplicaName { uuid: Uuid([9; 16]), path: "/disk/2".into() };
        let refused = resync(&driver.store, Place::Taken(1), name, target, &mut |_| true);
        assert!(matches!(refused, Err(StoreError::Refused(_))), "seed {seed}: {refused:?}");
        let in_sync = driver.store.mirror().health().into_iter().filter(|h| h.state == ReplicaState::InSync);
        assert!(in_sync.map(|health| health.name.path).all(|path| path != "/disk/2"), "seed {seed}");
        drop(driver);
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        bench.open(&[0, 1, 2], true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A commit is cut at each of its writes in turn. The first disk kept everything that it was asked to write, the second
/// one nothing since its last flush; `look` at what is left.
fn ahead_on_one_disk(commits: usize, look: impl Fn(u64, Bench)) {
    let mut seen = 0;
    for at in 1..40 {
        let (mut bench, driver) = lived(5);
        (0..commits).for_each(|_| driver.store.commit(Force::Always).unwrap());
        bench.power.cut_at(Some(bench.power.io_count() + at));
        let _cut = driver.store.commit(Force::Always);
        if !bench.power.is_cut() {
            break;
        }
        let ahead = bench.disks[0].snapshot();
        drop(driver);
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        bench.disks[0].restore(ahead);
        look(at, bench);
        seen += 1;
    }
    assert!(seen > 4, "only {seen} cuts");
}

/// A root that the power cut kept from one disk is no damage.
#[test]
fn a_root_on_one_disk_only_is_no_finding() {
    ahead_on_one_disk(0, |at, mut bench| {
        let report = bench.fsck(false).unwrap();
        assert!(report.findings.is_empty(), "cut {at}: {:?}", report.findings);
    });
}

/// What a scrub heals no power cut takes back.
#[test]
fn what_a_scrub_healed_stays_healed() {
    let (mut bench, driver) = lived(6);
    driver.store.commit(Force::Always).unwrap();
    let copies = Copies::of(&bench.disks).unwrap();
    let of_tree = copies.blocks.iter().filter(|(_, held)| matches!(held.part, Part::Leaf | Part::Data));
    let addrs: Vec<u64> = of_tree.map(|((addr, _), _)| *addr).collect();
    assert!(addrs.len() > 3);
    addrs.iter().for_each(|addr| bench.disks[1].rot(*addr, 77));
    let report = scrub::run(&driver.store, &mut |_| true);
    assert_eq!((report.healed, report.lost), (addrs.len() as u64, 0), "{report}");
    drop(driver);
    bench.disks = bench.power.revive(CrashPlan::DropAll);
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    clean(&store).unwrap();
}

/// Life 3170: the power fails while a root is being written, and one disk has it; then the other one is mounted alone. What
/// the first one holds was never acknowledged: it is behind, and no second history.
#[test]
fn a_root_that_was_never_acknowledged_is_no_second_history() {
    ahead_on_one_disk(0, |at, mut bench| {
        drop(bench.open(&[1], true).unwrap());
        let (store, report) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}: {error}"));
        assert_eq!(report.behind.len(), 1, "cut {at}: {:?}", report.behind);
        assert!(report.behind[0].0.ends_with('0'));
        clean(&store).unwrap();
    });
}

/// Soak 1095551575853: one disk has a root that the power kept from the other, and is away when that one is mounted alone;
/// that mount is cut short, too. When both are back, nothing that either root reaches has been written over.
#[test]
fn a_degraded_mount_that_is_cut_short_writes_over_nothing() {
    ahead_on_one_disk(0, |at, mut bench| {
        let before = [bench.disks[0].snapshot(), bench.disks[1].snapshot()];
        for second in 1..60 {
            bench.disks = bench.power.revive(CrashPlan::DropAll);
            for (disk, image) in bench.disks.iter().zip(&before) {
                disk.restore(image.clone());
            }
            bench.power.cut_at(Some(bench.power.io_count() + second));
            let opened = bench.open(&[1], true);
            let ended = !bench.power.is_cut();
            drop(opened);
            bench.disks = bench.power.revive(CrashPlan::KeepAll);
            let (store, _) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}, {second}: {error}"));
            clean(&store).unwrap_or_else(|text| panic!("cut {at}, {second}: {text}"));
            let healed: u64 = store.mirror().health().iter().map(|health| health.counters.healed).sum();
            assert_eq!(healed, 0, "cut {at}, {second}");
            if ended {
                break;
            }
        }
    });
}

/// The same where the disk that is ahead is there, cannot read that root, and fails in recovery.
#[test]
fn a_disk_that_fails_in_recovery_is_behind_and_no_second_history() {
    // Its twin has a root in every slot: no version is skipped.
    ahead_on_one_disk(ROOT_SLOTS, |at, mut bench| {
        let all: Vec<_> = (0..ROOT_SLOTS).map(Root::addr).collect();
        bench.disks[0].faults(|faults| {
            faults.unreadable.extend(all.iter());
            faults.unwritable.extend(all.iter());
        });
        drop(bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}, unreadable: {error}")));
        bench.disks[0].faults(|faults| {
            faults.unreadable.clear();
            faults.unwritable.clear();
        });
        let (store, report) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}: {error}"));
        assert_eq!(report.behind.len(), 1, "cut {at}: {:?}", report.behind);
        clean(&store).unwrap();
    });
}

/// Soak 422799009881: in a young volume zeros stand where the newest root of one disk was, and the power fails at one of the
/// writes of the next commit. Every slot held a root since the volume was made, so zeros are damage, and the disk is no old
/// copy.
#[test]
fn zeros_over_the_newest_root_of_a_young_volume_cost_no_word() {
    let mut seen = 0;
    for at in 1..60 {
        let mut bench = Bench::new(5);
        let mut driver = bench.mount().unwrap();
        bench.run(&mut driver, 5).unwrap();
        driver.store.commit(Force::Always).unwrap();
        let newest = (0..ROOT_SLOTS).map(Root::addr).max_by_key(|addr| {
            let block = bench.disks[1].peek(*addr);
            let slot = (0..ROOT_SLOTS).find(|slot| Root::addr(*slot) == *addr).expect("a slot");
            let label = driver.store.label();
            Root::decode(&block, slot, label.volume, &label.geometry).expect("no slot is ever empty").version
        });
        bench.power.cut_at(Some(bench.power.io_count() + at));
        let _cut = driver.store.commit(Force::Always);
        if !bench.power.is_cut() {
            break;
        }
        let ahead = bench.disks[0].snapshot();
        drop(driver);
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        bench.disks[0].restore(ahead);
        bench.disks[1].poke(newest.expect("16 slots"), [0; 4096]);
        let (store, report) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}: {error}"));
        assert!(report.behind.is_empty(), "cut {at}: {:?}", report.behind);
        clean(&store).unwrap();
        seen += 1;
    }
    assert!(seen > 4, "only {seen} cuts");
}

/// What a power cut left of a root in a slot that was void makes recovery skip versions. A root that it could not finish on
/// both disks is no second history either.
#[test]
fn a_root_of_skipped_versions_is_no_second_history() {
    let mut seen = 0;
    for at in 1..60 {
        let mut bench = Bench::new(5);
        drop(bench.mount().unwrap());
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        bench.disks[0].poke(Root::addr(ROOT_SLOTS - 1), [7; 4096]);
        bench.disks[1].poke(Root::addr(ROOT_SLOTS - 1), [Root::VOID; 4096]);
        bench.power.cut_at(Some(bench.power.io_count() + at));
        let opened = bench.open(&[0, 1], false);
        if !bench.power.is_cut() {
            break;
        }
        drop(opened);
        let ahead = bench.disks[0].snapshot();
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        bench.disks[0].restore(ahead);
        drop(bench.open(&[1], true).unwrap());
        let (store, report) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}: {error}"));
        assert_eq!(report.behind.len(), 1, "cut {at}: {:?}", report.behind);
        clean(&store).unwrap();
        seen += 1;
    }
    assert!(seen > 4, "only {seen} cuts");
}

/// A disk on which a bit of a log record's head rots just before the record is read whole.
struct Rots {
    disk: Arc<SimDisk>,
    at: u64,
    struck: AtomicBool,
}

impl Backing for Rots {
    fn submit(&self, op: Op) -> Ticket {
        let is_it =
            matches!(op, Op::Read { addr, blocks } | Op::ReadMedium { addr, blocks } if addr == self.at && blocks > 1);
        if is_it && !self.struck.swap(true, Ordering::SeqCst) {
            let mut head = self.disk.peek(self.at);
            head[137] ^= 1;
            self.disk.poke(self.at, head);
        }
        self.disk.submit(op)
    }
    fn facts(&self) -> BackingFacts {
        self.disk.facts()
    }
    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }
    fn close(&self) {
        self.disk.close();
    }
    fn is_closed(&self) -> bool {
        self.disk.is_closed()
    }
}

/// Soak 344383886278: the head of a log record is read, rots, and is read again with the rest: that copy proves nothing any
/// more, and the other one heals it. It is not a second record of that number.
#[test]
fn a_record_that_rots_between_two_reads_is_healed() {
    let wait = std::time::Duration::from_secs(1);
    let mut seen = 0;
    for seed in 0..20 {
        let (mut bench, mut driver) = lived(seed);
        driver.store.commit(Force::Always).unwrap();
        for i in 0..4 {
            let name = format!("user.long{i}");
            driver.step(&Operation::SetXattr { ino: 1, name, length: 1900, fill: seed + i }).unwrap();
        }
        driver.step(&Operation::Fsync { ino: 1 }).unwrap();
        let (label, root) = (driver.store.label().clone(), driver.store.durable_root());
        drop(driver);
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        let (ring, blocks) = (label.geometry.log_at, label.geometry.log_blocks);
        let is_long = |at: &u64| {
            let head = decode_head(&bench.disks[1].peek(*at), label.volume, *at, blocks);
            head.is_ok_and(|head| head.log_id == root.log_id && head.seq >= root.log_seq && head.blocks > 1)
        };
        let Some(at) = (ring..ring + u64::from(blocks)).find(is_long) else { continue };
        let rots = Arc::new(Rots { disk: bench.disks[1].clone(), at, struck: AtomicBool::new(false) });
        let backings: [(&str, Arc<dyn Backing>); 2] = [("good", bench.disks[0].clone()), ("rots", rots.clone())];
        let present = backings.map(|(path, backing)| {
            let found = examine(&*backing, wait).unwrap();
            Present { path: path.into(), backing, found }
        });
        let store = StoreOptions::default();
        let options = OpenStore { degraded: false, deadline: wait, store, on_shrink: None, hold: false };
        let opened = open(present.into(), options, Arc::new(Seeded::new(seed)));
        let (store, _) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        clean(&store).unwrap();
        seen += usize::from(rots.struck.load(Ordering::SeqCst));
    }
    assert!(seen > 3, "only {seen} such records");
}

/// But two disks that were both written alone are two histories, in whatever order they come back. The second one is
/// opened alone only if a person insists: this host knows of the first.
#[test]
fn two_disks_that_were_written_alone_are_refused() {
    for first in [0, 1] {
        let (mut bench, mut driver) = lived(6);
        bench.finish(&mut driver).unwrap();
        drop(driver);
        drop(bench.open(&[first], true).unwrap());
        let refused = bench.open(&[1 - first], true).err();
        assert!(matches!(refused, Some(StoreError::Refused(_))), "{refused:?}");
        let insist = Ask { degraded: true, accept_stale: true };
        drop(bench.open_disks(&[1 - first], insist).1.unwrap());
        assert!(bench.open(&[0, 1], true).is_err() && bench.open(&[1, 0], false).is_err());
    }
}
