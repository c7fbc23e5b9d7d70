//! What status says: the volume, the mount, and long work.
//!
//! *Guarantees*: made from memory only. *Assumes*: nothing. *Fails when*: never. *Order*: none.
//! *Not here*: what the states mean (`volume::status`), how it looks on a terminal (`cli`).

use super::task::TaskReport;
use crate::volume::Volume;
use crate::volume::status::Status;
use serde::{Deserialize, Serialize};

/// The mount in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReport {
    /// Where.
    pub path: String,
    /// With the kernel's writeback cache.
    pub writeback: bool,
    /// Since when, ns since 1970.
    pub since_ns: i64,
    /// The daemon.
    pub process: u32,
    /// Its log: a file, or standard error.
    pub log: String,
}

/// All that status says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The volume.
    #[serde(flatten)]
    pub status: Status,
    /// The mount.
    pub mount: MountReport,
    /// The long work that runs or ran last.
    pub task: Option<TaskReport>,
}

/// The report of a mounted volume; commands in it can be typed as they stand.
pub fn make(volume: &Volume, mount: MountReport, task: Option<TaskReport>) -> Report {
    let mut status = volume.status();
    // Once: what follows it may be a path of that name.
    status.action = status.action.map(|action| action.replacen("MOUNTPOINT", &shell_word(&mount.path), 1));
    Report { status, mount, task }
}

pub use crate::volume::status::shell_word;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("/plain-1.x"), "/plain-1.x");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
