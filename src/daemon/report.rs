//! What status says: facts, what they mean, and the next command.
//!
//! *Guarantees*: made from memory only. Every state that is not healthy has a meaning, and an action if a person can do
//! something. *Assumes*: nothing. *Fails when*: never. *Order*: none. *Not here*: how it looks on a terminal (`cli`).

use super::task::TaskReport;
use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::BLOCK;
use crate::volume::Volume;
use serde::{Deserialize, Serialize};

/// How a volume is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every block is on every replica, as far as is known.
    #[default]
    Healthy,
    /// Served, but a further fault could cost data.
    Degraded,
    /// Blocks are damaged and could not be healed.
    Hurt,
    /// Takes no changes any more.
    Failed,
}

/// A replica in a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaReport {
    /// Number of its slot.
    pub number: usize,
    /// Where it is.
    pub path: String,
    /// Its identity.
    pub uuid: String,
    /// `directory`, `file`, `device`, or empty if it is not there.
    pub kind: String,
    /// Whether I/O goes past the page cache of the machine.
    pub direct: bool,
    /// `in sync`, `out`, `missing`, `returning`.
    pub state: String,
    /// Since when it is so, ns since 1970.
    pub since_ns: u64,
    /// Why; empty if in sync.
    pub cause: String,
    /// Blocks found damaged or unreadable since the mount.
    pub damaged: u64,
    /// Of those repaired and proven.
    pub healed: u64,
    /// Of those that could not be repaired.
    pub heal_failed: u64,
    /// Writes and flushes that failed or came too late.
    pub write_errors: u64,
    /// Requests answered.
    pub reads: u64,
    /// Requests answered.
    pub writes: u64,
    /// Requests not answered yet.
    pub in_flight: u64,
    /// Bytes free in the filesystem below, if known.
    pub bytes_free_below: Option<u64>,
}

/// The mount in a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountReport {
    /// Where.
    pub path: String,
    /// For reading only.
    pub read_only: bool,
    /// With the kernel's writeback cache.
    pub writeback: bool,
    /// How long a replica may take, ms.
    pub deadline_ms: u64,
    /// Since when, ns since 1970.
    pub since_ns: i64,
    /// The daemon.
    pub process: u32,
    /// Its log.
    pub log: String,
}

/// All that status says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What the user called it; may be empty.
    pub name: String,
    /// The volume.
    pub uuid: String,
    /// How it is.
    pub health: Health,
    /// What that means; a sentence or two.
    pub meaning: String,
    /// The next command to type, if there is one.
    pub action: Option<String>,
    /// The mount.
    pub mount: MountReport,
    /// The replicas.
    pub replicas: Vec<ReplicaReport>,
    /// Bytes of the volume.
    pub bytes: u64,
    /// Bytes in use.
    pub bytes_used: u64,
    /// Bytes free for new data.
    pub bytes_free: u64,
    /// Files, directories and so on.
    pub inodes: u64,
    /// The task that runs or ran last.
    pub task: Option<TaskReport>,
}

/// The report of a mounted volume.
pub fn make(volume: &Volume, mount: MountReport, task: Option<TaskReport>) -> Report {
    let replicas: Vec<ReplicaReport> = volume.mirror.health().iter().map(replica).collect();
    let space = volume.store.space();
    let verdict = judge(&replicas, volume.mirror.latched(), &mount.path);
    Report {
        name: volume.label.name.clone(),
        uuid: volume.label.volume.to_string(),
        health: verdict.health,
        meaning: verdict.meaning,
        action: verdict.action,
        mount,
        replicas,
        bytes: space.blocks * BLOCK as u64,
        bytes_used: space.used * BLOCK as u64,
        bytes_free: space.free * BLOCK as u64,
        inodes: space.inodes,
        task,
    }
}

fn replica(health: &ReplicaHealth) -> ReplicaReport {
    let counters = &health.counters;
    ReplicaReport {
        number: health.slot,
        path: health.name.path.clone(),
        uuid: health.name.uuid.to_string(),
        kind: health.kind.map(|kind| kind.name().to_owned()).unwrap_or_default(),
        direct: health.direct,
        state: health.state.name().to_owned(),
        since_ns: health.since_ns,
        cause: health.cause.clone(),
        damaged: counters.omissions(),
        healed: counters.healed,
        heal_failed: counters.heal_failed,
        write_errors: counters.write_failed + counters.flush_failed + counters.deadline_missed,
        reads: counters.reads,
        writes: counters.writes,
        in_flight: health.in_flight as u64,
        bytes_free_below: health.bytes_free_below,
    }
}

