//! The filesystem below one replica hangs under load: what is sent to it is neither done nor refused.
//!
//! *Guarantees*: no call waits longer than the deadline; what lands late, when it wakes up, harms nothing.
//! *Assumes*: root. *Fails when*: as `stage`. *Order*: freeze, detection, thaw, replace, proof. *Not here*: the ioctl (`disks`).

use super::shutdown::DISK_MIB;
use super::{SIZE, Scenario, folder_and_disk};
use crate::drill::Stop;
use crate::drill::disks::{self, DiskKind};
use crate::drill::judge::Kind;
use crate::drill::stage::Stage;
use std::time::Duration;

/// Deadline of the mount.
const DEADLINE: Duration = Duration::from_secs(2);

/// The scenario.
pub struct Hung;

impl Scenario for Hung {
    fn name(&self) -> &'static str {
        "hung"
    }
    fn about(&self) -> &'static str {
        "the xfs below one replica is frozen (a disk that hangs) and wakes up later; deadline 2 s"
    }
    fn lacking(&self) -> Option<String> {
        disks::lacking(DiskKind::Xfs)
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let (disk, replicas) = folder_and_disk(stage, DiskKind::Xfs, DISK_MIB)?;
        let b = replicas[1].clone();
        stage.begin(SIZE, replicas, DEADLINE)?;
        stage.work(Duration::from_millis(1000))?;
        let unable = |what: &str, error: std::io::Error| Stop::Unable(format!("it cannot be {what}: {error}"));
        stage.about_to_inject();
        disks::freeze(&disk).map_err(|error| unable("frozen", error))?;
        stage.injected("the xfs below b frozen".into());
        stage.detect_out(&b)?;
        stage.work(Duration::from_millis(1500))?;
        disks::thaw(&disk).map_err(|error| unable("thawed", error))?;
        stage.event(Kind::Begun, "the xfs below b woke up; what was sent to it lands now".into());
        stage.work(Duration::from_millis(500))?;
        let c = stage.bed.folder("c")?;
        stage.replace(1, c)?;
        stage.work(Duration::from_millis(500))?;
        stage.finish()
    }
}
