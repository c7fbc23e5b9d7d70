//! Real filesystems in loop devices below the replicas, made to fail in real ways. Needs root.

use super::bed::{Bed, Said, can_work_hard, counter, is_root, run, shell, state_of};
use super::degraded::{check_still_files, load, still_files};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bed whose replicas lie on two filesystems of their own.
struct Disks {
    bed: Bed,
    places: [PathBuf; 2],
    /// Undone last, whatever happens.
    frozen: std::sync::atomic::AtomicBool,
}

fn can_break_disks() -> bool {
    if !is_root() {
        println!("skipped: needs root, for loop devices");
        return false;
    }
    if !can_work_hard() {
        return false;
    }
    if !run(Command::new("losetup").arg("-f")).out.starts_with("/dev/loop") {
        println!("skipped: this machine has no loop devices");
        return false;
    }
    true
}

impl Disks {
    /// Two filesystems of `kind` and `size_mib`, with a volume of `volume` on them, mounted.
    fn new(kind: &str, size_mib: u64, volume: &str, options: &str) -> Disks {
        let bed = Bed::bare();
        for name in ["a", "b"] {
            let quiet = if kind == "xfs" { "-q" } else { "-q -F" };
            shell(
                bed.path(),
                &format!("truncate -s {size_mib}M {name}.img; mkfs.{kind} {quiet} {name}.img; mount -o loop {name}.img {name}; mkdir {name}/replica"),
            )
            .ok();
        }
        let places = [bed.a.join("replica"), bed.b.join("replica")];
        let disks = Disks { bed, places, frozen: false.into() };
        let [a, b] = &disks.places;
        disks.bed.stablefs(["format".as_ref(), "--size".as_ref(), volume.as_ref(), a.as_os_str(), b.as_os_str()]).ok();
        disks.mount(options).ok();
        disks
    }
    fn mount(&self, options: &str) -> Said {
        self.bed.mount_of(&[&self.places[0], &self.places[1]], options)
    }
    fn out_within(&self, what: &str, patience: Duration) {
        let status = self.bed.wait_for(patience, what, |status| state_of(status, &self.places[1]) == "out");
        assert_eq!(state_of(&status, &self.places[0]), "in sync");
    }
    fn back_within(&self, patience: Duration) {
        let back = |status: &serde_json::Value| state_of(status, &self.places[1]) == "in sync";
        self.bed.wait_for(patience, "it is back by itself", back);
    }
    /// Every block is right on both, also to fsck.
    fn check_both(&self) {
        check_still_files(&self.bed, 30);
        let scrub = self.bed.scrub();
        assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
        assert_eq!(self.bed.status()["state"], "healthy");
        self.bed.umount().ok();
        let [a, b] = &self.places;
        self.bed.stablefs(["fsck".as_ref(), "-n".as_ref(), a.as_os_str(), b.as_os_str()]).ok();
    }
    fn replace_and_check(&self, new: &Path) {
        let b = &self.places[1];
        let bed = &self.bed;
        bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), b.as_os_str(), new.as_os_str()]).ok();
        assert_eq!(bed.status()["state"], "healthy");
        bed.umount().ok();
        bed.stablefs(["fsck".as_ref(), "-n".as_ref(), self.places[0].as_os_str(), new.as_os_str()]).ok();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        if self.frozen.load(std::sync::atomic::Ordering::SeqCst) {
            shell(self.bed.path(), "fsfreeze -u b || true");
        }
        // The volume first, so that the filesystems below are free.
        self.bed.stablefs(["umount".as_ref(), self.bed.mnt.as_os_str()]);
        shell(self.bed.path(), "for d in a b; do umount $d 2>/dev/null || umount -l $d 2>/dev/null || true; done");
    }
}

/// Goal: the filesystem below one replica shuts down (fail-stop); nobody notices.
#[test]
fn heavy_a_filesystem_that_shuts_down() {
    // SEMANTICS: DEG-1, DEG-3
    if !can_break_disks() {
        return;
    }
    for kind in ["xfs", "ext4"] {
        let disks = Disks::new(kind, 512, "200M", "");
        still_files(&disks.bed, 30);
        load(&disks.bed.at("load"), || {
            std::thread::sleep(Duration::from_millis(700));
            // xfs_io sends ext4 the same call.
            shell(disks.bed.path(), "xfs_io -x -c shutdown b").ok();
            disks.out_within(kind, Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(500));
        });
        check_still_files(&disks.bed, 30);
        let c = disks.bed.path().join("c");
        fs::create_dir(&c).unwrap();
        disks.replace_and_check(&c);
    }
}

/// Goal: one whose filesystem has shut down returns by itself once that is mounted again, with what it missed.
#[test]
fn heavy_what_failed_returns_by_itself() {
    // SEMANTICS: RET-1, DEG-1
    if !can_break_disks() {
        return;
    }
    for kind in ["xfs", "ext4"] {
        let disks = Disks::new(kind, 512, "200M", "");
        still_files(&disks.bed, 30);
        let ((), longest) = load(&disks.bed.at("load"), || {
            std::thread::sleep(Duration::from_millis(700));
            shell(disks.bed.path(), "xfs_io -x -c shutdown b").ok();
            disks.out_within(kind, Duration::from_secs(5));
            // Its container is let go of by whoever looks for it.
            shell(disks.bed.path(), "for i in $(seq 300); do umount b 2>/dev/null && break; sleep 0.1; done").ok();
            shell(disks.bed.path(), "mount -o loop b.img b").ok();
            disks.back_within(Duration::from_secs(120));
        });
        println!("{kind}: longest call: {longest:?}");
        assert!(longest < Duration::from_secs(6), "a call took {longest:?}");
        disks.check_both();
    }
}

