//! The disk of one replica fills up with other files, although the volume has room.
//!
//! *Guarantees*: applications see `ENOSPC` or nothing, what was written stays, the replica is not taken for a rotten one, and
//! once there is room again everything works. *Assumes*: root, for a small disk of its own.
//! *Fails when*: as `stage`. *Order*: filled, detection, emptied, work again, proof. *Not here*: a full volume.

use super::{Scenario, folder_and_disk};
use crate::drill::Stop;
use crate::drill::apps::write_extra;
use crate::drill::disks::{self, DiskKind};
use crate::drill::judge::Kind;
use crate::drill::probe::Excuse;
use crate::drill::stage::{DEADLINE, Stage, size};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Size of the filesystem, MiB, and of the volume.
const DISK_MIB: u64 = 448;
const VOLUME: &str = "320M";
/// More than the replica can have room for, MiB.
const MORE_MAX_MIB: u64 = 320;
/// Longest until it shows.
const SHOWN_MAX: Duration = Duration::from_secs(15);
/// Longest until calls succeed again.
const AGAIN_MAX: Duration = Duration::from_secs(20);

/// The scenario.
pub struct Full;

impl Scenario for Full {
    fn name(&self) -> &'static str {
        "full"
    }
    fn about(&self) -> &'static str {
        "the disk below one replica is filled up by other files, and emptied again"
    }
    fn lacking(&self) -> Option<String> {
        disks::lacking(DiskKind::Ext4)
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let (disk, replicas) = folder_and_disk(stage, DiskKind::Ext4, DISK_MIB)?;
        stage.begin(VOLUME, replicas, DEADLINE)?;
        stage.work(Duration::from_millis(500))?;
        let shared = stage.shared()?;
        shared.probe.excuse(Excuse::Space);
        stage.about_to_inject();
        let filler = disk.join("filler");
        let stolen = fill_up(&filler).map_err(|error| Stop::Unable(format!("the disk cannot be filled: {error}")))?;
        stage.injected(format!("the disk below b filled with {} of other files", size(stolen)));
        let lane = shared.probe.lane("one who needs more room");
        let mut taken = 0;
        let (error, _) = stage.wait("SPACE-1: ENOSPC", SHOWN_MAX, |_| {
            let written = write_extra(&shared, &lane);
            taken += u64::from(written.is_ok());
            Ok(written.err().or_else(|| (taken >= MORE_MAX_MIB).then(|| std::io::Error::other("never refused"))))
        })?;
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return Err(Stop::Broken(format!("SPACE-1: {taken} MiB more were taken, then: {error}")));
        }
        let free = size(stage.bed.status()?.status.free_bytes);
        stage.detected(&format!("ENOSPC once {taken} MiB more were written; status says {free} free"));
        stage.work(Duration::from_millis(1500))?;
        not_corrupt(stage)?;
        std::fs::remove_file(&filler).map_err(|error| Stop::Unable(format!("the filler stays: {error}")))?;
        again(stage)?;
        write_extra(&shared, &lane)
            .map_err(|error| Stop::Broken(format!("SPACE-2: there is room again, but not for 1 MiB: {error}")))?;
        stage.finish()
    }
}

/// Take all the room that there is; bytes taken.
fn fill_up(path: &Path) -> std::io::Result<u64> {
    let mut file = File::create_new(path)?;
    let mut written = 0;
    for piece in [1 << 20, 4096] {
        let zeroes = vec![0; piece];
        loop {
            match file.write(&zeroes) {
                Ok(count) => written += count as u64,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
                Err(error) => return Err(error),
            }
        }
    }
    let _full = file.sync_all(); // ENOSPC is what we want
    Ok(written)
}

/// A full replica is no rotten one.
fn not_corrupt(stage: &mut Stage<'_>) -> Result<(), Stop> {
    let status = stage.bed.status()?.status;
    let damaged: u64 = status.replicas.iter().map(|one| one.checksum + one.unreadable + one.heal_failed).sum();
    if damaged > 0 {
        stage.broken(format!("SPACE-3: a full replica is taken for a corrupt one: {damaged} damaged blocks"));
    }
    let refused = stage.shared()?.probe.tally().refused_for_space;
    let text = format!("state {}; {refused} calls refused with ENOSPC so far, nothing damaged", status.state);
    stage.event(Kind::Begun, text);
    Ok(())
}

/// There is room again: calls succeed, and go on to.
fn again(stage: &mut Stage<'_>) -> Result<(), Stop> {
    let shared = stage.shared()?;
    let mut seen = (u64::MAX, std::time::Instant::now());
    let began = std::time::Instant::now();
    stage.wait("calls succeed again now that there is room", AGAIN_MAX, |_| {
        let refused = shared.probe.tally().refused_for_space;
        if refused != seen.0 {
            seen = (refused, std::time::Instant::now());
        }
        Ok((seen.1.elapsed() > Duration::from_millis(700)).then_some(()))
    })?;
    shared.probe.excuse(Excuse::Nothing);
    let after = seen.1.duration_since(began).as_millis();
    stage.event(Kind::Healed, format!("room again: no call is refused any more, {after} ms after"));
    let out = stage.bed.status()?.status.replicas.iter().any(|one| one.state != "in sync");
    if out {
        let place = stage.replicas[1].clone();
        stage.replace(1, place)?;
    }
    stage.work(Duration::from_millis(800))
}
