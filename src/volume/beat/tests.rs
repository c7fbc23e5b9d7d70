//! Heartbeats on simulated disks and in directories: two owners in turn, stale and damaged ones, waiting.

use super::host::Session;
use super::opening::Opening;
use super::watch::{Patience, Seen, Spot, watch};
use super::*;
use crate::disk::backing::{Backing, Op};
use crate::disk::sim::{Block, Fate, Fault};
use crate::store::Store;
use crate::store::commit::Force;
use crate::store::recover::{self, LogEnd, OpenStore, Present, Report};
use crate::store::tests::{Rig, write};
use crate::sync::Instant;
use crate::volume::{FormatOptions, OpenOptions, Volume, format};
use crate::world::{Machine, Seeded};
use std::path::{Path, PathBuf};

/// A clock that a test moves.
#[derive(Default)]
struct Hands(AtomicU64);

impl Hands {
    fn clock(self: &Arc<Hands>) -> Clock {
        let hands = self.clone();
        Arc::new(move || Duration::from_millis(hands.0.load(Ordering::SeqCst)))
    }
    fn pass(&self, time: Duration) {
        self.0.fetch_add(millis(time), Ordering::SeqCst);
    }
}

fn session(number: u8) -> Session {
    let id = |salt: u8| Uuid([number ^ salt; 16]);
    Session { owner: id(0x10), host: id(0x20), boot: id(0x40), process: 7, started: 3, name: format!("host{number}") }
}

/// One host of several that share the disks of a rig.
struct Host {
    store: Arc<Store>,
    heart: Arc<Heart>,
    hands: Arc<Hands>,
}

fn present(rig: &Rig) -> Vec<Present> {
    let examined = |(path, backing): (String, Arc<dyn Backing>)| {
        let found = recover::examine(&*backing, Duration::from_secs(1)).unwrap();
        Present { path, backing, found }
    };
    rig.backings().into_iter().map(examined).collect()
}

fn spots(rig: &Rig) -> Vec<Spot> {
    watch::spots_of(&present(rig))
}

impl Host {
    /// Mount on host `number`, although another one may live.
    fn mount(rig: &Rig, number: u8) -> Host {
        let seen = watch(&session(number), &spots(rig), Patience::Force).unwrap();
        let open = OpenStore {
            degraded: false,
            deadline: Duration::from_secs(1),
            store: crate::store::StoreOptions::default(),
            on_shrink: None,
            hold: true,
        };
        let (store, mut report) = recover::open(present(rig), open, Arc::new(Seeded::new(number.into()))).unwrap();
        let (hands, world) = (Arc::<Hands>::default(), Arc::new(Seeded::new(50)));
        let volume = store.label().volume;
        let heart = Heart::new(session(number), volume, Use::Write, Duration::from_secs(1), world, hands.clock());
        let heart = Arc::new(heart);
        heart.claim(store.mirror(), &Seen { elsewhere: false, ..seen }).unwrap();
        store.resume(LogEnd::Proven, &mut report).unwrap();
        let _: Report = report;
        Host { store: Arc::new(store), heart, hands }
    }
    fn beat(&self) -> Result<(), DiskError> {
        self.heart.beat(self.store.mirror())
    }
    fn change(&self) -> Result<(), StoreError> {
        write(&self.store, 30, 0, 4, 9)?;
        self.store.fsync_wait(30)?;
        self.store.commit(Force::Always)
    }
}

/// Count what is written to the disks of `rig` from now on.
fn writes(rig: &Rig) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    rig.power.listen(Some(Arc::new(move |asked| {
        let changes = matches!(asked.op, Op::Write { .. } | Op::Punch { .. } | Op::Allocate { .. });
        counted.fetch_add(u64::from(changes && asked.said == Fate::Done), Ordering::SeqCst);
    })));
    count
}

fn standing(rig: &Rig, volume: Uuid) -> Vec<Option<Beat>> {
    rig.disks.iter().map(|disk| Beat::decode(&disk.peek(BEAT_AT), volume).ok()).collect()
}

fn block(bytes: &[u8]) -> Block {
    bytes.try_into().expect("a block")
}

