//! Every way in which one side can fail, on real mounts, with a reader, a writer that syncs and a loop over names running.
//!
//! Goal: no application sees an error or waits as long as the deadline; the replica comes back by itself where its place can; then the
//! checker finds nothing and each replica alone has every byte. Method: one table of forms; what a form does is a shell script or a
//! signal, and is undone on every way out.

use super::bed::{
    Bed, Said, Scale, bytes, can_work_hard, daemons_of, fingerprint, is_root, lives, mounts_in, run, scale, shell,
    state_of, wait_until,
};
use super::degraded::{check_still_files, still_files, still_len};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(180);
const STILL: u64 = 30;

/// What lies below the second replica; the first one is a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    Ext4,
    Xfs,
    /// A loop device, used as it is.
    Device,
    /// A FUSE filesystem: another stablefs.
    Fuse,
}

/// What makes a replica fail, and what mends it.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// Run in the scratch folder, where `b` is the filesystem, `b.img` what it lies in, and `$dev` its loop device.
    Script(&'static str),
    /// A signal to the daemon below.
    Signal(Signal),
}

#[derive(Debug, Clone, Copy)]
struct Form {
    name: &'static str,
    below: Below,
    options: &'static str,
    strike: Blow,
    /// What its cause says; empty: it stays in sync.
    cause: &'static str,
    /// How long it lasts after it was noticed.
    lasts: Duration,
    mend: Blow,
    /// Its place comes back with what it had; else a person has to replace it.
    returns: bool,
}

const LASTS: Duration = Duration::from_secs(1);

fn forms() -> Vec<Form> {
    let again = "for i in $(seq 600); do umount b 2>/dev/null && break; sleep 0.1; done; ! mountpoint -q b; mount -o loop b.img b";
    let hang = if scale() == Scale::All { 10 * DEADLINE } else { 2 * DEADLINE };
    let form = Form {
        name: "",
        below: Below::Ext4,
        options: "",
        strike: Blow::Script("false"),
        cause: "",
        lasts: LASTS,
        mend: Blow::Script(again),
        returns: true,
    };
    vec![
        Form {
            name: "I/O errors",
            strike: Blow::Script("cp --sparse=always b.img kept.img; truncate -s 60M b.img; losetup -c $dev"),
            // A copy of a filesystem in use: its journal makes it whole.
            mend: Blow::Script(
                "for i in $(seq 600); do umount b 2>/dev/null && break; sleep 0.1; done; ! mountpoint -q b; mv kept.img b.img; mount -o loop b.img b",
            ),
            cause: "failed",
            ..form
        },
        Form { name: "shut down, ext4", strike: Blow::Script("xfs_io -x -c shutdown b"), cause: "failed", ..form },
        Form {
            name: "shut down, xfs",
            below: Below::Xfs,
            strike: Blow::Script("xfs_io -x -c shutdown b"),
            cause: "failed",
            ..form
        },
        Form {
            name: "read-only",
            strike: Blow::Script("mount -o remount,abort b || mount -o remount,ro b"),
            // "read-only", if a write meets it first; a flush that is under way says EIO.
            cause: "failed",
            ..form
        },
        Form {
            name: "full, full=out",
            options: "full=out",
            strike: Blow::Script("dd if=/dev/zero of=b/stolen bs=1M status=none 2>/dev/null || true; sync b/stolen"),
            cause: "full:",
            mend: Blow::Script("rm b/stolen; sync -f b"),
            ..form
        },
        Form {
            name: "full, full=enospc",
            strike: Blow::Script("dd if=/dev/zero of=b/stolen bs=1M status=none 2>/dev/null || true; sync b/stolen"),
            mend: Blow::Script("rm b/stolen; sync -f b"),
            ..form
        },
        Form {
            name: "container deleted",
            strike: Blow::Script("rm b/replica/stablefs.data"),
            cause: "container",
            mend: Blow::Script("true"),
            ..form
        },
        Form {
            name: "container truncated",
            strike: Blow::Script("truncate -s 1M b/replica/stablefs.data"),
            cause: "container",
            mend: Blow::Script("rm b/replica/stablefs.data"),
            returns: false,
            ..form
        },
        Form {
            name: "device shrunk",
            below: Below::Device,
            strike: Blow::Script("truncate -s 30M b.img; losetup -c $dev"),
            cause: "shrank",
            mend: Blow::Script("truncate -s 512M b.img; losetup -c $dev"),
            ..form
        },
        Form {
            name: "hang, fsfreeze",
            below: Below::Xfs,
            strike: Blow::Script("fsfreeze -f b"),
            cause: "no answer",
            lasts: hang,
            mend: Blow::Script("fsfreeze -u b"),
            ..form
        },
        Form {
            name: "hang, FUSE below",
            below: Below::Fuse,
            strike: Blow::Signal(Signal::STOP),
            cause: "no answer",
            lasts: hang,
            mend: Blow::Signal(Signal::CONT),
            ..form
        },
    ]
}

