//! What programs rely on every day, on a healthy mount. Named programs: `programs`, `sqlite`, `postgresql`, `stacked`.

use super::bed::{Bed, Scale, bytes, can_mount, can_mount_as_root, can_work_hard, lives, scale, shell, wait_until};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::time::Instant;

/// Goal: SEEK_HOLE and SEEK_DATA never hide what was written, dirty or not, and find real holes once it is on disk.
#[test]
fn holes_are_where_nothing_was_written() {
    // SEMANTICS: NS-5
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(bed.at("holes")).unwrap();
    let data = bytes(1, 65536);
    for at in [0_u64, 1 << 20, 5 << 20] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&data).unwrap();
    }
    let seek = |whence: fn(u64) -> rustix::fs::SeekFrom, at: u64| rustix::fs::seek(&file, whence(at));
    for round in ["dirty", "synced"] {
        for at in [0_u64, 1 << 20, 5 << 20] {
            assert_eq!(seek(rustix::fs::SeekFrom::Data, at), Ok(at), "{round}");
            assert_eq!(seek(rustix::fs::SeekFrom::Hole, at), Ok(at + 65536), "{round}");
        }
        bed.sync();
    }
    drop(file);
    bed.umount().ok();
    bed.mount("").ok();
    let file = fs::File::open(bed.at("holes")).unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)), Ok(65536));
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(65536)), Ok(1 << 20));
    shell(&bed.mnt, "cp --sparse=always holes copy; cmp holes copy; cp --sparse=auto holes copy2; cmp holes copy2")
        .ok();
}

/// Goal: a listing that goes on while entries come and go returns each that stays exactly once.
#[test]
fn listings_return_what_stays_exactly_once() {
    // SEMANTICS: NS-3
    if can_mount() {
        list_while_others_come_and_go(3000, 10);
    }
}

/// Goal: the same of a million in one directory.
#[test]
fn heavy_listings_of_very_many_return_each_exactly_once() {
    // SEMANTICS: NS-3
    if can_work_hard() {
        list_while_others_come_and_go(if scale() == Scale::All { 1_000_000 } else { 50_000 }, 2);
    }
}

fn list_while_others_come_and_go(stay: usize, times: usize) {
    let bed = Bed::mounted(if stay > 100_000 { "4G" } else { "256M" });
    let folder = bed.at("list");
    fs::create_dir(&folder).unwrap();
    for i in 0..stay {
        fs::File::create(folder.join(format!("stays-{i}"))).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, churn) = (&done, &folder);
        scope.spawn(move || {
            let mut i = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write(churn.join(format!("comes-{i}")), b"").unwrap();
                if i >= 50 {
                    fs::remove_file(churn.join(format!("comes-{}", i - 50))).unwrap();
                }
                i += 1;
            }
        });
        let outcome = std::panic::catch_unwind(|| {
            for _ in 0..times {
                let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
                names.retain(|name| name.to_string_lossy().starts_with("stays-"));
                let seen = names.len();
                names.sort();
                names.dedup();
                assert_eq!((seen, names.len()), (stay, stay));
            }
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
}

/// Goal: a full volume says so at write(), keeps what it has, and lets go of space by deleting.
#[test]
fn a_full_volume_is_full_and_no_worse() {
    // SEMANTICS: SPACE-1, SPACE-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("keep"), bytes(7, 300_000)).unwrap();
    for round in 0..3 {
        let mut written = 0_u64;
        let mut file = fs::File::create(bed.at("filler")).unwrap();
        let chunk = bytes(round, 1 << 20);
        let error = loop {
            match file.write(&chunk) {
                Ok(n) => written += n as u64,
                Err(error) => break error,
            }
            assert!(written < 1 << 30, "a volume of 64 MiB took a GiB");
        };
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "round {round}");
        assert!(written > 20 << 20, "round {round}: full after {written} bytes");
        file.sync_all().expect("what write() took can be synced");
        assert_eq!(fs::read(bed.at("keep")).unwrap(), bytes(7, 300_000));
        assert_eq!(file.metadata().unwrap().len(), written);
        file.set_len(written / 2).expect("a full volume can be truncated on");
        drop(file);
        fs::remove_file(bed.at("filler")).expect("a full volume can be deleted on");
    }
    for i in 0..200 {
        fs::write(bed.at(&format!("after-{i}")), bytes(i, 5000)).unwrap();
    }
    bed.umount_and_check();
}

