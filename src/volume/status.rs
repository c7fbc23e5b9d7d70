//! What a volume is like now, in words and numbers; never touches a backing.
//!
//! *Guarantees*: answers from memory, also while a backing hangs. *Assumes*: nothing. *Fails when*: never.
//! *Order*: none. *Not here*: rendering (`cli`).

use super::Volume;
use super::availability::Availability;
use super::risk::{self, Risk};
use crate::disk::backing::BackingKind;
use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::{Role, Root, Uuid};
use crate::sync::atomic::Ordering;
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
    /// What stands on fewer replicas than it should.
    #[serde(default)]
    pub risk: Risk,
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
    /// Bytes in use that it misses at most: written since it last held everything. `None`: all, for all that is known.
    #[serde(default)]
    pub missed_bytes: Option<u64>,
    /// Bytes free in the filesystem that holds it.
    pub bytes_free_below: Option<u64>,
    /// What is to be known beside the state: `full` (its disk has no room), `read-only` (it went out because of that), `slow` (it
    /// gets no reads, for its twin is much quicker).
    pub conditions: Vec<String>,
    /// How long requests take it, and its twin.
    #[serde(default)]
    pub pace: PaceStatus,
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

/// How long requests take a replica, in microseconds; medians of the last. Nothing where too few were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PaceStatus {
    /// Slow since, ns since 1970; 0: it is not.
    pub slow_since_ns: u64,
    /// A small read.
    pub read_us: Option<u64>,
    /// A write or a flush as a whole.
    pub write_us: Option<u64>,
    /// A small read from the quickest other one.
    pub twin_read_us: Option<u64>,
    /// A write or a flush on it.
    pub twin_write_us: Option<u64>,
}

impl From<crate::disk::Pace> for PaceStatus {
    fn from(pace: crate::disk::Pace) -> PaceStatus {
        let us = |took: Option<std::time::Duration>| took.map(|took| took.as_micros() as u64);
        PaceStatus {
            slow_since_ns: pace.slow_since_ns,
            read_us: us(pace.read),
            write_us: us(pace.write),
            twin_read_us: us(pace.twin_read),
            twin_write_us: us(pace.twin_write),
        }
    }
}

impl Volume {
    /// State of the volume, from memory.
    pub fn status(&self) -> Status {
        let grows = self.label.grows;
        let health: Vec<ReplicaHealth> = self.mirror.health().into_iter().filter(ReplicaHealth::is_member).collect();
        // Not the root behind its lock: that may wait for a disk.
        let named = self.store.named_root();
        let used_bytes = self.store.allocated() * crate::format::BLOCK as u64;
        let risk = risk::risk(&health, &named, used_bytes);
        let replicas: Vec<ReplicaStatus> =
            health.into_iter().map(|h| self.with_role(h.name.uuid, replica(h, grows, &named))).collect();
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
            risk,
            availability: self.availability(),
        }
    }

    /// Repairs that failed since the mount.
    pub(super) fn heal_failed(&self) -> u64 {
        self.mirror.health().iter().map(|health| health.counters.heal_failed).sum()
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
        let slow = replicas.iter().find(|r| r.pace.slow_since_ns > 0).map(slowness).unwrap_or_default();
        let healed: u64 = replicas.iter().map(|r| r.healed).sum();
        let failed: u64 = replicas.iter().map(|r| r.heal_failed).sum();
        let unhealed = failed.saturating_sub(self.forgiven.load(Ordering::Relaxed));
        if unhealed > 0 {
            let meaning = format!("{unhealed} damaged blocks could not be healed");
            return ("damaged".into(), meaning, Some("stablefs scrub MOUNTPOINT".into()));
        }
        if healed > 0 {
            let meaning = format!(
                "all replicas are in sync; {healed} damaged blocks were found and healed since the mount{slow}"
            );
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
                    && one.lag_ms.is_none_or(|ms| u128::from(ms) > self.options.lag.time.as_millis());
                if is_late {
                    action = Some(format!("stablefs online MOUNTPOINT {}", name_of(one)));
                }
            }
        }
        (state.into(), meaning + &slow, action)
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

/// What is to be said of a slow replica.
fn slowness(replica: &ReplicaStatus) -> String {
    let pace = replica.pace;
    let compared = |what, own: Option<u64>, twin: Option<u64>| {
        let (own, twin) = own.zip(twin)?;
        Some(format!("{what} takes {:.1} ms, {:.1} ms elsewhere", own as f64 / 1000.0, twin as f64 / 1000.0))
    };
    let read = compared("a read", pace.read_us, pace.twin_read_us);
    let write = compared("a write or flush", pace.write_us, pace.twin_write_us);
    let figures: Vec<String> = [read, write].into_iter().flatten().collect();
    let figures = if figures.is_empty() { String::new() } else { format!(" ({})", figures.join("; ")) };
    format!("; {} is slow{figures}: it gets no reads while it is", replica.path)
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
    let is_full = health.is_full || grows && health.bytes_free_below.is_some_and(|bytes| bytes < FULL_BELOW);
    // What a failed write said (`disk::mirror::write`).
    let said = |word: &str| health.cause.starts_with(word);
    let is_slow = health.pace.slow_since_ns > 0;
    let all = [(is_full || said("full:"), "full"), (said("read-only:"), "read-only"), (is_slow, "slow")];
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word.to_owned()).collect()
}

fn replica(health: crate::disk::ReplicaHealth, grows: bool, root: &Root) -> ReplicaStatus {
    let missed_bytes = risk::missed_bytes(&health, root);
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
        missed_bytes,
        bytes_free_below: health.bytes_free_below,
        conditions,
        pace: health.pace.into(),
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
