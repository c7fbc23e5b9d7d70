//! fsck on directories and on simulated disks: whom it may write to, and what it says.

use super::super::{FormatOptions, format};
use super::*;
use crate::disk::sim::CrashPlan;
use crate::store::tests::{Rig, write};
use std::path::Path;

/// A volume on two directories, closed in order.
fn on_directories(root: &Path) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = ["a", "b"].iter().map(|name| root.join(name)).collect();
    paths.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let make = FormatOptions { size_bytes: Some(32 << 20), label: "test".into(), force: false, uid: 0, gid: 0 };
    format(&paths, &make).unwrap();
    open_and_close(&paths);
    paths
}

fn open_and_close(paths: &[PathBuf]) {
    Volume::open(paths, &OpenOptions::default()).unwrap().close().unwrap();
}

fn mend(paths: &[PathBuf]) -> Result<FsckReport, StoreError> {
    fsck(paths, &FsckOptions { repair: true, quick: false }, Rebuild::Allowed, &mut |_, _, _| ())
}

fn refuses(paths: &[PathBuf]) {
    let text = mend(paths).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn a_wrong_path_expels_nobody_and_is_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let foreign = root.path().join("X");
    std::fs::write(&foreign, vec![0x58; 1 << 20]).unwrap();
    let empty = root.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for wrong in [foreign.clone(), empty.clone(), root.path().join("nowhere")] {
        refuses(&[paths[0].clone(), wrong]);
        open_and_close(&paths);
    }
    assert!(std::fs::read(&foreign).unwrap() == vec![0x58; 1 << 20], "foreign data was overwritten");
    assert!(std::fs::read_dir(&empty).unwrap().next().is_none());
}

#[test]
fn one_that_was_replaced_does_not_stand_for_its_successor() {
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let c = root.path().join("c");
    std::fs::create_dir(&c).unwrap();
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    volume.replace("1", &c, &mut |_| true).unwrap();
    volume.close().unwrap();
    refuses(&paths);
    open_and_close(&[paths[0].clone(), c]);
}

#[test]
fn a_vanished_container_is_rebuilt_where_this_host_knows_it() {
    let root = tempfile::tempdir().unwrap();
    crate::volume::witness::SCRATCH.set(Some(root.path().join("state")));
    let paths = on_directories(root.path());
    std::fs::remove_file(paths[1].join(crate::disk::file::CONTAINER)).unwrap();
    let report = mend(&paths).unwrap();
    assert_eq!((report.exit_code, report.left.len()), (1, 0), "{report:?}");
    open_and_close(&paths);
}

fn run_on(rig: &Rig, repair: bool) -> FsckReport {
    let present = rig
        .backings()
        .into_iter()
        .map(|(path, backing)| {
            let found = recover::examine(&*backing, Duration::from_secs(1)).unwrap();
            recover::Present { path, backing, found }
        })
        .collect();
    let host = Host {
        world: Arc::new(crate::world::Seeded::new(77)),
        deadline: Duration::from_secs(1),
        check: &|_, _| Ok(()),
        on_shrink: Box::new(|_| ()),
        claim: &|_| Ok(()),
    };
    run(present, &[], &FsckOptions { repair, quick: false }, host, &mut |_, _, _| ()).unwrap().0
}

/// What waits in the log, on one replica damaged: in the record, or in the run that it names.
#[test]
fn what_waits_in_the_log_is_proven_too() {
    for run in [false, true] {
        let mut rig = Rig::new(50, 2);
        let (store, _) = rig.open(false).unwrap();
        let before = rig.disks[0].snapshot();
        write(&store, 30, 0, 64, 9).unwrap();
        store.fsync_wait(30).unwrap();
        // A later record says that the first one had been acknowledged.
        write(&store, 31, 0, 1, 9).unwrap();
        store.fsync_wait(31).unwrap();
        let geometry = store.label().geometry.clone();
        drop(store);
        rig.crash(CrashPlan::KeepAll);
        let after = rig.disks[0].snapshot();
        let new = |addr: &u64| {
            let log = geometry.log_at..geometry.log_at + u64::from(geometry.log_blocks);
            after.get(addr) != before.get(addr) && log.contains(addr) != run && (!run || geometry.holds_data(*addr, 1))
        };
        let mut changed: Vec<u64> = rig.disks[0].addresses().into_iter().filter(new).collect();
        changed.sort_unstable();
        assert!(!changed.is_empty(), "run: {run}");
        rig.disks[1].junk(changed[0]);
        // (What these tests put into the volume is no tree of names: other findings are right.)
        let about_log = |lines: &[String]| lines.iter().filter(|line| line.contains("log record")).count();
        let report = run_on(&rig, false);
        assert_eq!((about_log(&report.findings), about_log(&report.left)), (1, 1), "run {run}: {report:?}");
        assert_eq!(report.exit_code, 4);
        let report = run_on(&rig, true);
        assert_eq!((about_log(&report.findings), about_log(&report.left)), (1, 0), "run {run}: {report:?}");
        assert!(report.repaired.iter().any(|line| line.contains("log healed")), "run {run}: {report:?}");
        assert_eq!(about_log(&run_on(&rig, false).findings), 0);
    }
}

/// The exit code follows from all that was found, done and left.
#[test]
fn what_is_left_decides_the_exit_code() {
    let line = || vec!["something".to_owned()];
    let code = |findings, repaired, left| {
        let mut report = FsckReport { findings, repaired, left, ..FsckReport::default() };
        report.conclude();
        report.exit_code
    };
    assert_eq!(code(vec![], vec![], vec![]), 0);
    assert_eq!(code(line(), line(), vec![]), 1);
    assert_eq!(code(vec![], line(), vec![]), 1);
    assert_eq!(code(line(), line(), line()), 4);
    assert_eq!(code(vec![], vec![], line()), 4);
}
