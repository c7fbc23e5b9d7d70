//! Programs that strain a filesystem and compare what they read: stress-ng, fio, dbench, bonnie++.
//!
//! Each is a row of the table in `docs/SEMANTICS.md`. What only `scripts/test --all` installs is only run there.

use super::bed::{Bed, Scale, can_work_hard, detach, end, run, scale};
use super::suites::{PATIENT, watch};
use super::tally::Tally;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Whether this is the long run, which all of these programs are installed for.
fn is_long() -> bool {
    if scale() < Scale::All {
        println!("skipped: only scripts/test --all runs it");
        return false;
    }
    can_work_hard()
}

/// Stressors of stress-ng's class "filesystem" that are not run: what they do is not done to the filesystem under test.
const NOT_STRESSED: [(&str, &str); 5] = [
    ("bind-mount", "mounts / over and over, nothing in the place that it is told"),
    ("binderfs", "mounts binderfs, nothing in the place that it is told"),
    ("fanotify", "marks every mount of the host"),
    ("io", "sync(2) of every filesystem of the host"),
    ("procfs", "reads and writes the host's /proc"),
];
/// What stressors say that do not run where the kernel has no such call for FUSE.
const SKIPPING: &str = "skipping stress";

/// Goal: every stressor of files and names finds what it has written, and no call fails that must not.
#[test]
fn suite_stress_ng_finds_no_fault() {
    // SEMANTICS: NS-1, READ-1
    if !is_long() {
        return;
    }
    let tally = Tally::begin(120, "stress-ng, class filesystem");
    let bed = Bed::formatted("4G");
    bed.mount(PATIENT).ok();
    let said = run(Command::new("stress-ng").args(["--class", "filesystem?"]));
    let list = format!("{}{}", said.out, said.err);
    let names: Vec<&str> = list.split_once("stressors:").expect("a list").1.split_whitespace().collect();
    assert!(names.len() > 40, "stress-ng names few stressors: {list}");
    let began = Instant::now();
    let (mut passed, mut failed, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        if NOT_STRESSED.iter().any(|(other, _)| *other == name) {
            skipped.push(name);
            continue;
        }
        let mut command = Command::new("stress-ng");
        command.args([&format!("--{name}"), "2", "--timeout", "5s", "--verify", "--temp-path"]);
        let said = watch(command.arg(&bed.mnt).current_dir(bed.path()), |_, _| ());
        let left = fs::read_dir(&bed.mnt).unwrap().count();
        if said.code != 0 || left > 0 {
            println!("{name} leaves {left} names behind: {said}");
            failed.push(name);
        } else if said.out.contains(SKIPPING) {
            skipped.push(name);
        } else {
            passed.push(name);
        }
    }
    let took = began.elapsed().as_secs_f64();
    bed.umount_and_check();
    let reasons: Vec<String> = NOT_STRESSED.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    for name in &skipped {
        assert!(
            super::suites::SEMANTICS.contains(&format!("`{name}`")),
            "docs/SEMANTICS.md does not say why {name} is skipped"
        );
    }
    println!("not run: {}", reasons.join("; "));
    let note = format!(
        "stressors, 2 x 5 s each with --verify, {took:.0} s; skipped: {}; failed: {failed:?}",
        skipped.join(", ")
    );
    tally.end(passed.len() as u64, failed.len() as u64, skipped.len() as u64, &note);
}

/// Run fio in `folder` on the jobs in `text`; what it counted of each job, and its exit code.
#[track_caller]
fn fio(folder: &Path, text: &str, words: &[&str]) -> (i32, Vec<Value>) {
    let (jobs, report) = (folder.join("jobs.fio"), folder.join("report.json"));
    fs::write(&jobs, text).unwrap();
    let mut command = Command::new("fio");
    command.arg(&jobs).args(words).args(["--output-format=json", "--output"]).arg(&report).current_dir(folder);
    let said = watch(&mut command, |_, _| ());
    let text = fs::read_to_string(&report).unwrap_or_default();
    // Complaints stand before the report.
    let json = text.find("\n{").map_or(text.as_str(), |at| &text[at..]);
    let report: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error} in {text}: {said}"));
    println!("{}{}", said.out, &text[..text.find('{').unwrap_or(0)]);
    (said.code, report["jobs"].as_array().expect("jobs").clone())
}

