//! What programs meet on a mount, call by call, where the kernel and the daemon share the work.

use super::bed::{Bed, bytes, can_mount, can_mount_as_root, end, shell};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Goal: on a full volume, what was removed makes room for the very next write, also if it was one large file.
#[test]
fn room_that_was_given_up_is_there_at_once() {
    // SEMANTICS: SPACE-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    let full = || {
        let mut file = fs::File::create(bed.at("big")).unwrap();
        let piece = bytes(1, 1 << 20);
        let mut count = 0_u64;
        while file.write_all(&piece).is_ok() {
            count += 1;
        }
        count
    };
    let first = full();
    assert!(first > 100, "only {first} MiB fit");
    bed.sync();
    for round in 0..3 {
        // One after the other, without a pause: the copy must find the room of the file that has just gone.
        fs::remove_file(bed.at("big")).unwrap();
        fs::write(bed.at("other"), bytes(round, 100 << 20)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(fs::read(bed.at("other")).unwrap() == bytes(round, 100 << 20));
        fs::remove_file(bed.at("other")).unwrap();
        shell(&bed.mnt, &format!("fallocate -l {}M reserved; rm reserved", first / 2)).ok();
        let again = full();
        assert!(again > first * 9 / 10, "round {round}: {first} MiB fitted before, {again} now");
    }
    bed.umount_and_check();
}

/// Goal: the kernel remembers that a name is not there, and no longer than that is true.
///
/// Method: with the daemon stopped, looking for the name again must answer.
#[test]
fn a_name_that_is_not_there_is_asked_for_once() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::create_dir(bed.at("d")).unwrap();
    let is_missing = |name: &str| fs::symlink_metadata(bed.at(name)).is_err_and(|e| e.raw_os_error() == Some(2));
    assert!(is_missing("d/name") && is_missing("d/other"));
    let daemon = rustix::process::Pid::from_raw(bed.daemon()).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::STOP).unwrap();
    let mut look =
        Command::new("stat").arg(bed.at("d/name")).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut status = None;
    for _ in 0..500 {
        status = look.try_wait().unwrap();
        if status.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(daemon, rustix::process::Signal::CONT).unwrap();
    let _ = look.wait();
    assert_eq!(status.and_then(|status| status.code()), Some(1), "the daemon was asked again");
    // In every way in which a name can come.
    let makers: [(&str, &dyn Fn()); 7] = [
        ("file", &|| fs::write(bed.at("d/file"), b"x").unwrap()),
        ("folder", &|| fs::create_dir(bed.at("d/folder")).unwrap()),
        ("link", &|| fs::hard_link(bed.at("d/file"), bed.at("d/link")).unwrap()),
        ("symlink", &|| std::os::unix::fs::symlink("x", bed.at("d/symlink")).unwrap()),
        ("moved", &|| fs::rename(bed.at("d/link"), bed.at("d/moved")).unwrap()),
        ("node", &|| drop(shell(&bed.mnt, "mkfifo d/node").ok())),
        ("folder/below", &|| fs::rename(bed.at("d/moved"), bed.at("d/folder/below")).unwrap()),
    ];
    for (name, make) in makers {
        let path = format!("d/{name}");
        assert!(is_missing(&path), "{name} is there too early");
        make();
        assert!(!is_missing(&path), "{name} has been made, and is not found");
    }
    for (name, gone) in [("link", "d/link"), ("moved", "d/moved")] {
        assert!(is_missing(gone), "{name} was moved away");
    }
    fs::remove_file(bed.at("d/file")).unwrap();
    assert!(is_missing("d/file"));
    fs::write(bed.at("d/file"), b"again").unwrap();
    assert_eq!(fs::read(bed.at("d/file")).unwrap(), b"again");
    // What a busy program does.
    let script = "git init -q repo && cd repo && git config user.email a@b && git config user.name n && seq 200 | xargs touch \
                  && git add . && git commit -qm one && git clone -q . ../clone && git checkout -qb side && seq 100 | xargs git rm -q \
                  && git commit -qm two && git checkout -q - && test $(ls | wc -l) = 200 && git checkout -q side \
                  && test $(ls | wc -l) = 100 && git status --porcelain | wc -l | grep -qx 0 && cd .. && rm -r repo clone && test -z \"$(ls d/repo 2>/dev/null)\"";
    if Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok() {
        shell(&bed.mnt, script).ok();
    }
    bed.umount_and_check();
}

/// Goal: what somebody still stands in, or holds without having opened it, can be looked at once it is removed.
#[test]
fn what_is_removed_can_be_looked_at_by_who_holds_it() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    shell(&bed.mnt, "mkdir d; cd d; rmdir ../d; stat -c '%h %F' . | grep -qx '0 directory'; test -z \"$(ls)\"").ok();
    fs::write(bed.at("file"), bytes(1, 10_000)).unwrap();
    let held = fs::File::options().read(true).custom_flags(libc::O_PATH).open(bed.at("file")).unwrap();
    let number = held.metadata().unwrap().ino();
    fs::remove_file(bed.at("file")).unwrap();
    let found = held.metadata().expect("what O_PATH holds");
    assert_eq!((found.nlink(), found.ino(), found.len()), (0, number, 10_000));
    drop(held);
    bed.umount_and_check();
}

