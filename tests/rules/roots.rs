//! The rules that say which root is taken, who its members are, and what the next root says: as in
//! `src/store/recover.rs`, `src/store/history.rs`, `src/volume/witness.rs`, over roots stripped of all else.

use std::sync::Arc;

/// Operations, as a set: bit i is operation i.
pub type Ops = u128;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    InSync,
    Out,
    Returning,
}

/// What a root says of a replica: identity and state.
pub type Member = (u32, State);

/// What a root says of a replica that is not in sync, in place of `Member::synced_txg`: the operations that it holds, those of the
/// last root that called it in sync; that one's version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Held {
    pub ops: Ops,
    pub version: u64,
}

/// A root without the parts that no rule looks at. `ops`: what its tree holds; `before`: what that of the group before held.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Root {
    pub version: u64,
    pub txg: u64,
    pub clean: bool,
    pub life: u32,
    pub log_seq: u64,
    pub members: Vec<Member>,
    /// One for each member.
    pub held: Vec<Held>,
    /// Epochs with the version where each begins.
    pub chain: Vec<(u32, u64)>,
    pub ops: Ops,
    pub before: Ops,
}

impl Root {
    pub fn epoch(&self) -> u32 {
        self.chain.last().expect("a chain is never empty").0
    }
    /// `format::Root::follows`.
    pub fn follows(&self, epoch: u32, version: u64) -> bool {
        let Some(i) = self.chain.iter().position(|e| e.0 == epoch) else { return false };
        let end = self.chain.get(i + 1).map_or(self.version + 1, |next| next.1);
        version >= self.chain[i].1 && version < end
    }
    pub fn in_sync(&self) -> Vec<u32> {
        self.members.iter().filter(|m| m.1 == State::InSync).map(|m| m.0).collect()
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Slot {
    /// Holds no root that proves itself.
    Damaged,
    Holds(Arc<Root>),
}

impl Slot {
    pub fn root(&self) -> Option<&Arc<Root>> {
        if let Slot::Holds(root) = self { Some(root) } else { None }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Witness {
    pub version: u64,
    pub epoch: u32,
    pub in_sync: Vec<u32>,
}

impl Witness {
    /// What is written down before this root is.
    pub fn of(root: &Root) -> Witness {
        Witness { version: root.version, epoch: root.epoch(), in_sync: root.in_sync() }
    }
}

/// Which rules are in force. The product: all of them.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// This host remembers who went on without whom.
    pub witness: bool,
    /// Damage excuses the lack of what may have stood there only, not any lag.
    pub damage_bounded: bool,
    /// A log record that follows a newer root than the one found proves that a root was lost.
    pub records_know: bool,
    /// It forgets a state that was never reached.
    pub witness_renewed: bool,
    /// A root that names who is out is durable before anything further is acknowledged.
    pub declare: bool,
    /// A root that is not on the newest one's chain is a fork.
    pub chain: bool,
    /// Groups by which a replica in sync can lag.
    pub lag_max: u64,
    /// Slot of the oldest version; never the newest root's. Otherwise by parity of the group.
    pub oldest_slot: bool,
    /// A new epoch at a mount without a replica in sync.
    pub epoch_degraded: bool,
    /// A new epoch when a replica in sync goes out.
    pub epoch_shrunk: bool,
    /// A new epoch at a mount after which a replica is no longer returning.
    pub epoch_returning: bool,
    /// A version is left free where a replica is missing: it may have one root more, never acknowledged.
    pub version_free: bool,
    /// What a root reaches is flushed before the root is written.
    pub flush_first: bool,
    /// Recovery without a replica in sync writes a root that says so before anything else.
    pub absent_first: bool,
    /// The same where one was returning.
    pub returning_first: bool,
    /// Recovery begins with the newest root on every replica in sync.
    pub enforce: bool,
    /// A replica that is missing, though the newest root calls it in sync, is asked for.
    pub need_all: bool,
    /// A replica that returns is called in sync only when it was proven.
    pub prove: bool,
    /// The newest root that proves itself is taken, not the one that most replicas have.
    pub newest: bool,
    /// Before anything else is written to a replica that returns, its own roots are made void.
    pub renounce: bool,
    /// Before a root is written to it, too, one is durable on the others that calls it returning.
    pub announce: bool,
    /// One that was written apart is not taken back.
    pub back_past: bool,
    /// Nor one with a root that the others had lost when they went on.
    pub back_skipped: bool,
    /// One that went out holds what the last root that called it in sync reached, not the one that calls it out.
    pub held_before: bool,
    /// An old copy holds less than that.
    pub old_copy: bool,
}

/// The product's.
pub const RULES: Rules = Rules {
    witness: true,
    damage_bounded: true,
    records_know: true,
    witness_renewed: true,
    declare: true,
    chain: true,
    lag_max: 1,
    oldest_slot: true,
    epoch_degraded: true,
    epoch_shrunk: true,
    epoch_returning: true,
    version_free: true,
    flush_first: true,
    absent_first: true,
    returning_first: true,
    enforce: true,
    need_all: true,
    prove: true,
    newest: true,
    renounce: true,
    announce: true,
    back_past: true,
    back_skipped: true,
    held_before: true,
    old_copy: true,
};

/// A replica that is there: identity and slots.
pub struct Found<'a> {
    pub id: u32,
    pub slots: &'a [Slot],
}

impl Found<'_> {
    /// Roots that prove themselves, newest first.
    fn newest(&self) -> Option<(usize, &Arc<Root>)> {
        let roots = self.slots.iter().enumerate().filter_map(|(i, slot)| slot.root().map(|root| (i, root)));
        // As a stable sort by falling version: the first of equals.
        roots.rev().max_by_key(|(_, root)| root.version)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    NothingThere,
    NoRoot,
    Forked,
    LeftBehind,
    NoneInSync,
    Missing,
    RootLost,
}

#[derive(Clone, Debug)]
pub struct Choice {
    pub root: Arc<Root>,
    pub slot: usize,
    /// For each member: index into what is there, and whether it is in sync.
    pub members: Vec<(Option<usize>, bool)>,
    pub slots: Vec<Option<u64>>,
    pub missing: usize,
    /// A slot that no replica in sync proves holds something on one of them: perhaps a newer root.
    pub may_be_newer: bool,
}

/// `recover::choose`.
pub fn choose(rules: &Rules, present: &[Found]) -> Result<Choice, Refusal> {
    if present.is_empty() {
        return Err(Refusal::NothingThere);
    }
    let newest = present.iter().filter_map(Found::newest);
    let chosen = if rules.newest {
        newest.max_by_key(|(_, root)| root.version)
    } else {
        let votes =
            |version: u64| present.iter().filter(|p| p.newest().is_some_and(|n| n.1.version == version)).count();
        newest.max_by_key(|(_, root)| (votes(root.version), std::cmp::Reverse(root.version)))
    };
    let Some((slot, root)) = chosen else { return Err(Refusal::NoRoot) };
    // A version is used once: two roots that share one and differ belong to two histories.
    let differs = |other: &Root| other.version == root.version && *other != **root;
    let apart =
        |p: &Found| p.newest().is_some_and(|(_, other)| !root.follows(other.epoch(), other.version) || differs(other));
    if rules.chain && present.iter().any(apart) {
        return Err(Refusal::Forked);
    }
    Ok(judge(rules, present, root.clone(), slot))
}

fn judge(rules: &Rules, present: &[Found], root: Arc<Root>, slot: usize) -> Choice {
    let mut members = Vec::new();
    let mut slots: Vec<Option<u64>> = vec![None; present[0].slots.len()];
    let mut missing = 0;
    for (id, state) in &root.members {
        let Some(index) = present.iter().position(|p| p.id == *id) else {
            missing += usize::from(*state == State::InSync);
            members.push((None, false));
            continue;
        };
        let replica = &present[index];
        let newest_txg = replica.newest().map_or(0, |(_, r)| r.txg);
        let newest = replica.newest().map_or(0, |(_, r)| r.version);
        let lacks = match rules.damage_bounded {
            true => lacks_roots(present, replica, newest, &root),
            false => replica.slots[slot] != Slot::Damaged,
        };
        let is_old = newest_txg + rules.lag_max < root.txg && lacks;
        let in_sync = *state == State::InSync && !is_old;
        missing += usize::from(*state == State::InSync && is_old);
        if in_sync {
            for (at, held) in replica.slots.iter().enumerate() {
                slots[at] = slots[at].max(held.root().map(|r| r.version));
            }
        }
        members.push((Some(index), in_sync));
    }
    // Whoever has it: it is put on all that are in sync.
    slots[slot] = slots[slot].max(Some(root.version));
    let unknown = |p: &Found| (0..slots.len()).any(|at| slots[at].is_none() && p.slots[at] == Slot::Damaged);
    let may_be_newer = present.iter().any(unknown);
    Choice { root, slot, members, slots, missing, may_be_newer }
}

/// `recover::lacks_roots`: what is damaged may have been one of the roots between.
fn lacks_roots(present: &[Found], replica: &Found, newest: u64, root: &Root) -> bool {
    let between = |r: &Arc<Root>| r.version > newest && r.version < root.version;
    let wanted = |at: &usize| present.iter().any(|p| p.slots[*at].root().is_some_and(between));
    let mut wanted = (0..replica.slots.len()).filter(wanted).peekable();
    wanted.peek().is_none() || wanted.any(|at| replica.slots[at] != Slot::Damaged)
}

/// `witness::check`: whether this host has seen a newer state on a replica that is not there.
pub fn left_behind(witness: &Witness, root: &Root, present: &[Found]) -> bool {
    let known = root.chain.iter().any(|epoch| epoch.0 == witness.epoch);
    if known || witness.version <= root.chain[0].1 {
        return false;
    }
    !witness.in_sync.iter().all(|id| present.iter().any(|p| p.id == *id))
}

/// `RootState::free_slot`.
pub fn free_slot(rules: &Rules, slots: &[Option<u64>], newest: usize, txg: u64) -> usize {
    if !rules.oldest_slot {
        return (txg % slots.len() as u64) as usize;
    }
    (0..slots.len())
        .filter(|slot| *slot != newest || slots[*slot].is_none())
        .min_by_key(|slot| slots[*slot])
        .expect("there are slots")
}

/// `replace::back::holds_until`, in operations: what member `at` of `now` holds if `own` is its newest root. `None`: it is not taken back.
pub fn holds(rules: &Rules, now: &Root, at: usize, own: Option<&Root>) -> Option<Ops> {
    let (id, held) = (now.members[at].0, now.held[at]);
    let Some(own) = own else { return Some(0) };
    if rules.back_past && !now.follows(own.epoch(), own.version) {
        return None;
    }
    let in_own = own.members.iter().position(|member| member.0 == id);
    let called = in_own.map(|i| own.members[i].1);
    // An epoch begins with the root that calls it out.
    let went = now.chain.iter().map(|epoch| epoch.1).find(|first| *first > held.version);
    let is_newer = held.version > 0 && own.version > held.version && went.is_some_and(|went| own.version + 1 < went);
    if rules.back_skipped && is_newer && called == Some(State::InSync) {
        return None;
    }
    Some(match (in_own, called) {
        (Some(_), Some(State::InSync)) if own.version >= held.version || !rules.old_copy => held.ops,
        (Some(_), Some(State::InSync)) => held.ops & own.before,
        (Some(i), _) => held.ops & own.held[i].ops,
        (None, _) => 0,
    })
}
