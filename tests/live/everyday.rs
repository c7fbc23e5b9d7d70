//! Programs that people use, on a healthy mount.

use super::bed::{Bed, bytes, can_mount, can_mount_as_root, is_root, lives, shell, wait_until};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// Goal: git, which links, renames and syncs a lot, finds its repository sound on the mount, also after a remount.
#[test]
fn git_clones_with_hard_links_and_finds_no_fault() {
    // SEMANTICS: NS-1, NS-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("512M");
    shell(
        &bed.mnt,
        &format!(
            "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
             git config --global user.name t; git config --global user.email t@example.org
             git config --global init.defaultBranch main
             git init -q origin; cp -r {SOURCES}/src {SOURCES}/docs {SOURCES}/tests origin/; cd origin
             for i in 1 2 3 4 5; do echo $i >>src/lib.rs; git add -A; git commit -qm $i; done
             cd ..; git clone -q --local origin clone; git -C clone fsck --full --strict
             git -C clone checkout -q -b other HEAD~2; git -C clone checkout -q main; git -C clone status --porcelain"
        ),
    )
    .ok();
    let mut linked = 0;
    for entry in walk(&bed.at("clone/.git/objects")) {
        let meta = fs::symlink_metadata(&entry).unwrap();
        if meta.is_file() && meta.nlink() == 2 {
            let twin = bed.at("origin/.git/objects").join(entry.strip_prefix(bed.at("clone/.git/objects")).unwrap());
            assert_eq!(fs::metadata(twin).unwrap().ino(), meta.ino(), "hard links have one inode number");
            linked += 1;
        }
    }
    assert!(linked > 100, "only {linked} objects are hard links");
    bed.umount_and_check();
    bed.mount("").ok();
    shell(
        &bed.mnt,
        "export HOME=$PWD; for r in origin clone; do git -C $r fsck --full --strict; git -C $r status --porcelain; done
         git -C origin gc -q; git -C origin fsck --full --strict",
    )
    .ok();
    bed.umount_and_check();
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(one) = folders.pop() {
        for entry in fs::read_dir(one).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// Goal: a compiler and a linker, which map their files, build a real crate on the mount, and it runs.
#[test]
fn cargo_builds_a_crate() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    let crate_folder = bed.at("crate");
    fs::create_dir_all(crate_folder.join("src")).unwrap();
    fs::write(
        crate_folder.join("Cargo.toml"),
        "[package]\nname = \"built\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[dependencies]\nserde_json = \"1\"\n\n[workspace]\n",
    )
    .unwrap();
    fs::write(
        crate_folder.join("src/main.rs"),
        "fn main() { let v: serde_json::Value = serde_json::from_str(\"[1, 2, 39]\").unwrap();\n\
         println!(\"{}\", v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>()); }\n",
    )
    .unwrap();
    // Our own lock file: all that it names has been fetched already.
    fs::copy(format!("{SOURCES}/Cargo.lock"), crate_folder.join("Cargo.lock")).unwrap();
    let said = shell(
        &crate_folder,
        "unset CARGO_TARGET_DIR RUSTFLAGS; CARGO_TARGET_DIR=$PWD/target cargo build --offline --quiet; ./target/debug/built",
    )
    .ok();
    assert_eq!(said.out.trim(), "42", "{said}");
    bed.umount_and_check();
    bed.mount("").ok();
    assert_eq!(shell(&crate_folder, "./target/debug/built").ok().out.trim(), "42");
}

/// Goal: a database with both kinds of journal stays sound, also over a remount.
#[test]
fn sqlite_finds_its_databases_sound() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("512M");
    for journal in ["wal", "delete"] {
        let said = shell(
            &bed.mnt,
            &format!(
                "sqlite3 {journal}.db 'pragma journal_mode={journal}; create table t(k integer primary key, v blob);
                 begin; with recursive n(i) as (select 1 union all select i+1 from n where i<20000)
                 insert into t select i, randomblob(200) from n; commit;'
                 for i in $(seq 40); do sqlite3 {journal}.db \"update t set v=randomblob(300) where k%40=$i;
                 delete from t where k=$i\"; done
                 sqlite3 {journal}.db 'vacuum; pragma integrity_check; select count(*) from t'"
            ),
        )
        .ok();
        assert!(said.out.ends_with("ok\n19960\n"), "{said}");
    }
    bed.umount_and_check();
    bed.mount("").ok();
    for journal in ["wal", "delete"] {
        let said = shell(&bed.mnt, &format!("sqlite3 {journal}.db 'pragma integrity_check; select count(*) from t'"));
        assert_eq!(said.ok().out, "ok\n19960\n");
    }
}

