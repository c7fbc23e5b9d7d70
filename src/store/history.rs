//! Roots in their slots, and who is in them.
//!
//! *Guarantees*: when [`Store::write_root`] or [`Store::declare_members`] returned, a root that names exactly the
//! replicas in sync is durable on each of them; versions rise and are never used twice (invariant 11); the newest
//! durable root is never overwritten. *Assumes*: everything that the new root reaches is durable (invariant 3).
//! *Fails when*: no replica takes writes. *Order*: called with the root lock held; takes none.
//! *Not here*: what a root contains besides members and history.
//!
//! If a replica fails while a root is being written, one more root follows that names it out; nothing is
//! acknowledged before. When the set in sync shrinks a new epoch begins, so that a replica that was left behind, and
//! was written to alone later, is recognised as a fork.

use super::commit::RootState;
use super::{Store, StoreError, risk};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Left, Mirror, ReplicaState};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{Member, MemberState, REPLICAS_MAX, Role, Root, Txg, Uuid};
use std::collections::VecDeque;
use std::sync::Arc;

/// Called with a root that names fewer replicas, before anything is acknowledged without them.
pub type ShrinkHook = Box<dyn Fn(&Root) + Send + Sync>;

impl Store {
    /// If a replica went out (or joined) since the newest root, make a root durable that says so.
    pub(crate) fn declare_members(&self) -> Result<(), StoreError> {
        let mut state = self.root.lock();
        if self.mirror.members().generation == state.generation {
            return Ok(());
        }
        let root = state.root.clone();
        self.write_root(&mut state, root)
    }

    /// At recovery: if a replica that the newest root calls in sync is not, make a root durable that says so, before
    /// anything else is written. That replica may hold one root more, which was being written when the power failed and
    /// was never acknowledged: what that one reaches stands here in space that is free by ours. If it were written over
    /// now and the power failed, both would be found in sync next time, with that root. And its version is left free, so
    /// that it lies on our chain and is no second history. The same holds of one that was returning: it took roots, too.
    pub(crate) fn declare_absent(&self) -> Result<(), StoreError> {
        let mut state = self.root.lock();
        let called = state.root.members.iter().filter(|member| member.state == MemberState::InSync).count();
        let returning = state.root.members.iter().any(|member| member.state == MemberState::Returning);
        if self.mirror.members().count() >= called && !returning {
            return Ok(());
        }
        state.fork_next = true;
        let root = state.root.clone();
        self.write_root(&mut state, root)?;
        state.fork_next = false;
        Ok(())
    }

