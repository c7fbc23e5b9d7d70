//! Real files in a temporary directory.
use super::opening::Caching;
use super::*;
use crate::disk::backing::{Done, Facts, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::format::{BLOCK, Geometry, Uuid};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

const EMPTY: Option<CreateOptions> = Some(CreateOptions { blocks: 0, replace: false, only_in: None });

fn run(backing: &Arc<dyn Backing>, op: Op) -> io::Result<Done> {
    backing.submit(op).wait(None).expect("waits without end")
}

fn write(backing: &Arc<dyn Backing>, addr: u64, bytes: &[u8]) -> io::Result<Done> {
    run(backing, Op::Write { addr, data: vec![Slice::whole(Buf::from_slice(bytes))] })
}

fn read(backing: &Arc<dyn Backing>, op: Op) -> Buf {
    match run(backing, op) {
        Ok(Done::Data(buf)) => buf,
        other => panic!("expected data, not {other:?}"),
    }
}

fn check(backing: &Arc<dyn Backing>) -> io::Result<Facts> {
    run(backing, Op::Check).map(|done| match done {
        Done::Facts(facts) => facts,
        other => panic!("expected facts, not {other:?}"),
    })
}

fn close(backing: &Arc<dyn Backing>) {
    backing.close();
    let until = Instant::now() + Duration::from_secs(60);
    while !backing.is_closed() {
        assert!(Instant::now() < until, "an idle backing closes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn both_ways(test: impl Fn(&Path, Caching)) {
    for caching in [Caching::DirectIfPossible, Caching::Buffered] {
        let directory = tempfile::tempdir().unwrap();
        test(directory.path(), caching);
    }
}

#[test]
fn a_directory_gets_a_private_container_that_grows_and_keeps_its_bytes() {
    both_ways(|path, caching| {
        let backing = threads::open(path, Mode::Write, EMPTY, caching).unwrap();
        assert!(caching == Caching::DirectIfPossible || !backing.facts().direct);
        let metadata = std::fs::metadata(path.join(CONTAINER)).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (0, 0o600));
        assert_eq!(backing.facts().device, metadata.dev());
        assert!(read(&backing, Op::Read { addr: 7, blocks: 3 }).iter().all(|b| *b == 0), "zeros beyond the end");
        run(&backing, Op::Allocate { addr: 0, blocks: 64 }).unwrap();
        let metadata = std::fs::metadata(path.join(CONTAINER)).unwrap();
        assert_eq!((metadata.len(), metadata.blocks() * 512), (64 * 4096, 64 * 4096));
        // Many parts, so that a vectored write is made of more than the kernel takes at once.
        let parts = (0..2000u32).map(|i| Slice::whole(Buf::from_slice(&i.to_le_bytes()))).collect();
        run(&backing, Op::Write { addr: 100, data: parts }).unwrap();
        run(&backing, Op::Flush).unwrap();
        for op in [Op::Read { addr: 100, blocks: 2000 }, Op::ReadMedium { addr: 100, blocks: 2000 }] {
            let buf = read(&backing, op);
            assert!((0..2000).all(|i| buf.block(i)[..4] == (i as u32).to_le_bytes()));
        }
        assert_eq!(check(&backing).unwrap().length, 2100 * 4096);
        run(&backing, Op::Punch { addr: 100, blocks: 1024 }).unwrap();
        assert!(read(&backing, Op::ReadMedium { addr: 100, blocks: 1 }).iter().all(|b| *b == 0));
        assert_eq!(check(&backing).unwrap().length, 2100 * 4096);
        assert_eq!(backing.in_flight(), 0);
        close(&backing);
        assert!(run(&backing, Op::Flush).is_err(), "closed");
        let again = threads::open(path, Mode::Write, None, caching).unwrap();
        assert_eq!(read(&again, Op::Read { addr: 2099, blocks: 1 })[..4], 1999u32.to_le_bytes());
    });
}

#[test]
fn a_second_writer_is_refused_and_readers_share() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let writer = open(path, Mode::Write, EMPTY).unwrap();
    assert!(matches!(open(path, Mode::Write, None), Err(OpenError::Busy(_))));
    assert!(matches!(open(path, Mode::ReadOnly, None), Err(OpenError::Busy(_))));
    // Also not by somebody who would overwrite it: and it must still be there afterwards.
    write(&writer, 0, b"precious").unwrap();
    let replace = Some(CreateOptions { blocks: 0, replace: true, only_in: None });
    assert!(matches!(open(path, Mode::Write, replace), Err(OpenError::Busy(_))));
    assert_eq!(&read(&writer, Op::ReadMedium { addr: 0, blocks: 1 })[..8], b"precious");
    close(&writer);
    let readers = [open(path, Mode::ReadOnly, None).unwrap(), open(path, Mode::ReadOnly, None).unwrap()];
    assert!(matches!(open(path, Mode::Write, None), Err(OpenError::Busy(_))));
    let error = write(&readers[0], 0, b"no").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(readers[1].facts().read_only);
}

#[test]
fn io_threads_hold_no_descriptor_of_the_process_and_the_process_none_of_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let backing = open(directory.path(), Mode::Write, EMPTY).unwrap();
    let container = directory.path().join(CONTAINER);
    // A thread that ends meanwhile holds nothing.
    let holds = |descriptors: &Path, wanted: &Path| {
        let mut entries = std::fs::read_dir(descriptors).into_iter().flatten().flatten();
        entries.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == wanted))
    };
    let ours = directory.path().join("ours");
    let _ours = std::fs::File::create(&ours).unwrap();
    let mut tables = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let descriptors = task.path().join("fd");
        let (container, ours) = (holds(&descriptors, &container), holds(&descriptors, &ours));
        assert!(!(container && ours), "no table holds both");
        tables = (tables.0 + u32::from(container), tables.1 + u32::from(ours));
    }
    assert!(tables.0 >= 4 && tables.1 >= 1, "I/O threads {}, others {}", tables.0, tables.1);
    assert!(!holds(Path::new("/proc/thread-self/fd"), &container));
    drop(backing);
}

