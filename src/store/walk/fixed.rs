//! What nothing points at: labels, roots in their slots, the log. Replicas are compared, and the one that lacks what
//! another one proves gets it.
//!
//! *Guarantees*: only bytes that prove themselves, or that this store knows because it wrote them, are written; what
//! was written is read back from the medium. No root slot and no place in the ring is written by others meanwhile.
//! *Assumes*: the replicas asked for take writes. *Fails when*: never; each block has its verdict.
//! *Order*: for a slot the root lock, for a record the log's write lock; held for one slot or record at a time.
//! *Not here*: blocks that pointers name ([`super`]).

use super::Part;
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Damage, Proof};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{Addr, BLOCK, Geometry, Label, Root, log};
use crate::store::Store;
use crate::store::log::LiveRecord;

/// What was found at a fixed place of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedProof {
    /// What stands there.
    pub part: Part,
    /// The replica's slot.
    pub replica: usize,
    /// The block.
    pub addr: Addr,
    /// What was found.
    pub proof: Proof,
}

impl Store {
    /// Prove both copies of the label on each of `replicas`.
    pub fn prove_labels(&self, replicas: &[usize], heal: bool) -> Vec<FixedProof> {
        let health = self.mirror.health();
        let mut proofs = Vec::new();
        for &replica in replicas {
            let own = Label { replica: health[replica].name.uuid, ..self.label.clone() };
            for addr in Geometry::label_copies() {
                let proof = self.prove_as(replica, addr, &own.encode(addr), heal);
                proofs.push(FixedProof { part: Part::Label, replica, addr, proof });
            }
        }
        proofs
    }

    /// Prove on each of `replicas` every root that another replica in sync proves in its slot. The newest one is known.
    pub fn prove_roots(&self, replicas: &[usize], heal: bool) -> Vec<FixedProof> {
        let mut proofs = Vec::new();
        for slot in 0..ROOT_SLOTS {
            // Held while the slot is looked at, so that no new root goes into it.
            let state = self.root.lock();
            let Some(version) = state.slots[slot] else { continue };
            let expected = if slot == state.newest_slot {
                Some(state.root.encode(slot))
            } else {
                let proves = |block: &Buf| {
                    let root = Root::decode(block, slot, self.label.volume, &self.label.geometry);
                    root.is_ok_and(|root| root.version == version)
                };
                let members = self.mirror.members();
                let mut sources = (0..self.mirror.replicas()).filter(|r| members.contains(*r));
                sources
                    .find_map(|r| self.mirror.read_raw(r, Root::addr(slot), 1).ok().filter(proves))
                    .map(|b| b.to_vec())
            };
            let Some(expected) = expected else { continue };
            for &replica in replicas {
                let addr = Root::addr(slot);
                let proof = self.prove_as(replica, addr, &expected, heal);
                proofs.push(FixedProof { part: Part::Root, replica, addr, proof });
            }
        }
        proofs
    }

    /// Prove on each of `replicas` the records that replay would need; each from whichever replica has it.
    pub fn prove_log(&self, replicas: &[usize], heal: bool) -> Vec<FixedProof> {
        let (id, records) = self.log.live();
        let mut proofs = Vec::new();
        for record in records {
            let _held = self.log.hold();
            if !self.log.is_live(record.seq) {
                continue;
            }
            let addr = self.label.geometry.log_at + u64::from(record.at);
            let members = self.mirror.members();
            let mut sources = (0..self.mirror.replicas()).filter(|r| members.contains(*r));
            let good = sources.find_map(|replica| self.live_record(replica, id, &record, addr));
            for &replica in replicas {
                for (i, at) in (addr..addr + u64::from(record.blocks)).enumerate() {
                    let proof = match &good {
                        Some(good) => self.prove_as(replica, at, &good[i * BLOCK..(i + 1) * BLOCK], heal),
                        None => Proof::Lost(Damage::Checksum),
                    };
                    proofs.push(FixedProof { part: Part::LogRecord, replica, addr: at, proof });
                }
            }
        }
        proofs
    }

