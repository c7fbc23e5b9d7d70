//! What is done about a slow replica without a person (`slow=warm`): it becomes warm, and is tried as a hot one again later.
//!
//! *Guarantees*: only one that has been slow for [`SLOW_MIN`] becomes warm, and only while another one in sync is not slow. It is made hot
//! again after [`PAUSE_MIN`], and each time that it turns out slow again after twice as long, [`PAUSE_MAX`] at most. What a person made
//! warm stays so. *Assumes*: the mirror says who is slow (`disk::mirror::slow`). *Fails when*: long work runs: it is tried again.
//! *Order*: none. *Not here*: following (`follow`), returning (`away`).

use super::Volume;
use crate::disk::{ReplicaHealth, ReplicaState};
use crate::format::{Role, Uuid};
use crate::sync::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long it must have been slow.
pub const SLOW_MIN: Duration = Duration::from_secs(30);
/// How long it is warm at first.
pub const PAUSE_MIN: Duration = Duration::from_secs(600);
/// And at most.
pub const PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// Since when, and for how long, a replica is to be warm.
#[derive(Debug, Clone, Copy)]
struct Turn {
    began: Instant,
    pause: Duration,
}

/// Who was made warm for being slow, since the mount.
#[derive(Debug, Default)]
pub struct Slowed(BTreeMap<Uuid, Turn>);

impl Slowed {
    /// What the role of this replica should become now, if it is to change. It may not come about: nothing is remembered of that.
    fn judge(&mut self, one: &ReplicaHealth, role: Role, others_quick: bool, now: (Instant, u64)) -> Option<Role> {
        let (now, now_ns) = now;
        let slow_since_ns = one.pace.slow_since_ns;
        let is_slow = slow_since_ns > 0 && u128::from(now_ns.saturating_sub(slow_since_ns)) >= SLOW_MIN.as_nanos();
        match role {
            Role::Hot if one.state == ReplicaState::InSync && is_slow && others_quick => Some(Role::Slowed),
            Role::Slowed => {
                // One from before this mount begins anew.
                let turn = self.0.entry(one.name.uuid).or_insert(Turn { began: now, pause: PAUSE_MIN });
                (now.duration_since(turn.began) >= turn.pause).then_some(Role::Hot)
            }
            _ => None,
        }
    }

    /// It is warm from now on.
    fn begin(&mut self, replica: Uuid, now: Instant) {
        let pause = self.0.get(&replica).map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
        self.0.insert(replica, Turn { began: now, pause });
    }
}

impl Volume {
    /// Have slow replicas become warm, and hot again, if that is wanted.
    pub fn mind_the_slow(&self) {
        if !self.options.slow_becomes_warm || self.options.read_only {
            return;
        }
        let health = self.mirror.health();
        let now = (Instant::now(), u64::try_from(self.store.world().now_ns()).unwrap_or(0));
        for one in &health {
            let is_quick = |other: &ReplicaHealth| {
                other.slot != one.slot && other.state == ReplicaState::InSync && other.pace.slow_since_ns == 0
            };
            let others_quick = health.iter().any(is_quick);
            let role = self.role(one.name.uuid);
            let wanted = self.slowed.lock().judge(one, role, others_quick, now);
            let Some(wanted) = wanted else { continue };
            match self.set_role_of(one.slot, wanted) {
                Ok(()) => {
                    if wanted == Role::Slowed {
                        self.slowed.lock().begin(one.name.uuid, now.0);
                    }
                    ::log::warn!("{}: is {} from now on, because it is or was slow", one.name.path, wanted.name());
                }
                Err(why) => ::log::debug!("{}: not made {} now: {why}", one.name.path, wanted.name()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Pace, ReplicaCounters, ReplicaName};

    const S: u64 = 1_000_000_000;

    fn health(slow_since_ns: u64) -> ReplicaHealth {
        ReplicaHealth {
            slot: 1,
            name: ReplicaName { uuid: Uuid([2; 16]), path: "/b".into() },
            kind: None,
            direct: true,
            state: ReplicaState::InSync,
            since_ns: 0,
            cause: String::new(),
            in_flight: 0,
            bytes_free_below: None,
            counters: ReplicaCounters::default(),
            pace: Pace { slow_since_ns, ..Pace::default() },
            is_full: false,
        }
    }

    #[test]
    fn one_that_stays_slow_becomes_warm_and_is_tried_again_ever_later() {
        // SEMANTICS: ROLE-4
        let mut slowed = Slowed::default();
        let begin = Instant::now();
        let at = |s: u64| (begin + Duration::from_secs(s), (1000 + s) * S);
        let slow = health(1000 * S);
        assert_eq!(slowed.judge(&slow, Role::Hot, true, at(10)), None, "not for long yet");
        assert_eq!(slowed.judge(&slow, Role::Hot, false, at(40)), None, "nobody is quicker");
        assert_eq!(slowed.judge(&health(0), Role::Hot, true, at(40)), None);
        for _ in 0..9 {
            assert_eq!(slowed.judge(&slow, Role::Hot, true, at(40)), Some(Role::Slowed), "long work may run for long");
        }
        slowed.begin(slow.name.uuid, at(40).0);
        assert_eq!(slowed.judge(&health(0), Role::Slowed, true, at(600)), None);
        assert_eq!(slowed.judge(&health(0), Role::Slowed, true, at(640)), Some(Role::Hot));
        assert_eq!(slowed.judge(&slow, Role::Hot, true, at(1000)), Some(Role::Slowed));
        slowed.begin(slow.name.uuid, at(1000).0);
        assert_eq!(slowed.judge(&health(0), Role::Slowed, true, at(1700)), None, "twice as long");
        assert_eq!(slowed.judge(&health(0), Role::Slowed, true, at(2200)), Some(Role::Hot));
        assert_eq!(slowed.judge(&slow, Role::Warm, true, at(99_000)), None, "a person's choice");
    }
}