#[test]
fn the_first_owner_stops_at_its_next_heartbeat_and_writes_nothing_more() {
    // SEMANTICS: OWN-2
    let rig = Rig::new(70, 2);
    let first = Host::mount(&rig, 1);
    first.change().unwrap();
    first.beat().unwrap();
    let second = Host::mount(&rig, 2);
    second.change().unwrap();
    let count = writes(&rig);
    let error = first.beat().unwrap_err().to_string();
    assert!(error.contains("/disk/0") && error.contains("host2") && error.contains("UTC"), "{error}");
    let refusal = first.change().unwrap_err().to_string();
    assert!(refusal.contains("host2"), "{refusal}");
    assert!(first.beat().is_err() && first.store.commit(Force::Clean).is_err());
    assert!(first.heart.release(first.store.mirror()).is_err(), "what is another's is not released");
    assert_eq!(count.load(Ordering::SeqCst), 0, "it wrote after it had seen the other");
    second.beat().unwrap();
    second.change().unwrap();
    let volume = second.store.label().volume;
    assert!(standing(&rig, volume).iter().all(|beat| beat.as_ref().unwrap().name == "host2"));
}

#[test]
fn a_host_that_was_paused_looks_before_it_writes() {
    // SEMANTICS: OWN-2
    let rig = Rig::new(71, 2);
    let first = Host::mount(&rig, 1);
    first.change().unwrap();
    let _second = Host::mount(&rig, 2);
    first.hands.pass(first.heart.lease());
    let count = writes(&rig);
    let refusal = first.change().unwrap_err().to_string();
    assert!(refusal.contains("host2"), "{refusal}");
    first.store.mirror().punch(first.store.label().geometry.zones_at, 1);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

/// With time, but without another owner, the guard beats by itself.
#[test]
fn a_write_after_a_pause_shows_itself_first() {
    let rig = Rig::new(72, 2);
    let host = Host::mount(&rig, 1);
    let volume = host.store.label().volume;
    let before = standing(&rig, volume)[0].clone().unwrap().sequence;
    host.change().unwrap();
    assert_eq!(standing(&rig, volume)[1].clone().unwrap().sequence, before, "no timer, no heartbeat");
    host.hands.pass(host.heart.lease());
    host.change().unwrap();
    assert_eq!(standing(&rig, volume)[1].clone().unwrap().sequence, before + 1);
}

#[test]
fn lost_and_damaged_heartbeats_are_omissions_and_no_other_owner() {
    // SEMANTICS: OWN-4
    let rig = Rig::new(73, 2);
    let owner = Host::mount(&rig, 1);
    owner.heart.release(owner.store.mirror()).unwrap();
    let released = rig.disks[0].peek(BEAT_AT);
    let host = Host::mount(&rig, 2);
    let old = rig.disks[0].peek(BEAT_AT);
    host.beat().unwrap();
    let healed = || host.store.mirror().health().iter().map(|health| health.counters.healed).collect::<Vec<_>>();
    assert_eq!(healed(), [0, 0]);
    for (count, block) in [(1, released), (2, old), (3, [0; 4096]), (4, [7; 4096])] {
        rig.disks[0].poke(BEAT_AT, block);
        host.beat().unwrap();
        assert_eq!(healed(), [count, 0]);
    }
    rig.disks[1].faults(|faults| faults.unreadable.extend([BEAT_AT]));
    host.beat().unwrap();
    assert_eq!((healed(), host.store.mirror().members().count()), (vec![4, 1], 2));
    host.change().unwrap();
}

/// What was our own a moment ago, with more heartbeats than we have made: a copy of a running virtual machine.
#[test]
fn a_copy_of_this_session_is_another_owner() {
    let rig = Rig::new(74, 2);
    let host = Host::mount(&rig, 1);
    let volume = host.store.label().volume;
    let mine = standing(&rig, volume)[1].clone().unwrap();
    let copy = Beat { sequence: mine.sequence + 1, ..mine };
    rig.disks[1].poke(BEAT_AT, block(&copy.encode(volume)));
    assert!(host.beat().unwrap_err().to_string().contains("copy of this machine"));
}

#[test]
fn a_disk_that_hangs_or_fails_goes_out_and_keeps_no_heartbeat_from_the_other() {
    // SEMANTICS: OWN-4
    for hang in [false, true] {
        let rig = Rig::new(75, 2);
        let host = Host::mount(&rig, 1);
        let volume = host.store.label().volume;
        rig.disks[0]
            .faults(|faults| if hang { faults.hang = Fault::Always } else { faults.fail_writes = Fault::Always });
        host.beat().unwrap();
        assert_eq!(host.store.mirror().members().in_sync, 0b10);
        let before = standing(&rig, volume);
        let count = rig.disks[0].counters();
        host.beat().unwrap();
        let after = standing(&rig, volume);
        assert_eq!(before[0], after[0], "nothing is written to one that is out");
        assert_eq!(count, rig.disks[0].counters(), "nor is it asked");
        assert_eq!(before[1].as_ref().unwrap().sequence + 1, after[1].as_ref().unwrap().sequence);
        rig.disks[0].relieve(true);
    }
}

/// A heartbeat of host 3, with the shortest lease.
fn foreign() -> Beat {
    let other = session(3);
    Beat {
        owner: other.owner,
        host: other.host,
        boot: other.boot,
        sequence: 5,
        time_ns: 1_795_420_800_000_000_000,
        started: other.started,
        process: other.process,
        lease_ms: 1,
        state: BeatState::Running,
        name: other.name,
    }
}

/// Watch, while `meanwhile` is done to the disks.
fn watched(rig: &Rig, meanwhile: impl Fn() + Send + Sync) -> (Result<Seen, StoreError>, Duration) {
    let (spots, began) = (spots(rig), Instant::now());
    let seen = crate::sync::thread::scope(|scope| {
        scope.spawn(|| {
            crate::sync::thread::sleep(Duration::from_millis(400));
            meanwhile();
        });
        watch(&session(1), &spots, Patience::Wait)
    });
    (seen, began.elapsed())
}

#[test]
fn only_one_who_may_live_is_waited_for() {
    // SEMANTICS: OWN-1, OWN-3
    let rig = Rig::new(76, 2);
    let volume = spots(&rig)[0].label.volume;
    let stand = |beat: &Beat| rig.disks.iter().for_each(|disk| disk.poke(BEAT_AT, block(&beat.encode(volume))));
    let at_once = |what: &str| {
        let seen = watch(&session(1), &spots(&rig), Patience::Wait).unwrap();
        assert!(!seen.waited, "{what}");
        seen
    };
    assert!(at_once("zeros").beats.is_empty());
    stand(&Beat { state: BeatState::Released, ..foreign() });
    assert!(at_once("released").elsewhere);
    stand(&Beat { host: session(1).host, ..foreign() });
    assert!(!at_once("an earlier boot of this host").elsewhere);
    stand(&Beat { boot: session(1).boot, process: u32::MAX, ..foreign() });
    assert!(!at_once("a process that has ended").elsewhere);
    let let_go = Beat { state: BeatState::Released, sequence: 9, ..foreign() };
    stand(&foreign());
    rig.disks[0].poke(BEAT_AT, block(&let_go.encode(volume)));
    assert!(at_once("its other replica says that it has let go").elsewhere);
    stand(&foreign());
    let (seen, took) = watched(&rig, || ());
    let seen = seen.unwrap();
    assert!(seen.waited && seen.elsewhere && took >= Duration::from_secs(1), "a dead stranger: {took:?}");
    let seen = watch(&session(1), &spots(&rig), Patience::Force).unwrap();
    assert!(!seen.waited && seen.elsewhere, "by force");
    let me = std::process::id();
    let living = Session::begin(&Machine);
    stand(&Beat { boot: session(1).boot, process: me, started: living.started, ..foreign() });
    assert!(watched(&rig, || ()).0.unwrap().waited, "a process of this host that lives");
}

#[test]
fn one_who_lives_is_seen_and_named() {
    // SEMANTICS: OWN-1
    let rig = Rig::new(77, 2);
    let volume = spots(&rig)[0].label.volume;
    let stand = |disk: usize, beat: &Beat| rig.disks[disk].poke(BEAT_AT, block(&beat.encode(volume)));
    let refusal = |seen: Result<Seen, StoreError>| seen.unwrap_err().to_string();
    let next = Beat { sequence: 6, ..foreign() };
    stand(0, &foreign());
    let text = refusal(watched(&rig, || stand(0, &next)).0);
    assert!(text.contains("/disk/0: host3 ") || text.contains("/disk/0: host host3 "), "{text}");
    assert!(text.contains("stablefs umount") && !text.contains('\n'), "{text}");
    // It shows itself on the other replica only.
    stand(0, &foreign());
    let text = refusal(watched(&rig, || stand(1, &next)).0);
    assert!(text.contains("/disk/1"), "{text}");
    rig.disks[1].zero(BEAT_AT);
    // It ends in order while it is waited for.
    stand(0, &foreign());
    let seen = watched(&rig, || stand(0, &Beat { state: BeatState::Released, ..next.clone() })).0.unwrap();
    assert!(seen.waited && seen.beats[0].state == BeatState::Released);
    // Another one takes over while it is waited for.
    stand(0, &foreign());
    let third = Beat { owner: Uuid([9; 16]), name: "other".into(), ..foreign() };
    assert!(refusal(watched(&rig, || stand(0, &third)).0).contains("other"));
}

/// What is damaged may be what a living owner is about to write anew; what cannot be read is no obstacle.
#[test]
fn a_damaged_heartbeat_is_waited_for_and_an_unreadable_one_is_not() {
    let rig = Rig::new(78, 2);
    let volume = spots(&rig)[0].label.volume;
    rig.disks[1].junk(BEAT_AT);
    let again = foreign().encode(volume);
    let (seen, _) = watched(&rig, || rig.disks[1].poke(BEAT_AT, block(&again)));
    assert!(seen.unwrap_err().to_string().contains("host3"));
    rig.disks[1].faults(|faults| faults.unreadable.extend([BEAT_AT]));
    assert!(!watch(&session(1), &spots(&rig), Patience::Wait).unwrap().waited);
}

/// Two hosts that look at the same moment: both may claim, and never do both go on.
#[test]
fn of_two_that_claim_at_once_the_later_one_wins() {
    let rig = Rig::new(79, 2);
    let volume = spots(&rig)[0].label.volume;
    let open = |number: u8| {
        let seen = watch(&session(number), &spots(&rig), Patience::Wait).unwrap();
        let world = Arc::new(Seeded::new(50));
        let clock = Arc::<Hands>::default().clock();
        let heart = Heart::new(session(number), volume, Use::Write, Duration::from_secs(1), world, clock);
        let open = OpenStore {
            degraded: false,
            deadline: Duration::from_secs(1),
            store: crate::store::StoreOptions::default(),
            on_shrink: None,
            hold: true,
        };
        let (store, _) = recover::open(present(&rig), open, Arc::new(Seeded::new(1))).unwrap();
        (Arc::new(heart), store, seen)
    };
    let (one, other) = (open(1), open(2));
    one.0.claim(one.1.mirror(), &one.2).unwrap();
    let text = other.0.claim(other.1.mirror(), &other.2).unwrap_err().to_string();
    assert!(text.contains("host1"), "it looks once more before it writes: {text}");
    one.0.beat(one.1.mirror()).unwrap();
}

fn on_directories(root: &Path) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = ["a", "b"].iter().map(|name| root.join(name)).collect();
    paths.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let make = FormatOptions { size_bytes: Some(32 << 20), label: "test".into(), force: false, uid: 0, gid: 0 };
    format(&paths, &make).unwrap();
    paths
}

