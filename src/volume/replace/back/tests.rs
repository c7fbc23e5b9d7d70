//! Return on simulated disks: what is sent, what is believed, who is refused.

use super::super::super::scrub;
use super::*;
use crate::disk::sim::SimDisk;
use crate::format::root::Epoch;
use crate::format::{Member, Role};
use crate::store::recover::examine;
use crate::store::tests::{Rig, write};
use std::time::Duration;

/// The second disk goes away after some groups; `missed` groups later it is there again.
fn apart(rig: &Rig, store: &Store, before: u64, missed: u64) {
    for group in 0..before {
        write(store, 20 + group % 4, group * 3 % 60, 3, group as u8).unwrap();
        store.commit(Force::Always).unwrap();
    }
    rig.disks[1].faults(|faults| faults.gone = true);
    for group in 0..missed {
        write(store, 25, group, 1, group as u8).unwrap();
        store.commit(Force::Always).unwrap();
    }
    assert_eq!(store.mirror().members().in_sync, 1);
    rig.disks[1].relieve(true);
}

fn come(store: &Store, disk: &Arc<SimDisk>) -> Result<ReturnReport, StoreError> {
    come_until(store, disk, &mut |_| true)
}

fn come_until(
    store: &Store,
    disk: &Arc<SimDisk>,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<ReturnReport, StoreError> {
    come_to(store, 1, disk, progress)
}

fn come_to(
    store: &Store,
    slot: usize,
    disk: &Arc<SimDisk>,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<ReturnReport, StoreError> {
    store.mirror().release(slot);
    let backing = disk.reopen();
    let found = examine(&*backing, Duration::from_secs(1)).unwrap();
    bring_back(store, slot, format!("/disk/{slot}"), backing, &found, progress)
}

/// The disk in `slot` goes away and comes back, `rounds` times: each time an epoch begins.
fn come_and_go(rig: &Rig, store: &Store, slot: usize, rounds: u64) {
    for round in 0..rounds {
        rig.disks[slot].faults(|faults| faults.gone = true);
        write(store, 26, round % 50, 1, round as u8).unwrap();
        store.commit(Force::Always).unwrap();
        assert!(!store.mirror().members().contains(slot), "round {round}");
        rig.disks[slot].relieve(true);
        come_to(store, slot, &rig.disks[slot], &mut |_| true).unwrap();
    }
}

/// All data and nodes are gone from the second disk; labels and roots are not.
fn lose_old_blocks(rig: &Rig, store: &Store) {
    let zones = store.label().geometry.zones_at;
    rig.disks[1].addresses().into_iter().filter(|addr| *addr >= zones).for_each(|addr| rig.disks[1].zero(addr));
}

fn nothing_is_damaged(store: &Store) {
    let report = scrub::run(store, &mut |_| true);
    assert_eq!((report.detected, report.lost), (0, 0), "{report}");
}

#[test]
fn what_is_sent_follows_what_was_missed_and_not_what_is_there() {
    let mut sent = Vec::new();
    for before in [40, 400] {
        let rig = Rig::new(1, 2);
        let (store, _) = rig.open(false).unwrap();
        for ino in 100..100 + before {
            write(&store, ino, 0, 4, ino as u8).unwrap();
        }
        apart(&rig, &store, 6, 4);
        let report = come(&store, &rig.disks[1]).unwrap();
        assert!(report.since_group > 0 && report.sampled > 0 && report.lost == 0, "{report:?}");
        assert!(report.blocks_proven >= report.blocks_missed && report.blocks_copied >= 4, "{report:?}");
        assert_eq!(store.mirror().members().in_sync, 0b11);
        nothing_is_damaged(&store);
        sent.push(report.blocks_missed);
    }
    assert!(sent[1] <= sent[0] + 6, "{sent:?}: ten times as much lay there already, in a tree of one level more");
}

#[test]
fn a_sample_that_fails_has_everything_compared() {
    let rig = Rig::new(2, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 2);
    lose_old_blocks(&rig, &store);
    let report = come(&store, &rig.disks[1]).unwrap();
    assert_eq!((report.since_group, report.lost), (0, 0), "{report:?}");
    nothing_is_damaged(&store);
}

#[test]
fn an_old_copy_holds_what_its_own_root_says() {
    let rig = Rig::new(3, 2);
    let (store, _) = rig.open(false).unwrap();
    write(&store, 20, 0, 3, 1).unwrap();
    store.commit(Force::Always).unwrap();
    let old = rig.disks[1].snapshot();
    apart(&rig, &store, 12, 2);
    rig.disks[1].restore(old);
    let newest = store.durable_root().members[1].synced_txg;
    let report = come(&store, &rig.disks[1]).unwrap();
    assert!(report.since_group > 0 && report.since_group + 10 < newest, "{report:?}, went at {newest}");
    nothing_is_damaged(&store);
}

#[test]
fn while_it_returns_it_is_nobody_and_a_cut_keeps_what_is_known() {
    let rig = Rig::new(4, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 2);
    let went = store.durable_root().members[1].synced_txg;
    let stopped = come_until(&store, &rig.disks[1], &mut |_| false);
    assert!(matches!(stopped, Err(StoreError::Refused(_))), "{stopped:?}");
    let there = examine(&*rig.disks[1].reopen(), Duration::from_secs(1)).unwrap();
    let renounced = |(_, root): &(usize, Root)| root.members[1].state != MemberState::InSync;
    assert!(!there.roots.is_empty() && there.roots.iter().all(renounced), "its older roots are void");
    assert_eq!(store.durable_root().members[1].synced_txg, went);
    let report = come(&store, &rig.disks[1]).unwrap();
    assert_eq!(report.since_group, went);
    nothing_is_damaged(&store);
}

#[test]
fn what_it_holds_is_read_from_both_roots() {
    let member = |state, synced_txg, synced_version| Member {
        replica: Uuid([2; 16]),
        state,
        role: Role::Hot,
        offline: false,
        since_version: 1,
        since_ns: 0,
        synced_txg,
        synced_version,
        missed: None,
    };
    let mut now = crate::format::root::tests::sample();
    (now.version, now.txg) = (50, 40);
    now.chain = vec![Epoch { id: Uuid([5; 16]), first_version: 1 }, Epoch { id: Uuid([6; 16]), first_version: 32 }];
    now.members[1] = member(MemberState::Out, 20, 30);
    let own = |version, txg, state, synced| {
        let mut root = now.clone();
        (root.version, root.txg, root.chain) = (version, txg, now.chain[..1].to_vec());
        root.members[1] = member(state, synced, 0);
        vec![(0, root)]
    };
    let holds = |roots: &[(usize, Root)]| holds_until(&now, Uuid([2; 16]), roots);
    use MemberState::{InSync, Out, Returning};
    assert_eq!(holds(&own(30, 20, InSync, 0)), Ok(20), "it went with the last root of both");
    assert_eq!(holds(&own(31, 21, InSync, 0)), Ok(20), "a root that only it ever had");
    assert_eq!(holds(&own(25, 15, InSync, 0)), Ok(14), "an old copy");
    assert_eq!(holds(&own(31, 21, Returning, 12)), Ok(12), "an old copy on its way back");
    assert_eq!(holds(&own(31, 21, Out, 0)), Ok(0));
    assert_eq!(holds(&[]), Ok(0), "no root is left on it");
    let mut skipped = now.clone();
    skipped.chain[1].first_version = 48;
    let more = holds_until(&skipped, Uuid([2; 16]), &own(31, 21, InSync, 0)).unwrap_err();
    assert!(more.contains("had lost"), "{more}");
    assert!(holds(&own(32, 21, InSync, 0)).unwrap_err().contains("written apart"));
    assert!(holds_until(&now, Uuid([9; 16]), &[]).unwrap_err().contains("not a replica"));
}

#[test]
fn a_sample_that_failed_is_remembered() {
    let rig = Rig::new(6, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 2);
    lose_old_blocks(&rig, &store);
    let stopped = come_until(&store, &rig.disks[1], &mut |progress| progress.what != "copying metadata");
    assert!(matches!(stopped, Err(StoreError::Refused(_))), "{stopped:?}");
    assert_eq!(store.durable_root().members[1].synced_txg, 0, "the next one must not trust its luck");
}

/// What one acknowledged, whose newest root the other cannot read, is not thrown away without a person's word.
#[test]
fn one_that_may_have_more_than_the_others_is_not_taken_back() {
    let rig = Rig::new(5, 2);
    let (store, _) = rig.open(false).unwrap();
    write(&store, 20, 0, 3, 1).unwrap();
    store.commit(Force::Always).unwrap();
    write(&store, 20, 0, 3, 2).unwrap();
    store.commit(Force::Clean).unwrap();
    let (newest, root) = store.newest_root();
    drop(store);
    rig.disks[0].rot(Root::addr(newest), 100);
    rig.disks[1].faults(|faults| faults.gone = true);
    let (store, report) = rig.open(true).unwrap();
    assert!(report.version < root.version);
    assert_eq!(crate::store::tests::byte_at(&store, 20, 0), 1, "what was acknowledged last is only on the other");
    rig.disks[1].relieve(true);
    let outcome = come(&store, &rig.disks[1]);
    assert!(
        matches!(outcome, Err(StoreError::Refused(_))),
        "{outcome:?}, now it reads {}",
        crate::store::tests::byte_at(&store, 20, 0)
    );
    let there = examine(&*rig.disks[1].reopen(), Duration::from_secs(1)).unwrap();
    assert_eq!(there.roots[0].1.version, root.version, "nothing on it is changed");
}

#[test]
fn the_epoch_of_one_that_is_away_outlives_a_third_that_comes_and_goes() {
    // SEMANTICS: RET-4
    let rig = Rig::new(7, 3);
    let (store, _) = rig.open(false).unwrap();
    apart_of_three(&rig, &store);
    let went = store.durable_root().members[1].synced_txg;
    come_and_go(&rig, &store, 2, crate::format::root::CHAIN_MAX as u64 + 20);
    rig.disks[1].relieve(true);
    let report = come(&store, &rig.disks[1]).unwrap();
    assert_eq!((report.since_group, report.lost), (went, 0), "{report:?}");
    assert_eq!(store.mirror().members().in_sync, 0b111);
    nothing_is_damaged(&store);
}

fn apart_of_three(rig: &Rig, store: &Store) {
    for group in 0..6 {
        write(store, 20 + group % 4, group * 3 % 60, 3, group as u8).unwrap();
        store.commit(Force::Always).unwrap();
    }
    rig.disks[1].faults(|faults| faults.gone = true);
    write(store, 25, 0, 1, 9).unwrap();
    store.commit(Force::Always).unwrap();
    assert_eq!(store.mirror().members().in_sync, 0b101);
}

/// An old copy, from before the oldest epoch that is remembered: it may be the past or a fork, and is called neither.
#[test]
fn what_is_too_old_to_compare_is_named_so_and_left_alone() {
    // SEMANTICS: RET-4
    let rig = Rig::new(8, 2);
    let (store, _) = rig.open(false).unwrap();
    write(&store, 20, 0, 3, 1).unwrap();
    store.commit(Force::Always).unwrap();
    let old = rig.disks[1].snapshot();
    come_and_go(&rig, &store, 1, crate::format::root::CHAIN_MAX as u64 + 2);
    rig.disks[1].faults(|faults| faults.gone = true);
    write(&store, 20, 0, 3, 2).unwrap();
    store.commit(Force::Always).unwrap();
    rig.disks[1].relieve(true);
    rig.disks[1].restore(old);
    let newest = |disk: &Arc<SimDisk>| examine(&*disk.reopen(), Duration::from_secs(1)).unwrap().roots[0].1.clone();
    let before = newest(&rig.disks[1]);
    let said = come(&store, &rig.disks[1]).unwrap_err().to_string();
    assert!(said.contains("too old to compare") && said.contains("replace"), "{said}");
    assert_eq!(newest(&rig.disks[1]), before, "nothing on it is changed");
    store.commit(Force::Clean).unwrap();
    drop(store);
    let said = rig.open(true).map(drop).unwrap_err().to_string();
    assert!(said.contains("too old to compare") && said.contains("/disk/1") && !said.contains("split brain"), "{said}");
}

#[test]
fn what_the_others_gave_back_is_given_back() {
    let rig = Rig::new(9, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 2);
    lose_old_blocks(&rig, &store); // all zones are looked at, then
    let geometry = &store.label().geometry;
    let last = geometry.zones - 1;
    let backed = store.allocator().backed_units(store.mirror(), last).unwrap();
    let units = geometry.zone_len(last).div_ceil(geometry.unit_blocks());
    let spare = (0..units).find(|unit| backed >> unit & 1 == 0).expect("a unit without space below");
    let addr = geometry.zone_at(last) + u64::from(spare * geometry.unit_blocks());
    for disk in &rig.disks {
        disk.poke(addr, [7; BLOCK]);
    }
    let report = come(&store, &rig.disks[1]).unwrap();
    assert_eq!(report.since_group, 0, "{report:?}");
    assert_eq!(rig.disks[1].peek(addr)[0], 0, "what lay there was given back");
    assert_eq!(rig.disks[0].peek(addr)[0], 7, "and only on the one that returned");
    nothing_is_damaged(&store);
}

/// Answers nothing.
#[derive(Default)]
struct Silent(crate::sync::Mutex<Vec<crate::disk::backing::Answer>>);

impl Backing for Silent {
    fn submit(&self, _: Op) -> Ticket {
        let (ticket, answer) = crate::disk::backing::request();
        self.0.lock().push(answer);
        ticket
    }
    fn facts(&self) -> crate::disk::backing::BackingFacts {
        unreachable!("nobody asks")
    }
    fn in_flight(&self) -> usize {
        self.0.lock().len()
    }
    fn close(&self) {}
    fn is_closed(&self) -> bool {
        false
    }
}

#[test]
fn renouncing_waits_for_the_deadline_and_no_longer_than_it_is_wanted() {
    let root = (3, crate::format::root::tests::sample());
    let asked = Silent::default();
    let said = renounce(&asked, &root, Duration::ZERO, &mut || true).unwrap_err();
    assert!(said.contains("does not answer") && asked.in_flight() == 1, "{said}, {} requests", asked.in_flight());
    let said = renounce(&Silent::default(), &root, Duration::from_secs(3600), &mut || false).unwrap_err();
    assert_eq!(said, "stopped");
}

#[test]
fn a_sample_can_be_stopped() {
    let rig = Rig::new(10, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 2);
    let (mut looks, reads) = (0, rig.disks[1].counters().medium_reads);
    let stopped = come_until(&store, &rig.disks[1], &mut |progress| {
        looks += u32::from(progress.what == "proving a sample");
        progress.what != "proving a sample"
    });
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
    assert_eq!((looks, rig.disks[1].counters().medium_reads), (1, reads), "nothing was proven any more");
}

/// Addresses of files' data.
struct DataAt(BTreeSet<Addr>);

impl Sink for DataAt {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        let data = pieces.iter().filter(|piece| piece.part == Part::Data);
        self.0.extend(data.flat_map(|piece| piece.addr..piece.addr + piece.sums.len() as u64));
        ControlFlow::Continue(())
    }
    fn unreadable(&mut self, _: Part, addr: Addr, _: u64, error: &StoreError) {
        panic!("block {addr}: {error}");
    }
    fn pause(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn metadata_is_sent_before_data() {
    // SEMANTICS: RET-7
    let rig = Rig::new(11, 2);
    let (store, _) = rig.open(false).unwrap();
    apart(&rig, &store, 12, 8);
    let written: Arc<crate::sync::Mutex<Vec<Addr>>> = Arc::default();
    let heard = written.clone();
    rig.power.listen(Some(Arc::new(move |asked| {
        if let (1, Op::Write { addr, data }) = (asked.disk, asked.op) {
            heard.lock().extend(*addr..addr + data.iter().map(Slice::blocks).sum::<u64>());
        }
    })));
    let report = come(&store, &rig.disks[1]).unwrap();
    rig.power.listen(None);
    let mut data = DataAt(BTreeSet::new());
    assert!(store.walk(&mut data).is_continue());
    let zones = store.label().geometry.zones_at;
    let kinds: Vec<bool> = written.lock().iter().filter(|a| **a >= zones).map(|a| data.0.contains(a)).collect();
    let first = kinds.iter().position(|is_data| *is_data).expect("data was sent");
    // Of eight blocks the first one was committed alone, in its item.
    assert!(first >= 2 && kinds.len() >= first + 7, "{kinds:?}, {report:?}");
    assert!(kinds[first..].iter().all(|is_data| *is_data), "metadata came after data: {kinds:?}");
}