fn count(jobs: &[Value], what: &str) -> u64 {
    jobs.iter().map(|job| job[what]["total_ios"].as_u64().expect("a number")).sum()
}

/// Goal: blocks of any size, written in every way that fio knows beside each other, are read as they were written.
#[test]
fn suite_fio_verifies_what_it_wrote() {
    // SEMANTICS: READ-1
    if !can_work_hard() {
        return;
    }
    let tally = Tally::begin(130, "fio, --verify=crc32c");
    let (size, loops) = if scale() == Scale::All { (256, 4) } else { (32, 1) };
    let began = Instant::now();
    let (mut writes, mut reads) = (0, 0);
    for options in ["", ",writeback"] {
        let bed = Bed::formatted("4G");
        bed.mount(&format!("{PATIENT}{options}")).ok();
        let text = format!(
            "[global]\ndirectory={}\nrw=randrw\nrwmixread=40\nsize={size}M\nloops={loops}\nbsrange=512-256k\n\
             verify=crc32c\nverify_fatal=1\nverify_backlog=512\nrandseed=20261123\n\
             [buffered]\nioengine=libaio\niodepth=8\nfsync=64\n\
             [direct]\nioengine=libaio\niodepth=16\ndirect=1\nserialize_overlap=1\nbsrange=4k-256k\n\
             [mapped]\nioengine=mmap\nnumjobs=2\n\
             [synchronous]\nioengine=psync\nsync=1\nsize={}M\nloops=1\nnumjobs=2\n",
            bed.mnt.display(),
            size / 4
        );
        let (code, jobs) = fio(bed.path(), &text, &[]);
        assert_eq!(code, 0, "fio found a fault: {jobs:#?}");
        assert_eq!(jobs.len(), 6);
        (writes, reads) = (writes + count(&jobs, "write"), reads + count(&jobs, "read"));
        bed.umount_and_check();
    }
    assert!(reads > writes, "only {reads} reads for {writes} writes: they were not verified");
    let note = format!(
        "writes, verified in {reads} reads; {:.0} s; six jobs at once of 512 bytes to 256 KiB: buffered, direct, mapped, \
         O_SYNC; also with -o writeback",
        began.elapsed().as_secs_f64()
    );
    tally.end(writes, 0, 0, &note);
}

