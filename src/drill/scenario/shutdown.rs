//! The filesystem below one replica shuts down under load: everything in it answers with errors from then on.
//!
//! *Guarantees*: the applications go on; `replace` onto another place makes the volume whole.
//! *Assumes*: root. *Fails when*: as `stage`. *Order*: fault, detection, replace, proof. *Not here*: the ioctl (`disks`).

use super::{SIZE, Scenario, folder_and_disk};
use crate::drill::Stop;
use crate::drill::disks::{self, DiskKind};
use crate::drill::stage::{DEADLINE, Stage};
use std::time::Duration;

/// Size of the filesystem, MiB; mkfs.xfs makes none below 300.
pub(super) const DISK_MIB: u64 = 768;

/// The scenario.
pub struct ShutDown(pub DiskKind);

impl Scenario for ShutDown {
    fn name(&self) -> &'static str {
        match self.0 {
            DiskKind::Ext4 => "shutdown-ext4",
            DiskKind::Xfs => "shutdown-xfs",
        }
    }
    fn about(&self) -> &'static str {
        match self.0 {
            DiskKind::Ext4 => "the ext4 below one replica shuts down (a disk that dies); it is replaced elsewhere",
            DiskKind::Xfs => "the same with xfs",
        }
    }
    fn lacking(&self) -> Option<String> {
        disks::lacking(self.0)
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let (disk, replicas) = folder_and_disk(stage, self.0, DISK_MIB)?;
        let b = replicas[1].clone();
        stage.begin(SIZE, replicas, DEADLINE)?;
        stage.work(Duration::from_millis(1000))?;
        stage.about_to_inject();
        disks::shut_down(&disk)
            .map_err(|error| Stop::Unable(format!("{} cannot be shut down: {error}", self.0.name())))?;
        stage.injected(format!("the {} below b shut down", self.0.name()));
        stage.detect_out(&b)?;
        stage.work(Duration::from_millis(800))?;
        let c = stage.bed.folder("c")?;
        stage.replace(1, c)?;
        stage.work(Duration::from_millis(500))?;
        stage.finish()
    }
}