fn stands_in(path: &Path, volume: Uuid) -> Option<Beat> {
    use std::os::unix::fs::FileExt;
    let mut block = vec![0; crate::format::BLOCK];
    let file = std::fs::File::open(path.join("stablefs.data")).unwrap();
    file.read_exact_at(&mut block, BEAT_AT * crate::format::BLOCK as u64).unwrap();
    Beat::decode(&block, volume).ok()
}

fn put_in(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path.join("stablefs.data")).unwrap();
    file.write_all_at(bytes, BEAT_AT * crate::format::BLOCK as u64).unwrap();
}

#[test]
fn a_volume_beats_while_it_is_open_and_lets_go_at_the_end() {
    // SEMANTICS: OWN-3
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let volume = Volume::open(&paths, &OpenOptions::default()).unwrap();
    volume.start().unwrap();
    let id = volume.label.volume;
    let first = paths.iter().map(|path| stands_in(path, id).unwrap()).collect::<Vec<_>>();
    assert!(first[0] == first[1] && first[0].state == BeatState::Running && first[0].process == std::process::id());
    let until = Instant::now() + Duration::from_secs(60);
    while stands_in(&paths[1], id).unwrap().sequence == first[1].sequence {
        assert!(Instant::now() < until, "it beats by itself");
        crate::sync::thread::sleep(Duration::from_millis(20));
    }
    // One that comes back is looked at first: nothing of what is there now may be another host's.
    volume.offline("1", true).unwrap();
    let away = volume.online("1").unwrap().unwrap();
    put_in(&paths[1], &foreign().encode(id));
    let refusal = crate::sync::thread::scope(|scope| {
        scope.spawn(|| {
            crate::sync::thread::sleep(Duration::from_millis(400));
            put_in(&paths[1], &Beat { sequence: 6, ..foreign() }.encode(id));
        });
        away.open().err().expect("another host uses it")
    });
    assert!(refusal.contains("host3"), "{refusal}");
    volume.bring_back(away.open().unwrap(), &mut |_| true).unwrap();
    volume.heart.beat(&volume.mirror).unwrap();
    assert_eq!(volume.mirror.members().count(), 2);
    volume.close().unwrap();
    for path in &paths {
        let last = stands_in(path, id).unwrap();
        assert!(last.state == BeatState::Released && last.owner == first[0].owner, "{last:?}");
    }
    // A reader leaves it as it is.
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let last = stands_in(&paths[0], id);
    Volume::open(&paths, &read_only).unwrap().close().unwrap();
    assert_eq!(stands_in(&paths[0], id), last);
}

