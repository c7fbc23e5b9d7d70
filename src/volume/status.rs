//! What a volume is like now, in words and numbers; never touches a backing.
//!
//! *Guarantees*: answers from memory, also while a backing hangs. *Assumes*: nothing. *Fails when*: never.
//! *Order*: none. *Not here*: rendering (`cli`).

use super::Volume;
use super::availability::Availability;
use crate::disk::backing::BackingKind;
use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::{Role, Uuid};
use serde::{Deserialize, Serialize};

/// State of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Identity.
    pub volume: String,
    /// What the user calls it.
    pub label: String,
    /// `healthy`, `degraded`, `damaged` or `failed`.
    pub state: String,
    /// What that means, one sentence.
    pub meaning: String,
    /// The next command to type, if there is something to do.
    pub action: Option<String>,
    /// Replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// Newest durable root.
    pub root_version: u64,
    /// Its transaction group.
    pub group: u64,
    /// When it was written, ns since 1970.
    pub root_time_ns: u64,
    /// Mounts for writing so far.
    pub mount_count: u64,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Bytes in use (metadata, reserve and what waits for reuse included).
    pub used_bytes: u64,
    /// Bytes free for new data.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Mounted for reading only.
    pub read_only: bool,
    /// Longest wait of one call, milliseconds.
    pub deadline_ms: u64,
    /// Seconds since it was opened.
    pub open_s: u64,
    /// Log records replayed at opening.
    pub replayed: u64,
    /// Places that were given at the mount and are none of its replicas: why.
    pub notes: Vec<String>,
    /// Availability in figures, from the events that are remembered.
    pub availability: Availability,
}

/// State of a replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Slot, 0 to 3.
    pub slot: usize,
    /// Identity.
    pub replica: String,
    /// Path.
    pub path: String,
    /// `in sync`, `out`, `missing` or `returning`.
    pub state: String,
    /// `hot`, `warm` or `cold`.
    pub role: String,
    /// How far a warm or cold one is behind, ms; nothing: not known yet.
    pub lag_ms: Option<u64>,
    /// Why a warm or cold one did not follow the last time.
    pub follow_failure: Option<String>,
    /// `directory`, `file` or `device`.
    pub kind: Option<String>,
    /// Whether I/O goes past the page cache.
    pub direct_io: bool,
    /// In this state since, ns since 1970.
    pub since_ns: u64,
    /// Why it is not in sync.
    pub cause: String,
    /// Requests that it has not answered.
    pub in_flight: usize,
    /// Bytes free in the filesystem that holds it.
    pub bytes_free_below: Option<u64>,
    /// What is to be known beside the state: `full` (its disk has no room), `read-only` (it went out because of that).
    pub conditions: Vec<String>,
    /// Blocks that were not there, for either of the two reasons below.
    pub omissions: u64,
    /// Blocks that could not be read.
    pub unreadable: u64,
    /// Blocks whose checksum was wrong: rotten, torn, lost, misdirected or stale.
    pub checksum: u64,
    /// Blocks that were wrong once and right when read again; nothing was repaired.
    pub transient: u64,
    /// Blocks healed.
    pub healed: u64,
    /// Repairs that failed.
    pub heal_failed: u64,
    /// Writes that failed.
    pub write_failed: u64,
    /// Flushes that failed.
    pub flush_failed: u64,
    /// Deadlines missed.
    pub deadline_missed: u64,
}

impl Volume {
    /// State of the volume, from memory.
    pub fn status(&self) -> Status {
        let grows = self.label.grows;
        let health = self.mirror.health().into_iter().filter(ReplicaHealth::is_member);
        let replicas: Vec<ReplicaStatus> = health.map(|h| self.with_role(h.name.uuid, replica(h, grows))).collect();
        // Not the root behind its lock: that may wait for a disk.
        let view = self.store.view();
        let root = &view.committed.root;
        let space = self.store.space();
        let block = crate::format::BLOCK as u64;
        let (state, meaning, action) = self.judge(&replicas);
        let strange = self.report.behind.iter().filter(|(path, _)| replicas.iter().all(|r| r.path != *path));
        let notes = strange.map(|(path, why)| format!("{path}: {why}")).collect();
        Status {
            volume: self.label.volume.to_string(),
            label: self.label.name.clone(),
            state,
            meaning,
            action,
            replicas,
            root_version: root.version,
            group: root.txg,
            root_time_ns: root.time_ns,
            mount_count: root.mount_count,
            size_bytes: space.blocks * block,
            used_bytes: space.used * block,
            free_bytes: space.free * block,
            inodes: space.inodes,
            read_only: self.options.read_only,
            deadline_ms: self.options.deadline.as_millis() as u64,
            open_s: self.opened.elapsed().as_secs(),
            replayed: self.report.replayed,
            notes,
            availability: self.availability(),
        }
    }

