//! Much work through little memory.

use super::bed::{Bed, Scale, bytes, can_work_hard, scale, shell};
use std::fs;
use std::io::Write;
use std::time::Instant;

/// These tests saturate a disk that both replicas share; what a slow disk may cost is not their question.
const PATIENT: &str = "deadline=60s";
/// Most memory that the daemon may ever have had.
const MEMORY_MAX_KIB: u64 = 400 * 1024;

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
