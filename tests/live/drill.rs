//! `stablefs drill`: it passes where promises are kept, says so in its exit code, and leaves nothing behind.
//! (That its verdict turns where they are not is shown beside the code: `src/drill/judge.rs`, `src/drill/verify.rs`.)

use super::bed::{can_mount, can_work_hard, is_root, mounts_in, program, run};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A place for scratch folders.
fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("drill.").tempdir().expect("a folder")
}

fn drill(place: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["drill", "run", "--json", "--directory"]).arg(place).args(words);
    command
}

/// Nothing is mounted, running, in a loop device or on the disk any more. The guard of a killed one needs a moment.
#[track_caller]
fn nothing_is_left(place: &Path) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let files: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
        let processes = processes_in(place);
        let loops = run(Command::new("losetup").args(["-n", "-O", "BACK-FILE"])).out.contains(place.to_str().unwrap());
        if files.is_empty() && processes.is_empty() && !loops && mounts_in(place).is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left behind: {files:?}, processes {processes:?}, loop devices: {loops}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Processes that name a path below `place`.
fn processes_in(place: &Path) -> Vec<String> {
    let inside = format!("{}/", place.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|words| String::from_utf8_lossy(&words).replace('\0', " "));
    lines.filter(|line| line.contains(&inside)).collect()
}

/// Each scenario has a verdict: passed, or skipped with a reason.
#[track_caller]
fn all_passed(result: &Value, skipped: &[&str]) {
    let scenarios = result["scenarios"].as_array().unwrap();
    for scenario in scenarios {
        let name = scenario["name"].as_str().unwrap();
        let wanted = if skipped.contains(&name) { "skipped" } else { "passed" };
        assert_eq!(scenario["verdict"], wanted, "{scenario:#}");
        assert_eq!(scenario["reason"].is_string(), wanted == "skipped", "{scenario:#}");
        if wanted == "passed" {
            assert!(!scenario["detected_after_ms"].as_array().unwrap().is_empty(), "{scenario:#}");
            assert_eq!(scenario["proven_alone"].as_array().unwrap().len(), 2, "{scenario:#}");
        }
    }
    assert_eq!((result["failed"].as_u64(), result["interrupted"].as_bool()), (Some(0), Some(false)));
}

/// Goal: every promise holds in every scenario that this user can run on this machine.
#[test]
fn heavy_drill_run_all() {
    // SEMANTICS: READ-1, READ-2, DUR-1, CRASH-1, CRASH-3, DEG-1, DEG-2, DEG-3, DEG-7, RET-1, HEAL-1, SPACE-3
    if !can_work_hard() {
        return;
    }
    let place = place();
    let listed = run(Command::new(program()).args(["drill", "list", "--json"])).ok().json();
    let listed = listed.as_array().unwrap();
    let skipped: Vec<&str> =
        listed.iter().filter(|one| one["lacking"].is_string()).map(|one| one["name"].as_str().unwrap()).collect();
    println!("skipped here: {skipped:?}");
    let result = run(&mut drill(place.path(), &["all", "--seed", "1"])).ok().json();
    assert_eq!(result["scenarios"].as_array().unwrap().len(), listed.len());
    all_passed(&result, &skipped);
    nothing_is_left(place.path());
}

/// Goal: one scenario, in moments, wherever mounts are possible.
#[test]
fn drill_run_killed() {
    // SEMANTICS: DUR-1, DUR-2, CRASH-1, CRASH-2, CRASH-3
    if !can_mount() {
        return;
    }
    let place = place();
    let result = run(&mut drill(place.path(), &["killed", "--seed", "5"])).ok().json();
    all_passed(&result, &[]);
    assert_eq!(result["scenarios"][0]["outages_ms"].as_array().unwrap().len(), 3);
    nothing_is_left(place.path());
}

/// Goal: a mount whose daemon has died is detached also if the kernel remembers what stood there.
#[test]
fn a_dead_mount_that_the_kernel_remembers_is_detached() {
    if !can_mount() {
        return;
    }
    let bed = super::bed::Bed::mounted("32M");
    fs::metadata(&bed.mnt).unwrap();
    let log = bed.status()["mount"]["log"].as_str().unwrap().to_owned();
    super::bed::end(bed.daemon());
    fs::metadata(&bed.mnt).expect("answered from the kernel's memory");
    bed.umount().ok();
    assert!(mounts_in(bed.path()).is_empty());
    assert!(!Path::new(&log).with_extension("sock").exists(), "the dead daemon's socket is left");
}

/// Goal: a signal ends it at once and leaves nothing; so does `kill -9`, by its guard.
#[test]
fn an_interrupted_drill_leaves_nothing() {
    if !can_mount() {
        return;
    }
    // As root in the worst moment: one replica's filesystem is frozen.
    let names: &[&str] = if is_root() && can_work_hard() { &["emptied", "hung"] } else { &["emptied"] };
    for name in names {
        for signal in ["INT", "TERM", "KILL"] {
            let (place, said) = (place(), tempfile::NamedTempFile::new().unwrap());
            let log = said.reopen().unwrap();
            let mut command = Command::new(program());
            command.args(["drill", "run", name, "--directory"]).arg(place.path());
            let mut child = command.stdin(Stdio::null()).stdout(log).spawn().unwrap();
            let told = || fs::read_to_string(said.path()).unwrap();
            let until = Instant::now() + Duration::from_secs(60);
            while !told().contains("injected") {
                assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "{name} came to nothing");
                std::thread::sleep(Duration::from_millis(5));
            }
            let began = Instant::now();
            run(Command::new("kill").args(["-s", signal, &child.id().to_string()])).ok();
            let status = child.wait().unwrap();
            if signal != "KILL" {
                let code = if signal == "INT" { 130 } else { 143 };
                assert_eq!(status.code(), Some(code), "{}", told());
            }
            nothing_is_left(place.path());
            println!("{name}, SIG{signal}: nothing is left after {:?}", began.elapsed());
        }
    }
}

/// Goal: what means nothing is wrong usage.
#[test]
fn a_drill_that_nobody_knows_is_wrong_usage() {
    let place = place();
    run(&mut drill(place.path(), &["bogus"])).code(2);
    run(&mut drill(&place.path().join("missing"), &["emptied"])).code(2);
    run(Command::new(program()).args(["drill", "run"])).code(2);
    nothing_is_left(place.path());
}

/// Goal: an ordinary user drills too; what needs root is named as skipped, with the reason.
#[test]
fn heavy_an_ordinary_user_drills() {
    if !can_work_hard() || !is_root() {
        println!("skipped: needs root, to become another user (as an ordinary user, every other test shows it)");
        return;
    }
    let folder = place();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(program(), folder.path().join("stablefs")).unwrap();
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o777)).unwrap();
    // A mount namespace of its own, in which everybody may open /dev/fuse, as on a desktop.
    let outer = "mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
        export HOME=$PWD XDG_RUNTIME_DIR=$PWD/run; install -d -o 65534 -g 65534 -m 700 run
        exec setpriv --reuid 65534 --regid 65534 --clear-groups -- ./stablefs drill run all --json --directory scratch";
    let said = run(Command::new("unshare").args(["-m", "bash", "-ec", outer]).current_dir(folder.path()));
    let result = said.ok().json();
    assert_eq!(result["root"], false);
    all_passed(&result, &["shutdown-ext4", "shutdown-xfs", "full", "hung"]);
    assert_eq!(result["passed"].as_u64(), Some(4));
    nothing_is_left(&scratch);
}