/// A tree with one of everything.
fn odd_tree(folder: &Path) {
    let root_only = if is_root() {
        "mknod null c 1 3; mknod disk b 7 200; mknod sock p; chown 1234:4321 owned; chown -h 7:8 link"
    } else {
        "true"
    };
    shell(
        folder,
        &format!(
            "mkdir -p deep/er/est empty; echo hello >file; ln file hard; ln file deep/hard2; ln -s file link
             ln -s /nowhere/at/all dangling; mkfifo fifo; : >nothing; echo x >owned; {root_only}
             head -c 5000000 /dev/urandom >big; truncate -s 1G sparse; echo mid | dd of=sparse bs=1 seek=500000000 conv=notrunc status=none
             echo a >'new
line'; echo b >'spaces  and	tab'; echo c >$'\\xff\\xfe'; echo d >\"$(printf 'n%.0s' $(seq 255))\"
             setfattr -n user.small -v value file; setfattr -n user.big -v \"$(head -c 3000 /dev/zero | tr '\\0' z)\" file
             setfattr -n user.dir -v d deep; setfacl -m u:1234:rwx,g:99:r file; setfacl -d -m u:1234:rx deep
             chmod 4755 big; chmod 1777 deep; chmod 0 nothing
             touch -d '1999-12-31 23:59:59.123456789' file; touch -d '1901-01-01 00:00:01' big; touch -h -d '2038-01-20' link
             for i in $(seq 300); do echo $i >deep/er/$i; done"
        ),
    )
    .ok();
}

/// Goal: a copy onto the mount and back differs in nothing that rsync can see.
#[test]
fn rsync_there_and_back_shows_no_difference() {
    // SEMANTICS: NS-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("512M");
    let source = bed.path().join("source");
    fs::create_dir(&source).unwrap();
    odd_tree(&source);
    shell(bed.path(), "rsync -aHAXS --numeric-ids source/ mnt/copy/ && rsync -aHAXS --numeric-ids mnt/copy/ back/")
        .ok();
    for copy in ["mnt/copy", "back"] {
        let said =
            shell(bed.path(), &format!("rsync -aHAXn --numeric-ids --checksum --delete -i source/ {copy}/")).ok();
        assert_eq!(said.out, "", "{copy} differs: {said}");
    }
    let said =
        shell(bed.path(), "stat -c %h:%i mnt/copy/file mnt/copy/hard mnt/copy/deep/hard2 | sort -u | wc -l").ok();
    assert_eq!(said.out.trim(), "1", "hard links are one inode");
    let blocks = fs::metadata(bed.at("copy/sparse")).unwrap().blocks();
    assert!(blocks < 10_000, "the hole was filled: {blocks} blocks of 512 bytes");
    bed.umount_and_check();
    bed.mount("").ok();
    let said = shell(bed.path(), "rsync -aHAXn --numeric-ids --checksum --delete -i source/ mnt/copy/").ok();
    assert_eq!(said.out, "", "after a remount: {said}");
}

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
            let hole = seek(rustix::fs::SeekFrom::Hole, at).unwrap();
            assert!(hole >= at + 65536, "{round}: a hole at {hole} inside the data at {at}");
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
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let folder = bed.at("list");
    fs::create_dir(&folder).unwrap();
    for i in 0..3000 {
        fs::write(folder.join(format!("stays-{i}")), b"").unwrap();
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
            for _ in 0..10 {
                let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
                names.retain(|name| name.to_string_lossy().starts_with("stays-"));
                let seen = names.len();
                names.sort();
                names.dedup();
                assert_eq!((seen, names.len()), (3000, 3000));
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
