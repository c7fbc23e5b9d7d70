//! `fsck`: check and repair a volume that is not mounted.
//!
//! *Guarantees*: exit codes are those of fsck(8); without `-y`, `-p` or `-a` nothing is written. *Assumes*: nothing.
//! *Fails when*: exit code 8 and one line. *Order*: none. *Not here*: the work (`volume::fsck`).

use super::{FsckArgs, complain, progress_bar};
use crate::volume::beat::watch::Patience;
use crate::volume::fsck::{FsckOptions, FsckReport, Rebuild, fsck_owned};
use std::io::Write;

/// Exit code of fsck: it failed itself.
const FAILED: u8 = 8;

/// What is waited for is told at once; everything else is in the report.
pub(super) fn tell_waiting() {
    let mut builder = env_logger::Builder::new();
    builder.filter_module("stablefs::volume::beat", log::LevelFilter::Warn);
    builder.format(|out, record| writeln!(out, "stablefs: {}", record.args()));
    let _ = builder.try_init(); // nothing else logs here
}

/// Check a volume, and repair it where asked.
pub(super) fn fsck(args: &FsckArgs) -> u8 {
    let replicas = match super::replicas_of(&args.replicas) {
        Ok(replicas) => replicas,
        Err(error) => {
            complain(&error);
            return super::offline::FSCK_USAGE;
        }
    };
    tell_waiting();
    let bar = progress_bar("{msg} [{bar:40}] {percent}% of {len} blocks, {eta} left", Some(0), args.json);
    let mut progress = |what: &str, done: u64, total: u64| {
        if !bar.is_hidden() {
            bar.set_length(total.max(done));
            bar.set_position(done);
            if bar.message() != what {
                bar.set_message(what.to_owned());
            }
        }
    };
    let options = FsckOptions { repair: (args.repair || args.preen) && !args.look, quick: false };
    let rebuild = if args.repair { Rebuild::Allowed } else { Rebuild::Never };
    let patience = if args.force_owner { Patience::Force } else { Patience::Wait };
    let result = fsck_owned(&replicas, &options, rebuild, patience, &mut progress);
    bar.finish_and_clear();
    match result {
        Ok(report) if args.json => {
            match serde_json::to_string_pretty(&report) {
                Ok(text) => println!("{text}"),
                Err(error) => complain(&error.to_string()),
            }
            report.exit_code
        }
        Ok(report) => {
            print(&report, args.verbose, options.repair);
            report.exit_code
        }
        Err(error) => {
            complain(&error.to_string());
            FAILED
        }
    }
}

fn print(report: &FsckReport, verbose: bool, repairs: bool) {
    for line in &report.findings {
        println!("{line}");
    }
    if report.findings_dropped > 0 {
        println!("… and {} more findings", report.findings_dropped);
    }
    for line in &report.combined_from {
        println!("{}: {line}", if repairs { "put together" } else { "could be put together" });
    }
    for line in &report.repaired {
        println!("repaired: {line}");
    }
    if repairs {
        report.left.iter().for_each(|line| println!("left: {line}"));
    }
    if verbose {
        for replica in &report.statistics.replicas {
            println!("replica {}:", replica.name);
            for (kind, tally) in &replica.kinds {
                println!(
                    "  {kind}: {} proven, {} damaged, {} healed ({} put together), {} lost",
                    tally.proven, tally.detected, tally.healed, tally.combined, tally.lost
                );
            }
        }
    }
    if report.combined > report.combined_from.len() as u64 {
        println!("… and {} more put together", report.combined - report.combined_from.len() as u64);
    }
    if report.untried > 0 {
        println!("{} blocks have too many combinations of their parts, which were not tried", report.untried);
    }
    println!(
        "{} blocks proven, {} damaged, {} healed, {} lost; {} inodes; {} log records waited",
        report.proven, report.detected, report.healed, report.lost, report.inodes, report.log_records
    );
    println!(
        "{}",
        match report.exit_code {
            0 => "clean",
            1 => "errors were corrected",
            _ if repairs => "errors are left: see the lines above",
            _ => "errors were found; `stablefs fsck -y` with the same replicas repairs what can be repaired",
        }
    );
}
