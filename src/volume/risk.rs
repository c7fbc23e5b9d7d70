//! What stands on fewer replicas than it should, and since when; in bytes and from memory.
//!
//! *Guarantees*: asking touches no backing and costs nothing by the size of the volume. No figure is too small for what is
//! committed: where something is not known, everything in use is counted. What was written since the last commit (seconds) comes
//! with the next one.
//! *Assumes*: the newest root counts what its members miss (`store::risk`). *Fails when*: never.
//! *Order*: none. *Not here*: for how long it was so in all (`availability`, from events).
//!
//! | replica | holds |
//! |---|---|
//! | in sync | everything |
//! | out of a state that a root knows | all but what was born since |
//! | returning | the same: what it has been sent is not counted before it is in sync |
//! | warm or cold | what was born up to the state that it follows; it is not at risk for that |
//! | nothing is known of it | nothing |

use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::{BLOCK, MemberState, Role, Root};
use serde::{Deserialize, Serialize};

/// What the death of a replica would take with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Risk {
    /// Since when not all hot replicas are in sync, ns since 1970; 0: all are.
    pub since_ns: u64,
    /// Bytes in use that one replica alone holds, if all that are away come back with what they had. At most; exact where one
    /// replica is away and not yet returning.
    pub held_once_bytes: u64,
    /// The same of bytes that not all replicas hold.
    pub held_by_fewer_bytes: u64,
    /// Bytes in use that one replica alone holds if none that is away comes back.
    pub held_once_if_lost_bytes: u64,
}

/// Bytes that the replica `health` misses; `None`: everything that is in use, for all that is known.
pub(super) fn missed_bytes(health: &ReplicaHealth, root: &Root) -> Option<u64> {
    if health.state == ReplicaState::InSync {
        return Some(0);
    }
    let member = root.members.get(health.slot).filter(|member| member.replica == health.name.uuid)?;
    match member.state {
        // It has just gone: the root that says so is not written yet.
        MemberState::InSync => Some(0),
        _ if member.synced_txg == 0 => None,
        _ => member.missed.map(|blocks| blocks.saturating_mul(BLOCK as u64)),
    }
}

/// The risk of a volume whose newest root is `root`, with `used` bytes in use.
pub(super) fn risk(health: &[ReplicaHealth], root: &Root, used: u64) -> Risk {
    // One that is attached to take the place of another is nobody's copy yet.
    let members = || health.iter().filter(|h| h.slot < root.members.len() && h.is_member());
    // Warm and cold ones are behind because somebody wants it.
    let is_hot = |h: &&ReplicaHealth| root.members[h.slot].role == Role::Hot;
    let away = || members().filter(|h| h.state != ReplicaState::InSync);
    let missed = |h: &ReplicaHealth| missed_bytes(h, root).map_or(used, |bytes| bytes.min(used));
    let Some(most) = away().filter(is_hot).map(missed).max() else { return Risk::default() };
    let in_sync = members().filter(|h| h.state == ReplicaState::InSync).count();
    let least = away().map(missed).min().unwrap_or(most);
    let newest = away().filter(is_hot).map(|h| h.since_ns).min().unwrap_or(0);
    Risk {
        since_ns: if root.at_risk_since_ns > 0 { root.at_risk_since_ns } else { newest },
        held_once_bytes: if in_sync <= 1 { least } else { 0 },
        held_by_fewer_bytes: most,
        held_once_if_lost_bytes: if in_sync <= 1 { used } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{ReplicaCounters, ReplicaName};
    use crate::format::root::tests::sample;
    use crate::format::{Member, Uuid};

    fn health(slot: usize, state: ReplicaState) -> ReplicaHealth {
        ReplicaHealth {
            slot,
            name: ReplicaName { uuid: Uuid([slot as u8 + 1; 16]), path: format!("/{slot}") },
            kind: None,
            direct: false,
            state,
            since_ns: 900,
            cause: String::new(),
            in_flight: 0,
            bytes_free_below: None,
            counters: ReplicaCounters::default(),
            pace: crate::disk::Pace::default(),
            is_full: false,
        }
    }

    fn root_of(missed: &[Option<u64>]) -> Root {
        let mut root = sample();
        let member = root.members[0];
        let more = missed.iter().enumerate().map(|(i, missed)| Member {
            replica: Uuid([i as u8 + 2; 16]),
            state: MemberState::Out,
            synced_txg: 5,
            missed: *missed,
            ..member
        });
        root.members = std::iter::once(member).chain(more).collect();
        root.at_risk_since_ns = 77;
        root
    }

    #[test]
    fn of_two() {
        use ReplicaState::{InSync, Missing, Out, Returning};
        const USED: u64 = 1 << 30;
        let all = [health(0, InSync), health(1, InSync)];
        assert_eq!(risk(&all, &root_of(&[Some(3)]), USED), Risk::default(), "a root that is older than the news");
        for state in [Out, Missing, Returning] {
            let found = risk(&[health(0, InSync), health(1, state)], &root_of(&[Some(3)]), USED);
            assert_eq!((found.since_ns, found.held_once_bytes), (77, 3 * 4096));
            assert_eq!((found.held_by_fewer_bytes, found.held_once_if_lost_bytes), (3 * 4096, USED));
        }
        let away = [health(0, InSync), health(1, Out)];
        assert_eq!(risk(&away, &root_of(&[None]), USED).held_once_bytes, USED, "not counted");
        let mut unknown = root_of(&[Some(3)]);
        unknown.members[1].synced_txg = 0;
        assert_eq!(risk(&away, &unknown, USED).held_once_bytes, USED, "nothing is known of it");
        let mut before = root_of(&[None]);
        (before.members[1].state, before.at_risk_since_ns) = (MemberState::InSync, 0);
        let just = risk(&away, &before, USED);
        assert_eq!((just.since_ns, just.held_once_bytes), (900, 0), "it has just gone");
    }

    #[test]
    fn of_three() {
        use ReplicaState::{InSync, Out};
        let root = root_of(&[Some(2), Some(9)]);
        let one = risk(&[health(0, InSync), health(1, InSync), health(2, Out)], &root, 1 << 30);
        assert_eq!((one.held_once_bytes, one.held_by_fewer_bytes, one.held_once_if_lost_bytes), (0, 9 * 4096, 0));
        let two = risk(&[health(0, InSync), health(1, Out), health(2, Out)], &root, 1 << 30);
        assert_eq!((two.held_once_bytes, two.held_by_fewer_bytes), (2 * 4096, 9 * 4096), "the later one has more");
    }
}
