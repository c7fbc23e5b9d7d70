//! What the kernel does with a filesystem below it: paths, locks, the page cache, mappings. Only on real directories.

#![allow(unsafe_code)] // Mappings, locks and processes have no safe calls.

use super::bytes::data;
use super::place::{Errno, Handle, Kind, Place, Usual, refused};
use super::real::{Real, last_error};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

const PAGE: usize = 4096;

fn opened(place: &Real, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(place.path(path), flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// The same bytes; says where they differ.
#[track_caller]
fn same(found: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
    let (found, expected) = (found.as_ref(), expected.as_ref());
    assert_eq!(found.len(), expected.len());
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        panic!("byte {at} is {}, should be {}", found[at], expected[at]);
    }
}

fn answer(code: i32) -> Result<i32, Errno> {
    if code < 0 { Err(last_error()) } else { Ok(code) }
}

/// What `deed` gives in another process; it may not allocate or lock.
fn in_child(deed: impl FnOnce() -> i32) -> std::process::ExitStatus {
    use std::os::unix::process::ExitStatusExt;
    // SAFETY: the child makes system calls alone, and never comes back from here.
    let child = answer(unsafe { libc::fork() }).unwrap();
    if child == 0 {
        let code = deed();
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: a child of ours, and a number to write to.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        assert_eq!(last_error(), Errno::INTR);
    }
    std::process::ExitStatus::from_raw(status)
}

pub fn paths_that_are_too_long(place: &Real) {
    place.mkdir("d", 0o755).unwrap();
    let base = place.path("d").as_os_str().len();
    // PATH_MAX counts the NUL.
    let path = |length: usize| {
        let rest = length - base;
        format!("d{}{}", "/".repeat(rest - 1), ".")
    };
    place.stat(&path(4095)).unwrap();
    refused(place.stat(&path(4096)), Errno::NAMETOOLONG);
    refused(place.mkdir(&path(4097), 0o755), Errno::NAMETOOLONG);
    // A directory deeper than any path, step by step.
    let mut folder = place.open("d", libc::O_DIRECTORY, 0).unwrap();
    for depth in 0..30 {
        let name = super::place::at(folder, &format!("{depth}{}", "y".repeat(200)));
        place.mkdir(&name, 0o755).unwrap();
        let below = place.open(&name, libc::O_DIRECTORY, 0).unwrap();
        place.close(folder);
        folder = below;
    }
    place.close(folder);
}

pub fn loops_of_links(place: &Real) {
    place.symlink("b", "a").unwrap();
    place.symlink("a", "b").unwrap();
    let follow = |path: &str| opened(place, path, OFlags::RDONLY).map(drop);
    refused(follow("a"), Errno::LOOP);
    refused(follow("a/x"), Errno::LOOP);
    refused(place.stat("a/x"), Errno::LOOP);
    refused(place.open("a", libc::O_RDONLY, 0), Errno::LOOP);
    refused(place.open("a", libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600), Errno::EXIST);
    place.make("s0", b"end");
    (1..=41).for_each(|index| place.symlink(&format!("s{}", index - 1), &format!("s{index}")).unwrap());
    follow("s40").unwrap();
    refused(follow("s41"), Errno::LOOP);
    // A dangling link is followed by O_CREAT, and makes what it names.
    place.symlink("made", "dangling").unwrap();
    refused(follow("dangling"), Errno::NOENT);
    opened(place, "dangling", OFlags::CREATE | OFlags::WRONLY).unwrap();
    assert!(place.exists("made"));
}

pub fn places_that_are_busy_or_elsewhere(place: &Real) {
    place.make("file", b"");
    place.mkdir("d", 0o755).unwrap();
    refused(place.rename("d/.", "x", 0), Errno::BUSY);
    refused(place.rename("file", "d/..", 0), Errno::BUSY);
    refused(place.rmdir("d/."), Errno::INVAL);
    refused(place.rmdir("d/.."), Errno::NOTEMPTY);
    refused(place.unlink("d/."), Errno::ISDIR);
    refused(place.mkdir("d/.", 0o755), Errno::EXIST);
    refused(place.stat("file/"), Errno::NOTDIR);
    refused(place.open("new/", libc::O_CREAT | libc::O_RDWR, 0o600), Errno::ISDIR);
    place.mkdir("new/", 0o755).unwrap();
    place.rename("new/", "newer/", 0).unwrap();
    let away = tempfile::tempdir_in("/dev/shm").unwrap();
    let outside = away.path().join("x");
    refused(rustix::fs::rename(place.path("file"), &outside), Errno::XDEV);
    refused(rustix::fs::link(place.path("file"), &outside), Errno::XDEV);
}

pub fn handles_that_cannot(place: &Real) {
    place.make("file", b"content");
    let (reader, writer) =
        (place.open("file", libc::O_RDONLY, 0).unwrap(), place.open("file", libc::O_WRONLY, 0).unwrap());
    let path = place.open("file", libc::O_PATH, 0).unwrap();
    refused(place.write(reader, 0, b"x"), Errno::BADF);
    refused(place.read(writer, 0, 1), Errno::BADF);
    refused(place.resize(reader, 0), Errno::INVAL);
    refused(place.allocate(reader, 0, 0, 1), Errno::BADF);
    refused(place.copy((writer, 0), (reader, 0), 1), Errno::BADF);
    refused(place.read(path, 0, 1), Errno::BADF);
    refused(place.fsync(path), Errno::BADF);
    assert_eq!(place.stat_open(path).unwrap().size, 7);
    let folder = place.open(".", libc::O_RDONLY, 0).unwrap();
    refused(place.read(folder, 0, 1), Errno::ISDIR);
    place.fsync(folder).unwrap();
    refused(place.seek(reader, u64::MAX, libc::SEEK_DATA), Errno::NXIO);
    let raw = place.file(reader).as_raw_fd();
    // SAFETY: a descriptor of ours and numbers.
    let seek = |offset, whence| unsafe { libc::lseek(raw, offset, whence) };
    assert_eq!((seek(0, 99), last_error()), (-1, Errno::INVAL));
    assert_eq!((seek(-1, libc::SEEK_SET), last_error()), (-1, Errno::INVAL));
    assert_eq!((seek(-8, libc::SEEK_END), last_error()), (-1, Errno::INVAL));
    assert_eq!(seek(3, libc::SEEK_END), 10);
    // SAFETY: as above.
    let allocate = |offset, length| unsafe { libc::fallocate(place.file(writer).as_raw_fd(), 0, offset, length) };
    assert_eq!((allocate(-1, 5), last_error()), (-1, Errno::INVAL));
    assert_eq!((allocate(5, -1), last_error()), (-1, Errno::INVAL));
    assert_eq!((unsafe { libc::ftruncate(place.file(writer).as_raw_fd(), -1) }, last_error()), (-1, Errno::INVAL));
    place.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    let fifo = place.open("fifo", libc::O_RDWR, 0).unwrap();
    refused(place.allocate(fifo, 0, 0, 1), Errno::SPIPE);
    refused(place.seek(fifo, 0, libc::SEEK_DATA), Errno::SPIPE);
    refused(place.fsync(fifo), Errno::INVAL);
    let append = place.open("file", libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
    refused(place.copy((reader, 0), (append, 0), 1), Errno::BADF);
    assert_eq!(place.write(append, 0, b"!").unwrap(), 1);
    assert_eq!(place.content("file"), b"content!", "with O_APPEND pwrite(2) appends, too");
}

/// open_by_handle_at(2) of what has gone.
pub fn handles_that_are_stale(place: &Real) {
    #[repr(C)]
    struct FileHandle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let handle_of = |path: &str| {
        let path = std::ffi::CString::new(place.path(path).into_os_string().into_encoded_bytes()).unwrap();
        let (mut handle, mut mount) = (FileHandle { bytes: 128, kind: 0, handle: [0; 128] }, 0_i32);
        // SAFETY: a path with a NUL at its end, room for a handle and a number.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                0,
            )
        };
        answer(done as i32).unwrap();
        handle
    };
    let folder = opened(place, ".", OFlags::RDONLY).unwrap();
    let open = |handle: &FileHandle| {
        // SAFETY: a handle that the kernel has made.
        let done = unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, folder.as_raw_fd(), std::ptr::from_ref(handle), libc::O_RDONLY)
        };
        use std::os::fd::FromRawFd;
        // SAFETY: a new descriptor that nobody else has.
        answer(done as i32).map(|raw| unsafe { OwnedFd::from_raw_fd(raw) })
    };
    place.make("file", b"content");
    place.mkdir("d", 0o755).unwrap();
    let (file, below) = (handle_of("file"), handle_of("d"));
    let again = open(&file).unwrap();
    let mut out = [0; 20];
    assert_eq!(rustix::io::pread(&again, &mut out, 0).unwrap(), 7);
    place.rename("file", "d/moved", 0).unwrap();
    open(&file).unwrap();
    drop(again);
    place.unlink("d/moved").unwrap();
    place.rmdir("d").unwrap();
    refused(open(&file), Errno::STALE);
    refused(open(&below), Errno::STALE);
}