    /// Make readable again what stands in no record and in no slot that is known: a block of the log, or a root slot, that
    /// cannot be read might hold what was acknowledged, and a replica that is alone with it could not tell (`recover`).
    /// Only blocks that cannot be read are told.
    pub fn prove_spare(&self, replicas: &[usize], heal: bool) -> Vec<FixedProof> {
        const STEP: u32 = 64;
        let geometry = &self.label.geometry;
        let mut proofs = Vec::new();
        'replicas: for &replica in replicas {
            for start in (0..geometry.log_blocks).step_by(STEP as usize) {
                let blocks = STEP.min(geometry.log_blocks - start);
                if self.mirror.read_raw(replica, geometry.log_at + u64::from(start), blocks).is_ok() {
                    continue;
                }
                if !self.mirror.is_writable(replica) && !self.mirror.members().contains(replica) {
                    // It went out: whatever is told of it says so.
                    continue 'replicas;
                }
                for at in start..start + blocks {
                    let _held = self.log.hold();
                    let (_, live) = self.log.live();
                    if live.iter().any(|record| (record.at..record.at + record.blocks).contains(&at)) {
                        continue;
                    }
                    let addr = geometry.log_at + u64::from(at);
                    let proof = self.make_readable(replica, addr, 0, heal);
                    proofs.extend(proof.map(|proof| FixedProof { part: Part::LogRecord, replica, addr, proof }));
                }
            }
            for slot in 0..ROOT_SLOTS {
                let state = self.root.lock();
                if slot == state.newest_slot {
                    continue;
                }
                let addr = Root::addr(slot);
                let proof = self.make_readable(replica, addr, Root::VOID, heal);
                proofs.extend(proof.map(|proof| FixedProof { part: Part::Root, replica, addr, proof }));
            }
        }
        proofs
    }

    /// `fill` over a block that cannot be read and that nothing names. `None`: it can be read.
    fn make_readable(&self, replica: usize, addr: Addr, fill: u8, heal: bool) -> Option<Proof> {
        let mirror = &self.mirror;
        let error = mirror.read_raw(replica, addr, 1).err()?;
        if !mirror.is_writable(replica) {
            return Some(Proof::Unproven(error.to_string()));
        }
        let damage = Damage::Unreadable(error.to_string());
        if !heal {
            return Some(Proof::Damaged(damage));
        }
        let filled = Slice::whole(Buf::from_slice(&[fill; BLOCK]));
        let written = mirror.write_raw(replica, addr, filled).and_then(|()| mirror.flush_raw(replica));
        if written.and_then(|()| mirror.read_raw(replica, addr, 1)).is_err() {
            return Some(Proof::Damaged(damage));
        }
        mirror.count_healed(replica);
        Some(Proof::Healed(damage))
    }

    fn live_record(&self, replica: usize, id: u64, record: &LiveRecord, addr: Addr) -> Option<Buf> {
        let whole = self.mirror.read_raw(replica, addr, record.blocks).ok()?;
        let head = log::decode_head(&whole[..BLOCK], self.label.volume, addr, self.label.geometry.log_blocks).ok()?;
        let same = head.log_id == id && head.seq == record.seq && head.blocks == record.blocks;
        log::entries(&whole, &head).ok().filter(|_| same)?;
        Some(whole)
    }

    /// Compare one block of one replica with what must stand there.
    fn prove_as(&self, replica: usize, addr: Addr, expected: &[u8], heal: bool) -> Proof {
        let mirror = &self.mirror;
        let look = || match mirror.read_raw(replica, addr, 1) {
            Ok(block) if block[..] == *expected => Proof::Correct,
            Ok(block) if block.iter().all(|byte| *byte == 0) => Proof::Damaged(Damage::Zeros),
            Ok(_) => Proof::Damaged(Damage::Checksum),
            Err(error) if mirror.is_writable(replica) => Proof::Damaged(Damage::Unreadable(error.to_string())),
            Err(error) => Proof::Unproven(error.to_string()),
        };
        let damage = match look() {
            Proof::Damaged(damage) => damage,
            other => return other,
        };
        if !heal || !mirror.is_writable(replica) {
            return Proof::Damaged(damage);
        }
        let written = mirror.write_raw(replica, addr, Slice::whole(Buf::from_slice(expected)));
        match written.and_then(|()| mirror.flush_raw(replica)).map(|()| look()) {
            Ok(Proof::Correct) => {
                ::log::warn!("replica {replica}: block {addr} {damage}; healed");
                mirror.count_healed(replica);
                Proof::Healed(damage)
            }
            _ => Proof::Damaged(damage),
        }
    }
}