struct Verdict {
    health: Health,
    meaning: String,
    action: Option<String>,
}

/// What the states of the replicas mean together.
fn judge(replicas: &[ReplicaReport], latched: Option<String>, mountpoint: &str) -> Verdict {
    let place = shell_word(mountpoint);
    if let Some(cause) = latched {
        let meaning = format!("No replica takes changes any more ({cause}). Reading goes on as far as it can.");
        let action = Some(format!("stablefs umount --lazy {place}   # then bring a replica back, and mount again"));
        return Verdict { health: Health::Failed, meaning, action };
    }
    let in_state = |state: ReplicaState| replicas.iter().find(move |replica| replica.state == state.name());
    let absent = in_state(ReplicaState::Out).or_else(|| in_state(ReplicaState::Missing));
    if let Some(replica) = absent {
        let meaning = format!(
            "Replica {} is {}{}. Everything is served and kept, but a fault on what is left now costs data.",
            replica.path,
            replica.state,
            if replica.cause.is_empty() { String::new() } else { format!(" ({})", replica.cause) },
        );
        let old = shell_word(&replica.path);
        let action = Some(format!("stablefs replace {place} {old} NEW   # NEW: another place, or {old} itself, emptied"));
        return Verdict { health: Health::Degraded, meaning, action };
    }
    if let Some(replica) = in_state(ReplicaState::Returning) {
        let meaning = format!("Replica {} is being brought up to date; until then a fault on the other costs data.", replica.path);
        return Verdict { health: Health::Degraded, meaning, action: None };
    }
    if replicas.iter().any(|replica| replica.heal_failed > 0) {
        let meaning = "Damaged blocks were found that could not be healed; files that need them answer with errors.".into();
        return Verdict { health: Health::Hurt, meaning, action: Some(format!("stablefs scrub {place}   # names what is hurt")) };
    }
    let healed: u64 = replicas.iter().map(|replica| replica.healed).sum();
    let meaning = match healed {
        0 => "Every block is on every replica.".into(),
        _ => format!("Every block is on every replica; {healed} damaged since the mount were found and healed."),
    };
    Verdict { health: Health::Healthy, meaning, action: None }
}

/// `word` as it can be typed to a shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(path: &str, state: ReplicaState) -> ReplicaReport {
        ReplicaReport { path: path.into(), state: state.name().into(), ..ReplicaReport::default() }
    }

    #[test]
    fn every_state_has_its_meaning_and_command() {
        let fine = replica("/a", ReplicaState::InSync);
        let both = |second: ReplicaReport| [fine.clone(), second];
        let healed = ReplicaReport { damaged: 2, healed: 2, ..fine.clone() };
        let hurt = ReplicaReport { damaged: 2, heal_failed: 2, ..fine.clone() };
        for (second, health, words, command) in [
            (fine.clone(), Health::Healthy, "every replica", ""),
            (healed, Health::Healthy, "2 damaged", ""),
            (hurt, Health::Hurt, "could not be healed", "stablefs scrub '/my mnt'"),
            (replica("/b", ReplicaState::Out), Health::Degraded, "/b is out", "stablefs replace '/my mnt' /b NEW"),
            (replica("/b", ReplicaState::Missing), Health::Degraded, "/b is missing", "stablefs replace"),
            (replica("/b", ReplicaState::Returning), Health::Degraded, "brought up to date", ""),
        ] {
            let verdict = judge(&both(second), None, "/my mnt");
            assert_eq!(verdict.health, health, "{words}");
            assert!(verdict.meaning.contains(words), "{}", verdict.meaning);
            assert!(verdict.action.unwrap_or_default().starts_with(command));
        }
        assert_eq!(judge(&both(fine.clone()), Some("all died".into()), "/m").health, Health::Failed);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("/plain-1.x"), "/plain-1.x");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