/// Goal: who empties somebody else's program takes its special rights away, as a write does.
#[test]
fn emptying_a_file_takes_set_user_id_away() {
    if !can_mount_as_root("to act as another user") {
        return;
    }
    let bed = Bed::mounted("64M");
    bed.open_to_others();
    shell(
        &bed.mnt,
        "echo program >file; chown 1234:4321 file
         as() { setpriv --reuid 65534 --regid 4321 --clear-groups -- bash -c \"$1\"; }
         for how in ': >file' 'truncate -s 0 file' 'truncate -s 3 file' 'echo x >>file' 'dd if=/dev/zero of=file status=none count=1'; do
             chmod 6770 file
             as \"$how\"
             stat -c %a file | grep -qx 770 || { echo \"after $how: $(stat -c %a file)\"; exit 1; }
         done
         chmod 6770 file; : >file; stat -c %a file | grep -qx 6770",
    )
    .ok();
    bed.umount_and_check();
}

/// Goal: a write through `O_SYNC` or `O_DSYNC`, buffered or direct, is there after `kill -9`, with the name of its file.
#[test]
fn synchronous_writes_survive_kill_9() {
    // SEMANTICS: DUR-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let ways = [
        ("sync", libc::O_SYNC),
        ("dsync", libc::O_DSYNC),
        ("sync-direct", libc::O_SYNC | libc::O_DIRECT),
        ("dsync-direct", libc::O_DSYNC | libc::O_DIRECT),
    ];
    for round in 0..3_u64 {
        let daemon = bed.daemon();
        let (name, flags) = ways[round as usize];
        for (other, flags) in ways {
            let path = bed.at(&format!("{other}-{round}"));
            let mut file = fs::File::options().write(true).create(true).custom_flags(flags).open(path).unwrap();
            // Aligned, as O_DIRECT wants it.
            let mut space = vec![0; 3 * 4096];
            let at = space.as_ptr().align_offset(4096);
            space[at..at + 8192].copy_from_slice(&bytes(round, 8192));
            file.write_all(&space[at..at + 8192]).unwrap();
        }
        let path = bed.at(&format!("last-{round}"));
        let mut file =
            fs::File::options().write(true).create(true).custom_flags(flags & !libc::O_DIRECT).open(&path).unwrap();
        for piece in 0..20 {
            file.write_all(&bytes(100 + piece, 3_000)).unwrap();
        }
        end(daemon);
        super::bed::detach(&bed.mnt);
        bed.mount("").ok();
        for (other, _) in ways {
            let found =
                fs::read(bed.at(&format!("{other}-{round}"))).unwrap_or_else(|error| panic!("{other}: {error}"));
            assert!(found == bytes(round, 8192), "{other}: not what was acknowledged, {} bytes", found.len());
        }
        let wanted: Vec<u8> = (0..20).flat_map(|piece| bytes(100 + piece, 3_000)).collect();
        assert!(fs::read(&path).unwrap() == wanted, "{name}: the last writes");
    }
    bed.umount_and_check();
}

/// Goal: times are kept to the nanosecond, and inode numbers are not used again, also over a crash.
#[test]
fn times_and_numbers_outlive_a_crash() {
    // SEMANTICS: NS-2, NS-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    let look = |name: &str| {
        let m = fs::metadata(bed.at(name)).unwrap();
        (m.ino(), m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec(), m.ctime(), m.ctime_nsec())
    };
    let mut numbers = std::collections::BTreeSet::new();
    for round in 0..3 {
        let (name, gone) = (format!("kept-{round}"), format!("gone-{round}"));
        fs::write(bed.at(&gone), b"x").unwrap();
        assert!(numbers.insert(look(&gone).0), "round {round}: a number is used again");
        fs::remove_file(bed.at(&gone)).unwrap();
        let file = fs::File::create(bed.at(&name)).unwrap();
        shell(
            &bed.mnt,
            &format!(
                "touch -m -d '2001-02-03 04:05:06.123456789' {name}; touch -a -d '1999-09-09 09:09:09.987654321' {name}"
            ),
        )
        .ok();
        assert!(numbers.insert(look(&name).0), "round {round}: a number is used again");
        file.sync_all().unwrap();
        let before = look(&name);
        assert_eq!((before.2, before.4), (123_456_789, 987_654_321));
        drop(file);
        bed.kill();
        bed.mount("noatime").ok();
        assert_eq!(look(&name), before, "round {round}: after replaying the log");
        bed.umount().ok();
        bed.mount("noatime").ok();
        assert_eq!(look(&name), before, "round {round}: after a commit");
    }
    bed.umount_and_check();
}

/// Goal: to open a program that runs so that it is cut is refused, and it is not cut.
#[test]
fn a_program_that_runs_is_not_cut() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    let program = bed.at("sleep");
    shell(&bed.mnt, "cp \"$(command -v sleep)\" sleep").ok();
    let len = fs::metadata(&program).unwrap().len();
    let mut child = Command::new(&program).arg("600").spawn().unwrap();
    let cut = |flags| {
        let error =
            rustix::fs::open(&program, flags | rustix::fs::OFlags::TRUNC, rustix::fs::Mode::empty()).map(|_| ());
        (error, fs::metadata(&program).unwrap().len())
    };
    let (reading, writing) = (cut(rustix::fs::OFlags::RDONLY), cut(rustix::fs::OFlags::WRONLY));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(reading, (Err(rustix::io::Errno::TXTBSY), len));
    assert_eq!(writing, (Err(rustix::io::Errno::TXTBSY), len));
    assert_eq!(cut(rustix::fs::OFlags::WRONLY), (Ok(()), 0));
    bed.umount_and_check();
}
