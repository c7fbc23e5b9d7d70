//! Where a check reads: a mirror and one root, offline or under a live store; and the blocks at fixed places.
//!
//! *Guarantees*: labels and the root are compared with what they must be, byte by byte, on every replica in sync.
//! *Assumes*: nothing writes the root's slot meanwhile: [`StoreSource`] holds the root lock, other callers have no
//! store. The root's blocks stay pinned: [`StoreSource`] holds the committed state. *Fails when*: never. *Order*: the root lock.
//! *Not here*: log records and older roots, which nothing relies on once this root is durable.

use super::finding::Structure;
use crate::disk::{Buf, Combination, Damage, DiskError, Mirror, Proof, ReplicaState, Slice};
use crate::format::geometry::{ROOT_SLOTS, ROOTS_AT};
use crate::format::{Addr, Geometry, Label, Root};
use crate::store::delta::Committed;
use crate::store::{Store, StoreError};
use std::sync::Arc;

/// What was found at a fixed place of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedProof {
    /// The replica's slot.
    pub replica: usize,
    /// The block.
    pub addr: Addr,
    /// What stands there.
    pub structure: Structure,
    /// What was found.
    pub proof: Proof,
}

/// What a check needs.
pub trait CheckSource: Sync {
    /// Identity and geometry.
    fn label(&self) -> &Label;
    /// The root whose state is checked; its blocks are pinned.
    fn root(&self) -> &Root;
    /// Slots of the replicas that must hold everything.
    fn replicas(&self) -> Vec<usize>;
    /// What the user calls a replica.
    fn replica_name(&self, replica: usize) -> String;
    /// One verdict for each of `sums.len()` blocks from `addr`, from the medium.
    fn prove(&self, replica: usize, addr: Addr, sums: &[u64], heal: bool) -> Vec<Proof>;
    /// Put together a block that no replica proves; with `heal`, write it.
    fn combine(&self, addr: Addr, sum: u64, heal: bool) -> Combination;
    /// Proven bytes, from any replica.
    fn read(&self, addr: Addr, sums: &[u64]) -> Result<Buf, StoreError>;
    /// Prove labels and the root on every replica.
    fn prove_fixed(&self, heal: bool) -> Vec<FixedProof>;
}

fn in_sync(mirror: &Mirror) -> Vec<usize> {
    mirror.health().iter().filter(|h| h.state == ReplicaState::InSync).map(|h| h.slot).collect()
}

fn name(mirror: &Mirror, replica: usize) -> String {
    mirror.health().get(replica).map(|h| h.name.path.clone()).unwrap_or_default()
}

/// A mirror that no store uses.
pub struct MirrorSource<'a> {
    mirror: &'a Mirror,
    label: &'a Label,
    root: &'a Root,
}

impl<'a> MirrorSource<'a> {
    /// The state of `root`, which is the newest one.
    pub fn new(mirror: &'a Mirror, label: &'a Label, root: &'a Root) -> MirrorSource<'a> {
        MirrorSource { mirror, label, root }
    }
}

impl CheckSource for MirrorSource<'_> {
    fn label(&self) -> &Label {
        self.label
    }
    fn root(&self) -> &Root {
        self.root
    }
    fn replicas(&self) -> Vec<usize> {
        in_sync(self.mirror)
    }
    fn replica_name(&self, replica: usize) -> String {
        name(self.mirror, replica)
    }
    fn prove(&self, replica: usize, addr: Addr, sums: &[u64], heal: bool) -> Vec<Proof> {
        self.mirror.prove(replica, addr, sums, heal)
    }
    fn combine(&self, addr: Addr, sum: u64, heal: bool) -> Combination {
        self.mirror.combine(addr, sum, heal)
    }
    fn read(&self, addr: Addr, sums: &[u64]) -> Result<Buf, StoreError> {
        Ok(self.mirror.read(addr, sums)?)
    }
    fn prove_fixed(&self, heal: bool) -> Vec<FixedProof> {
        let replicas = in_sync(self.mirror);
        let holds = |slot: usize| {
            let expected = self.root.encode(slot);
            let has =
                |r: &usize| self.mirror.read_raw(*r, Root::addr(slot), 1).is_ok_and(|block| block[..] == expected[..]);
            replicas.iter().any(has)
        };
        let slot = (0..ROOT_SLOTS).find(|slot| holds(*slot));
        prove_fixed(self.mirror, self.label, self.root, slot, heal)
    }
}

/// A live store: the state that was durable when this was made, pinned until it is dropped.
pub struct StoreSource<'a> {
    store: &'a Store,
    /// Not the whole view: the open group must not be held for as long as a check takes.
    committed: Arc<Committed>,
    /// Recovery has still to write the newest root to replicas that a power cut kept from it.
    unfinished: bool,
}

