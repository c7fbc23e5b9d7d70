//! Junk over blocks that are in use, behind the filesystem's back, under load: first on one replica, then on the other.
//!
//! *Guarantees*: readers notice nothing; every block of a file that was hit is found and stands on the medium as before.
//! *Assumes*: nothing. *Fails when*: as `stage`. *Order*: list, junk, detection, scrub, look at the medium; for each replica.
//! *Not here*: damage of both copies, which is outside of what is promised.
//!
//! Blocks of files that nobody writes are known by their own first bytes; they stay where they are, so that each must be
//! found. What is chosen among the other structures may be freed by the applications meanwhile.

use super::{SIZE, Scenario, two_folders};
use crate::drill::Stop;
use crate::drill::content::{BLOCK, Random};
use crate::drill::judge::Kind;
use crate::drill::stage::{DEADLINE, Stage};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Blocks of files that are hit on each replica, and others.
const DATA: usize = 600;
const OTHERS: usize = 250;
/// Numbers of files that nobody writes are below this.
const STILL_END: u64 = 100_000;
/// Longest until the first is met.
const MET_MAX: Duration = Duration::from_secs(10);

/// The scenario.
pub struct Rotten;

impl Scenario for Rotten {
    fn name(&self) -> &'static str {
        "rotten"
    }
    fn about(&self) -> &'static str {
        "junk is written over blocks in use, of files and of structures, on one replica and then on the other"
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let replicas = two_folders(stage)?;
        stage.begin(SIZE, replicas.clone(), DEADLINE)?;
        for replica in &replicas {
            stage.work(Duration::from_millis(700))?;
            rot(stage, replica)?;
        }
        stage.finish()
    }
}

/// Address and kind of the blocks that the newest root of a replica reaches.
fn reachable(stage: &Stage<'_>, replica: &Path) -> Result<BTreeMap<u64, String>, Stop> {
    stage.bed.stablefs([OsStr::new("sync"), stage.bed.mnt.as_os_str()])?.ok()?;
    // Its exit code says nothing here: the applications change what is read.
    let said = stage.bed.stablefs([OsStr::new("debug"), OsStr::new("blocks"), replica.as_os_str()])?;
    let parse = |line: &str| line.split_once(' ').and_then(|(addr, kind)| Some((addr.parse().ok()?, kind.to_owned())));
    Ok(said.out.lines().filter_map(parse).collect())
}

/// Some of `all`, chosen at random.
fn some(all: &mut Vec<u64>, count: usize, random: &mut Random) -> Vec<u64> {
    let mut chosen = Vec::new();
    while chosen.len() < count && !all.is_empty() {
        chosen.push(all.swap_remove(random.below(all.len() as u64) as usize));
    }
    chosen
}

fn rot(stage: &mut Stage<'_>, replica: &Path) -> Result<(), Stop> {
    let name = stage.short(replica);
    let unable = |error: std::io::Error| Stop::Unable(format!("the container of {name}: {error}"));
    let list = reachable(stage, replica)?;
    let file = File::options().read(true).write(true).open(replica.join("stablefs.data")).map_err(unable)?;
    let read = |addr: u64| -> std::io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        file.read_exact_at(&mut block, addr * BLOCK as u64).map(|()| block)
    };
    let mut data = Vec::new();
    let mut others = Vec::new();
    for (addr, kind) in &list {
        match kind.as_str() {
            "data" => {
                let block = read(*addr).map_err(unable)?;
                let number = block[8..16].try_into().map_or(u64::MAX, u64::from_le_bytes);
                if block.starts_with(b"drill") && number < STILL_END {
                    data.push(*addr);
                }
            }
            _ => others.push(*addr),
        }
    }
    let data = some(&mut data, DATA, &mut stage.random);
    let others = some(&mut others, OTHERS, &mut stage.random);
    if data.len() < DATA / 2 || others.is_empty() {
        return Err(Stop::Unable(format!("only {} and {} blocks to choose from", data.len(), others.len())));
    }
    let before = counted(stage)?;
    let mut originals = Vec::new();
    for addr in &data {
        originals.push((*addr, read(*addr).map_err(unable)?));
    }
    stage.about_to_inject();
    for addr in data.iter().chain(&others) {
        let junk: Vec<u8> = (0..BLOCK / 8).flat_map(|_| stage.random.word().to_le_bytes()).collect();
        file.write_all_at(&junk, addr * BLOCK as u64).map_err(unable)?;
    }
    file.sync_data().map_err(unable)?;
    stage.injected(format!("junk over {} blocks of files and {} of structures on {name}", data.len(), others.len()));
    stage.wait("the first rotten block is met", MET_MAX, |stage| Ok((counted(stage)?.0 > before.0).then_some(())))?;
    stage.detected("a reader met the first one, and was given the other copy,");
    stage.work(Duration::from_millis(700))?;
    let scrub = stage.scrub()?;
    let after = counted(stage)?;
    let (found, healed) = (after.0 - before.0, after.1 - before.1);
    // Those that readers met were healed before the scrub, which counts its own.
    stage.outcome.blocks_healed += healed.saturating_sub(scrub.healed);
    if found < data.len() as u64 || healed < data.len() as u64 {
        stage.broken(format!("HEAL-1: of {} rotten blocks of files {found} were found, {healed} healed", data.len()));
    }
    let mut unlike = 0;
    for (addr, block) in &originals {
        unlike += u64::from(read(*addr).map_err(unable)? != *block);
    }
    if unlike > 0 {
        stage.broken(format!("HEAL-1: {unlike} blocks on {name} are not as they were"));
    }
    let text = format!(
        "{found} found, {healed} healed ({} by the scrub); all {} blocks of files on {name} are as they were",
        scrub.healed,
        data.len()
    );
    stage.event(Kind::Healed, text);
    Ok(())
}

/// Damaged blocks met and healed since the mount, over all replicas.
fn counted(stage: &Stage<'_>) -> Result<(u64, u64), Stop> {
    let replicas = stage.bed.status()?.status.replicas;
    let sum = |count: &dyn Fn(&crate::volume::status::ReplicaStatus) -> u64| replicas.iter().map(count).sum::<u64>();
    Ok((sum(&|one| one.checksum + one.unreadable), sum(&|one| one.healed)))
}
