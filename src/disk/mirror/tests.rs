//! The mirror on simulated disks: each rule of recovery, of leaving, and of the deadline.
use super::*;
use crate::disk::sim::{SimDisk, World};
use crate::disk::{Buf, Slice};
use crate::format::{Addr, BLOCK, Uuid};

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

fn mirror_of(disks: &[Arc<SimDisk>]) -> Mirror {
    let backing = |disk: &Arc<SimDisk>| -> Arc<dyn Backing> { disk.clone() };
    let replicas = disks.iter().enumerate().map(|(slot, disk)| (name(slot), backing(disk), true)).collect();
    Mirror::new(VolumeSeed::new(Uuid([9; 16])), geometry(), replicas, HOUR)
}

fn rig(replicas: usize) -> Rig {
    let world = World::new(1);
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
    fn counters(&self, slot: usize) -> ReplicaCounters {
        self.mirror.health()[slot].counters
    }
    fn state(&self, slot: usize) -> ReplicaState {
        self.mirror.health()[slot].state
    }
}

fn sums(addr: Addr, buf: &Buf) -> Vec<u64> {
    let seed = VolumeSeed::new(Uuid([9; 16]));
    (0..buf.blocks()).map(|i| seed.checksum(addr + i as u64, buf.block(i))).collect()
}

#[test]
fn what_was_written_is_read_and_both_replicas_hold_it() {
    let rig = rig(2);
    for blocks in [1, 7, 64, 600] {
        let sums = rig.put(AT, blocks, blocks as u8);
        rig.read(AT, &sums, blocks as u8);
    }
    rig.mirror.flush().unwrap();
    assert_eq!(rig.disks[0].snapshot(), rig.disks[1].snapshot());
    assert!(rig.counters(0).reads > 0 && rig.counters(1).reads > 0, "reads are balanced");
    assert_eq!(rig.mirror.members(), Members { in_sync: 0b11, generation: 1 });
}
