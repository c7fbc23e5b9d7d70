//! The witness: what this host knows of a volume beside what its replicas say.
//!
//! *Guarantees*: before anything is acknowledged without a replica, this host has written down which state the others
//! went on to; so the one that was left behind is not taken for the newest when it comes back alone.
//! *Assumes*: the state directory is on a disk of its own accord; it is a help, not a proof.
//! *Fails when*: the directory cannot be written: said in the log, service goes on. *Order*: write, fsync, rename,
//! fsync of the directory. *Not here*: what replicas prove about each other (`store::recover`).

use crate::format::{MemberState, Root, Uuid};
use crate::store::StoreError;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

#[derive(Debug, Serialize, Deserialize)]
struct Witness {
    volume: String,
    version: u64,
    epoch: String,
    in_sync: Vec<String>,
    paths: Vec<String>,
}

/// Where witnesses stand: `/var/lib/stablefs` for root, the user's state directory otherwise.
fn directory() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("STABLEFS_STATE_DIR") {
        return Some(PathBuf::from(set));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/stablefs"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    Some(state.or_else(home)?.join("stablefs"))
}

fn path(volume: Uuid) -> Option<PathBuf> {
    Some(directory()?.join(format!("{volume}.json")))
}

/// Write down that `root` goes on with fewer replicas.
pub fn write(root: &Root, paths: &[String]) {
    let witness = Witness {
        volume: root.volume.to_string(),
        version: root.version,
        epoch: root.epoch().id.to_string(),
        in_sync: root
            .members
            .iter()
            .filter(|m| m.state == MemberState::InSync)
            .map(|m| m.replica.to_string())
            .collect(),
        paths: paths.to_vec(),
    };
    if let Err(error) = try_write(root.volume, &witness) {
        log::warn!("cannot write down the state of volume {} on this host: {error}", root.volume);
    }
}

fn try_write(volume: Uuid, witness: &Witness) -> std::io::Result<()> {
    let Some(target) = path(volume) else { return Ok(()) };
    let directory = target.parent().expect("it has a directory");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = target.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(serde_json::to_string_pretty(witness)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, &target)?;
    std::fs::File::open(directory)?.sync_all()
}

/// Refuse if this host has seen a newer state than `root`, on a replica that is not among those `present`.
pub fn check(root: &Root, present: &[Uuid]) -> Result<(), StoreError> {
    let Some(path) = path(root.volume) else { return Ok(()) };
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let Ok(witness) = serde_json::from_str::<Witness>(&text) else { return Ok(()) };
    let known = root.chain.iter().any(|epoch| epoch.id.to_string() == witness.epoch);
    if known || witness.version <= root.chain[0].first_version {
        return Ok(());
    }
    // It is written down before the root itself: if all that were to go on are here without that root, nothing was
    // ever acknowledged on it.
    if witness.in_sync.iter().all(|went_on| present.iter().any(|p| p.to_string() == *went_on)) {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "this replica was left behind: the volume went on to root {} without it on this host (replicas {}), and it \
         stands at root {}. Give the replica that went on; or, if that one is gone for good, mount with \
         `-o degraded,accept_stale`: everything written since then is lost",
        witness.version,
        witness.in_sync.join(", "),
        root.version
    )))
}
