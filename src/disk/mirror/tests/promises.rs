//! What the mirror promises as a whole.
//!
//! Goal: what was written is on every replica in sync and is read, after power cuts and whatever one replica does by
//! chance. Method: many writes and reads, with faults by rates and cuts at each request, also on real files.

use super::*;
use crate::disk::file::CONTAINER;
use crate::disk::sim::{CrashPlan, Random, Rates};
use crate::disk::{CreateOptions, Mode, open};
use std::os::unix::fs::FileExt;

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

#[test]
fn three_replicas_survive_two_faults() {
    let rig = rig(3);
    let sums = rig.put(AT, 300, 1);
    for i in 0..300 {
        rig.disks[i % 3].junk(AT + i as u64);
        rig.disks[(i + 1) % 3].zero(AT + i as u64);
    }
    for _ in 0..3 {
        rig.read(AT, &sums, 1);
    }
    rig.disks[0].faults(|f| f.hang = Fault::Always);
    rig.disks[1].faults(|f| f.fail_writes = Fault::Always);
    let sums = rig.put(2000, 8, 2);
    assert_eq!(rig.mirror.members().in_sync, 0b100);
    rig.read(2000, &sums, 2);
}

#[test]
fn what_a_flush_acknowledged_survives_a_power_cut_at_any_io_on_every_replica_still_in_sync() {
    for cut in 1..40 {
        let Rig { world, mirror, .. } = rig_of(2, cut);
        world.cut_at(Some(cut));
        let mut acknowledged = 0;
        for step in 0..8u8 {
            let write = mirror.write(blocks(AT + 10 * u64::from(step), 3, step));
            if write.and_then(|()| mirror.flush()).is_err() {
                break;
            }
            acknowledged = step + 1;
        }
        let members = mirror.members();
        assert!(acknowledged == 8 || world.is_cut());
        let fresh = world.revive(CrashPlan::Random);
        for slot in (0..2).filter(|slot| members.contains(*slot)) {
            for step in 0..acknowledged {
                let addr = AT + 10 * u64::from(step);
                assert!((0..3).all(|i| fresh[slot].peek(addr + i) == *content(3, step).block(i as usize)), "cut {cut}");
            }
        }
    }
}

#[test]
fn single_faults_by_chance_never_reach_the_reader() {
    for seed in 0..30 {
        let Rig { disks, mirror, .. } = rig_of(2, seed);
        let mut random = Random::new(seed);
        let chance = 20_000;
        disks[seed as usize % 2].set_rates(Rates {
            read_error: chance,
            write_error: chance / 40,
            flush_error: chance / 40,
            lost_write: chance,
            misdirected_write: chance,
            misdirected_read: chance,
            torn_write: chance,
            lying_flush: chance,
            bit_rot: chance,
            hang: chance / 40,
        });
        let mut held: Vec<(Addr, u8, Vec<u64>)> = Vec::new();
        for step in 0..200u64 {
            if held.is_empty() || random.chance(300_000) {
                let (addr, buf) = (512 + step * 16, content(random.range(1, 16) as usize, step as u8));
                mirror.write(vec![(addr, Slice::whole(buf.clone()))]).unwrap();
                mirror.flush().unwrap();
                held.push((addr, step as u8, sums(addr, &buf)));
            } else {
                let (addr, tag, sums) = random.pick(&held);
                let buf = mirror.read(*addr, sums).unwrap();
                assert!(*buf == *content(sums.len(), *tag), "seed {seed}");
            }
        }
        assert!(mirror.members().contains(1 - seed as usize % 2), "seed {seed}: the good one never leaves");
    }
}

#[test]
fn replicas_opened_for_reading_are_read_around_and_left_as_they_are() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let all = |mode, create: Option<CreateOptions>| {
        let backing = |slot: usize| (name(slot), open(directories[slot].path(), mode, create).unwrap(), true);
        mirror_over(vec![backing(0), backing(1)], HOUR)
    };
    let mirror = all(Mode::Write, Some(CreateOptions { blocks: 4096, replace: false, only_in: None }));
    let buf = content(700, 1);
    mirror.allocate(AT, 700).unwrap();
    mirror.write(vec![(AT, Slice::whole(buf.clone()))]).unwrap();
    mirror.flush().unwrap();
    mirror.check();
    assert_eq!(mirror.members().in_sync, 0b11);
    assert!(mirror.close(Duration::from_secs(60)).is_empty());
    let container = directories[0].path().join(CONTAINER);
    let harm = |at: u64| {
        std::fs::File::options().write(true).open(&container).unwrap().write_all_at(b"junk", at * 4096).unwrap();
    };
    harm(AT + 5);
    let sums = sums(AT, &buf);
    let mirror = all(Mode::ReadOnly, None);
    for _ in 0..2 {
        assert!(*mirror.read(AT, &sums).unwrap() == *buf);
    }
    let health = &mirror.health()[0];
    assert_eq!((health.state, health.counters.healed), (ReplicaState::InSync, 0));
    assert!(health.counters.checksum > 0);
    assert!(mirror.close(Duration::from_secs(60)).is_empty());
    let mirror = all(Mode::Write, None);
    assert_eq!(mirror.prove(0, AT, &sums, true)[5], Proof::Healed(Damage::Checksum));
    assert_eq!(mirror.prove(0, AT, &sums, false), vec![Proof::Correct; 700]);
}