#[test]
fn a_container_that_vanishes_shrinks_or_is_swapped_is_noticed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("vanished", |path| std::fs::remove_file(path.join(CONTAINER)).unwrap()),
        ("vanished", |path| std::fs::remove_dir_all(path).unwrap()),
        ("shrank", |path| {
            std::fs::File::options().write(true).open(path.join(CONTAINER)).unwrap().set_len(4096).unwrap()
        }),
        ("another", |path| {
            std::fs::copy(path.join(CONTAINER), path.join("copy")).unwrap();
            std::fs::rename(path.join("copy"), path.join(CONTAINER)).unwrap();
        }),
        ("vanished", |path| std::fs::rename(path, path.with_extension("away")).unwrap()),
    ];
    for (word, change) in changes {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replica");
        std::fs::create_dir(&path).unwrap();
        let backing = open(&path, Mode::Write, EMPTY).unwrap();
        run(&backing, Op::Allocate { addr: 0, blocks: 16 }).unwrap();
        let facts = check(&backing).unwrap();
        assert!(facts.bytes_free_below > 0 && facts.bytes_free_below < u64::MAX);
        assert_eq!(facts.direct, backing.facts().direct);
        change(&path);
        let error = check(&backing).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_regular_file_is_used_only_when_it_holds_nothing() {
    both_ways(|path, caching| {
        let file = path.join("image");
        assert!(matches!(threads::open(&file, Mode::Write, EMPTY, caching), Err(OpenError::NotFound(_))));
        std::fs::write(&file, b"letters to my mother").unwrap();
        let create = |replace| Some(CreateOptions { blocks: 10, replace, only_in: None });
        let refused = threads::open(&file, Mode::Write, create(false), caching).err().unwrap();
        assert!(matches!(&refused, OpenError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains("image"));
        assert_eq!(std::fs::read(&file).unwrap(), b"letters to my mother");
        let backing = threads::open(&file, Mode::Write, create(true), caching).unwrap();
        assert_eq!((backing.facts().blocks, backing.facts().kind), (10, BackingKind::File));
        assert!(read(&backing, Op::Read { addr: 0, blocks: 1 }).iter().all(|b| *b == 0));
        assert!(check(&backing).is_ok());
        std::fs::remove_file(&file).unwrap();
        assert!(check(&backing).is_err());
    });
}

#[test]
fn a_length_that_is_no_whole_block_reads_as_zeros_behind_it() {
    both_ways(|path, caching| {
        let file = path.join("image");
        std::fs::write(&file, vec![5; 4096 + 700]).unwrap();
        let backing = threads::open(&file, Mode::ReadOnly, None, caching).unwrap();
        let buf = read(&backing, Op::ReadMedium { addr: 0, blocks: 4 });
        assert!(buf[..4796].iter().all(|b| *b == 5) && buf[4796..].iter().all(|b| *b == 0));
    });
}

#[test]
fn inspection_tells_ours_from_foreign() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let found = inspect(path).unwrap();
    assert!(found.kind == BackingKind::Directory && !found.container && found.foreign.is_none());
    assert!(matches!(open(path, Mode::Write, None), Err(OpenError::Empty(_))));
    assert!(matches!(inspect(&path.join("absent")), Err(OpenError::NotFound(_))));
    assert!(matches!(inspect(Path::new("/dev/null")), Err(OpenError::WrongKind(_))));
    std::fs::create_dir(path.join("lost+found")).unwrap();
    let label = Label {
        volume: Uuid([1; 16]),
        replica: Uuid([2; 16]),
        created_ns: 1,
        geometry: Geometry::new(16384, 32000, 256).unwrap(),
        grows: true,
        hash_key: [3, 4],
        name: "photos".into(),
    };
    let backing = open(path, Mode::Write, Some(CreateOptions { blocks: 64, replace: false, only_in: None })).unwrap();
    // Block 0 is gone; the copy is enough.
    write(&backing, 0, &[9; BLOCK]).unwrap();
    write(&backing, 16, &label.encode(16)).unwrap();
    close(&backing);
    let found = inspect(path).unwrap();
    assert_eq!((found.label, found.size_bytes, found.foreign), (Some(label), 64 * 4096, None));
    assert!(matches!(open(path, Mode::Write, EMPTY), Err(OpenError::Foreign { .. })));
    std::fs::write(path.join("diary"), b"").unwrap();
    assert!(inspect(path).unwrap().foreign.unwrap().contains("diary"));
}

#[test]
fn a_container_is_not_followed_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("elsewhere");
    std::fs::write(&elsewhere, b"").unwrap();
    let path = directory.path().join("replica");
    std::fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink(&elsewhere, path.join(CONTAINER)).unwrap();
    assert!(matches!(open(&path, Mode::Write, None), Err(OpenError::WrongKind(_))));
    assert!(matches!(open(&path, Mode::Write, EMPTY), Err(OpenError::WrongKind(_))));
}
