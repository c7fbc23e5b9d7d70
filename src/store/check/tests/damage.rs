//! Damaged blocks: each is one finding, healed where a twin is whole; what is lost on both leaves the rest unjudged, and
//! bitmaps are built anew from what is in use.

use super::*;

/// The first block of a large file.
fn large(volume: &Volume) -> Addr {
    let mut files = volume.inodes.iter().filter(|(_, inode)| !inode.is_dir());
    let (ino, _) = files.find(|(_, inode)| inode.size > 100_000).unwrap();
    volume.extent(*ino).1.addr().unwrap()
}

/// The leaves of the tree, in the order of their keys.
fn leaves(volume: &Volume) -> Vec<Addr> {
    let mut leaves = Vec::new();
    let source = StoreSource::new(&volume.store);
    let _ = tree::walk(&Paths::new(&source), volume.store.durable_root().tree, &mut |level, ptr, _| {
        leaves.extend((level == 0).then_some(ptr.addr));
        ControlFlow::Continue(())
    });
    leaves
}

#[test]
fn n_damaged_blocks_are_n_findings_and_heal() {
    let volume = Volume::filled(true);
    let blocks = reachable(&volume);
    assert!(blocks.len() > 700);
    let mut random = sim::Random::new(3);
    for round in 0..12 {
        let (replica, heal) = (round % 2, round % 4 < 2);
        let mut planted = BTreeSet::new();
        for _ in 0..[1, 30, 250][round / 4] {
            planted.insert(blocks[random.below(blocks.len() as u64) as usize]);
        }
        if round == 8 {
            planted.extend(&blocks);
        }
        for addr in &planted {
            match addr % 3 {
                0 => volume.disks[replica].rot(*addr, addr * 31 % 32_768),
                1 => volume.disks[replica].zero(*addr),
                _ => volume.disks[replica].junk(*addr),
            }
        }
        let report = volume.check_as_it_is(heal);
        let found: Vec<Addr> = report
            .findings
            .iter()
            .map(|finding| match finding {
                Finding::Block { replica: r, addr, outcome, .. } if *r == replica => {
                    let expected = if heal { Severity::Warning } else { Severity::Error };
                    assert_eq!(finding.severity(), expected, "{finding}");
                    assert_eq!(matches!(outcome, Outcome::Healed(_)), heal);
                    *addr
                }
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found.len(), planted.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), planted);
        let sum = report.statistics.sum();
        assert_eq!((sum.detected, sum.lost), (planted.len() as u64, 0));
        assert_eq!(sum.healed, if heal { sum.detected } else { 0 });
        assert!(report.complete && report.repairs.is_empty());
        volume.check_as_it_is(true);
        let report = volume.check_as_it_is(false);
        assert!(report.is_clean(), "{}", said(&report));
    }
}