    /// As `declare_members`, from the thread that looks at the containers; a failure latches the store.
    pub(crate) fn declare(&self) -> Result<(), StoreError> {
        self.check_alive()?;
        let result = self.declare_members();
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// Change who is in the mirror, and make a root durable that says so, before any other root can be written.
    pub(crate) fn change_members<T>(&self, change: impl FnOnce(&Mirror) -> T) -> Result<T, StoreError> {
        self.change_root(|mirror, _| change(mirror))
    }

    /// As [`Store::change_members`]; what a root says of its members can be changed with it.
    fn change_root<T>(&self, change: impl FnOnce(&Mirror, &mut Root) -> T) -> Result<T, StoreError> {
        let mut state = self.root.lock();
        let mut root = state.root.clone();
        let changed = change(&self.mirror, &mut root);
        let written = self.write_root(&mut state, root);
        drop(state);
        written.inspect_err(|error| self.fail(error)).map(|()| changed)
    }

    /// A durable root on those in sync says that the replica in `slot`, which is out, is returning, and that it holds every block
    /// born in group `synced` or before that is still in use (0: not known). It takes no writes yet: a root may reach it and
    /// nobody else before the power fails, and so the next mount must know, without it, to begin an epoch. Gives that root and
    /// its slot.
    pub(crate) fn announce(&self, slot: usize, synced: Txg) -> Result<(usize, Root), StoreError> {
        self.say_coming(Some(slot), Some((slot, synced)))
    }

    /// The replica that was announced takes writes now, or does not come.
    pub(crate) fn end_announcement(&self) -> Result<(), StoreError> {
        if self.root.lock().coming.is_none() {
            return Ok(());
        }
        self.say_coming(None, None).map(drop)
    }

    /// A durable root says of the replica in `slot`, which is not in sync, up to which group it holds everything.
    pub(crate) fn note_synced(&self, slot: usize, synced: Txg) -> Result<(), StoreError> {
        self.change_root(|_, root| risk::holds(&mut root.members[slot], synced, &VecDeque::new()))
    }

    fn say_coming(&self, coming: Option<usize>, holds: Option<(usize, Txg)>) -> Result<(usize, Root), StoreError> {
        let mut state = self.root.lock();
        state.coming = coming;
        let mut root = state.root.clone();
        if let Some((slot, synced)) = holds {
            risk::holds(&mut root.members[slot], synced, &VecDeque::new());
        }
        let written = self.write_root(&mut state, root).map(|()| (state.newest_slot, state.root.clone()));
        drop(state);
        written.inspect_err(|error| self.fail(error))
    }

    /// A durable root says that `replica` in `slot`, which is warm or cold, holds the state of group `synced` and has the root of
    /// `version`, if that is still so. The version goes with the group: on an old copy of that replica an older root stands, and says so.
    pub(crate) fn note_followed(
        &self,
        slot: usize,
        replica: Uuid,
        (synced, version): (Txg, u64),
    ) -> Result<(), StoreError> {
        let follows = |member: &&mut Member| {
            member.replica == replica && member.state == MemberState::Out && member.role != Role::Hot
        };
        if self.newest_root().1.members.get(slot).is_none_or(|member| member.synced_txg == synced) {
            return Ok(());
        }
        let mut state = self.root.lock();
        let mut root = state.root.clone();
        if let Some(member) = root.members.get_mut(slot).filter(follows) {
            risk::holds(member, synced, &state.made);
            member.synced_version = version;
        }
        let written = self.write_root(&mut state, root);
        drop(state);
        written.inspect_err(|error| self.fail(error))
    }

    /// A person sends the replica in `slot` away: it is out; `remembered` by the next mounts, too. Durable. False: it is the
    /// last one in sync, and stays.
    pub(crate) fn send_away(&self, slot: usize, cause: &str, remembered: bool) -> Result<bool, StoreError> {
        self.change_root(|mirror, root| {
            let leaves = mirror.send_out(slot, cause);
            if let Some(member) = root.members.get_mut(slot).filter(|_| leaves) {
                member.offline = remembered;
            }
            leaves
        })
    }

    /// The replica in `slot` is kept as `role`; unless that is hot, it is out with it. Durable. False: it is the last one in
    /// sync, and stays as it was.
    pub(crate) fn set_role(&self, slot: usize, role: Role) -> Result<bool, StoreError> {
        let why = if role == Role::Slowed { ", for it is slow" } else { "" };
        let cause = format!("made {}{why}", role.name());
        self.change_root(|mirror, root| {
            let may = role == Role::Hot || mirror.send_out(slot, &cause);
            if let Some(member) = root.members.get_mut(slot).filter(|_| may) {
                member.role = role;
            }
            may
        })
    }

    /// It may return, if it was sent away. Durable.
    pub(crate) fn let_return(&self, slot: usize) -> Result<(), StoreError> {
        // One that is attached, to take the place of another, is no member yet.
        if self.newest_root().1.members.get(slot).is_some_and(|member| member.offline) {
            self.change_root(|_, root| root.members[slot].offline = false)?;
        }
        Ok(())
    }

    /// The attached replica, which has been proven, becomes a member: a durable root calls it returning, so that no mount
    /// without it can miss that it may have got the next one, which calls it in sync. Gives its slot; `None`: it went out.
    pub(crate) fn name_attached(&self, attached: usize) -> Result<Option<usize>, StoreError> {
        self.change_root(|mirror, root| {
            let (slot, replica) = mirror.settle(attached)?;
            if slot == root.members.len() {
                root.members.push(Member::new(replica, root.version, root.time_ns));
            }
            Some(slot)
        })
    }

    /// Whether the newest root names whoever is in `slot`.
    pub(crate) fn is_member(&self, slot: usize) -> bool {
        let here = self.mirror.health().into_iter().nth(slot);
        here.is_some_and(|h| self.newest_root().1.members.get(slot).is_some_and(|m| m.replica == h.name.uuid))
    }

    /// Whether one more replica can be attached.
    pub(crate) fn has_free_slot(&self) -> bool {
        let members = self.newest_root().1.members;
        members.len() < REPLICAS_MAX || members.iter().any(|m| m.state == MemberState::Detached)
    }

    /// The replica in `slot` is a member no more, for ever. Durable.
    pub(crate) fn detach(&self, slot: usize, cause: &str) -> Result<Left, StoreError> {
        self.change_root(|mirror, _| mirror.leave(slot, cause))
    }

    /// Write `root` with the next version and the present members, until that is the truth.
    pub(crate) fn write_root(&self, state: &mut RootState, mut root: Root) -> Result<(), StoreError> {
        // A replica can fail at most once each; one more round to write the truth, and one to spare.
        for _ in 0..=self.mirror.replicas() + 1 {
            let members = self.mirror.members();
            root.version = state.version_max + 1 + u64::from(state.fork_next);
            state.version_max = root.version;
            root.time_ns = self.world.now_ns().max(0) as u64;
            self.name_members(&mut root, state, members.in_sync);
            if let Some(hook) = &state.on_shrink
                && root.epoch().id != state.root.epoch().id
            {
                hook(&root);
            }
            let slot = state.free_slot();
            let bytes = root.encode(slot);
            // Counters of a hostile volume can be at their end: what the next mount refuses must not become the newest.
            Root::decode(&bytes, slot, root.volume, &self.label.geometry)?;
            let block = Slice::whole(Buf::from_slice(&bytes));
            // Whatever becomes of it, this slot may hold this version from now on.
            state.slots[slot] = Some(root.version);
            self.mirror.write_root(Root::addr(slot), block)?;
            state.root = root.clone();
            state.newest_slot = slot;
            state.generation = members.generation;
            *self.named.lock() = Arc::new(root.clone());
            if self.mirror.members().generation == members.generation {
                return Ok(());
            }
        }
        Err(StoreError::Failed("replicas keep changing while a root is written".into()))
    }

    fn name_members(&self, root: &mut Root, state: &RootState, in_sync: u8) {
        let now = root.time_ns;
        let version = root.version;
        let mut shrunk = false;
        let health = self.mirror.health();
        // The mirror knows who is in a slot: a change that did not come about renames nobody.
        for (member, held) in root.members.iter_mut().zip(&health) {
            if member.replica != held.name.uuid {
                // The one that leaves must be recognised as left behind.
                shrunk |= member.state == MemberState::InSync;
                *member = Member::new(held.name.uuid, version, now);
            }
        }
        for (slot, member) in root.members.iter_mut().enumerate() {
            let new = match health.get(slot).map(|h| h.state) {
                _ if in_sync >> slot & 1 == 1 => MemberState::InSync,
                Some(ReplicaState::Returning) => MemberState::Returning,
                Some(ReplicaState::Detached) => MemberState::Detached,
                _ if state.coming == Some(slot) => MemberState::Returning,
                _ => MemberState::Out,
            };
            if new != member.state {
                // Before a root was written that calls it in sync, everything that this one reaches was flushed on it.
                // Of the group that is being committed that is not known.
                match (member.state, new) {
                    (MemberState::InSync, _) => {
                        (member.synced_txg, member.synced_version) = (state.root.txg, state.root.version);
                        member.missed = Some(if root.txg > state.root.txg { state.grown } else { 0 });
                    }
                    (_, MemberState::InSync) => {
                        (member.synced_txg, member.synced_version, member.offline) = (0, 0, false);
                        member.role = Role::Hot;
                        member.missed = None;
                    }
                    _ => {}
                }
                if new == MemberState::Detached {
                    (member.offline, member.role) = (false, Role::Hot);
                }
                shrunk |= member.state == MemberState::InSync;
                member.state = new;
                member.since_version = version;
                member.since_ns = now;
            }
        }
        risk::note_since(root);
        if shrunk || state.fork_next || root.chain.is_empty() {
            root.begin_epoch(self.world.uuid());
        }
    }

    /// Go on in a new epoch, though nobody is missing: somebody has seen a state that this history does not know.
    pub fn begin_apart(&self) {
        self.root.lock().fork_next = true;
    }

    /// As [`Store::begin_apart`], and above `version`: roots up to it stand elsewhere, that this history does not know.
    pub fn begin_above(&self, version: u64) {
        let mut state = self.root.lock();
        state.version_max = state.version_max.max(version);
        state.fork_next = true;
    }

    /// The newest durable root and its slot.
    pub(crate) fn newest_root(&self) -> (usize, Root) {
        let state = self.root.lock();
        (state.newest_slot, state.root.clone())
    }

    /// Read the newest root back from the medium of each replica: the one lost write that no pointer reveals.
    /// A replica that does not have it gets it once more; one that does not take it then goes out.
    pub fn verify_root(&self) {
        let (slot, root) = {
            let state = self.root.lock();
            (state.newest_slot, state.root.clone())
        };
        let members = self.mirror.members();
        let expected = root.encode(slot);
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            let found = self.mirror.read_raw(replica, Root::addr(slot), 1);
            let same = found.is_ok_and(|block| block[..] == expected[..]);
            if !same {
                self.give_root(replica, slot, &root, &expected);
            }
        }
    }

