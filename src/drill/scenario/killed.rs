//! The daemon is killed with `kill -9` in the middle of writes, three times, and mounted again.
//!
//! *Guarantees*: what an fsync acknowledged is there, names are a prefix of history, no byte is of another version than
//! one that was written. *Assumes*: nothing. *Fails when*: as `stage`; the mount takes too long.
//! *Order*: applications are told that errors are no wonder; kill; all stand still; mount; proof; go on.
//! *Not here*: power cuts, which lose more (`simulate`).

use super::{SIZE, Scenario, two_folders};
use crate::drill::Stop;
use crate::drill::judge::Kind;
use crate::drill::probe::Excuse;
use crate::drill::stage::{DEADLINE, Stage, size};
use std::time::{Duration, Instant};

/// How often.
const ROUNDS: u64 = 3;
/// Longest that mounting after a crash may take: the log's length, not the volume's size, decides (SEMANTICS CRASH-3).
const MOUNT_MAX: Duration = Duration::from_secs(10);
/// Longest that a call may hang on in a mount whose daemon is dead.
const PARKED_MAX: Duration = Duration::from_secs(10);

/// The scenario.
pub struct Killed;

impl Scenario for Killed {
    fn name(&self) -> &'static str {
        "killed"
    }
    fn about(&self) -> &'static str {
        "the daemon is killed with kill -9 in mid-write, three times, and mounted again"
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let replicas = two_folders(stage)?;
        stage.begin(SIZE, replicas, DEADLINE)?;
        for round in 1..=ROUNDS {
            let moment = Duration::from_millis(600 + stage.random.below(1200));
            stage.work(moment)?;
            kill_and_mount(stage, round)?;
        }
        stage.work(Duration::from_millis(500))?;
        stage.finish()
    }
}

fn kill_and_mount(stage: &mut Stage<'_>, round: u64) -> Result<(), Stop> {
    let shared = stage.shared()?;
    let process = stage.bed.status()?.mount.process;
    stage.wait("a write under way", Duration::from_secs(5), |_| Ok(shared.probe.is_writing().then_some(())))?;
    stage.about_to_inject();
    let began = Instant::now();
    shared.outage.begin();
    shared.probe.excuse(Excuse::Dead);
    stage.bed.kill_daemon(process)?;
    stage.injected(format!("kill -9 of the daemon in mid-write, {round} of {ROUNDS}"));
    let mnt = stage.bed.mnt.clone();
    stage.wait("the dead mount answers with an error", Duration::from_secs(5), |_| {
        Ok(rustix::fs::statfs(&mnt).is_err().then_some(())) // attributes would come from the kernel's memory
    })?;
    stage.detected("the mount answers ENOTCONN");
    let count = stage.applications();
    stage.wait("applications come back from a dead mount", PARKED_MAX, |_| {
        Ok(shared.outage.all_parked(count).then_some(()))
    })?;
    stage.bed.umount()?; // detaches what is dead
    let mounting = Instant::now();
    stage.mount()?;
    let took = mounting.elapsed();
    let outage = began.elapsed().as_millis() as u64;
    stage.outcome.outages_ms.push(outage);
    let replayed = stage.bed.status()?.status.replayed;
    let text =
        format!("mounted again in {} ms, {replayed} log records replayed; {outage} ms without", took.as_millis());
    stage.event(Kind::Healed, text);
    if took > MOUNT_MAX {
        stage.broken(format!("CRASH-3: mounting took {} ms", took.as_millis()));
    }
    let proof = stage.prove(true, "DUR-1, CRASH-1", "after the crash")?;
    if proof.wrong.is_empty() {
        let text = format!("{} files, {}: all that was synced is there", proof.files, size(proof.bytes));
        stage.event(Kind::Proven, text);
    }
    shared.probe.excuse(Excuse::Nothing);
    shared.outage.end();
    Ok(())
}