#[test]
fn findings_name_replica_block_structure_and_path() {
    let volume = Volume::filled(false);
    let options = CheckOptions { findings_max: 1_000_000, ..CheckOptions::default() };
    for addr in reachable(&volume) {
        volume.disks[1].junk(addr);
    }
    let report = run(&StoreSource::new(&volume.store), options);
    let text = said(&report);
    for part in ["replica 1 (/disk/1)", "/a/large7 (inode", "file data (block 3 of the file)", "bitmap of zone 0"] {
        assert!(text.contains(part), "{part}");
    }
    for part in ["leaf of the tree of /a/b/small", "tree node at level 1", "dead list", "label", "root in slot"] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn what_both_replicas_lost_is_named_and_judges_nothing_else() {
    let volume = Volume::filled(true);
    let addr = large(&volume);
    for disk in &volume.disks {
        disk.junk(addr + 2);
    }
    let report = volume.check_as_it_is(true);
    assert_eq!((report.findings.len(), report.statistics.sum().lost), (2, 2), "{}", said(&report));
    assert!(report.complete && report.worst() == Some(Severity::Fatal) && report.repairs.is_empty());
    assert!(said(&report).contains("/a/large"));
    // A leaf: what is below is unknown, so no link or space is called wrong.
    let leaf = leaves(&volume)[0];
    for disk in &volume.disks {
        disk.zero(leaf);
    }
    let report = volume.check_as_it_is(true);
    assert_eq!((report.block_findings(), report.findings.len()), (4, 5), "{}", said(&report));
    assert!(!report.complete && report.findings.contains(&Finding::Incomplete) && report.repairs.is_empty());
    let stopped = check(&StoreSource::new(&volume.store), &CheckOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(stopped.stopped && !stopped.is_clean());
}

#[test]
fn repairs_of_zones_are_the_right_bitmaps() {
    let volume = Volume::filled(true);
    let zone = volume.store.label().geometry.locate(reachable(&volume).into_iter().rev().nth(3).unwrap()).unwrap().0;
    let root = volume.store.durable_root();
    assert!(!root.space.is_pristine());
    // Lost on both replicas: rebuilt from what is in use, bit for bit but for units without space below.
    let bitmaps = [volume.store.label().geometry.bitmap(zone, 0), volume.store.label().geometry.bitmap(zone, 1)];
    let before: Vec<_> = bitmaps.iter().map(|addr| volume.disks[0].peek(*addr)).collect();
    for disk in &volume.disks {
        bitmaps.iter().for_each(|addr| disk.junk(*addr));
    }
    let report = volume.check_as_it_is(false);
    assert_eq!(report.block_findings(), 2, "{}", said(&report));
    let rebuilt = &report.repairs.zones[&zone];
    assert!(report.complete);
    let same = before
        .iter()
        .any(|block| block[96..].chunks(8).zip(rebuilt.bits.iter()).all(|(bytes, word)| bytes == word.to_le_bytes()));
    assert!(same, "the rebuilt bitmap is the one that was lost");
}

/// Live blocks are marked free while a leaf is lost elsewhere: what is known to be in use is marked, nothing is freed.
#[test]
fn blocks_in_use_are_marked_although_not_everything_was_reached() {
    let volume = Volume::filled(true);
    let addr = large(&volume) + 1;
    volume.free(addr, 2);
    volume.store.commit(crate::store::commit::Force::Always).unwrap();
    // The last leaf: orphans, not this file.
    let leaf = *leaves(&volume).last().unwrap();
    for disk in &volume.disks {
        disk.zero(leaf);
    }
    let report = volume.check_as_it_is(true);
    assert!(!report.complete && said(&report).contains("2 blocks in use are marked free"), "{}", said(&report));
    let (zone, bit) = volume.store.label().geometry.locate(addr).unwrap();
    let repaired = &report.repairs.zones[&zone];
    assert!(repaired.get(bit) && repaired.get(bit + 1));
    assert!(report.repairs.inodes.is_empty() && report.repairs.backed.is_none());
}

/// Goal: what is damaged in different sectors on both replicas is named, read past and put together, whatever it is. Method:
/// every block but labels and the root, cut somewhere between its sectors.
#[test]
fn different_sectors_on_both_replicas_are_put_together() {
    // SEMANTICS: HEAL-5
    let volume = Volume::filled(true);
    let fixed: BTreeSet<Addr> = Geometry::label_copies().into_iter().chain((0..16).map(Root::addr)).collect();
    let blocks: Vec<Addr> = reachable(&volume).into_iter().filter(|addr| !fixed.contains(addr)).collect();
    assert!(blocks.len() > 700);
    for addr in &blocks {
        let cut = 512 * (1 + *addr as usize % 7);
        for (i, disk) in volume.disks.iter().enumerate() {
            let mut block = disk.peek(*addr);
            let part = if i == *addr as usize % 2 { 0..cut } else { cut..4096 };
            block[part].iter_mut().for_each(|byte| *byte ^= 0x55);
            disk.poke(*addr, block);
        }
    }
    let before: Vec<_> = volume.disks.iter().map(|disk| disk.snapshot()).collect();
    let report = volume.check_as_it_is(false);
    let by = |report: &Report, wanted: fn(&Outcome) -> bool| {
        let is = |finding: &&Finding| matches!(finding, Finding::Block { outcome, .. } if wanted(outcome));
        report.findings.iter().filter(is).count()
    };
    let could = by(&report, |outcome| matches!(outcome, Outcome::Combinable(..)));
    assert_eq!((could, report.findings.len()), (2 * blocks.len(), 2 * blocks.len()), "{}", said(&report));
    assert!(report.complete && report.repairs.is_empty() && report.worst() == Some(Severity::Error));
    assert_eq!(report.combined().len(), blocks.len());
    assert!(volume.disks.iter().map(|disk| disk.snapshot()).eq(before), "a look has written");
    let report = volume.check_as_it_is(true);
    let done = by(&report, |outcome| matches!(outcome, Outcome::Combined(..)));
    assert_eq!((done, report.findings.len()), (2 * blocks.len(), 2 * blocks.len()), "{}", said(&report));
    let sum = report.statistics.sum();
    assert_eq!((sum.detected, sum.healed, sum.lost, sum.combined), (done as u64, done as u64, 0, done as u64));
    let lines = report.combined();
    assert!(lines.iter().any(|line| line.starts_with("/a/large7 (inode")), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("from replica 0") && line.contains("from replica 1")), "{lines:?}");
    let report = volume.check_as_it_is(false);
    assert!(report.is_clean(), "{}", said(&report));
}