fn can_fail() -> bool {
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

/// A mounted volume, and what lies below its second replica.
struct Ground {
    bed: Bed,
    /// The second replica.
    b: PathBuf,
    device: String,
    below: Option<Bed>,
}

impl Ground {
    fn new(below: Below) -> Ground {
        let mut ground = Ground { bed: Bed::bare(), b: PathBuf::new(), device: String::new(), below: None };
        let folder = ground.bed.path().to_owned();
        let script = match below {
            Below::Ext4 => {
                "truncate -s 512M b.img; mkfs.ext4 -q -F b.img; mount -o loop b.img b; mkdir b/replica; findmnt -no SOURCE b"
            }
            Below::Xfs => {
                "truncate -s 512M b.img; mkfs.xfs -q b.img; mount -o loop b.img b; mkdir b/replica; findmnt -no SOURCE b"
            }
            Below::Device => "truncate -s 512M b.img; losetup -f --show b.img",
            Below::Fuse => "true",
        };
        ground.device = shell(&folder, script).ok().out.trim().to_owned();
        ground.b = match below {
            Below::Ext4 | Below::Xfs => folder.join("b/replica"),
            Below::Device => PathBuf::from(&ground.device),
            Below::Fuse => {
                let inner = Bed::formatted("512M");
                inner.mount("deadline=60s").ok();
                let place = inner.at("replica");
                fs::create_dir(&place).unwrap();
                ground.below = Some(inner);
                place
            }
        };
        ground
    }

    fn format_and_mount(&self, options: &str) {
        let (a, b) = (self.bed.a.as_os_str(), self.b.as_os_str());
        self.bed.stablefs(["format".as_ref(), "--size".as_ref(), "200M".as_ref(), a, b]).ok();
        self.mount(&format!("deadline={}ms,{options}", DEADLINE.as_millis())).ok();
    }

    fn mount(&self, options: &str) -> Said {
        self.bed.mount_of(&[&self.bed.a, &self.b], options)
    }

    fn blow(&self, blow: Blow) {
        match blow {
            Blow::Script(script) => drop(shell(self.bed.path(), &format!("dev={}; {script}", self.device)).ok()),
            Blow::Signal(signal) => {
                let below = self.below.as_ref().expect("a daemon below");
                let process = daemons_of(below.path())[0];
                kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
            }
        }
    }

    fn state(&self, status: &serde_json::Value) -> String {
        state_of(status, &self.b)
    }

    fn wait_for_state(&self, state: &str, patience: Duration) -> serde_json::Value {
        self.bed.wait_for(patience, &format!("{} is {state}", self.b.display()), |status| self.state(status) == state)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // What hangs must not, whatever has happened: nothing could be unmounted.
        if let Some(below) = &self.below {
            for process in daemons_of(below.path()) {
                let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::CONT);
            }
        }
        shell(self.bed.path(), "fsfreeze -u b 2>/dev/null || true");
        self.bed.stablefs(["umount".as_ref(), self.bed.mnt.as_os_str()]);
        let script = "umount b 2>/dev/null || umount -l b 2>/dev/null || true; for d in $(losetup -nO NAME -j b.img); do losetup -d $d; done";
        shell(self.bed.path(), script);
    }
}

/// What the load has seen.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    turns: [AtomicU64; 3],
    stall_us: [AtomicU64; 3],
    no_space: AtomicU64,
}

const ROLES: [&str; 3] = ["reader", "writer", "names"];

impl Load {
    /// One call of one role; ENOSPC is counted, any other error fails the test.
    fn call<T>(&self, role: usize, call: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let began = Instant::now();
        let done = call();
        self.stall_us[role].fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        match done {
            Ok(value) => Some(value),
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                self.no_space.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => panic!("an application error: the {} got {error}", ROLES[role]),
        }
    }

