//! One owner, on real mounts. The other host is played by the test: it writes heartbeats into a replica's container.

use super::bed::{Bed, Said, can_mount, shell};
use stablefs::format::geometry::BEAT_AT;
use stablefs::format::{BLOCK, Beat, BeatState, Label, Uuid};
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const AT: u64 = BEAT_AT * BLOCK as u64;

fn container(replica: &Path) -> File {
    File::options().read(true).write(true).open(replica.join("stablefs.data")).expect("a container")
}

fn volume_of(replica: &Path) -> Uuid {
    let mut block = vec![0; BLOCK];
    container(replica).read_exact_at(&mut block, 0).unwrap();
    Label::decode(&block, 0).expect("a label").volume
}

fn standing(replica: &Path) -> Option<Beat> {
    let mut block = vec![0; BLOCK];
    container(replica).read_exact_at(&mut block, AT).unwrap();
    Beat::decode(&block, volume_of(replica)).ok()
}

/// The heartbeat that another host shows.
fn foreign(sequence: u64, lease_ms: u32) -> Beat {
    Beat {
        owner: Uuid([0x51; 16]),
        host: Uuid([0x52; 16]),
        boot: Uuid([0x53; 16]),
        sequence,
        time_ns: 1_795_420_800_000_000_000,
        started: 1,
        process: 2,
        lease_ms,
        state: BeatState::Running,
        name: "other-host".into(),
    }
}

fn show(replica: &Path, beat: &Beat) {
    let file = container(replica);
    file.write_all_at(&beat.encode(volume_of(replica)), AT).unwrap();
    file.sync_data().unwrap();
}

/// Everything in a container but the heartbeat.
pub fn content(replica: &Path) -> Vec<u8> {
    let mut bytes = fs::read(replica.join("stablefs.data")).unwrap();
    bytes[AT as usize..AT as usize + BLOCK].fill(0);
    bytes
}

fn waited(said: &Said) -> bool {
    said.err.contains("Waiting")
}

/// Goal: who sees another host's heartbeat on one of its replicas stops writing at once, says why, and answers errors.
#[test]
fn the_heartbeat_of_another_host_ends_all_writing() {
    // SEMANTICS: OWN-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("before"), b"acknowledged").unwrap();
    bed.sync();
    let mut open = File::create(bed.at("open")).unwrap();
    // It may be written over by a heartbeat that was just being written; another host would go on, too.
    let sequence = Cell::new(1);
    bed.wait_for(Duration::from_secs(60), "the other host is seen", |status| {
        if status["state"] == "failed" {
            return true;
        }
        show(&bed.b, &foreign(sequence.replace(sequence.get() + 1), 1000));
        false
    });
    let status = bed.status();
    let meaning = status["meaning"].as_str().unwrap();
    let names = [bed.b.to_str().unwrap(), "other-host", "2026-11-23 08:00:00 UTC"];
    assert!(names.iter().all(|name| meaning.contains(name)), "{meaning}");
    let before = (content(&bed.a), content(&bed.b), standing(&bed.a));
    let written = open.write_all(b"too late").and_then(|()| open.sync_all());
    assert!(written.is_err(), "fsync acknowledged what may not be written");
    assert!(fs::write(bed.at("new"), b"x").and_then(|()| File::open(bed.at("new"))?.sync_all()).is_err());
    assert!(bed.stablefs(["sync".as_ref(), bed.mnt.as_os_str()]).code != 0);
    // Two heartbeats and a commit would have come by now.
    std::thread::sleep(Duration::from_secs(6));
    assert!(before == (content(&bed.a), content(&bed.b), standing(&bed.a)), "it wrote after it had stopped");
    assert_eq!(fs::read(bed.at("before")).unwrap(), b"acknowledged", "reads go on");
    drop(open);
    let said = bed.umount();
    assert!(said.code != 0 && said.err.contains("other-host"), "{said}");
    assert_eq!(standing(&bed.b).map(|beat| beat.name), Some("other-host".into()), "what is another's is not released");
    // That host has died since.
    let said = bed.mount("").ok();
    assert!(waited(&said), "{said}");
    assert_eq!(fs::read(bed.at("before")).unwrap(), b"acknowledged");
    bed.umount_and_check();
}

