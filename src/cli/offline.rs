//! `format`: make a volume.
//!
//! *Guarantees*: as the commands say in `cli`. *Assumes*: nothing. *Fails when*: one line. *Order*: none.
//! *Not here*: the work (`volume`, `store::check`).

use super::{FormatArgs, status, task};
use crate::volume::{self, FormatOptions};

/// Exit code of fsck: wrong usage.
pub(super) const FSCK_USAGE: u8 = 16;
/// Make a volume.
pub(super) fn format(args: &FormatArgs) -> Result<(), String> {
    let options = FormatOptions {
        size_bytes: args.size,
        label: args.label.clone(),
        force: args.force,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    let replicas = super::replicas_of(&args.replicas)?;
    let report = volume::format(&replicas, &options).map_err(|error| error.to_string())?;
    if args.json {
        return task::print_json(&serde_json::to_value(&report).map_err(|error| error.to_string())?);
    }
    for warning in &report.warnings {
        eprintln!("stablefs: warning: {warning}");
    }
    println!("volume {} of {} on {}", report.volume, status::size(report.size_bytes), report.replicas.join(" and "));
    let words: Vec<String> = report.replicas.iter().map(|path| crate::daemon::report::shell_word(path)).collect();
    println!("mount it: stablefs mount {} MOUNTPOINT", words.join(" "));
    Ok(())
}
