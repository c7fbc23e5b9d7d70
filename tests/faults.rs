//! One faulty disk costs nothing; two faults on one block cost that block.
//!
//! `STABLEFS_SEEDS=7` (or `0..10000`) chooses other seeds, `STABLEFS_FAULT=Rot` one fault; a failure names seed, fault and operations.

mod common;

use stablefs::disk::sim::Fault;
use stablefs::error::errno;
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Filesystem, FsOptions};
use stablefs::simulate::fault::{Kind, fault_history};
use stablefs::simulate::model::State;
use stablefs::simulate::{Bench, clean, examine_store};
use stablefs::store::check::{Finding, Outcome, Structure};
use stablefs::store::commit::Force;
use std::sync::Arc;

const OPERATIONS: usize = 100;

fn kinds(name: &str, wanted: impl Fn(Kind) -> bool, seeds: std::ops::Range<u64>) {
    let seeds = common::seeds(seeds);
    let only = std::env::var("STABLEFS_FAULT").ok();
    let wanted = |kind: Kind| wanted(kind) && only.as_ref().is_none_or(|only| *only == format!("{kind:?}"));
    let mut failures = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| wanted(*kind)) {
        let one = |seed| fault_history(seed, kind, OPERATIONS);
        let (sum, mut failed) = common::try_run(&format!("{name}: {kind:?}"), seeds.clone(), one);
        assert!(sum.faults > 0 || !failed.is_empty(), "{kind:?} never struck");
        failures.append(&mut failed);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn one_faulty_disk_costs_nothing() {
    kinds("one faulty disk", |_| true, 0..40);
}

/// Every block of file data below the end of a named file.
fn file_data(bench: &mut Bench, state: &State) -> Vec<u64> {
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    // What a checker finds damaged on a disk that cannot be read is what is reachable.
    bench.disks[1].faults(|faults| faults.fail_reads = Fault::Always);
    let report = examine_store(&store, false);
    bench.disks[1].faults(|faults| faults.fail_reads = Fault::Never);
    let block = |finding: &Finding| match finding {
        Finding::Block { addr, structure: Structure::Data { block }, owner: Some(owner), .. } => {
            let node = state.nodes.get(&owner.ino).filter(|node| node.nlink > 0)?;
            (block * 4096 < node.size()).then_some(*addr)
        }
        _ => None,
    };
    report.findings.iter().filter_map(block).collect()
}

#[test]
fn two_faults_on_one_block_cost_that_block_alone() {
    let (mut lost_files, mut checked) = (0, 0);
    for seed in common::seeds(0..30) {
        let mut bench = Bench::new(seed);
        let mut driver = bench.mount().unwrap();
        bench.run(&mut driver, 80).unwrap();
        bench.finish(&mut driver).unwrap();
        driver.store.commit(Force::Clean).unwrap();
        let should = driver.now().clone();
        drop(driver);
        let data = file_data(&mut bench, &should);
        let Some(addr) = data.get(seed as usize % data.len().max(1)).copied() else { continue };
        bench.disks[0].rot(addr, seed);
        bench.disks[1].junk(addr);
        checked += 1;

        let (store, _) = bench.open(&[0, 1], false).unwrap();
        let report = examine_store(&store, true);
        let lost = report.findings.iter().filter(
            |finding| matches!(finding, Finding::Block { addr: at, outcome: Outcome::Lost(_), owner: Some(_), .. } if *at == addr),
        );
        assert_eq!((lost.count(), report.findings.len()), (2, 2), "seed {seed}: {:?}", report.findings);
        let store = Arc::new(store);
        let fs = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default()).unwrap();
        let mut failed = Vec::new();
        for (ino, node) in should.nodes.iter().filter(|(_, node)| node.nlink > 0) {
            let Some(file) = node.file() else { continue };
            for (block, bytes) in file.chunks(4096).enumerate() {
                let mut out = Vec::new();
                match fs.read(*ino, block as u64 * 4096, &mut out, 4096) {
                    Ok(()) => assert_eq!(out, bytes, "seed {seed}"),
                    Err(error) => {
                        assert_eq!(errno(&error), libc::EIO);
                        failed.push((*ino, block as u64));
                    }
                }
            }
        }
        let [(ino, block)] = failed[..] else { panic!("seed {seed}: {failed:?} cannot be read") };
        // A whole block written anew needs nothing of the lost one.
        fs.write(ino, block * 4096, &[7; 4096], false, false).unwrap();
        fs.sync().unwrap();
        clean(&store).unwrap();
        lost_files += 1;
    }
    println!("two faults: {checked} blocks lost on both disks, {lost_files} files with one block that cannot be read");
    assert!(lost_files > 10);
}
