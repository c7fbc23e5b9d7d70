//! The witness: what this host knows of a volume beside what its replicas say.
//!
//! *Guarantees*: before anything is acknowledged without a replica, this host has written down which state the others
//! went on to; so the one that was left behind is not taken for the newest when it comes back alone. A mount whose
//! history lacks what is written down begins a new epoch, which is written down in its turn: so a state that was never
//! reached, or that a person gave up, does not stay the last word.
//! *Assumes*: the state directory is on a disk of its own accord; it is a help, not a proof.
//! *Fails when*: the directory cannot be written or read, or hangs: said in the log, service goes on. *Order*: write, fsync, rename,
//! fsync of the directory. Beside it stands where each replica was last seen: only there is one that has vanished made
//! anew by `fsck`. *Not here*: what replicas prove about each other (`store::recover`).

use crate::format::{MemberState, Root, Uuid};
use crate::store::StoreError;
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A state that this host has written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    volume: String,
    version: u64,
    epoch: String,
    in_sync: Vec<String>,
    paths: Vec<String>,
}

#[cfg(test)]
crate::sync::thread_local! {
    /// Where a unit test lets this host write, for volumes that it opens on its own thread; nowhere, if it does not say.
    pub(crate) static SCRATCH: std::cell::RefCell<Option<PathBuf>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
fn directory() -> Option<PathBuf> {
    SCRATCH.with_borrow(Clone::clone)
}

/// Where witnesses stand: `/var/lib/stablefs` for root, the user's state directory otherwise.
#[cfg(not(test))]
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

/// Versions written down since the daemon began; held while one is.
static WRITTEN: Mutex<BTreeMap<Uuid, u64>> = Mutex::new(BTreeMap::new());

/// Do `work` in the state directory. It may stand on the very disk that hangs: it is waited for no longer than
/// `patience`, and service goes on without (`None`). The work must not log.
fn on_state<T: Send + 'static>(
    what: &str,
    patience: Duration,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Option<T> {
    let done = crate::disk::file::apart(patience, work);
    done.inspect_err(|error| log::warn!("cannot {what} on this host: {error}")).ok()
}

/// Write down that `root` goes on with fewer replicas.
pub fn write(root: &Root, paths: &[String], patience: Duration) {
    let Some(target) = path(root.volume) else { return };
    let _ = write_to(target, root, paths, patience); // said in the log
}

fn write_to(target: PathBuf, root: &Root, paths: &[String], patience: Duration) -> Option<()> {
    let witness = Witness::of(root, paths);
    let (volume, version) = (root.volume, root.version);
    on_state(&format!("write down the state of volume {volume}"), patience, move || {
        let mut written = WRITTEN.lock();
        // One that hung must not come after a newer one.
        if written.get(&volume).is_some_and(|last| *last >= version) {
            return Ok(());
        }
        put(&target, &serde_json::to_string_pretty(&witness)?)?;
        written.insert(volume, version);
        Ok(())
    })
}

fn put(target: &Path, text: &str) -> std::io::Result<()> {
    let directory = target.parent().expect("it has a directory");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = target.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, target)?;
    std::fs::File::open(directory)?.sync_all()
}

/// Where a replica stands on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    replica: String,
    path: String,
    /// Of the filesystem that holds the path: another one where its disk is not mounted.
    filesystem: u64,
}

fn places_path(volume: Uuid) -> Option<PathBuf> {
    Some(directory()?.join(format!("{volume}.places.json")))
}

fn places(path: &Path) -> Vec<Place> {
    let text = std::fs::read_to_string(path).ok();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn filesystem_of(path: &str) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|below| below.f_fsid)
}

/// Write down where the replicas that are `here` stand; of others, those among `members` are kept.
pub fn note_places(volume: Uuid, members: &[Uuid], here: &[(Uuid, String)], patience: Duration) {
    let Some(target) = places_path(volume) else { return };
    let (members, here) = (members.to_vec(), here.to_vec());
    on_state(&format!("write down where the replicas of volume {volume} stand"), patience, move || {
        put_places(&target, &members, &here)
    });
}

fn put_places(target: &Path, members: &[Uuid], here: &[(Uuid, String)]) -> std::io::Result<()> {
    let known = places(target);
    let is = |place: &Place, uuid: &Uuid| place.replica == uuid.to_string();
    let mut now: Vec<Place> = known
        .iter()
        .filter(|place| members.iter().any(|m| is(place, m)) && !here.iter().any(|(uuid, _)| is(place, uuid)))
        .cloned()
        .collect();
    now.extend(here.iter().filter_map(|(uuid, path)| {
        Some(Place { replica: uuid.to_string(), path: path.clone(), filesystem: filesystem_of(path)? })
    }));
    now.sort_by(|a, b| a.replica.cmp(&b.replica));
    if now == known { Ok(()) } else { put(target, &serde_json::to_string_pretty(&now)?) }
}