/// Who uses it elsewhere is not written over, whatever a person says here.
#[test]
fn what_another_host_uses_is_not_formatted() {
    // SEMANTICS: OWN-1
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let (present, _) = crate::volume::open_paths(&paths, crate::disk::file::Mode::ReadOnly).unwrap();
    let id = present[0].found.label.volume;
    drop(present);
    put_in(&paths[1], &foreign().encode(id));
    let make = FormatOptions { size_bytes: Some(32 << 20), label: "test".into(), force: true, uid: 0, gid: 0 };
    let refusal = crate::sync::thread::scope(|scope| {
        scope.spawn(|| {
            crate::sync::thread::sleep(Duration::from_millis(400));
            put_in(&paths[1], &Beat { sequence: 6, ..foreign() }.encode(id));
        });
        format(&paths, &make).unwrap_err().to_string()
    });
    assert!(refusal.contains("host3"), "{refusal}");
    assert_eq!(stands_in(&paths[1], id).unwrap().sequence, 6, "it is not blanked");
    format(&paths, &make).unwrap();
    assert_eq!(stands_in(&paths[1], id), None);
}

/// A reader writes nothing, and sees when another host begins to.
#[test]
fn a_reader_sees_another_host_begin() {
    // SEMANTICS: OWN-5
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let volume = Volume::open(&paths, &read_only).unwrap();
    volume.heart.beat(&volume.mirror).unwrap();
    put_in(&paths[1], &foreign().encode(volume.label.volume));
    assert!(volume.heart.beat(&volume.mirror).unwrap_err().to_string().contains("host3"));
    let status = volume.status();
    assert_eq!(status.state, "failed");
    assert!(status.meaning.contains("host3"), "{status:?}");
    volume.close().unwrap();
}

/// What is not opened after all holds nobody up.
#[test]
fn an_opening_that_is_given_up_lets_go() {
    let root = tempfile::tempdir().unwrap();
    let paths = on_directories(root.path());
    let (mut present, _) = crate::volume::open_paths(&paths, crate::disk::file::Mode::Write).unwrap();
    let world: Arc<dyn World> = Arc::new(Machine);
    let second = Duration::from_secs(1);
    let opening = Opening::look(&mut present, Use::Write, Patience::Wait, second, &world).unwrap();
    let volume = present[0].found.label.volume;
    let open = OpenStore {
        degraded: false,
        deadline: second,
        store: crate::store::StoreOptions::default(),
        on_shrink: None,
        hold: true,
    };
    let (store, _) = recover::open(present, open, world).unwrap();
    opening.claim(&store).unwrap();
    assert_eq!(stands_in(&paths[0], volume).unwrap().state, BeatState::Running);
    opening.give_up();
    assert_eq!(stands_in(&paths[0], volume).unwrap().state, BeatState::Released);
}
