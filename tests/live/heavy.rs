//! Conformance suites, and much work through little memory.

use super::bed::{Bed, Scale, bytes, can_work_hard, is_root, run, scale, shell};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// These tests saturate a disk that both replicas share; what a slow disk may cost is not their question.
const PATIENT: &str = "deadline=60s";
/// Most memory that the daemon may ever have had.
const MEMORY_MAX_KIB: u64 = 400 * 1024;

fn tool(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("STABLEFS_TEST_TOOLS").map(PathBuf::from);
    let found = folder.map(|folder| folder.join(name)).filter(|path| path.exists());
    if found.is_none() {
        assert!(scale() < Scale::Default, "{name} is missing in STABLEFS_TEST_TOOLS: run scripts/test");
        println!("skipped: {name} is not there; scripts/test builds it");
    }
    found
}

fn fsx(options: &str, operations: u32) {
    if !can_work_hard() {
        return;
    }
    let Some(fsx) = tool("fsx") else { return };
    let bed = Bed::formatted("1G");
    bed.mount(&format!("{PATIENT}{options}")).ok();
    fs::write(bed.path().join("fsx.toml"), FSX).unwrap();
    let began = Instant::now();
    let said = run(Command::new(fsx)
        .args(["-N", &operations.to_string(), "-S", "20261123", "-f"])
        .arg(bed.path().join("fsx.toml"))
        .args(["-P"])
        .arg(bed.path())
        .arg(bed.at("fsx.data")))
    .ok();
    println!("fsx: {operations} operations in {:?}\n{}", began.elapsed(), said.out.lines().last().unwrap_or_default());
    bed.umount_and_check();
}

/// What the program does to a file, with weights; without what is not promised (see docs/SEMANTICS.md).
const FSX: &str = "flen = 1048576\n[opsize]\nmax = 131072\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\n\
    truncate = 3\ninvalidate = 1\nclose_open = 1\nfsync = 0.3\nfdatasync = 0.3\npunch_hole = 2\nsendfile = 1\n\
    posix_fallocate = 1\ncopy_file_range = 3\n";

/// Goal: 100,000 random operations on one file, mapped ones among them, without a mismatch.
#[test]
fn heavy_fsx_finds_no_mismatch() {
    fsx("", 100_000);
}

/// Goal: the same where the kernel holds pages back.
#[test]
fn heavy_fsx_finds_no_mismatch_with_the_writeback_cache() {
    fsx(",writeback", if scale() == Scale::All { 100_000 } else { 25_000 });
}

/// Goal: the POSIX suite holds in at least 95 of 100 cases; prints those that do not.
#[test]
fn heavy_pjdfstest_holds() {
    // SEMANTICS: NS-1
    if !can_work_hard() {
        return;
    }
    if !is_root() {
        println!("skipped: needs root, to act as several users");
        return;
    }
    let Some(pjdfstest) = tool("pjdfstest") else { return };
    let bed = Bed::formatted("512M");
    bed.mount(PATIENT).ok();
    bed.open_to_others();
    // Its sockets' paths must stay below 108 bytes, and it panics on paths below 12.
    let folder = bed.at("p");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let config = bed.path().join("pjdfstest.toml");
    let text = "[features.posix_fallocate]\n[features.utime_now]\n[features.utimensat]\n[features.rename_ctime]\n\
        [settings]\nnaptime = 0.01\nallow_remount = false\n\
        [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&config, text).unwrap();
    let said = run(Command::new(pjdfstest).arg("-c").arg(config).arg("-p").arg(&folder).current_dir(&folder));
    // Colours are escape sequences around the words.
    let verdict = |line: &&str, word: &str| line.trim_end().trim_end_matches("\u{1b}[0m").ends_with(word);
    let lines = |word: &'static str| said.out.lines().filter(move |line| verdict(line, word));
    let (good, bad) = (lines("ok").count(), lines("FAILED").count());
    lines("FAILED").for_each(|line| println!("{line}"));
    println!("pjdfstest: {good} hold, {bad} do not; {}", said.out.lines().last().unwrap_or_default());
    assert!(good + bad > 100, "it did not run: {said}");
    assert!(good * 100 >= (good + bad) * 95, "only {good} of {} hold", good + bad);
    bed.umount_and_check();
}