    fn turn(&self, role: usize, bed: &Bed, turn: u64) {
        match role {
            0 => {
                let i = turn % STILL;
                let path = bed.at(&format!("still/{i}"));
                let found = self.call(role, || {
                    let mut file = fs::File::open(&path)?;
                    // Not from the kernel's cache.
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                    let mut found = Vec::new();
                    io::Read::read_to_end(&mut file, &mut found)?;
                    Ok(found)
                });
                assert!(found.unwrap() == bytes(i, still_len(i)), "still/{i} reads as other bytes");
            }
            1 => {
                let path = bed.at(&format!("load/written-{}", turn % 8));
                let data = bytes(turn, [700, 30_000, 400_000][turn as usize % 3]);
                let file = self.call(role, || fs::File::create(&path));
                let Some(mut file) = file else { return };
                let written = self.call(role, || file.write_all(&data));
                let synced = self.call(role, || file.sync_all());
                if written.and(synced).is_some() {
                    assert!(fs::read(&path).unwrap() == data, "what was synced reads as other bytes");
                }
            }
            _ => {
                let at = |name: &str| bed.at(&format!("load/{name}-{}", turn % 10));
                let made = self.call(role, || fs::create_dir(at("made")));
                if made.is_some() && self.call(role, || fs::write(at("made").join("file"), b"small")).is_some() {
                    self.call(role, || fs::rename(at("made").join("file"), at("moved")));
                    self.call(role, || fs::metadata(at("moved")));
                    self.call(role, || fs::remove_file(at("moved")));
                }
                let _ = fs::remove_file(at("made").join("file"));
                if made.is_some() {
                    self.call(role, || fs::remove_dir(at("made")));
                }
            }
        }
        self.turns[role].fetch_add(1, Ordering::Relaxed);
    }

    /// All three, while `work` runs.
    fn run(&self, bed: &Bed, work: impl FnOnce()) {
        fs::create_dir_all(bed.at("load")).unwrap();
        std::thread::scope(|scope| {
            let go = |role: usize| {
                let work = move || {
                    let mut turn = 0;
                    while !self.stop.load(Ordering::Relaxed) {
                        self.turn(role, bed, turn);
                        turn += 1;
                    }
                };
                scope.spawn(work)
            };
            let handles = [go(0), go(1), go(2)];
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            self.stop.store(true, Ordering::Relaxed);
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            handles.into_iter().for_each(|handle| handle.join().expect("an application error"));
        });
    }

    fn stall(&self) -> Duration {
        let all = self.stall_us.iter().map(|us| us.load(Ordering::Relaxed));
        Duration::from_micros(all.max().unwrap_or(0))
    }
}

/// More new data than a full disk takes.
fn fill(ground: &Ground) -> u64 {
    for i in 0..80 {
        let path = ground.bed.at(&format!("more-{i}"));
        let done = fs::write(&path, bytes(i, 1 << 20)).and_then(|()| fs::File::open(&path)?.sync_all());
        match done {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return i,
            Err(error) => panic!("more-{i}: {error}"),
        }
    }
    80
}

fn play(form: &Form) {
    println!("--- {}", form.name);
    let ground = Ground::new(form.below);
    ground.format_and_mount(form.options);
    let bed = &ground.bed;
    still_files(bed, STILL);
    let load = Load::default();
    let is_full = form.name.starts_with("full");
    let mut filled = 0;
    load.run(bed, || {
        std::thread::sleep(Duration::from_secs(1));
        ground.blow(form.strike);
        if is_full {
            filled = fill(&ground);
        }
        if form.cause.is_empty() && is_full {
            let status = bed.status();
            assert_eq!(ground.state(&status), "in sync", "{status:#}");
            let conditions = &status["replicas"][1]["conditions"];
            assert!(conditions.as_array().unwrap().contains(&"full".into()), "{status:#}");
        } else {
            let status = ground.wait_for_state("out", Duration::from_secs(15));
            let cause = status["replicas"][1]["cause"].as_str().unwrap();
            println!("it is out: {cause}");
            assert!(cause.contains(form.cause), "{cause}");
            let risk = bed.wait_for(Duration::from_secs(30), "what is held once is counted", |status| {
                status["risk"]["held_once_bytes"].as_u64() > Some(0)
            });
            assert!(risk["risk"]["since_ns"].as_u64() > Some(0), "{risk:#}");
        }
        std::thread::sleep(form.lasts);
        ground.blow(form.mend);
        if !form.returns {
            let b = ground.b.as_os_str();
            bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), b, b]).ok();
        }
        ground.wait_for_state("in sync", PATIENCE);
        std::thread::sleep(Duration::from_secs(1));
    });
    if is_full && form.cause.is_empty() {
        // There is room again: what waited for it goes on.
        fs::write(bed.at("again"), bytes(1, 3 << 20)).expect("there is room again");
    }
    judge(form, &ground, &load, filled);
}

