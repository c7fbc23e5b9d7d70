//! Simulated disks behave like bad disks, and always the same way.
use super::*;
use crate::disk::buffer::{Buf, Slice};

fn run(disk: &SimDisk, op: Op) -> io::Result<Done> {
    disk.submit(op).wait(None).expect("answers at once")
}

fn write(disk: &SimDisk, addr: Addr, tag: u8) -> io::Result<Done> {
    run(disk, Op::Write { addr, data: vec![Slice::whole(Buf::from_slice(&[tag; BLOCK]))] })
}

fn read(disk: &SimDisk, addr: Addr) -> io::Result<u8> {
    run(disk, Op::Read { addr, blocks: 1 }).map(|done| match done {
        Done::Data(buf) => buf[0],
        other => panic!("expected data, not {other:?}"),
    })
}

#[test]
fn pending_writes_are_read_but_survive_only_by_luck_until_flushed() {
    let world = World::new(3);
    let disk = world.disk(100);
    write(&disk, 1, 1).unwrap();
    run(&disk, Op::Flush).unwrap();
    write(&disk, 1, 2).unwrap();
    write(&disk, 2, 2).unwrap();
    assert_eq!((read(&disk, 1).unwrap(), read(&disk, 9).unwrap()), (2, 0));
    assert_eq!(disk.addresses(), [1, 2]);
    let random = &mut Random::new(1);
    let at = |image: &Image, addr: Addr| image.get(&addr).map_or(0, |block| block[0]);
    let (none, all) = (disk.crash_image(CrashPlan::DropAll, random), disk.crash_image(CrashPlan::KeepAll, random));
    assert_eq!((at(&none, 1), at(&none, 2), at(&all, 1), at(&all, 2)), (1, 0, 2, 2));
    // By chance each of old, new and torn occurs, and nothing else.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..300 {
        let image = disk.crash_image(CrashPlan::Random, random);
        let block = &image[&1];
        let sectors: Vec<u8> = block.chunks(512).map(|s| s[0]).collect();
        assert!(block.chunks(512).all(|s| s.iter().all(|b| *b == s[0]) && (s[0] == 1 || s[0] == 2)));
        seen.insert(if sectors.iter().all(|s| *s == sectors[0]) { sectors[0] } else { 9 });
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 9]);
    assert_eq!(read(&disk, 1).unwrap(), 2, "asking changed nothing");
}

#[test]
fn a_power_cut_stops_every_disk_and_kills_old_handles() {
    let world = World::new(3);
    let disks = [world.disk(100), world.disk(100)];
    write(&disks[0], 1, 1).unwrap();
    run(&disks[0], Op::Flush).unwrap();
    world.cut_at(Some(4));
    write(&disks[1], 1, 1).unwrap();
    let cut = write(&disks[0], 1, 2).unwrap_err();
    assert_eq!((cut.kind(), cut.to_string().as_str()), (io::ErrorKind::Other, "power is cut"));
    assert!(world.is_cut() && world.io_count() == 4);
    assert!(read(&disks[1], 1).is_err() && run(&disks[1], Op::Flush).is_err());
    let fresh = world.revive(CrashPlan::DropAll);
    assert_eq!((read(&fresh[0], 1).unwrap(), read(&fresh[1], 1).unwrap()), (1, 0));
    assert!(write(&disks[0], 1, 3).is_err(), "a handle from before the cut is dead");
    write(&fresh[0], 1, 3).unwrap();
}

#[test]
fn the_write_at_which_the_power_fails_may_survive() {
    let survived = (0..50).filter(|seed| {
        let world = World::new(*seed);
        let disk = world.disk(10);
        world.cut_at(Some(1));
        assert!(write(&disk, 1, 7).is_err());
        world.revive(CrashPlan::Random)[0].peek(1) == [7; BLOCK]
    });
    assert!((5..45).contains(&survived.count()));
}

