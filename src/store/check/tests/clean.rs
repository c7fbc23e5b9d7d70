//! A volume that nothing harmed has no finding, when it is mounted, at rest, and after each commit and recovery.

use super::*;

#[test]
fn a_clean_volume_has_no_finding() {
    for grows in [false, true] {
        let empty = Volume::empty(grows);
        let report = empty.check(false);
        assert!(report.is_clean() && report.repairs.is_empty(), "{}", said(&report));
        let volume = Volume::filled(grows);
        let mut last = Progress { done: 0, total: 0 };
        let report = check(&StoreSource::new(&volume.store), &CheckOptions::default(), &mut |p| {
            assert!(p.done >= last.done && p.done <= p.total);
            last = p;
            ControlFlow::Continue(())
        });
        assert!(report.is_clean() && report.repairs.is_empty(), "{}", said(&report));
        assert_eq!(report.inodes, volume.inodes.len() as u64);
        assert_eq!(last.done, last.total, "every block in use was looked at");
        assert_eq!(report.statistics.replicas[0].kinds, report.statistics.replicas[1].kinds);
        for kind in ["label", "root", "tree node", "file data", "space node", "bitmap", "dead list"] {
            assert!(report.statistics.replicas[0].kinds[kind].proven > 0, "{kind}");
        }
        assert_eq!(report.statistics.sum().detected, 0);
        // Offline, over the mirror alone, and without file data.
        let root = volume.store.durable_root();
        let source = MirrorSource::new(volume.store.mirror(), volume.store.label(), &root);
        let options = CheckOptions { data: false, ..CheckOptions::default() };
        let report = run(&source, options);
        assert!(report.is_clean(), "{}", said(&report));
        assert!(!report.statistics.replicas[0].kinds.contains_key("file data"));
    }
}

/// Overwrites, deletes, commits, fsyncs and power cuts, with a check after each commit and each recovery.
fn churn(seed: u64, grows: bool) {
    let mut random = sim::Random::new(seed);
    let mut v = Volume::empty(grows);
    v.store.sync().unwrap();
    let mut files: Vec<(u64, Vec<u8>)> = Vec::new();
    for step in 0..150 {
        let blocks = 1 + random.below(40) as usize;
        match random.below(10) {
            0..4 => {
                let name = format!("n{step}").into_bytes();
                let ino = v.make(ROOT_INO, &name, FILE, &vec![step as u8; blocks * 1000]);
                files.push((ino, name));
            }
            4 | 5 if !files.is_empty() => {
                let (ino, name) = files.swap_remove(random.below(files.len() as u64) as usize);
                let mut t = v.store.begin(Need { items: 3, data_blocks: 0, may_use_reserve: true }).unwrap();
                t.punch(ino, 0, u64::MAX);
                t.delete(Key::inode(ino));
                t.delete(Key::new(ROOT_INO, ItemKind::Dirent, v.cookie(&name)));
                t.count_inodes(-1);
                let root = v.inodes.get_mut(&ROOT_INO).unwrap();
                root.size -= 1;
                t.put(Key::inode(ROOT_INO), root.encode());
                t.commit();
            }
            6 | 7 if !files.is_empty() => {
                let ino = files[random.below(files.len() as u64) as usize].0;
                let pages = v.store.prepare_pages(ino, random.below(60) * 4096, &vec![9; blocks * 4096]).unwrap();
                let need = Need { items: 1, data_blocks: pages.len() as u64, may_use_reserve: false };
                let mut t = v.store.begin(need).unwrap();
                t.write_pages(ino, pages, 0);
                t.commit();
                v.edit(ino, |i| i.size = i.size.max(100 * 4096));
            }
            8 if !files.is_empty() => {
                let ino = files[random.below(files.len() as u64) as usize].0;
                let first = random.below(30);
                let mut t = v.store.begin(Need { items: 1, data_blocks: 9, may_use_reserve: false }).unwrap();
                t.punch(ino, first, first + 7);
                t.reserve(ino, first + 2, 3).unwrap();
                t.commit();
            }
            _ => {
                let report = v.check_as_it_is(false);
                assert!(report.is_clean(), "seed {seed}, step {step}, committed state:\n{}", said(&report));
                v.store.sync().unwrap();
                let report = v.check_as_it_is(false);
                assert!(report.is_clean(), "seed {seed}, step {step}:\n{}", said(&report));
            }
        }
        if random.below(4) == 0 && !files.is_empty() {
            let ino = files[random.below(files.len() as u64) as usize].0;
            let done = Arc::new(Mutex::new(None));
            let slot = done.clone();
            v.store.fsync(ino, Box::new(move |result| *slot.lock() = Some(result)));
            while done.lock().is_none() {
                v.store.log_step();
            }
        }
    }
    let disks = v.disks[0].world().revive(sim::CrashPlan::Random);
    drop(v);
    let store = mount(&disks);
    let v = Volume { disks, store, inodes: BTreeMap::new() };
    let report = v.check_as_it_is(false);
    assert!(report.is_clean(), "seed {seed}, after the cut:\n{}", said(&report));
}

#[test]
fn every_committed_state_of_a_busy_volume_is_clean() {
    for seed in 0..24 {
        churn(seed, seed % 2 == 0);
    }
}