/// Goal: a filesystem that answers nothing at all any more costs one deadline and no error; one that wakes up again
/// harms nothing, and its replica returns by itself.
#[test]
fn heavy_a_filesystem_that_hangs() {
    // SEMANTICS: DEG-2, RET-1
    if !can_break_disks() {
        return;
    }
    let disks = Disks::new("xfs", 512, "200M", "deadline=2s");
    still_files(&disks.bed, 30);
    let ((), longest) = load(&disks.bed.at("load"), || {
        std::thread::sleep(Duration::from_millis(700));
        disks.frozen.store(true, std::sync::atomic::Ordering::SeqCst);
        shell(disks.bed.path(), "fsfreeze -f b").ok();
        disks.out_within("frozen", Duration::from_secs(7));
        std::thread::sleep(Duration::from_secs(2));
        shell(disks.bed.path(), "fsfreeze -u b").ok();
        disks.frozen.store(false, std::sync::atomic::Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
    });
    println!("longest call with a deadline of 2 s: {longest:?}");
    assert!(longest < Duration::from_secs(4), "a call took {longest:?}");
    disks.back_within(Duration::from_secs(120));
    disks.check_both();
}

/// Goal: unmounting while one replica hangs returns, and says that it left it behind.
#[test]
fn heavy_umount_with_a_hung_replica() {
    // SEMANTICS: DEG-2, DUR-4
    if !can_break_disks() {
        return;
    }
    let disks = Disks::new("xfs", 512, "200M", "deadline=1s");
    still_files(&disks.bed, 10);
    disks.frozen.store(true, std::sync::atomic::Ordering::SeqCst);
    shell(disks.bed.path(), "fsfreeze -f b").ok();
    fs::write(disks.bed.at("late"), b"late").unwrap();
    disks.bed.sync();
    let began = Instant::now();
    let said = disks.bed.umount();
    println!("umount took {:?}: {said}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(40), "umount took {:?}", began.elapsed());
    assert!(super::bed::mounts_in(&disks.bed.mnt).is_empty(), "it is still mounted");
    shell(disks.bed.path(), "fsfreeze -u b").ok();
    disks.frozen.store(false, std::sync::atomic::Ordering::SeqCst);
    let until = Instant::now() + Duration::from_secs(20);
    while disks.mount("").code != 0 {
        assert!(Instant::now() < until, "a replica that woke up stays in use");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(fs::read(disks.bed.at("late")).unwrap(), b"late");
    assert_ne!(state_of(&disks.bed.status(), &disks.places[1]), "in sync");
}

/// Goal: a filesystem that turns read-only takes its replica out, and nothing calls it corrupt.
#[test]
fn heavy_a_filesystem_that_turns_read_only() {
    // SEMANTICS: DEG-1
    if !can_break_disks() {
        return;
    }
    let disks = Disks::new("ext4", 512, "200M", "");
    still_files(&disks.bed, 30);
    load(&disks.bed.at("load"), || {
        std::thread::sleep(Duration::from_millis(700));
        // What an error of the disk does to ext4 with errors=remount-ro; an open writer keeps an ordinary remount away.
        shell(disks.bed.path(), "mount -o remount,abort b || mount -o remount,ro b").ok();
        disks.out_within("read-only", Duration::from_secs(5));
    });
    check_still_files(&disks.bed, 30);
    let status = disks.bed.status();
    assert_eq!(counter(&status, "checksum"), 0, "read-only was taken for rot: {status:#}");
    let c = disks.bed.path().join("c");
    fs::create_dir(&c).unwrap();
    disks.replace_and_check(&c);
}

/// Goal: one disk has no room left although the volume has: ENOSPC where data is written, nothing lost, nothing corrupt.
#[test]
fn heavy_a_disk_that_fills_up() {
    // SEMANTICS: SPACE-1, SPACE-3
    if !can_break_disks() {
        return;
    }
    let disks = Disks::new("ext4", 400, "320M", "");
    still_files(&disks.bed, 30);
    shell(disks.bed.path(), "dd if=/dev/zero of=b/stolen bs=1M status=none 2>/dev/null || true; sync b/stolen");
    let mut written = 0;
    let error = loop {
        let name = disks.bed.at(&format!("more-{written}"));
        let done = fs::write(&name, super::bed::bytes(written, 1 << 20))
            .and_then(|()| fs::File::open(&name).and_then(|file| file.sync_all()));
        match done {
            Ok(()) => written += 1,
            Err(error) => break Some(error),
        }
        if written == 300 {
            break None;
        }
    };
    println!("with one disk full: {written} MiB were taken, then {error:?}");
    check_still_files(&disks.bed, 30);
    for i in 0..written {
        let found = fs::read(disks.bed.at(&format!("more-{i}"))).unwrap();
        assert!(found == super::bed::bytes(i, 1 << 20), "more-{i} was acknowledged and reads as other bytes");
    }
    let status = disks.bed.status();
    assert_eq!(counter(&status, "checksum"), 0, "full was taken for corrupt: {status:#}");
    fs::remove_file(disks.bed.b.join("stolen")).unwrap();
    for i in 0..written.min(5) {
        fs::remove_file(disks.bed.at(&format!("more-{i}"))).unwrap();
    }
    fs::write(disks.bed.at("again"), super::bed::bytes(1, 3 << 20)).expect("there is room again");
    disks.bed.sync();
    disks.bed.umount().ok();
    disks.mount("").ok();
    check_still_files(&disks.bed, 30);
}