/// Goal: a volume that another host had when it died is waited for, with a countdown, and then mounted; by force at once.
#[test]
fn a_dead_owner_elsewhere_is_waited_for() {
    // SEMANTICS: OWN-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("file"), b"kept").unwrap();
    bed.umount().ok();
    for replica in [&bed.a, &bed.b] {
        show(replica, &foreign(7, 3000));
    }
    let began = Instant::now();
    let said = bed.mount("").ok();
    assert!(began.elapsed() >= Duration::from_secs(3), "{said}");
    let lines = ["host other-host", "2026-11-23 08:00:00 UTC", "Waiting 3 s", "2 s left", "1 s left"];
    assert!(lines.iter().all(|line| said.err.contains(line)), "{said}");
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"kept");
    bed.umount_and_check();
    // Longer than anybody waits for this test.
    show(&bed.a, &foreign(7, 250_000));
    let said = bed.mount("force-owner").ok();
    assert!(!waited(&said) && said.err.contains("by force"), "{said}");
    bed.umount().ok();
    show(&bed.b, &foreign(8, 250_000));
    let words = ["fsck".as_ref(), "--force-owner".as_ref(), "-y".as_ref(), bed.a.as_os_str(), bed.b.as_os_str()];
    assert!(!waited(&bed.stablefs(words).ok()));
    let said = bed.mount("").ok();
    assert!(!waited(&said), "fsck has let go: {said}");
    bed.umount_and_check();
}

/// Goal: a volume that another host has mounted is refused, to mounts of all kinds and to the checker, and nothing is
/// written.
#[test]
fn a_living_owner_elsewhere_is_named_and_nothing_is_done() {
    // SEMANTICS: OWN-1, REFUSE-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("file"), b"kept").unwrap();
    bed.umount().ok();
    let before = (content(&bed.a), content(&bed.b));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It lost replica a long ago: only b shows it.
            for sequence in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                show(&bed.b, &foreign(sequence, 20_000));
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let stop = Stop(&done);
        let refused = |said: Said, code: i32| {
            let said = said.code(code);
            let last = said.err.trim_end().lines().last().unwrap_or_default().to_owned();
            let names = [bed.b.to_str().unwrap(), "other-host", "stablefs umount"];
            assert!(names.iter().all(|name| last.contains(name)), "{said}");
        };
        std::thread::sleep(Duration::from_millis(300));
        refused(bed.mount(""), 1);
        refused(bed.mount("ro"), 1);
        refused(bed.mount_of(&[&bed.b], "degraded"), 1);
        refused(bed.fsck("-n"), 8);
        refused(bed.fsck("-y"), 8);
        let keep =
            ["resolve", "--keep"].map(OsStr::new).into_iter().chain([&bed.a, &bed.a, &bed.b].map(|at| at.as_os_str()));
        refused(bed.stablefs(keep), 1);
        drop(stop);
    });
    assert!(before == (content(&bed.a), content(&bed.b)), "a command that was refused wrote to a replica");
}

/// Ends the other host, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goal: after `kill -9` on this host, and on a volume from before there were heartbeats, nothing is waited for.
#[test]
fn what_is_known_to_be_dead_is_not_waited_for() {
    // SEMANTICS: OWN-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("file"), b"kept").unwrap();
    bed.sync();
    assert_eq!(standing(&bed.a).map(|beat| beat.process), u32::try_from(bed.daemon()).ok());
    bed.kill();
    assert_eq!(standing(&bed.a).map(|beat| beat.state), Some(BeatState::Running));
    let said = bed.mount("").ok();
    assert!(!waited(&said), "{said}");
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"kept");
    bed.umount().ok();
    for replica in [&bed.a, &bed.b] {
        assert_eq!(standing(replica).map(|beat| beat.state), Some(BeatState::Released));
        container(replica).write_all_at(&[0; BLOCK], AT).unwrap();
    }
    let said = bed.mount("").ok();
    assert!(!waited(&said), "{said}");
    bed.umount_and_check();
    shell(bed.path(), "test ! -e mnt/file").ok();
}
