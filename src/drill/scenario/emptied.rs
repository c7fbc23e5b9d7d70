//! Everything in the directory of one replica is removed under load.
//!
//! *Guarantees*: the applications go on; `replace` into the emptied directory makes it whole.
//! *Assumes*: nothing. *Fails when*: as `stage`. *Order*: fault, detection, replace, proof. *Not here*: the load.

use super::{SIZE, Scenario, two_folders};
use crate::drill::Stop;
use crate::drill::stage::{DEADLINE, Stage};
use std::time::Duration;

/// The scenario.
pub struct Emptied;

impl Scenario for Emptied {
    fn name(&self) -> &'static str {
        "emptied"
    }
    fn about(&self) -> &'static str {
        "everything in the directory of one replica is removed; it is replaced in the same place"
    }
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop> {
        let replicas = two_folders(stage)?;
        let b = replicas[1].clone();
        stage.begin(SIZE, replicas, DEADLINE)?;
        stage.work(Duration::from_millis(1000))?;
        stage.about_to_inject();
        let unable = |error: std::io::Error| Stop::Unable(format!("b cannot be emptied: {error}"));
        for entry in std::fs::read_dir(&b).map_err(unable)? {
            let path = entry.map_err(unable)?.path();
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.map_err(unable)?;
        }
        stage.injected("everything in b removed".into());
        stage.detect_out(&b)?;
        stage.work(Duration::from_millis(800))?;
        stage.replace(1, b)?;
        stage.work(Duration::from_millis(500))?;
        stage.finish()
    }
}
