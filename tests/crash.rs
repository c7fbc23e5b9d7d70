//! Random histories against a model, with the power cut at every write, and during recovery.
//!
//! `STABLEFS_SEEDS=7` (or `0..10000`) chooses other seeds; a failure names the seed, the cut and the operations.

mod common;

use stablefs::disk::sim::CrashPlan;
use stablefs::format::ROOT_INO;
use stablefs::simulate::model::Op;
use stablefs::simulate::worlds::Kind;
use stablefs::simulate::{Bench, Cut};

#[test]
fn power_cut_somewhere_in_many_histories() {
    let seeds = common::seeds(0..600);
    let sum = common::run("cut somewhere", seeds, |seed| Kind::Cuts.run(seed));
    assert!(sum.replayed > 0 && sum.no_space > 0);
}

#[test]
fn power_cut_at_every_write_of_some_histories() {
    common::run("cut everywhere", common::seeds(1000..1004), |seed| Kind::Everywhere.run(seed));
}

/// `before`, then the power cut at each write and flush of `last` in turn, each with many outcomes; then `after`.
fn cut_in_last(before: &[Op], last: &Op, after: &[Op]) {
    for seed in 0..40 {
        for at in 1..20 {
            let mut bench = Bench::new(seed);
            let mut driver = bench.mount().unwrap();
            before.iter().for_each(|op| driver.step(op).unwrap());
            bench.power.cut_at(Some(bench.power.io_count() + at));
            driver.step(last).unwrap();
            let plan = if seed % 2 == 0 { CrashPlan::DropAll } else { CrashPlan::Random };
            let found = bench.crash(driver, Cut { at: None, plan, more: 0, alone: None }).and_then(|mut driver| {
                after.iter().try_for_each(|op| driver.step(op))?;
                bench.finish(&mut driver)
            });
            found.unwrap_or_else(|text| panic!("seed {seed}, cut {at}: {text}"));
        }
    }
}

fn create() -> Op {
    Op::Create { dir: ROOT_INO, name: "file".into(), mode: 0o644 }
}

/// Seed 0, cut at 44: the record was durable, the blocks that it named were not.
#[test]
fn a_log_record_never_outlives_the_blocks_that_it_names() {
    let write = Op::Write { ino: 16, offset: 0, length: 40 * 4096, fill: 1 };
    cut_in_last(
        &[create(), write, Op::Sync, Op::Write { ino: 16, offset: 4096, length: 30 * 4096, fill: 2 }],
        &Op::Fsync { ino: 16 },
        &[],
    );
}

/// Seed 4, cut at 7: somebody else's fsync logged the inode of a symbolic link without its target.
#[test]
fn a_symbolic_link_and_its_target_are_logged_together() {
    let link = Op::Symlink { dir: ROOT_INO, name: "link".into(), length: 50, fill: 3 };
    cut_in_last(&[create(), link], &Op::Fsync { ino: ROOT_INO }, &[]);
}

/// Seed 31, cut at 126: a cut was logged without the page that zeroed the tail; growing again showed old bytes.
#[test]
fn what_a_truncate_cut_off_never_comes_back() {
    let write = Op::Write { ino: 16, offset: 0, length: 8192, fill: 4 };
    let cut = Op::Truncate { ino: 16, size: 5000 };
    let grow = Op::Truncate { ino: 16, size: 9000 };
    cut_in_last(
        &[create(), write.clone(), Op::Fsync { ino: 16 }, cut.clone()],
        &Op::Fsync { ino: ROOT_INO },
        std::slice::from_ref(&grow),
    );
    cut_in_last(&[create(), write, Op::Sync, cut], &Op::Fsync { ino: ROOT_INO }, &[grow]);
}
