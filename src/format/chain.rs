//! The chain of epochs in a root: what tells a history's past from a fork, and from what it has forgotten.
//!
//! *Guarantees*: what the chain does not know is never called its past; what it may have forgotten is not called a fork.
//! *Assumes*: epochs are random, and versions are used once. *Fails when*: never.
//! *Order*: none. *Not here*: when an epoch begins (`store::history`), who may be trusted (`store::recover`).
//!
//! **What is forgotten first.** A chain holds [`CHAIN_MAX`] epochs. An epoch in it serves to recognise a replica whose newest root
//! belongs to it. A member that is away has, as far as its last parting goes, the last root that called it in sync or one
//! of those up to the one that called it out; those epochs are kept for as long as it is away, however many begin
//! meanwhile (a third replica that comes and goes), and so are the newest. What goes is the oldest one, or, if that one is
//! kept, two neighbours are forgotten together: the first becomes a *gap*, an epoch whose id is all ones, which nobody has.
//! So the stretch of each epoch that stays is what it was, and a gap only ever makes "not known" of what was known.

use super::Uuid;
use super::root::{CHAIN_MAX, Epoch, Member, MemberState, Root};

/// In place of the id of epochs that were forgotten.
const GAP: Uuid = Uuid([0xff; 16]);
/// The newest epochs, which are never forgotten: a power cut leaves a replica in sync with roots a little older.
const KEPT: usize = 8;

impl Epoch {
    /// Whether it stands for epochs that were forgotten.
    pub fn is_gap(&self) -> bool {
        self.id == GAP
    }
}

/// What a root of some epoch and version is to a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// Its past, or present.
    Past,
    /// Written apart from it.
    Forked,
    /// Of a time whose epochs the history has forgotten: it may be its past or a fork.
    TooOld,
}

impl Root {
    /// The epoch of this root.
    pub fn epoch(&self) -> Epoch {
        *self.chain.last().expect("a chain is never empty")
    }

    /// What a root of `epoch` and `version` is to this root.
    pub fn kinship(&self, epoch: Uuid, version: u64) -> Kinship {
        let known = self.chain.iter().position(|e| e.id == epoch && e.id != GAP);
        match known {
            Some(i) if version >= self.chain[i].first_version && version < self.end_of(i) => Kinship::Past,
            None if self.has_forgotten(version) => Kinship::TooOld,
            _ => Kinship::Forked,
        }
    }

    /// Whether a root of `epoch` and `version` lies on this root's chain, so that it is this history's past (or present).
    pub fn follows(&self, epoch: Uuid, version: u64) -> bool {
        self.kinship(epoch, version) == Kinship::Past
    }

    /// Whether the epoch that `version` belonged to is not known any more.
    pub fn has_forgotten(&self, version: u64) -> bool {
        let gap =
            |i: usize| self.chain[i].id == GAP && version >= self.chain[i].first_version && version < self.end_of(i);
        version < self.chain[0].first_version || (0..self.chain.len()).any(gap)
    }

    /// The version behind the last one of the epoch at `i`.
    fn end_of(&self, i: usize) -> u64 {
        self.chain.get(i + 1).map_or(self.version + 1, |next| next.first_version)
    }

    /// Begin a new epoch with this root's version.
    pub fn begin_epoch(&mut self, id: Uuid) {
        while self.chain.len() >= CHAIN_MAX {
            self.forget_an_epoch();
        }
        self.chain.push(Epoch { id, first_version: self.version });
    }

    fn forget_an_epoch(&mut self) {
        let kept: Vec<bool> = (0..self.chain.len()).map(|i| self.is_wanted(i)).collect();
        if kept[0]
            && let Some(i) = (1..kept.len() - 1).find(|i| !kept[*i] && !kept[i + 1])
        {
            self.chain[i].id = GAP;
            self.chain.remove(i + 1);
        } else {
            self.chain.remove(0);
        }
    }

    /// Whether a member that is away may have a newest root of the epoch at `i`, or one in sync.
    fn is_wanted(&self, i: usize) -> bool {
        let of_this = |version: u64| version >= self.chain[i].first_version && version < self.end_of(i);
        let away = |member: &&Member| member.state != MemberState::InSync;
        let parted =
            |member: &Member| of_this(member.synced_version) || of_this(member.since_version.saturating_sub(1));
        i + KEPT >= self.chain.len() || self.members.iter().filter(away).any(parted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::root::tests::sample;

    /// `epochs` of ten versions each begin, while the second member is away since version `since`.
    fn many(epochs: u64, since: u64) -> Root {
        let mut root = sample();
        root.members[1].state = MemberState::Out;
        (root.members[1].synced_version, root.members[1].since_version) = (since - 1, since);
        for i in 0..epochs {
            root.version += 10;
            root.begin_epoch(number(i));
        }
        root.version += 5;
        root
    }

    fn number(i: u64) -> Uuid {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&i.to_le_bytes());
        Uuid(id)
    }

    #[test]
    fn chain_tells_past_from_fork() {
        let root = sample();
        assert!(root.follows(Uuid([5; 16]), 5) && root.follows(Uuid([6; 16]), 9));
        assert!(!root.follows(Uuid([5; 16]), 6), "epoch 5 ended at version 6");
        assert!(!root.follows(Uuid([6; 16]), 10) && !root.follows(Uuid([7; 16]), 3));
        assert_eq!(root.kinship(Uuid([7; 16]), 3), Kinship::Forked, "nothing was forgotten");
    }

    #[test]
    fn the_epoch_of_one_that_is_away_is_not_forgotten() {
        let root = many(500, 9);
        assert_eq!(root.chain.len(), CHAIN_MAX);
        assert_eq!(root.kinship(Uuid([6; 16]), 8), Kinship::Past);
        assert_eq!(root.kinship(Uuid([6; 16]), 30), Kinship::Forked, "its epoch ended long before");
        // It began with the root at version 19.
        for i in 0..500 {
            let version = 19 + 10 * i;
            let said = root.kinship(number(i), version + 3);
            assert!(said == Kinship::Past || said == Kinship::TooOld, "epoch {i}: {said:?}");
            assert_eq!(said == Kinship::Past, !root.has_forgotten(version + 3), "epoch {i}");
            assert_ne!(root.kinship(number(i), version + 10), Kinship::Past, "epoch {i} had ended");
        }
        assert_eq!(root.kinship(number(499), 19 + 4990), Kinship::Past);
        assert_eq!(root.kinship(Uuid([9; 16]), 19 + 4990), Kinship::Forked);
        assert_ne!(root.kinship(GAP, 50), Kinship::Past, "nobody has a gap for its epoch");
        let geometry = crate::format::Geometry::new(16384, 32000, 256).unwrap();
        assert_eq!(Root::decode(&root.encode(3), 3, root.volume, &geometry), Ok(root));
    }

    #[test]
    fn with_nobody_away_the_oldest_is_forgotten() {
        let mut root = many(1, 9);
        root.members[1].state = MemberState::InSync;
        for i in 1..200 {
            root.version += 10;
            root.begin_epoch(number(i));
        }
        assert!(root.chain.iter().all(|epoch| epoch.id != GAP));
        assert_eq!(root.kinship(Uuid([5; 16]), 3), Kinship::TooOld, "never called a fork");
        assert_eq!(root.kinship(number(140), root.chain[4].first_version), Kinship::Past);
    }
}
