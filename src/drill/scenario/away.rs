//! The container of one replica goes away under load and comes back.
//!
//! *Guarantees*: the applications go on; it returns by itself and is sent what it missed. *Assumes*: nothing.
//! *Fails when*: as `stage`. *Order*: fault, detection, end of the fault, return, proof. *Not here*: the load.

use super::{SIZE, Scenario, two_folders};
use crate::drill::Stop;
use crate::drill::judge::Kind;
use crate::drill::stage::{DEADLINE, Stage};
use std::time::Duration;

/// The scenario.
pub struct Away;

impl Scenario for Away {
    fn name(&self) -> &'static str {
        "away"
    }
    fn about(&self) -> &'static str {
        "the container of one replica is moved away, and back; it returns by itself"
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let replicas = two_folders(stage)?;
        let (here, there) = (replicas[1].join("stablefs.data"), stage.bed.folder("elsewhere")?.join("stablefs.data"));
        let b = replicas[1].clone();
        stage.take_back();
        stage.begin(SIZE, replicas, DEADLINE)?;
        stage.work(Duration::from_millis(1000))?;
        let unable = |error: std::io::Error| Stop::Unable(format!("the container of b cannot be moved: {error}"));
        stage.about_to_inject();
        std::fs::rename(&here, &there).map_err(unable)?;
        stage.injected("the container of b moved away".into());
        stage.detect_out(&b)?;
        stage.work(Duration::from_millis(1500))?;
        std::fs::rename(&there, &here).map_err(unable)?;
        stage.event(Kind::Begun, "the container of b is there again".into());
        stage.wait_for_return(&b)?;
        stage.work(Duration::from_millis(500))?;
        stage.finish()
    }
}
