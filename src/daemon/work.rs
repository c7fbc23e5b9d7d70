//! The long work of a mounted volume, as tasks see it.
//!
//! *Guarantees*: a refusal names the reason. *Assumes*: as `task`. *Fails when*: the volume says so. *Order*: none.
//! *Not here*: how it is done (`Volume`).

use crate::control::Progress;
use crate::volume::Volume;
use crate::volume::away::{Away, Opened};
use serde_json::Value;
use std::path::Path;

/// Prove every block on every replica from the medium and heal what is damaged.
///
/// # Errors
/// As the volume's scrub.
pub fn scrub(volume: &Volume, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Value, String> {
    let report = volume.scrub(&mut |progress| tell(progress.clone())).map_err(|error| error.to_string())?;
    serde_json::to_value(report).map_err(|error| error.to_string())
}

/// Resync the replica `old` (path or number) onto `new`.
///
/// # Errors
/// As the volume's replace.
pub fn replace(volume: &Volume, old: &str, new: &str, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Value, String> {
    let report = volume.replace(old, Path::new(new), &mut |progress| tell(progress.clone()));
    serde_json::to_value(report.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Attach one more replica at `new`.
///
/// # Errors
/// As the volume's attach.
pub fn attach(
    volume: &Volume,
    new: &str,
    force: bool,
    tell: &mut dyn FnMut(Progress) -> bool,
) -> Result<Value, String> {
    let report = volume.attach(Path::new(new), force, &mut |progress| tell(progress.clone()));
    serde_json::to_value(report.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Bring back a replica whose place answers.
///
/// # Errors
/// As the volume's return.
pub fn bring_back(volume: &Volume, opened: Opened, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Value, String> {
    let report = volume.bring_back(opened, &mut |progress| tell(progress.clone()));
    serde_json::to_value(report.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Bring a warm or cold replica, whose place answers, to the newest state.
///
/// # Errors
/// As the volume's follow.
pub fn follow(volume: &Volume, opened: Opened, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Value, String> {
    let report = volume.follow(opened, &mut |progress| tell(progress.clone()));
    serde_json::to_value(report.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Make the deleted container of a replica anew.
///
/// # Errors
/// As the volume's.
pub fn make_anew(volume: &Volume, away: &Away, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Value, String> {
    let report = volume.make_anew(away, &mut |progress| tell(progress.clone()));
    serde_json::to_value(report.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