    fn give_root(&self, replica: usize, slot: usize, root: &Root, expected: &[u8]) {
        // Where a newer root is, its slot may be this one, and a replica that joined with it never had this root. Held, so
        // that no newer one comes now.
        let state = self.root.lock();
        if state.root.version != root.version {
            return;
        }
        let block = Slice::whole(Buf::from_slice(expected));
        let written = self.mirror.write_raw(replica, Root::addr(slot), block);
        let there = written
            .and_then(|()| self.mirror.flush_raw(replica))
            .and_then(|()| self.mirror.read_raw(replica, Root::addr(slot), 1));
        if there.is_ok_and(|block| block[..] == *expected) {
            log::warn!("replica {replica}: root {} was not on the medium; healed", root.version);
            self.mirror.count_healed(replica);
        } else if self.mirror.members().count() > 1 {
            self.mirror.set_out(replica, "a root that it had acknowledged is not on the medium");
        }
    }
}

impl RootState {
    /// The state of a volume whose newest root is `root`, found in `slot`.
    pub fn new(root: Root, newest_slot: usize, slots: [Option<u64>; ROOT_SLOTS]) -> RootState {
        let version_max = slots.iter().flatten().copied().max().unwrap_or(0).max(root.version);
        let damaged = [false; ROOT_SLOTS];
        RootState {
            root,
            newest_slot,
            slots,
            version_max,
            generation: 0,
            fork_next: false,
            coming: None,
            grown: 0,
            made: VecDeque::new(),
            damaged,
            on_shrink: None,
        }
    }

    /// A root that cannot be read now may have had one of the next versions: it must never be taken for one of those to
    /// come (invariant 11).
    pub(crate) fn skip_versions(&mut self) {
        self.version_max += ROOT_SLOTS as u64;
    }

    /// The slot of the oldest version; never the newest durable one.
    fn free_slot(&self) -> usize {
        (0..ROOT_SLOTS)
            .filter(|slot| *slot != self.newest_slot || self.slots[*slot].is_none())
            .min_by_key(|slot| self.slots[*slot])
            .expect("there are 16 slots")
    }
}