/// Goal: much data passes through while the daemon's memory stays small. Prints VmHWM.
#[test]
fn heavy_gigabytes_pass_through_little_memory() {
    if !can_work_hard() {
        return;
    }
    let gib: u64 = if scale() == Scale::All { 20 } else { 2 };
    let bed = Bed::formatted("3G");
    bed.mount(PATIENT).ok();
    let chunk = bytes(11, 8 << 20);
    let began = Instant::now();
    for gibibyte in 0..gib {
        // One GiB at a time, over what is there: the volume stays small, the bytes add up.
        let mut file = fs::File::create(bed.at(&format!("big-{}", gibibyte % 2))).unwrap();
        for _ in 0..128 {
            file.write_all(&chunk).unwrap();
        }
        file.sync_all().unwrap();
    }
    let written = began.elapsed();
    let peak_of_writing = bed.memory_kib("VmHWM");
    // A new daemon, and nothing in the kernel's cache: what is read comes from the disks.
    bed.umount().ok();
    bed.mount(PATIENT).ok();
    let began = Instant::now();
    for _ in 0..gib.div_ceil(2) {
        // Opened anew, the kernel keeps what it has; drop it for this file.
        for number in 0..gib.min(2) {
            let mut file = fs::File::open(bed.at(&format!("big-{number}"))).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut found = vec![0; 8 << 20];
            for _ in 0..128 {
                std::io::Read::read_exact(&mut file, &mut found).unwrap();
                assert!(found == chunk, "other bytes were read than written");
            }
        }
    }
    let rate = |time: std::time::Duration| gib as f64 * 1024.0 / time.as_secs_f64();
    println!("{gib} GiB: written with {:.0} MiB/s, read with {:.0} MiB/s", rate(written), rate(began.elapsed()));
    let peak = bed.memory_kib("VmHWM").max(peak_of_writing);
    println!("VmHWM = {} MiB after {gib} GiB", peak / 1024);
    assert!(peak < MEMORY_MAX_KIB, "VmHWM = {} MiB", peak / 1024);
    bed.umount_and_check();
}

/// Goal: very many files exist, are listed and looked up, while the daemon's memory stays small. Prints VmHWM.
#[test]
fn heavy_very_many_files_exist_in_little_memory() {
    if !can_work_hard() {
        return;
    }
    let files: u64 = if scale() == Scale::All { 1_000_000 } else { 100_000 };
    let bed = Bed::formatted(if files > 500_000 { "6G" } else { "2G" });
    bed.mount(PATIENT).ok();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let bed = &bed;
        for worker in 0..2 {
            scope.spawn(move || {
                for i in (worker..files).step_by(2) {
                    if i / 2 % 5000 == 0 {
                        fs::create_dir(bed.at(&format!("d{worker}-{}", i / 2 / 5000))).unwrap();
                    }
                    fs::write(bed.at(&format!("d{worker}-{}/f{i}", i / 2 / 5000)), i.to_string()).unwrap();
                }
            });
        }
    });
    let created = began.elapsed();
    bed.sync();
    println!("{files} files: {:.0} a second", files as f64 / created.as_secs_f64());
    assert!(bed.status()["inodes"].as_u64().unwrap() > files);
    let began = Instant::now();
    let said = shell(&bed.mnt, "find . -type f -size +0 | wc -l").ok();
    assert_eq!(said.out.trim().parse::<u64>().unwrap(), files, "{said}");
    println!("listed with attributes in {:?}", began.elapsed());
    let peak = bed.memory_kib("VmHWM");
    println!("VmHWM = {} MiB with {files} files", peak / 1024);
    assert!(peak < MEMORY_MAX_KIB, "VmHWM = {} MiB", peak / 1024);
    bed.umount().ok();
    let began = Instant::now();
    bed.mount(PATIENT).ok();
    println!("mounted in {:?}", began.elapsed());
    assert_eq!(fs::read_to_string(bed.at("d1-3/f30001")).unwrap(), "30001");
    shell(&bed.mnt, "rm -r d0-*").ok();
    let peak = bed.memory_kib("VmHWM");
    println!("VmHWM = {} MiB after deleting half of them", peak / 1024);
    assert!(peak < MEMORY_MAX_KIB, "VmHWM = {} MiB", peak / 1024);
    bed.umount_and_check();
}