/// The line of the form, and everything that holds afterwards.
fn judge(form: &Form, ground: &Ground, load: &Load, filled: u64) {
    let bed = &ground.bed;
    let turns: Vec<u64> = load.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
    let no_space = load.no_space.load(Ordering::Relaxed);
    println!(
        "form: {:20} longest stall {:>7.1?} of a deadline of {DEADLINE:?}, 0 errors, {no_space} × ENOSPC, {turns:?} turns, {}",
        form.name,
        load.stall(),
        match (form.returns, form.cause) {
            (false, _) => "replaced",
            (true, "") => "stayed in sync",
            (true, _) => "returned by itself",
        }
    );
    assert!(turns.iter().all(|turns| *turns > 0), "{turns:?}");
    assert!(load.stall() < DEADLINE, "{}: a call took {:?}", form.name, load.stall());
    match form.name {
        "full, full=enospc" => assert!(filled < 80, "the full disk took {filled} MiB"),
        "full, full=out" => assert!(filled == 80 && no_space == 0, "{filled} MiB were taken, {no_space} × ENOSPC"),
        _ => assert_eq!(no_space, 0),
    }
    check_still_files(bed, STILL);
    // Where a repair failed on the way out, a scrub that proves everything is the end of it.
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    let status = bed.status();
    assert_eq!((&status["state"], &status["risk"]["since_ns"]), (&"healthy".into(), &0.into()), "{status:#}");
    bed.umount().ok();
    let (a, b) = (bed.a.as_os_str(), ground.b.as_os_str());
    bed.stablefs(["fsck".as_ref(), "-n".as_ref(), a, b]).ok();
    let alone = |replica: &Path| {
        bed.mount_of(&[replica], "degraded,ro").ok();
        check_still_files(bed, STILL);
        let found = fingerprint(&bed.mnt);
        bed.umount().ok();
        found
    };
    assert_eq!(alone(&bed.a), alone(&ground.b), "each alone has the same bytes");
}

/// Goal: whatever happens to one side, applications go on, and it comes back.
#[test]
fn heavy_each_form_of_failure() {
    // SEMANTICS: DEG-1, DEG-2, DEG-3, RET-1, RISK-1, FULL-1, SPACE-3
    if !can_fail() {
        return;
    }
    let wanted = std::env::var("STABLEFS_TEST_FORM").unwrap_or_default();
    for form in forms().iter().filter(|form| form.name.contains(&wanted)) {
        play(form);
    }
}

/// Goal: unmounting while all calls into the filesystem below hang, also those of the process that ends: the mount point is gone within the
/// deadline and what is left hanging is said; the daemon ends when it is let go.
#[test]
fn heavy_umount_with_a_hung_fuse_backing() {
    // SEMANTICS: DEG-2, DUR-4
    if !can_fail() {
        return;
    }
    let ground = Ground::new(Below::Fuse);
    ground.format_and_mount("");
    let bed = &ground.bed;
    still_files(bed, 10);
    let daemon = bed.daemon();
    ground.blow(Blow::Signal(Signal::STOP));
    fs::write(bed.at("late"), b"late").unwrap();
    bed.sync();
    let began = Instant::now();
    let said = bed.umount();
    let took = began.elapsed();
    println!("umount took {took:?} of a deadline of {DEADLINE:?}: {said}");
    assert!(mounts_in(&bed.mnt).is_empty(), "it is still mounted");
    assert!(took < DEADLINE, "umount took {took:?}");
    assert!(format!("{}{}", said.out, said.err).contains(ground.b.to_str().unwrap()), "what hangs is not told: {said}");
    println!("the daemon has {}", if lives(daemon) { "threads that hang" } else { "ended" });
    ground.blow(Blow::Signal(Signal::CONT));
    wait_until("the daemon is gone", || !lives(daemon));
    let until = Instant::now() + Duration::from_secs(20);
    while ground.mount("").code != 0 {
        assert!(Instant::now() < until, "a replica that woke up stays in use");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(fs::read(bed.at("late")).unwrap(), b"late");
    ground.wait_for_state("in sync", PATIENCE);
    bed.umount().ok();
}