pub fn programs_that_run(place: &Real) {
    std::fs::copy("/bin/sleep", place.path("program")).unwrap();
    let mut child = Command::new(place.path("program")).arg("60").spawn().unwrap();
    let writing = opened(place, "program", OFlags::WRONLY);
    let cutting = place.resize_path("program", 0);
    child.kill().unwrap();
    child.wait().unwrap();
    refused(writing, Errno::TXTBSY);
    refused(cutting, Errno::TXTBSY);
    let writer = opened(place, "program", OFlags::WRONLY).unwrap();
    let error = Command::new(place.path("program")).arg("0").status().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
    drop(writer);
    assert!(Command::new(place.path("program")).arg("0").status().unwrap().success());
}

pub fn whole_file_locks(place: &Real) {
    use rustix::fs::{FlockOperation as Lock, flock};
    place.make("file", b"");
    let open = || opened(place, "file", OFlags::RDWR).unwrap();
    let (one, two, three) = (open(), open(), open());
    flock(&one, Lock::NonBlockingLockShared).unwrap();
    flock(&two, Lock::NonBlockingLockShared).unwrap();
    refused(flock(&three, Lock::NonBlockingLockExclusive), Errno::WOULDBLOCK);
    flock(&one, Lock::Unlock).unwrap();
    drop(two);
    flock(&three, Lock::NonBlockingLockExclusive).unwrap();
    let tried = in_child(|| {
        let fresh = unsafe { libc::open(c"/proc/self/cwd".as_ptr(), libc::O_RDONLY) }; // a lock of the parent's own file is its own
        let own = unsafe { libc::flock(three.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        let other = unsafe { libc::flock(one.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        i32::from(fresh < 0) + 2 * i32::from(own != 0) + 4 * i32::from(other != -1)
    });
    assert_eq!(tried.code(), Some(0), "an open file is locked, whatever the process");
    drop(three);
    flock(&one, Lock::NonBlockingLockExclusive).unwrap();
}

fn lock(file: &OwnedFd, command: i32, kind: i32, start: i64, length: i64) -> Result<libc::flock, Errno> {
    // SAFETY: a structure of numbers.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    (range.l_type, range.l_whence, range.l_start, range.l_len) = (kind as i16, libc::SEEK_SET as i16, start, length);
    // SAFETY: a descriptor of ours and that structure.
    answer(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut range) }).map(|_| range)
}

pub fn locks_of_processes(place: &Real) {
    let file = opened(place, "file", OFlags::RDWR | OFlags::CREATE).unwrap();
    let again = opened(place, "file", OFlags::RDWR).unwrap();
    lock(&file, libc::F_SETLK, libc::F_WRLCK, 100, 50).unwrap();
    lock(&file, libc::F_SETLK, libc::F_RDLCK, 0, 10).unwrap();
    lock(&again, libc::F_SETLK, libc::F_WRLCK, 120, 100).unwrap(); // the process's own
    let parent = std::process::id() as i32;
    let other = |kind, start, length| {
        let code = in_child(|| match lock(&file, libc::F_SETLK, kind, start, length) {
            Ok(_) => 0,
            Err(Errno::AGAIN | Errno::ACCESS) => 1,
            Err(_) => 2,
        });
        code.code().unwrap()
    };
    assert_eq!(other(libc::F_RDLCK, 0, 10), 0);
    assert_eq!(other(libc::F_WRLCK, 9, 1), 1);
    assert_eq!(other(libc::F_RDLCK, 149, 1), 1);
    assert_eq!(other(libc::F_RDLCK, 219, 1), 1);
    assert_eq!(other(libc::F_WRLCK, 220, 0), 0, "to the end, wherever that will be");
    assert_eq!(other(libc::F_WRLCK, 10, 90), 0);
    let told = in_child(|| match lock(&file, libc::F_GETLK, libc::F_WRLCK, 90, 40) {
        Ok(found) if found.l_pid == parent && found.l_start == 100 && found.l_len == 120 => 0,
        _ => 1,
    });
    assert_eq!(told.code(), Some(0), "who holds what");
    lock(&file, libc::F_SETLK, libc::F_UNLCK, 110, 10).unwrap();
    assert_eq!((other(libc::F_WRLCK, 110, 10), other(libc::F_WRLCK, 109, 1)), (0, 1));
    // Closing any descriptor of the file gives up all of the process's locks (POSIX will have it so).
    drop(again);
    assert_eq!(other(libc::F_WRLCK, 0, 0), 0);
}

pub fn locks_of_open_files(place: &Real) {
    const SET: i32 = libc::F_OFD_SETLK;
    let file = opened(place, "file", OFlags::RDWR | OFlags::CREATE).unwrap();
    let again = opened(place, "file", OFlags::RDWR).unwrap();
    lock(&file, SET, libc::F_WRLCK, 0, 100).unwrap();
    refused(lock(&again, SET, libc::F_RDLCK, 99, 1).map(drop), Errno::AGAIN);
    lock(&again, SET, libc::F_WRLCK, 100, 1).unwrap();
    let held = lock(&again, libc::F_OFD_GETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!((i32::from(held.l_type), held.l_pid), (libc::F_WRLCK, -1));
    // Another descriptor's end takes nothing of it; its own does.
    drop(opened(place, "file", OFlags::RDWR).unwrap());
    refused(lock(&again, SET, libc::F_RDLCK, 0, 1).map(drop), Errno::AGAIN);
    drop(file);
    lock(&again, SET, libc::F_WRLCK, 0, 0).unwrap();
    // Against the locks of processes.
    let third = opened(place, "file", OFlags::RDWR).unwrap();
    refused(lock(&third, libc::F_SETLK, libc::F_WRLCK, 0, 1).map(drop), Errno::AGAIN);
}

/// A mapping; unmapped at its end.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn new(file: &OwnedFd, length: usize, flags: i32) -> Mapping {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", last_error());
        Mapping(at.cast(), length)
    }
    fn get(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.1);
        // SAFETY: within the mapping; others change it, so byte by byte and each for certain.
        (at..at + length).map(|at| unsafe { self.0.add(at).read_volatile() }).collect()
    }
    fn put(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.1);
        // SAFETY: as above.
        data.iter().enumerate().for_each(|(index, byte)| unsafe { self.0.add(at + index).write_volatile(*byte) });
    }
    fn sync(&self) {
        // SAFETY: all of this mapping.
        answer(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) }).unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: all of this mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

