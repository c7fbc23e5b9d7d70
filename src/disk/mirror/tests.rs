//! The mirror on simulated disks: each rule of recovery, of leaving, and of the deadline.
//!
//! Goal: what was written is read, whatever one replica does, and each replica is judged by what it did alone. Method:
//! `promises` looks at the whole, `healing`, `leaving` and `silence` at one kind of fault each, injected by hand.

use super::*;
use crate::disk::sim::{Fault, SimDisk, World};
use crate::disk::{BackingFacts, Buf, Op, Slice, Ticket};
use crate::format::{Addr, BLOCK, Uuid};
use crate::sync::thread;

mod combining;
mod healing;
mod leaving;
mod pace;
mod promises;
mod silence;
mod telling;

const HOUR: Duration = Duration::from_secs(3600);
const AT: Addr = 1000;

struct Rig {
    world: World,
    disks: Vec<Arc<SimDisk>>,
    mirror: Mirror,
}

fn name(slot: usize) -> ReplicaName {
    ReplicaName { uuid: Uuid([slot as u8 + 1; 16]), path: format!("/disk/{slot}") }
}

fn geometry() -> Geometry {
    Geometry::new(4096, 1024, 64).unwrap()
}

fn seed() -> VolumeSeed {
    VolumeSeed::new(Uuid([9; 16]))
}

fn mirror_over<B: Into<Option<Arc<dyn Backing>>>>(replicas: Vec<(ReplicaName, B, bool)>, deadline: Duration) -> Mirror {
    Mirror::new(seed(), geometry(), replicas, deadline)
}

fn mirror_of(disks: &[Arc<SimDisk>]) -> Mirror {
    let backing = |disk: &Arc<SimDisk>| -> Arc<dyn Backing> { disk.clone() };
    let replicas = disks.iter().enumerate().map(|(slot, disk)| (name(slot), backing(disk), true)).collect();
    mirror_over(replicas, HOUR)
}

fn rig(replicas: usize) -> Rig {
    rig_of(replicas, 1)
}

fn rig_of(replicas: usize, seed: u64) -> Rig {
    let world = World::new(seed);
    let disks: Vec<_> = (0..replicas).map(|_| world.disk(4096)).collect();
    let mirror = mirror_of(&disks);
    Rig { world, disks, mirror }
}

fn content(blocks: usize, tag: u8) -> Buf {
    let mut buf = Buf::zeroed(blocks * BLOCK);
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i / BLOCK) as u8 ^ (i % 251) as u8 ^ tag;
    }
    buf
}

/// A write of such content.
fn blocks(addr: Addr, blocks: usize, tag: u8) -> Vec<(Addr, Slice)> {
    vec![(addr, Slice::whole(content(blocks, tag)))]
}

impl Rig {
    /// Write content and give its checksums.
    fn put(&self, addr: Addr, blocks: usize, tag: u8) -> Vec<u64> {
        let buf = content(blocks, tag);
        self.mirror.write(vec![(addr, Slice::whole(buf.clone()))]).unwrap();
        sums(addr, &buf)
    }
    fn read(&self, addr: Addr, sums: &[u64], tag: u8) {
        assert!(*self.mirror.read(addr, sums).unwrap() == *content(sums.len(), tag), "wrong bytes");
    }
    /// Readers begin at one replica and at the other: of two, one asks the damaged one.
    fn read_in_turns(&self, addr: Addr, sums: &[u64], tag: u8) {
        for _ in 0..2 {
            self.read(addr, sums, tag);
        }
    }
    fn counters(&self, slot: usize) -> ReplicaCounters {
        self.mirror.health()[slot].counters
    }
    fn state(&self, slot: usize) -> ReplicaState {
        self.mirror.health()[slot].state
    }
}

fn sums(addr: Addr, buf: &Buf) -> Vec<u64> {
    let seed = seed();
    (0..buf.blocks()).map(|i| seed.checksum(addr + i as u64, buf.block(i))).collect()
}