/// Goal: what a write with O_SYNC or O_DSYNC has acknowledged is there after `kill -9` of the daemon.
///
/// Method: such jobs write at random, never a place twice, until the daemon is killed and a write of each fails. fio then
/// saves how many writes each has completed; another fio goes through the same sequence so far and reads each of them.
#[test]
fn suite_fio_verifies_what_was_acknowledged_before_a_kill() {
    // SEMANTICS: DUR-1, CRASH-3
    if !can_work_hard() {
        return;
    }
    let tally = Tally::begin(131, "fio, kill -9 and verify_state");
    let rounds = if scale() == Scale::All { 10 } else { 2 };
    let began = Instant::now();
    let mut proven = 0;
    for round in 0..rounds {
        let bed = Bed::formatted("4G");
        bed.mount(PATIENT).ok();
        let text = format!(
            "[global]\ndirectory={}\nrw=randwrite\nsize=512M\nbsrange=512-64k\nverify=crc32c\nverify_fatal=1\n\
             randseed={round}\nioengine=psync\nfilename_format=$jobname\n\
             [sync]\nsync=sync\n[dsync]\nsync=dsync\n[direct]\nbsrange=4k-64k\ndirect=1\nsync=dsync\n",
            bed.mnt.display()
        );
        // As long as they will be: fio begins anew with files that are shorter, also when it is to verify them.
        let names = ["sync", "dsync", "direct"];
        names.iter().for_each(|name| fs::File::create(bed.at(name)).unwrap().set_len(512 << 20).unwrap());
        let daemon = bed.daemon();
        let (code, jobs) = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Not before each job is at work.
                let at_work = |name: &str| {
                    use std::os::unix::fs::MetadataExt;
                    fs::metadata(bed.at(name)).is_ok_and(|meta| meta.blocks() > 2048)
                };
                super::bed::wait_until("fio writes", || names.into_iter().all(at_work));
                std::thread::sleep(Duration::from_millis(100 * round));
                end(daemon);
            });
            fio(bed.path(), &text, &["--do_verify=0", "--verify_state_save=1"])
        });
        detach(&bed.mnt);
        assert_ne!(code, 0, "fio ended before the daemon was killed");
        assert!(jobs.iter().all(|job| job["error"] != 0), "a job was not at work: {jobs:#?}");
        bed.mount(PATIENT).ok();
        let (code, read) =
            fio(bed.path(), &text, &["--verify_only=1", "--verify_state_load=1", "--verify_state_save=0"]);
        assert_eq!(code, 0, "what was acknowledged is not there: {read:#?}");
        // All but the write of each that failed.
        let (written, read) = (count(&jobs, "write"), count(&read, "read"));
        assert!(read + jobs.len() as u64 >= written && written > 30, "{read} of {written} writes were looked at");
        proven += read;
        bed.umount_and_check();
    }
    let note = format!(
        "acknowledged writes found again, {rounds} kills; {:.0} s; O_SYNC, O_DSYNC, and direct with O_DSYNC",
        began.elapsed().as_secs_f64()
    );
    tally.end(proven, 0, 0, &note);
}

/// Goal: what a file server's clients do, recorded, goes through without an error.
#[test]
fn suite_dbench_meets_no_error() {
    if !is_long() {
        return;
    }
    let tally = Tally::begin(140, "dbench");
    let (bed, clients) = (Bed::formatted("4G"), 8);
    bed.mount(PATIENT).ok();
    let began = Instant::now();
    let mut command = Command::new("dbench");
    command.arg("-D").arg(&bed.mnt).args(["-t", "60", &clients.to_string()]);
    let said = watch(&mut command, |_, _| ()).ok();
    let throughput = said.out.lines().find(|line| line.starts_with("Throughput")).unwrap_or_default().to_owned();
    let complaints: Vec<&str> = said.out.lines().filter(|line| line.contains("failed")).collect();
    assert!(
        complaints.is_empty(),
        "{} complaints: {:#?}",
        complaints.len(),
        complaints.iter().take(20).collect::<Vec<_>>()
    );
    assert!(!throughput.is_empty(), "{said}");
    let took = began.elapsed().as_secs_f64();
    bed.umount_and_check();
    tally.end(clients, 0, 0, &format!("clients; {took:.0} s; {throughput}"));
}

/// Goal: bonnie++'s large file and many small ones are as it made them.
#[test]
fn suite_bonnie_meets_no_error() {
    if !is_long() {
        return;
    }
    let tally = Tally::begin(141, "bonnie++ -f");
    let bed = Bed::formatted("6G");
    bed.mount(PATIENT).ok();
    let began = Instant::now();
    let mut command = Command::new("/usr/sbin/bonnie++");
    command.arg("-d").arg(&bed.mnt).args([
        "-f",
        "-u",
        "root",
        "-r",
        "1024",
        "-s",
        "2048",
        "-n",
        "32:65536:0:16",
        "-x",
        "2",
    ]);
    let said = watch(&mut command, |_, _| ()).ok();
    let results = said.out.lines().filter(|line| line.contains(",,") || line.matches(',').count() > 20).count();
    assert!(results >= 2, "{said}");
    let took = began.elapsed().as_secs_f64();
    bed.umount_and_check();
    tally.end(2, 0, 0, &format!("rounds; {took:.0} s; a file of 2 GiB, 8,192 small ones"));
}