/// Goal: a directory that is open lives on without its name, and goes when it is closed.
#[test]
fn an_open_directory_outlives_its_name() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    shell(
        &bed.mnt,
        "mkdir -p dir over empty; exec 3<dir; rmdir dir; [ \"$(stat -L -c '%h %F' /proc/self/fd/3)\" = '0 directory' ]
         if touch /proc/self/fd/3/new 2>/dev/null; then echo made a name in it; exit 1; fi
         exec 4<over; mv -T empty over; stat -L /proc/self/fd/4 >/dev/null; ls -a /proc/self/fd/4/ || true
         exec 3<&- 4<&-; rmdir over",
    )
    .ok();
    bed.umount_and_check();
}

/// Goal: a lazy unmount does not say that all is durable when it is not, and a signal meanwhile is not lost.
#[test]
fn a_lazy_umount_tells_of_failures_and_hears_signals() {
    // SEMANTICS: DUR-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    let lazily = |bed: &Bed| bed.stablefs(["umount".as_ref(), "--lazy".as_ref(), bed.mnt.as_os_str()]);
    let open = fs::File::create(bed.at("open")).unwrap();
    let daemon = bed.daemon();
    let pid = rustix::process::Pid::from_raw(daemon).unwrap();
    let outcome = std::thread::scope(|scope| {
        let umount = scope.spawn(|| lazily(&bed));
        wait_until("it is detached", || super::bed::mounts_in(bed.path()).is_empty());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        umount.join().unwrap()
    });
    outcome.ok();
    wait_until("the daemon ends at SIGTERM, although a file is open", || !lives(daemon));
    drop(open);
    bed.mount("").ok();
    let open = fs::File::create(bed.at("open")).unwrap();
    for replica in [&bed.a, &bed.b] {
        fs::remove_file(replica.join("stablefs.data")).unwrap();
    }
    fs::write(bed.at("late"), bytes(1, 100_000)).unwrap();
    let said = lazily(&bed);
    assert!(said.code != 0 && said.err.contains("durable"), "{said}");
    drop(open);
}

/// Goal: what umount returned from is all there. Also: the daemon is gone then, and nothing is left mounted.
#[test]
fn umount_makes_durable_and_ends_the_daemon() {
    // SEMANTICS: DUR-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    let data = bytes(3, 40 << 20);
    fs::write(bed.at("big"), &data).unwrap();
    let daemon = bed.daemon();
    let began = Instant::now();
    bed.umount().ok();
    println!("umount with 40 MiB dirty: {:?}", began.elapsed());
    assert!(!lives(daemon), "the daemon lives on");
    assert!(super::bed::mounts_in(bed.path()).is_empty());
    bed.mount("ro").ok();
    assert!(fs::read(bed.at("big")).unwrap() == data);
    let error = fs::write(bed.at("new"), b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    bed.umount_and_check();
}

/// Goal: rights are checked by the kernel with our modes, and set-id bits go when others write.
#[test]
fn rights_are_kept() {
    if !can_mount_as_root("to act as another user") {
        return;
    }
    let bed = Bed::mounted("64M");
    bed.open_to_others();
    shell(
        &bed.mnt,
        "echo secret >private; chmod 600 private; mkdir -m 1777 sticky; echo a >sticky/mine; chmod 666 sticky/mine
         cp /bin/true suid; chmod 6777 suid
         as() { setpriv --reuid 65534 --regid 65534 --clear-groups -- \"$@\"; }
         if as cat private 2>/dev/null; then echo read it; exit 1; fi
         if as rm -f sticky/mine 2>/dev/null; then echo removed it; exit 1; fi
         as dd if=/dev/zero of=suid bs=1 count=1 conv=notrunc status=none
         stat -c %a suid | grep -qx 777
         mkdir -m 2775 setgid; chgrp 4321 setgid; chmod 2775 setgid; mkdir setgid/below; touch setgid/file
         touch mine; chown 65534:4321 mine; chmod 2755 mine
         setpriv --reuid 65534 --regid 65534 --groups 4321 -- setfacl -m u:7:r mine; stat -c %a mine | grep -qx 2755
         setpriv --reuid 65534 --regid 65534 --groups 4322 -- setfacl -m u:8:r mine; stat -c %a mine | grep -qx 755
         stat -c '%g %a' setgid/below | grep -qx '4321 2755'; stat -c %g setgid/file | grep -qx 4321",
    )
    .ok();
}