#[test]
fn equal_seeds_give_equal_histories() {
    let history = |seed| {
        let world = World::new(seed);
        let disk = world.disk(64);
        disk.set_rates(Rates {
            read_error: 50_000,
            write_error: 50_000,
            flush_error: 50_000,
            lost_write: 50_000,
            misdirected_write: 50_000,
            misdirected_read: 50_000,
            torn_write: 50_000,
            lying_flush: 50_000,
            bit_rot: 50_000,
            hang: 0,
        });
        let mut random = Random::new(seed);
        let mut log = Vec::new();
        for i in 0..500 {
            let addr = random.below(64);
            log.push(match random.below(3) {
                0 => format!("{:?}", read(&disk, addr)),
                1 => format!("{:?}", write(&disk, addr, i as u8).is_ok()),
                _ => format!("{:?}", run(&disk, Op::Flush).is_ok()),
            });
        }
        let disk = world.revive(CrashPlan::Random).remove(0);
        (log, disk.addresses().into_iter().map(|addr| disk.peek(addr)).collect::<Vec<_>>(), disk.counters())
    };
    assert_eq!(history(11), history(11));
    assert_ne!(history(11).0, history(12).0);
    assert!(history(11).2.faults > 50);
}

#[test]
fn every_fault_does_what_it_says() {
    let world = World::new(5);
    let disk = world.disk(100);
    for addr in 0..4 {
        write(&disk, addr, 10 + addr as u8).unwrap();
    }
    disk.faults(|f| f.lost_writes = Fault::Next(1));
    write(&disk, 0, 99).unwrap();
    assert_eq!(read(&disk, 0).unwrap(), 10);
    write(&disk, 0, 20).unwrap();
    assert!(disk.stale(0));
    assert_eq!(read(&disk, 0).unwrap(), 10);
    disk.faults(|f| f.misdirected_writes = Fault::Next(1));
    write(&disk, 1, 77).unwrap();
    assert_eq!(read(&disk, 1).unwrap(), 11);
    assert_eq!((0..4).filter(|addr| disk.peek(*addr)[0] == 77).count(), 1);
    disk.faults(|f| f.misdirected_reads = Fault::Next(1));
    assert_ne!(read(&disk, 1).unwrap(), 11);
    assert_eq!(read(&disk, 1).unwrap(), 11);
    disk.faults(|f| f.torn_writes = Fault::Next(1));
    write(&disk, 1, 55).unwrap();
    assert!(disk.peek(1).contains(&11) && disk.peek(1).contains(&55));
    disk.faults(|f| _ = f.unreadable.insert(2));
    assert_eq!(read(&disk, 2).unwrap_err().raw_os_error(), Some(libc::EIO));
    write(&disk, 2, 12).unwrap();
    assert_eq!(read(&disk, 2).unwrap(), 12, "writing again repairs the sector");
    disk.rot(2, 9);
    assert_eq!(disk.peek(2)[1], 12 ^ 2);
    disk.faults(|f| f.read_only = true);
    assert_eq!(write(&disk, 2, 1).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    disk.faults(|f| (f.read_only, f.full) = (false, true));
    assert_eq!(write(&disk, 50, 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(run(&disk, Op::Allocate { addr: 60, blocks: 1 }).unwrap_err().kind(), io::ErrorKind::StorageFull);
    run(&disk, Op::Allocate { addr: 2, blocks: 1 }).unwrap();
    write(&disk, 2, 1).unwrap();
    disk.faults(|f| f.gone = true);
    assert!(read(&disk, 2).is_err() && run(&disk, Op::Check).is_err());
}

#[test]
fn a_lying_or_failing_flush_keeps_nothing_for_sure() {
    let world = World::new(5);
    let disk = world.disk(100);
    disk.faults(|f| f.lying_flushes = Fault::Next(1));
    write(&disk, 1, 1).unwrap();
    run(&disk, Op::Flush).unwrap();
    let disk = world.revive(CrashPlan::DropAll).remove(0);
    assert_eq!(disk.peek(1)[0], 0);
    disk.faults(|f| f.fail_flushes = Fault::Next(1));
    for addr in 0..40 {
        write(&disk, addr, 1).unwrap();
    }
    assert!(run(&disk, Op::Flush).is_err());
    run(&disk, Op::Flush).unwrap();
    assert!((1..40).contains(&disk.addresses().len()), "the second flush says Ok though some is gone");
}

#[test]
fn a_hung_request_lands_late() {
    let world = World::new(5);
    let disk = world.disk(100);
    disk.faults(|f| f.hang = Fault::Next(1));
    let ticket = disk.submit(Op::Write { addr: 1, data: vec![Slice::whole(Buf::from_slice(&[1]))] });
    assert!(ticket.wait(None).is_none() && ticket.is_frozen());
    assert_eq!((disk.in_flight(), disk.peek(1)[0]), (1, 0));
    assert_eq!(disk.release_hung(), 1);
    assert!(matches!(ticket.wait(None), Some(Ok(_))));
    assert_eq!((disk.in_flight(), disk.peek(1)[0]), (0, 1));
}