impl<'a> StoreSource<'a> {
    /// Pin the newest durable state.
    pub fn new(store: &'a Store) -> StoreSource<'a> {
        StoreSource { store, committed: store.view().committed.clone(), unfinished: false }
    }

    /// As `new`, for a store that was opened to be looked at before recovery: that the newest root stands on one replica
    /// only, and an older one or nothing in its slot on another, is what a power cut leaves, no damage.
    pub fn before_recovery(store: &'a Store) -> StoreSource<'a> {
        StoreSource { unfinished: true, ..StoreSource::new(store) }
    }
}

impl CheckSource for StoreSource<'_> {
    fn label(&self) -> &Label {
        self.store.label()
    }
    fn root(&self) -> &Root {
        &self.committed.root
    }
    fn replicas(&self) -> Vec<usize> {
        in_sync(self.store.mirror())
    }
    fn replica_name(&self, replica: usize) -> String {
        name(self.store.mirror(), replica)
    }
    fn prove(&self, replica: usize, addr: Addr, sums: &[u64], heal: bool) -> Vec<Proof> {
        self.store.mirror().prove(replica, addr, sums, heal)
    }
    fn combine(&self, addr: Addr, sum: u64, heal: bool) -> Combination {
        self.store.mirror().combine(addr, sum, heal)
    }
    fn read(&self, addr: Addr, sums: &[u64]) -> Result<Buf, StoreError> {
        Ok(self.store.mirror().read(addr, sums)?)
    }
    fn prove_fixed(&self, heal: bool) -> Vec<FixedProof> {
        let state = self.store.root.lock();
        let mut proofs =
            prove_fixed(self.store.mirror(), self.store.label(), &state.root, Some(state.newest_slot), heal);
        if self.unfinished && !heal {
            proofs.retain(|proof| !matches!(proof.structure, Structure::Root { .. }) || !self.awaits_root(proof));
        }
        proofs
    }
}

impl StoreSource<'_> {
    /// Whether the slot holds what stood there before the newest root.
    fn awaits_root(&self, proof: &FixedProof) -> bool {
        let Structure::Root { slot } = proof.structure else { return false };
        let label = self.store.label();
        let Ok(block) = self.store.mirror().read_raw(proof.replica, proof.addr, 1) else { return false };
        let before = Root::decode(&block, slot, label.volume, &label.geometry);
        block.iter().all(|byte| *byte == Root::VOID)
            || before.is_ok_and(|root| root.version < self.committed.root.version)
    }
}

/// Labels, and the root in `slot` (`None`: no replica has it).
fn prove_fixed(mirror: &Mirror, label: &Label, root: &Root, slot: Option<usize>, heal: bool) -> Vec<FixedProof> {
    let mut proofs = Vec::new();
    for replica in in_sync(mirror) {
        let own = Label { replica: mirror.health()[replica].name.uuid, ..label.clone() };
        let mut add = |addr, structure, proof| proofs.push(FixedProof { replica, addr, structure, proof });
        for addr in Geometry::label_copies() {
            add(addr, Structure::Label, prove_one(mirror, replica, addr, &own.encode(addr), heal));
        }
        let Some(slot) = slot else {
            add(ROOTS_AT, Structure::Root { slot: 0 }, Proof::Lost(Damage::Checksum));
            continue;
        };
        let proof = prove_one(mirror, replica, Root::addr(slot), &root.encode(slot), heal);
        add(Root::addr(slot), Structure::Root { slot }, proof);
    }
    proofs
}

/// Compare one block of one replica with what must stand there.
fn prove_one(mirror: &Mirror, replica: usize, addr: Addr, expected: &[u8], heal: bool) -> Proof {
    let look = || match mirror.read_raw(replica, addr, 1) {
        Ok(block) if block[..] == *expected => Proof::Correct,
        Ok(block) if block.iter().all(|byte| *byte == 0) => Proof::Damaged(Damage::Zeros),
        Ok(_) => Proof::Damaged(Damage::Checksum),
        Err(DiskError::Replica { detail, .. }) if mirror.members().contains(replica) => {
            Proof::Damaged(Damage::Unreadable(detail))
        }
        Err(error) => Proof::Unproven(error.to_string()),
    };
    let damage = match look() {
        Proof::Damaged(damage) => damage,
        other => return other,
    };
    let writable = mirror.backing(replica).is_some_and(|backing| !backing.facts().read_only);
    if !heal || !writable || !mirror.members().contains(replica) {
        return Proof::Damaged(damage);
    }
    let written = mirror.write_raw(replica, addr, Slice::whole(Buf::from_slice(expected)));
    let flushed = written.and_then(|()| mirror.flush_raw(replica));
    match flushed.map(|()| look()) {
        Ok(Proof::Correct) => Proof::Healed(damage),
        _ => Proof::Damaged(damage),
    }
}