pub fn what_the_kernel_still_holds_is_no_hole(place: &Real) {
    const MIB: usize = 1 << 20;
    let handle = place.open("file", libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    place.resize(handle, 8 * MIB as u64).unwrap();
    let map = Mapping::new(&place.file(handle), 8 * MIB, libc::MAP_SHARED);
    for (at, byte) in [(1, 1), (5, 2)] {
        map.put(at * MIB, &[byte]);
        place.write_all(handle, ((at + 1) * MIB) as u64, &[byte; 100]);
    }
    place.write_all(handle, 9 << 20, &[3; 5000]);
    let block = |mib: u64| (mib << 20)..(mib << 20) + 4096;
    assert_eq!(data(place, handle), [block(1), block(2), block(5), block(6), 9 << 20..(9 << 20) + 5000]);
    map.put(3 * MIB, &[4]);
    assert_eq!(place.seek(handle, 3 << 20, libc::SEEK_DATA).unwrap(), 3 << 20, "stored after a look");
    assert_eq!([1, 3, 4, 6].map(|at| map.get(at * MIB, 1)[0]), [1, 4, 0, 2], "and nothing is lost by it");
    drop(map);
    place.close(handle);
}

pub fn shared_mappings_are_the_file(place: &Real) {
    let handle = place.open("file", libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let file = place.file(handle);
    place.resize(handle, 5 * PAGE as u64).unwrap();
    let (map, other) =
        (Mapping::new(&file, 5 * PAGE, libc::MAP_SHARED), Mapping::new(&file, 5 * PAGE, libc::MAP_SHARED));
    map.put(PAGE + 10, b"stored");
    assert_eq!(place.read(handle, PAGE as u64 + 10, 6).unwrap(), b"stored");
    assert_eq!(other.get(PAGE + 10, 6), b"stored");
    place.write_all(handle, PAGE as u64 + 12, b"WRITTEN");
    assert_eq!(map.get(PAGE + 10, 9), b"stWRITTEN");
    // Punched, zeroed and copied over: at once, whatever was dirty.
    map.put(2 * PAGE, &[7; 2 * PAGE]);
    place.allocate(handle, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 2 * PAGE as u64 + 100, 200).unwrap();
    assert_eq!(map.get(2 * PAGE + 99, 202), [&[7][..], &[0; 200], &[7]].concat());
    place
        .allocate(handle, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 2 * PAGE as u64, PAGE as u64)
        .unwrap();
    assert_eq!(map.get(2 * PAGE, PAGE + 1), [&[0; PAGE][..], &[7]].concat());
    map.put(3 * PAGE, &[8; PAGE]);
    place.allocate(handle, libc::FALLOC_FL_ZERO_RANGE, 3 * PAGE as u64 + 5, 10).unwrap();
    assert_eq!(map.get(3 * PAGE + 4, 12), [&[8][..], &[0; 10], &[8]].concat());
    map.put(0, b"to be copied");
    assert_eq!(place.copy((handle, 0), (handle, 4 * PAGE as u64), 12).unwrap(), 12);
    assert_eq!(map.get(4 * PAGE, 13), b"to be copied\0");
    map.put(4 * PAGE, b"dirty");
    assert_eq!(place.copy((handle, 4 * PAGE as u64), (handle, 100), 12).unwrap(), 12);
    assert_eq!(map.get(100, 12), b"dirty copied");
    // What is cut off is gone, and comes back as zeros.
    map.put(PAGE, &[9; 4 * PAGE]);
    place.resize(handle, PAGE as u64 + 3).unwrap();
    same(map.get(PAGE, 10), [9, 9, 9, 0, 0, 0, 0, 0, 0, 0]);
    place.resize(handle, 5 * PAGE as u64).unwrap();
    same(map.get(PAGE, 4 * PAGE), [&[9; 3][..], &[0; 4 * PAGE - 3]].concat());
    assert_eq!(place.read(handle, PAGE as u64, 20).unwrap(), [&[9; 3][..], &[0; 17]].concat());
    map.put(7, b"last");
    drop((map, other));
    place.fsync(handle).unwrap();
    place.forget(handle);
    assert_eq!(place.read(handle, 7, 5).unwrap(), b"lastd");
    assert_eq!(place.read(handle, 2 * PAGE as u64, 3 * PAGE).unwrap(), [0; 3 * PAGE]);
}

/// Bytes that are stored behind the end of a file, in its last page, are not the file's. The kernel does not zero them for
/// FUSE when a file is made longer (`fuse_do_setattr` in fs/fuse/dir.c; ext4 calls `pagecache_isize_extended`), and sends
/// the page with them: the daemon cannot know them from bytes that were meant.
pub fn stores_behind_the_end(place: &Real) {
    let handle = place.open("file", libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    place.write_all(handle, 0, b"abc");
    let map = Mapping::new(&place.file(handle), PAGE, libc::MAP_SHARED);
    map.put(3, b"behind");
    assert_eq!(place.content("file"), b"abc");
    place.fsync(handle).unwrap();
    assert_eq!(place.content("file"), b"abc");
    place.resize(handle, 9).unwrap();
    let found = place.content("file");
    assert!(found == b"abc\0\0\0\0\0\0" || (!place.is_ext4() && found == b"abcbehind"), "{found:?}");
    drop(map);
    // Without such stores there is nothing but zeros, whatever was there before.
    place.write_all(handle, 3, b"before");
    place.resize(handle, 3).unwrap();
    place.resize(handle, 9).unwrap();
    assert_eq!(place.content("file"), b"abc\0\0\0\0\0\0");
}

pub fn private_mappings_are_not(place: &Real) {
    place.make("file", &[1; 2 * PAGE]);
    let handle = place.open("file", libc::O_RDWR, 0).unwrap();
    let map = Mapping::new(&place.file(handle), 2 * PAGE, libc::MAP_PRIVATE);
    map.put(0, b"mine");
    place.write_all(handle, PAGE as u64, b"theirs");
    assert_eq!((map.get(0, 4), map.get(PAGE, 6)), (b"mine".to_vec(), b"theirs".to_vec()));
    place.fsync(handle).unwrap();
    assert_eq!(place.read(handle, 0, 4).unwrap(), [1; 4]);
}

pub fn mappings_beyond_the_end(place: &Real) {
    use std::os::unix::process::ExitStatusExt;
    let handle = place.open("file", libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    place.resize(handle, 2 * PAGE as u64).unwrap();
    let map = Mapping::new(&place.file(handle), 3 * PAGE, libc::MAP_SHARED);
    map.put(PAGE, b"there");
    let ends = |at: usize| {
        let look = in_child(|| {
            // SAFETY: within the mapping; that it may not be backed is the question.
            let byte = unsafe { map.0.add(at).read_volatile() };
            i32::from(byte)
        });
        look.signal()
    };
    assert_eq!((ends(PAGE), ends(2 * PAGE)), (None, Some(libc::SIGBUS)));
    place.resize(handle, 1).unwrap();
    assert_eq!((ends(PAGE - 1), ends(PAGE)), (None, Some(libc::SIGBUS)));
    place.resize(handle, 3 * PAGE as u64).unwrap();
    assert_eq!((ends(PAGE), ends(2 * PAGE)), (None, None));
    assert_eq!(map.get(PAGE, 5), [0; 5]);
}

/// Memory as O_DIRECT wants it.
fn aligned(byte: u8, pages: usize) -> Vec<u8> {
    // Room for one page more, whose begin is cut off by whoever uses it.
    vec![byte; (pages + 1) * PAGE]
}

fn page_of(space: &mut [u8], pages: usize) -> &mut [u8] {
    let skip = space.as_ptr().align_offset(PAGE);
    &mut space[skip..skip + pages * PAGE]
}

pub fn direct_beside_buffered_and_mapped(place: &Real) {
    let handle = place.open("file", libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    place.write_all(handle, 0, &[1; 4 * PAGE]);
    let direct = opened(place, "file", OFlags::RDWR | OFlags::DIRECT).unwrap();
    let map = Mapping::new(&place.file(handle), 4 * PAGE, libc::MAP_SHARED);
    let mut space = aligned(0, 4);
    let read = |offset: usize, space: &mut Vec<u8>| {
        let out = page_of(space, 1);
        assert_eq!(rustix::io::pread(&direct, &mut *out, offset as u64).unwrap(), PAGE);
        out.to_vec()
    };
    assert_eq!(read(0, &mut space), [1; PAGE], "written, and not yet written out");
    page_of(&mut space, 1).fill(2);
    assert_eq!(rustix::io::pwrite(&direct, page_of(&mut space, 1), PAGE as u64).unwrap(), PAGE);
    same(place.read(handle, PAGE as u64 - 1, 3).unwrap(), [1, 2, 2]);
    same(map.get(2 * PAGE - 1, 2), [2, 1]);
    map.put(3 * PAGE, &[3; PAGE]);
    assert_eq!(read(3 * PAGE, &mut space), [3; PAGE], "stored, and not yet written out");
    place.write_all(handle, 2 * PAGE as u64 + 5, b"buffered");
    assert_eq!(&read(2 * PAGE, &mut space)[4..14], b"\x01buffered\x01");
    // Over a dirty page, and past the end.
    map.put(0, &[4; 100]);
    page_of(&mut space, 1).fill(5);
    assert_eq!(rustix::io::pwrite(&direct, page_of(&mut space, 1), 0).unwrap(), PAGE);
    map.sync();
    assert_eq!((map.get(0, 100), place.read(handle, 0, 100).unwrap()), (vec![5; 100], vec![5; 100]));
    assert_eq!(rustix::io::pwrite(&direct, page_of(&mut space, 1), 8 * PAGE as u64).unwrap(), PAGE);
    assert_eq!(place.stat_open(handle).unwrap().size, 9 * PAGE as u64);
    assert_eq!(place.read(handle, 7 * PAGE as u64, 2 * PAGE).unwrap(), [[0; PAGE], [5; PAGE]].concat());
    let out = page_of(&mut space, 2);
    assert_eq!(rustix::io::pread(&direct, &mut *out, 8 * PAGE as u64).unwrap(), PAGE, "up to the end");
}

pub fn writes_that_wait_for_the_disk(place: &Real) {
    for flags in [OFlags::SYNC, OFlags::DSYNC, OFlags::SYNC | OFlags::DIRECT, OFlags::DSYNC | OFlags::APPEND] {
        let file = opened(place, "file", OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | flags).unwrap();
        assert!(rustix::fs::fcntl_getfl(&file).unwrap().contains(flags));
        let mut space = aligned(6, 1);
        assert_eq!(rustix::io::write(&file, page_of(&mut space, 1)).unwrap(), PAGE);
        drop(file);
        assert_eq!(place.content("file"), [6; PAGE]);
    }
}

pub fn two_processes_append(place: &Real) {
    const COUNT: usize = 300;
    let one = opened(place, "file", OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE).unwrap();
    let two = opened(place, "file", OFlags::WRONLY | OFlags::APPEND).unwrap();
    let record = |byte: u8| [byte; 61];
    let (ours, theirs) = (record(b'a'), record(b'b'));
    let write_all = |file: &OwnedFd, record: &[u8]| {
        (0..COUNT).all(|_| unsafe { libc::write(file.as_raw_fd(), record.as_ptr().cast(), record.len()) } == 61)
    };
    let status = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(&one, &ours));
        let status = in_child(|| i32::from(!write_all(&two, &theirs)));
        assert!(writer.join().unwrap());
        status
    });
    assert_eq!(status.code(), Some(0));
    let content = place.content("file");
    assert_eq!(content.len(), 2 * COUNT * 61);
    let mut counts = [0; 2];
    for chunk in content.chunks(61) {
        assert!(chunk == ours || chunk == theirs, "a torn record");
        counts[usize::from(chunk == theirs)] += 1;
    }
    assert_eq!(counts, [COUNT; 2]);
}

pub fn pipes_and_sockets(place: &Real) {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    place.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    let fifo = place.open("fifo", libc::O_RDWR, 0).unwrap();
    rustix::io::write(&*place.file(fifo), b"through").unwrap();
    let mut out = [0; 20];
    assert_eq!(rustix::io::read(&*place.file(fifo), &mut out).unwrap(), 7);
    // A short name: a socket's path has 108 bytes.
    let folder = place.open(".", libc::O_DIRECTORY, 0).unwrap();
    let path = format!("/proc/self/fd/{}/socket", place.file(folder).as_raw_fd());
    let listener = UnixListener::bind(&path).unwrap();
    let mut sender = UnixStream::connect(&path).unwrap();
    sender.write_all(b"hello").unwrap();
    drop(sender);
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    refused(place.open("socket", libc::O_RDWR, 0), Errno::NXIO);
}

/// What ext4 has and FUSE, or its library, has not: docs/SEMANTICS.md names each with its reason.
pub fn what_is_not_promised(place: &Real) {
    place.make("file", b"content");
    place.make("other", b"");
    let is_ext4 = place.kind() == Kind::Ext4;
    let unnamed = rustix::fs::open(place.path("."), OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
    if is_ext4 {
        drop(unnamed.unwrap())
    } else {
        refused(unnamed, Errno::OPNOTSUPP)
    }
    let shown = rustix::fs::statx(CWD, place.path("file"), AtFlags::empty(), StatxFlags::BTIME).unwrap();
    assert_eq!(shown.stx_mask & StatxFlags::BTIME.bits() != 0, is_ext4, "birth time");
    let (from, to) = (opened(place, "file", OFlags::RDONLY).unwrap(), opened(place, "other", OFlags::RDWR).unwrap());
    refused(rustix::fs::ioctl_ficlone(&to, &from), Errno::OPNOTSUPP); // nor on ext4
    let flags = rustix::fs::ioctl_getflags(&from);
    if is_ext4 {
        assert!(flags.is_ok())
    } else {
        refused(flags, Errno::NOTTY)
    }
    rustix::fs::syncfs(&from).unwrap();
    let room = rustix::fs::statvfs(place.path(".")).unwrap();
    assert_eq!((room.f_namemax, room.f_bsize), (255, 4096));
}

/// Nothing on a read-only mount can be changed, and everything looked at. `place` was filled by [`to_be_read`].
pub fn read_only(place: &dyn Place) {
    let rofs = |outcome: Result<(), Errno>, what: &str| assert_eq!(outcome, Err(Errno::ROFS), "{what}");
    let open = |flags| place.open("file", flags, 0o600).map(drop);
    rofs(open(libc::O_WRONLY), "open to write");
    rofs(open(libc::O_RDWR), "open to read and write");
    rofs(open(libc::O_RDONLY | libc::O_TRUNC), "open and cut");
    rofs(place.open("new", libc::O_CREAT | libc::O_RDWR, 0o600).map(drop), "create");
    rofs(place.mkdir("new", 0o700), "mkdir");
    rofs(place.mknod("new", libc::S_IFIFO | 0o600, 0), "mknod");
    rofs(place.symlink("x", "new"), "symlink");
    rofs(place.link("file", "new"), "link");
    rofs(place.unlink("file"), "unlink");
    rofs(place.rmdir("folder"), "rmdir");
    rofs(place.rename("file", "new", 0), "rename");
    rofs(place.chmod("file", 0o600), "chmod");
    rofs(place.chown("file", Some(1), None), "chown");
    rofs(place.utimes("file", super::place::When::Now, super::place::When::Omit), "utimes");
    rofs(place.resize_path("file", 0), "truncate");
    rofs(place.set_attribute("file", "user.x", b"y", 0), "setxattr");
    rofs(place.remove_attribute("file", "user.x"), "removexattr");
    // What is wrong anyway has its own errno.
    refused(place.mkdir("folder", 0o700), Errno::EXIST);
    refused(place.chmod("missing", 0o600), Errno::NOENT);
    assert_eq!(place.content("file"), b"content");
    assert_eq!(place.attribute("file", "user.x").unwrap(), b"x");
    assert_eq!(place.names("."), ["file", "folder"]);
    let file: Handle = place.open("file", libc::O_RDONLY, 0).unwrap();
    refused(place.write(file, 0, b"x"), Errno::BADF);
    place.fsync(file).unwrap();
    place.close(file);
}

/// What [`read_only`] looks at.
pub fn to_be_read(place: &dyn Place) {
    place.make("file", b"content");
    place.set_attribute("file", "user.x", b"x", 0).unwrap();
    place.mkdir("folder", 0o755).unwrap();
}