/// Whether replica `uuid` stood at `path` when it was last seen, on the filesystem that is there now.
pub fn stood_at(volume: Uuid, uuid: Uuid, path: &str, patience: Duration) -> bool {
    let (Some(target), path) = (places_path(volume), path.to_owned()) else { return false };
    let stood = on_state(&format!("look up where replica {uuid} stood"), patience, move || {
        let mut all = places(&target).into_iter();
        let place = all.find(|place| place.replica == uuid.to_string() && place.path == path);
        Ok(place.is_some_and(|place| filesystem_of(&path) == Some(place.filesystem)))
    });
    stood.unwrap_or(false)
}

/// Where these replicas were last seen.
pub fn last_seen(volume: Uuid, replicas: &[Uuid], patience: Duration) -> Vec<String> {
    let (Some(target), false) = (places_path(volume), replicas.is_empty()) else { return Vec::new() };
    let wanted: Vec<String> = replicas.iter().map(Uuid::to_string).collect();
    let seen = on_state(&format!("look up where replicas of volume {volume} stood"), patience, move || {
        let all = places(&target).into_iter().filter(|place| wanted.contains(&place.replica));
        Ok(all.map(|place| place.path).collect())
    });
    seen.unwrap_or_default()
}

/// What is written down of a volume.
pub fn read(volume: Uuid, patience: Duration) -> Option<Witness> {
    let path = path(volume)?;
    let what = format!("read what is written down of volume {volume}");
    let text = on_state(&what, patience, move || match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    });
    serde_json::from_str(&text.flatten()?).ok()
}

/// Refuse if this host has seen a newer state than `root`, on a replica that is not among those `present`.
pub fn check(root: &Root, present: &[Uuid], patience: Duration) -> Result<(), StoreError> {
    read(root.volume, patience).map_or(Ok(()), |witness| witness.check(root, present))
}

/// As [`check`], of a witness with this text; what is no witness says nothing.
pub fn judge(text: &str, root: &Root, present: &[Uuid]) -> Result<(), StoreError> {
    serde_json::from_str::<Witness>(text).map_or(Ok(()), |witness| witness.check(root, present))
}

impl Witness {
    /// That the volume, whose replicas stand at `paths`, goes on with `root`.
    pub fn of(root: &Root, paths: &[String]) -> Witness {
        let in_sync = root.members.iter().filter(|m| m.state == MemberState::InSync);
        Witness {
            volume: root.volume.to_string(),
            version: root.version,
            epoch: root.epoch().id.to_string(),
            in_sync: in_sync.map(|m| m.replica.to_string()).collect(),
            paths: paths.to_vec(),
        }
    }

    /// Version of its root.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the history of `root` does not know this state: then it must go on in a new epoch.
    pub fn is_apart(&self, root: &Root) -> bool {
        root.chain.iter().all(|epoch| epoch.id.to_string() != self.epoch)
    }

    /// Refuse if this state is newer than `root`, on a replica that is not among those `present`.
    ///
    /// # Errors
    /// [`StoreError::Refused`].
    pub fn check(&self, root: &Root, present: &[Uuid]) -> Result<(), StoreError> {
        if !self.is_apart(root) || self.version <= root.chain[0].first_version || root.has_forgotten(self.version) {
            return Ok(());
        }
        // It is written down before the root itself: if all that were to go on are here without that root, nothing was
        // ever acknowledged on it.
        if self.in_sync.iter().all(|went_on| present.iter().any(|p| p.to_string() == *went_on)) {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "this replica was left behind: the volume went on to root {} without it on this host (replicas {}), and \
             it stands at root {}. Give the replica that went on (if both were written to since, `stablefs resolve` with \
             both of them decides); or, if that one is gone for good, mount with `-o degraded,accept_stale`: everything \
             written since then is lost",
            self.version,
            self.in_sync.join(", "),
            root.version
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Rig;

    /// The state directory hangs: here a pipe that nobody reads stands where the file is to be written.
    #[test]
    fn a_state_directory_that_hangs_is_not_waited_for() {
        let root = Rig::new(70, 2).open(false).unwrap().0.durable_root();
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("witness.json");
        let pipe = target.with_extension("new");
        let made = rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        made.unwrap();
        assert_eq!(write_to(target.clone(), &root, &[], Duration::from_millis(50)), None, "it hangs");
        // What hung lets go; the next one is written.
        let _ = std::fs::OpenOptions::new().read(true).write(true).open(&pipe);
        std::fs::remove_file(&pipe).unwrap();
        let newer = Root { version: root.version + 1, ..root };
        write_to(target.clone(), &newer, &[], Duration::from_secs(20)).expect("written");
        assert!(std::fs::read_to_string(&target).unwrap().contains(&newer.version.to_string()));
    }
}