    fn judge(&self, replicas: &[ReplicaStatus]) -> (String, String, Option<String>) {
        let is = |r: &&ReplicaStatus, state: ReplicaState| r.state == state.name();
        let in_sync = replicas.iter().filter(|r| is(r, ReplicaState::InSync)).count();
        if let Some(taken) = self.heart.taken() {
            let meaning = format!(
                "{taken}; reads go on, every change fails. If that host took the volume by force, what both wrote last may \
                 be damaged"
            );
            let action = "unmount it here; then, where it is mounted: stablefs scrub MOUNTPOINT".to_owned();
            return ("failed".into(), meaning, Some(action));
        }
        if let Err(error) = self.store.check_alive() {
            let action = "unmount, look at the replicas and their disks, mount again".to_owned();
            return ("failed".into(), format!("{error}; what was acknowledged before is safe"), Some(action));
        }
        let is_hurt = |r: &&ReplicaStatus| !is(r, ReplicaState::InSync) && r.role == Role::Hot.name();
        if let Some(hurt) = replicas.iter().find(is_hurt) {
            let left = match in_sync {
                1 => "every block is held once: the death of the other replica would lose data".to_owned(),
                n => format!("every block is held on {n} replicas"),
            };
            let meaning = format!("replica {} is {} ({}); work goes on, {left}", hurt.path, hurt.state, hurt.cause);
            let action = if is(&hurt, ReplicaState::Returning) {
                "wait until the resync is done".to_owned()
            } else if self.is_sent_away(hurt.slot) {
                format!("stablefs online MOUNTPOINT {}", name_of(hurt))
            } else if self.is_deleted(hurt.slot, &hurt.replica) {
                format!(
                    "wait: its container was deleted, and is made anew there; if not soon: stablefs replace MOUNTPOINT {} NEW",
                    name_of(hurt)
                )
            } else {
                format!(
                    "stablefs replace MOUNTPOINT {} NEW  (NEW may be the same place, emptied; if what was there can be \
                     used again, it is taken back by itself)",
                    name_of(hurt)
                )
            };
            return ("degraded".into(), meaning, Some(action));
        }
        if replicas.len() == 1 {
            let meaning =
                "the volume has one replica only: every block is held once, and nothing can be healed".to_owned();
            return ("degraded".into(), meaning, Some("stablefs attach MOUNTPOINT NEW".into()));
        }
        let healed: u64 = replicas.iter().map(|r| r.healed).sum();
        let unhealed: u64 = replicas.iter().map(|r| r.heal_failed).sum();
        if unhealed > 0 {
            let meaning = format!("{unhealed} damaged blocks could not be healed");
            return ("damaged".into(), meaning, Some("stablefs scrub MOUNTPOINT".into()));
        }
        if healed > 0 {
            let meaning =
                format!("all replicas are in sync; {healed} damaged blocks were found and healed since the mount");
            return ("healthy".into(), meaning, Some("stablefs scrub MOUNTPOINT  (looks for more)".into()));
        }
        let mut meaning = "all replicas are in sync, no damage was met since the mount".to_owned();
        let followers: Vec<&ReplicaStatus> = replicas.iter().filter(|r| r.role != Role::Hot.name()).collect();
        if !followers.is_empty() {
            meaning = "all hot replicas are in sync, no damage was met since the mount".to_owned();
        }
        let state = if in_sync == 1 && !followers.is_empty() { "degraded" } else { "healthy" };
        let mut action = None;
        for one in followers {
            let behind = match one.lag_ms {
                Some(0) => "holds the same".to_owned(),
                Some(ms) => format!("is {}.{} s behind", ms / 1000, ms % 1000 / 100),
                None => "has not followed since the mount".to_owned(),
            };
            meaning += &format!("; {} is {} and {behind}", one.path, one.role);
            if in_sync == 1 {
                meaning += ": what is newer is held once";
            }
            if let Some(why) = &one.follow_failure {
                meaning += &format!(" ({why})");
                let is_late = one.role == Role::Warm.name()
                    && one.lag_ms.is_none_or(|ms| u128::from(ms) > self.options.lag.as_millis());
                if is_late {
                    action = Some(format!("stablefs online MOUNTPOINT {}", name_of(one)));
                }
            }
        }
        (state.into(), meaning, action)
    }

    /// With what is known of one that follows.
    fn with_role(&self, replica: Uuid, status: ReplicaStatus) -> ReplicaStatus {
        let (role, failure) = match self.roles.lock().get(&replica) {
            None => return status,
            Some(tracked) => (tracked.role, tracked.failure.clone()),
        };
        ReplicaStatus { role: role.name().to_owned(), lag_ms: self.lag_ms(replica), follow_failure: failure, ..status }
    }
}

/// The path if it is known, else the slot: both name a replica in commands.
fn name_of(replica: &ReplicaStatus) -> String {
    if replica.path.starts_with('/') { shell_word(&replica.path) } else { replica.slot.to_string() }
}

/// `word` as it can be typed to a shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Bytes free below a container that grows, under which it is full: the unit in which it grows.
const FULL_BELOW: u64 = 1 << 20;

fn conditions(health: &crate::disk::ReplicaHealth, grows: bool) -> Vec<String> {
    let is_full = grows && health.bytes_free_below.is_some_and(|bytes| bytes < FULL_BELOW);
    // What a failed write said (`disk::mirror::write`).
    let said = |word: &str| health.cause.starts_with(word);
    let all = [(is_full || said("full:"), "full"), (said("read-only:"), "read-only")];
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word.to_owned()).collect()
}

fn replica(health: crate::disk::ReplicaHealth, grows: bool) -> ReplicaStatus {
    let conditions = conditions(&health, grows);
    let counters = health.counters;
    ReplicaStatus {
        slot: health.slot,
        replica: health.name.uuid.to_string(),
        path: health.name.path,
        state: health.state.name().to_owned(),
        role: Role::Hot.name().to_owned(),
        lag_ms: None,
        follow_failure: None,
        kind: health.kind.map(|kind: BackingKind| kind.name().to_owned()),
        direct_io: health.direct,
        since_ns: health.since_ns,
        cause: health.cause,
        in_flight: health.in_flight,
        bytes_free_below: health.bytes_free_below,
        conditions,
        omissions: counters.omissions(),
        unreadable: counters.unreadable,
        checksum: counters.checksum,
        transient: counters.transient,
        healed: counters.healed,
        heal_failed: counters.heal_failed,
        write_failed: counters.write_failed,
        flush_failed: counters.flush_failed,
        deadline_missed: counters.deadline_missed,
    }
}
