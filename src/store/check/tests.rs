//! Goal: a clean volume has no finding; N damaged blocks are N findings, healed once and then gone; each broken rule
//! across items, names and space is found as that rule, and what `Repairs` says puts it right. Method: a real store on
//! two simulated disks; wrong items are written by ordinary transactions, wrong space through the allocator.

use super::*;
use crate::disk::sim::{self, SimDisk};
use crate::disk::{Backing, Buf};
use crate::format::item::{encode_xattr, name_cookie_base};
use crate::format::root::{Epoch, Member, MemberState};
use crate::format::{Addr, FIRST_INO, Geometry, ItemKind, Label, ORPHANS, ROOT_INO, Root, Uuid};
use crate::store::recover::{OpenStore, Present, examine, open};
use crate::store::space::{Class, Span, all_backed, pristine_top};
use crate::store::{Need, Store, StoreError, StoreOptions};
use crate::sync::Mutex;
use crate::world::Seeded;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// A volume and what was put into it.
struct Volume {
    disks: Vec<Arc<SimDisk>>,
    store: Store,
    inodes: BTreeMap<u64, Inode>,
}

fn format(grows: bool) -> Vec<Arc<SimDisk>> {
    let world = sim::World::new(7);
    let geometry = Geometry::new(6000, 1000, 64).unwrap();
    let label = Label {
        volume: Uuid([1; 16]),
        replica: Uuid([2; 16]),
        created_ns: 1,
        geometry: geometry.clone(),
        grows,
        hash_key: [3, 4],
        name: String::new(),
    };
    let member = |i: u8| Member {
        replica: Uuid([10 + i; 16]),
        state: MemberState::InSync,
        role: 1,
        since_version: 1,
        since_ns: 1,
    };
    let root = Root {
        volume: label.volume,
        version: 1,
        txg: 1,
        mount_count: 0,
        time_ns: 1,
        clean: true,
        next_ino: FIRST_INO,
        inodes: 0,
        log_id: 5,
        log_seq: 1,
        log_at: 0,
        tree: None,
        space: pristine_top(&geometry),
        backed: if grows { 0 } else { all_backed(&geometry) },
        grow_zone: 0,
        members: vec![member(0), member(1)],
        chain: vec![Epoch { id: Uuid([9; 16]), first_version: 1 }],
        dead: vec![],
    };
    (0..2_u8)
        .map(|i| {
            let disk = world.disk(geometry.blocks);
            let own = Label { replica: Uuid([10 + i; 16]), ..label.clone() };
            for addr in Geometry::label_copies() {
                disk.poke(addr, own.encode(addr).try_into().unwrap());
            }
            disk.poke(Root::addr(0), root.encode(0).try_into().unwrap());
            disk
        })
        .collect()
}

fn mount(disks: &[Arc<SimDisk>]) -> Store {
    let present = disks
        .iter()
        .enumerate()
        .map(|(i, disk)| {
            let backing: Arc<dyn Backing> = disk.clone();
            let found = examine(&*backing, Duration::from_secs(1)).unwrap();
            Present { path: format!("/disk/{i}"), backing, found }
        })
        .collect();
    let options = OpenStore {
        degraded: false,
        deadline: Duration::from_secs(5),
        store: StoreOptions::default(),
        on_shrink: None,
        hold: false,
    };
    open(present, options, Arc::new(Seeded::new(1))).unwrap().0
}

impl Volume {
    fn empty(grows: bool) -> Volume {
        let disks = format(grows);
        let store = mount(&disks);
        let mut volume = Volume { disks, store, inodes: BTreeMap::new() };
        volume.add_inode(ROOT_INO, DIR, 2, 0, (ROOT_INO, 0));
        volume
    }

    /// Two directories, 400 small files with xattrs, 20 larger ones, a hard link, an orphan.
    fn filled(grows: bool) -> Volume {
        let mut v = Volume::empty(grows);
        let a = v.make(ROOT_INO, b"a", DIR, b"");
        let b = v.make(a, b"b", DIR, b"");
        for i in 0..400_u32 {
            let ino = v.make(b, format!("small{i}").as_bytes(), FILE, &vec![i as u8; 100 + i as usize]);
            if i % 40 == 0 {
                v.xattr(ino, b"user.long", 5000);
            }
        }
        for i in 0..20_u32 {
            v.make(a, format!("large{i}").as_bytes(), FILE, &vec![i as u8 + 1; 4096 * (3 + 5 * i as usize)]);
        }
        let first = v.make(a, b"one", FILE, b"linked");
        v.link(first, ROOT_INO, b"two");
        let orphan = v.store.new_ino();
        v.add_inode(orphan, FILE, 0, 0, (a, 300));
        v.put(Key::new(ORPHANS, ItemKind::Orphan, orphan), vec![0; 8]);
        v.store.sync().unwrap();
        // A second group, so that dead lists are there.
        v.make(b, b"late", FILE, &[7; 9000]);
        v.store.sync().unwrap();
        v
    }

    fn put(&self, key: Key, value: Vec<u8>) {
        let mut t = self.store.begin(Need { items: 1, data_blocks: 0, may_use_reserve: false }).unwrap();
        t.put(key, value);
        t.commit();
    }
    fn delete(&self, key: Key) {
        let mut t = self.store.begin(Need { items: 1, data_blocks: 0, may_use_reserve: true }).unwrap();
        t.delete(key);
        t.commit();
    }
    fn count(&self, change: i64) {
        let mut t = self.store.begin(Need::default()).unwrap();
        t.count_inodes(change);
        t.commit();
    }
    fn add_inode(&mut self, ino: u64, mode: u32, nlink: u32, size: u64, (parent, parent_cookie): (u64, u64)) {
        let time = crate::format::item::Time::default();
        let inode = Inode {
            mode,
            uid: 0,
            gid: 0,
            nlink,
            size,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            rdev: 0,
            flags: 0,
            parent,
            parent_cookie,
            generation: 1,
        };
        self.count(1);
        self.inodes.insert(ino, inode);
        self.edit(ino, |_| {});
    }
    fn edit(&mut self, ino: u64, change: impl FnOnce(&mut Inode)) {
        let inode = self.inodes.get_mut(&ino).unwrap();
        change(inode);
        let value = inode.encode();
        self.put(Key::inode(ino), value);
    }
    fn cookie(&self, name: &[u8]) -> u64 {
        name_cookie_base(self.store.label().hash_key, name)
    }
    fn entry(&mut self, directory: u64, name: &[u8], ino: u64, mode: u32) {
        let value = Dirent { ino, file_type: (mode >> 12) as u8, name: name.to_vec() }.encode();
        self.put(Key::new(directory, ItemKind::Dirent, self.cookie(name)), value);
    }
    /// One operation, one transaction.
    fn make(&mut self, parent: u64, name: &[u8], mode: u32, data: &[u8]) -> u64 {
        let ino = self.store.new_ino();
        let (is_dir, cookie) = (mode == DIR, self.cookie(name));
        let inode = Inode {
            mode,
            nlink: if is_dir { 2 } else { 1 },
            size: data.len() as u64,
            parent,
            parent_cookie: cookie,
            ..self.inodes[&ROOT_INO].clone()
        };
        let directory = self.inodes.get_mut(&parent).unwrap();
        directory.size += 1;
        directory.nlink += u32::from(is_dir);
        let pages = self.store.prepare_pages(ino, 0, data).unwrap();
        let need = Need { items: 3, data_blocks: pages.len() as u64, may_use_reserve: false };
        let mut t = self.store.begin(need).unwrap();
        t.count_inodes(1);
        t.put(Key::inode(ino), inode.encode());
        t.put(Key::inode(parent), directory.encode());
        let value = Dirent { ino, file_type: (mode >> 12) as u8, name: name.to_vec() }.encode();
        t.put(Key::new(parent, ItemKind::Dirent, cookie), value);
        if !pages.is_empty() {
            t.write_pages(ino, pages, 0);
        }
        t.commit();
        self.inodes.insert(ino, inode);
        ino
    }
    fn link(&mut self, ino: u64, directory: u64, name: &[u8]) {
        self.entry(directory, name, ino, FILE);
        self.edit(ino, |inode| inode.nlink += 1);
        self.edit(directory, |inode| inode.size += 1);
    }
    fn xattr(&self, ino: u64, name: &[u8], len: usize) {
        for (i, chunk) in encode_xattr(name, &vec![5; len]).into_iter().enumerate() {
            self.put(Key::new(ino, ItemKind::Xattr, 77 << 24 | i as u64), chunk);
        }
    }
    fn check(&self, heal: bool) -> Report {
        self.store.sync().unwrap();
        self.check_as_it_is(heal)
    }
    fn check_as_it_is(&self, heal: bool) -> Report {
        let options = CheckOptions { heal, parallel: false, ..CheckOptions::default() };
        check(&StoreSource::new(&self.store), &options, &mut |_| ControlFlow::Continue(()))
    }
}

/// Notes every block that is proven, with nothing proven twice.
struct Recorder<'a> {
    source: StoreSource<'a>,
    seen: Mutex<Vec<BTreeSet<Addr>>>,
}

impl CheckSource for Recorder<'_> {
    fn label(&self) -> &Label {
        self.source.label()
    }
    fn root(&self) -> &Root {
        self.source.root()
    }
    fn replicas(&self) -> Vec<usize> {
        self.source.replicas()
    }
    fn replica_name(&self, replica: usize) -> String {
        self.source.replica_name(replica)
    }
    fn prove(&self, replica: usize, addr: Addr, sums: &[u64], heal: bool) -> Vec<Proof> {
        let mut seen = self.seen.lock();
        for i in 0..sums.len() as u64 {
            assert!(seen[replica].insert(addr + i), "block {} proven twice", addr + i);
        }
        self.source.prove(replica, addr, sums, heal)
    }
    fn read(&self, addr: Addr, sums: &[u64]) -> Result<Buf, StoreError> {
        self.source.read(addr, sums)
    }
    fn prove_fixed(&self, heal: bool) -> Vec<FixedProof> {
        let proofs = self.source.prove_fixed(heal);
        let mut seen = self.seen.lock();
        for proof in &proofs {
            seen[proof.replica].insert(proof.addr);
        }
        proofs
    }
}

/// All blocks that a check proves on replica 0.
fn reachable(volume: &Volume) -> Vec<Addr> {
    let recorder = Recorder { source: StoreSource::new(&volume.store), seen: Mutex::new(vec![BTreeSet::new(); 2]) };
    let report = check(&recorder, &CheckOptions::default(), &mut |_| ControlFlow::Continue(()));
    assert!(report.is_clean(), "{}", said(&report));
    let seen = recorder.seen.into_inner();
    assert_eq!(seen[0], seen[1]);
    seen[0].iter().copied().collect()
}

fn said(report: &Report) -> String {
    report.findings.iter().map(|f| format!("{:?}: {f}\n", f.severity())).collect()
}

#[test]
fn a_clean_volume_has_no_finding() {
    for grows in [false, true] {
        let empty = Volume::empty(grows);
        let report = empty.check(false);
        assert!(report.is_clean() && report.repairs.is_empty(), "{}", said(&report));
        let volume = Volume::filled(grows);
        let mut last = Progress { done: 0, total: 0 };
        let report = check(&StoreSource::new(&volume.store), &CheckOptions::default(), &mut |p| {
            assert!(p.done >= last.done && p.done <= p.total);
            last = p;
            ControlFlow::Continue(())
        });
        assert!(report.is_clean() && report.repairs.is_empty(), "{}", said(&report));
        assert_eq!(report.inodes, volume.inodes.len() as u64);
        assert_eq!(last.done, last.total, "every block in use was looked at");
        assert_eq!(report.statistics.replicas[0].kinds, report.statistics.replicas[1].kinds);
        for kind in ["label", "root", "tree node", "file data", "space node", "bitmap", "dead list"] {
            assert!(report.statistics.replicas[0].kinds[kind].proven > 0, "{kind}");
        }
        assert_eq!(report.statistics.sum().detected, 0);
        // Offline, over the mirror alone, and without file data.
        let root = volume.store.durable_root();
        let source = MirrorSource::new(volume.store.mirror(), volume.store.label(), &root);
        let options = CheckOptions { data: false, ..CheckOptions::default() };
        let report = check(&source, &options, &mut |_| ControlFlow::Continue(()));
        assert!(report.is_clean(), "{}", said(&report));
        assert!(!report.statistics.replicas[0].kinds.contains_key("file data"));
    }
}

#[test]
fn n_damaged_blocks_are_n_findings_and_heal() {
    let volume = Volume::filled(true);
    let blocks = reachable(&volume);
    assert!(blocks.len() > 700);
    let mut random = sim::Random::new(3);
    for round in 0..12 {
        let (replica, heal) = (round % 2, round % 4 < 2);
        let mut planted = BTreeSet::new();
        for _ in 0..[1, 30, 250][round / 4] {
            planted.insert(blocks[random.below(blocks.len() as u64) as usize]);
        }
        if round == 8 {
            planted.extend(&blocks);
        }
        for addr in &planted {
            match addr % 3 {
                0 => volume.disks[replica].rot(*addr, addr * 31 % 32_768),
                1 => volume.disks[replica].zero(*addr),
                _ => volume.disks[replica].junk(*addr),
            }
        }
        let report = volume.check_as_it_is(heal);
        let found: Vec<Addr> = report
            .findings
            .iter()
            .map(|finding| match finding {
                Finding::Block { replica: r, addr, outcome, .. } if *r == replica => {
                    let expected = if heal { Severity::Warning } else { Severity::Error };
                    assert_eq!(finding.severity(), expected, "{finding}");
                    assert_eq!(matches!(outcome, Outcome::Healed(_)), heal);
                    *addr
                }
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found.len(), planted.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), planted);
        let sum = report.statistics.sum();
        assert_eq!((sum.detected, sum.lost), (planted.len() as u64, 0));
        assert_eq!(sum.healed, if heal { sum.detected } else { 0 });
        assert!(report.complete && report.repairs.is_empty());
        volume.check_as_it_is(true);
        let report = volume.check_as_it_is(false);
        assert!(report.is_clean(), "{}", said(&report));
    }
}

#[test]
fn findings_name_replica_block_structure_and_path() {
    let volume = Volume::filled(false);
    let options = CheckOptions { findings_max: 1_000_000, ..CheckOptions::default() };
    for addr in reachable(&volume) {
        volume.disks[1].junk(addr);
    }
    let report = check(&StoreSource::new(&volume.store), &options, &mut |_| ControlFlow::Continue(()));
    let text = said(&report);
    for part in ["replica 1 (/disk/1)", "/a/large7 (inode", "file data (block 3 of the file)", "bitmap of zone 0"] {
        assert!(text.contains(part), "{part}");
    }
    for part in ["leaf of the tree of /a/b/small", "tree node at level 1", "dead list", "label", "root in slot"] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn what_both_replicas_lost_is_named_and_judges_nothing_else() {
    let volume = Volume::filled(true);
    let large = volume.inodes.iter().find(|(_, inode)| inode.size > 100_000 && !inode.is_dir()).unwrap().0;
    let key = Key::new(*large, ItemKind::Extent, 0);
    let (key, value) = volume.store.scan(key, Key::new(*large, ItemKind::Extent, u64::MAX), 1).unwrap().remove(0);
    let addr = crate::format::Extent::decode(key, &value).unwrap().addr().unwrap();
    for disk in &volume.disks {
        disk.junk(addr + 2);
    }
    let report = volume.check_as_it_is(true);
    assert_eq!((report.findings.len(), report.statistics.sum().lost), (2, 2), "{}", said(&report));
    assert!(report.complete && report.worst() == Some(Severity::Fatal) && report.repairs.is_empty());
    assert!(said(&report).contains("/a/large"));
    // A leaf: what is below is unknown, so no link or space is called wrong.
    let mut leaf = None;
    let _ =
        tree::walk(&Paths::new(&StoreSource::new(&volume.store)), volume.store.durable_root().tree, &mut |l, p, _| {
            leaf = leaf.or((l == 0).then_some(p.addr));
            ControlFlow::Continue(())
        });
    for disk in &volume.disks {
        disk.zero(leaf.unwrap());
    }
    let report = volume.check_as_it_is(true);
    assert_eq!((report.block_findings(), report.findings.len()), (4, 5), "{}", said(&report));
    assert!(!report.complete && report.findings.contains(&Finding::Incomplete) && report.repairs.is_empty());
    let stopped = check(&StoreSource::new(&volume.store), &CheckOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(stopped.stopped && !stopped.is_clean());
}

/// Do what the repairs say, as a repairing program would.
fn repair(v: &mut Volume, repairs: &Repairs) {
    for (ino, inode) in &repairs.inodes {
        v.put(Key::inode(*ino), inode.encode());
        v.inodes.insert(*ino, inode.clone());
    }
    for (ino, map) in &repairs.file_maps {
        v.put(Key::new(*ino, ItemKind::FileMap, 0), map.encode());
    }
    for ino in &repairs.orphans_to_add {
        v.put(Key::new(ORPHANS, ItemKind::Orphan, *ino), vec![0; 8]);
    }
    for ino in &repairs.orphans_to_drop {
        v.delete(Key::new(ORPHANS, ItemKind::Orphan, *ino));
    }
    for (directory, cookie, _) in &repairs.entries_to_drop {
        v.delete(Key::new(*directory, ItemKind::Dirent, *cookie));
    }
    for fix in &repairs.entries_to_retype {
        v.put(Key::new(fix.directory, ItemKind::Dirent, fix.cookie), fix.entry.encode());
    }
    for m in &repairs.entries_to_move {
        v.delete(Key::new(m.directory, ItemKind::Dirent, m.cookie));
        v.put(Key::new(m.directory, ItemKind::Dirent, m.to), m.entry.encode());
    }
    for key in &repairs.items_to_drop {
        v.delete(*key);
    }
    for ino in &repairs.ownerless {
        for (key, _) in v.store.scan(Key::inode(*ino), Key::inode(ino + 1), 1000).unwrap() {
            v.delete(key);
        }
    }
    for ino in &repairs.to_attach {
        let inode = v.inodes[ino].clone();
        let name = format!("#{ino}");
        let cookie = v.cookie(name.as_bytes());
        v.entry(ROOT_INO, name.as_bytes(), *ino, inode.mode);
        v.edit(ROOT_INO, |root| {
            root.size += 1;
            root.nlink += u32::from(inode.is_dir());
        });
        v.edit(*ino, |inode| (inode.parent, inode.parent_cookie) = (ROOT_INO, cookie));
    }
    if let Some(count) = repairs.inode_count {
        v.count(count as i64 - v.store.durable_root().inodes as i64);
        v.edit(ROOT_INO, |_| {});
    }
}

/// `plant` breaks a rule of a small volume (directories 16 `a` and 17 `a/b`, files 18 `a/f` and 19 `a/b/g`): the check
/// says `expected` (parts of texts, one for each finding) and repairs lead back to a clean volume.
fn broken(plant: impl FnOnce(&mut Volume), expected: &[&str]) {
    let mut v = Volume::empty(false);
    let a = v.make(ROOT_INO, b"a", DIR, b"");
    let b = v.make(a, b"b", DIR, b"");
    v.make(a, b"f", FILE, &[1; 20_000]);
    v.make(b, b"g", FILE, &[2; 50]);
    assert_eq!((a, b), (16, 17));
    let clean = v.check(false);
    assert!(clean.is_clean(), "{}", said(&clean));
    plant(&mut v);
    let report = v.check(false);
    let texts: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
    for part in expected {
        assert!(texts.iter().any(|text| text.contains(part)), "no {part:?} in {texts:#?}");
    }
    assert_eq!(texts.len(), expected.len(), "{texts:#?}");
    assert!(report.worst() >= Some(Severity::Warning) && report.complete);
    if report.findings.iter().all(Finding::is_repairable) && report.repairs.zones.is_empty() {
        for _ in 0..2 {
            let report = v.check(false);
            repair(&mut v, &report.repairs);
        }
        let after = v.check(false);
        assert!(after.is_clean(), "{texts:#?}\nafter repair:\n{}", said(&after));
    }
}

#[test]
fn wrong_counts_are_found() {
    broken(|v| v.edit(18, |i| i.nlink = 3), &["/a/f (inode 18): says 3 links, has 1"]);
    broken(|v| v.edit(16, |i| i.nlink = 2), &["/a (inode 16): says 2 links, has 3"]);
    broken(|v| v.edit(17, |i| i.size = 9), &["/a/b (inode 17): says 9 entries, has 1"]);
    broken(|v| v.edit(1, |i| i.parent = 16), &["directory / (inode 1): says its parent is inode 16, it is 1"]);
    let count = |v: &mut Volume| {
        v.count(5);
        v.edit(18, |i| i.uid = 1);
    };
    broken(count, &["says 10 inodes, has 5"]);
    let map = |v: &mut Volume| {
        v.store.sync().unwrap();
        v.put(Key::new(18, ItemKind::FileMap, 0), FileMap { blocks: 77 }.encode());
    };
    broken(map, &["/a/f (inode 18): says 77 blocks, has 5"]);
    let next = |v: &mut Volume| {
        let ino = v.store.durable_root().next_ino + 100;
        v.add_inode(ino, FILE, 1, 0, (1, 0));
        v.entry(1, b"far", ino, FILE);
        v.edit(1, |i| i.size += 1);
        let report = v.check(false);
        assert_eq!(report.repairs.next_ino, Some(ino + 1), "{}", said(&report));
        v.delete(Key::inode(ino));
        v.delete(Key::new(1, ItemKind::Dirent, v.cookie(b"far")));
        v.edit(1, |i| i.size = 7);
        v.count(-1);
    };
    broken(next, &["says 7 entries, has 1"]);
}

#[test]
fn wrong_entries_are_found() {
    let add = |v: &mut Volume, directory: u64, name: &[u8], ino: u64, mode: u32| {
        v.entry(directory, name, ino, mode);
        v.edit(directory, |i| {
            i.size += 1;
            i.nlink += u32::from(mode == DIR);
        });
    };
    broken(|v| add(v, 16, b"gone", 999, FILE), &["\"gone\" names inode 999, which does not exist"]);
    broken(|v| add(v, 16, b"gone", 999, DIR), &["\"gone\" names inode 999"]);
    broken(|v| add(v, 1, b"again", 17, DIR), &["directory / (inode 1): \"again\" is a second name of directory 17"]);
    let retype = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"f")));
        v.entry(16, b"f", 18, 0o120_777);
    };
    broken(retype, &["\"f\" says that inode 18 is of type 0xa, it is 0x8"]);
    let as_dir = |v: &mut Volume| {
        v.entry(16, b"f", 18, DIR);
        v.edit(16, |i| i.nlink += 1);
    };
    broken(as_dir, &["\"f\" says that inode 18 is of type 0x4, it is 0x8"]);
    broken(|v| v.edit(17, |i| i.parent = 1), &["says its parent is inode 1, it is 16"]);
    let unreachable = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"f")));
        v.edit(16, |i| i.size -= 1);
    };
    broken(unreachable, &["inode 18: no directory names it"]);
    let unreachable_dir = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"b")));
        v.edit(16, |i| (i.size, i.nlink) = (i.size - 1, i.nlink - 1));
    };
    broken(unreachable_dir, &["inode 17: no directory names it"]);
    let ring = |v: &mut Volume| {
        v.delete(Key::new(1, ItemKind::Dirent, v.cookie(b"a")));
        v.edit(1, |i| (i.size, i.nlink) = (0, 2));
        add(v, 17, b"a", 16, DIR);
        let cookie = v.cookie(b"a");
        v.edit(16, |i| (i.parent, i.parent_cookie) = (17, cookie));
    };
    broken(ring, &["directory inode 16: is its own ancestor"]);
    let cookie = |v: &mut Volume| {
        let value = Dirent { ino: 18, file_type: 8, name: b"other".to_vec() }.encode();
        v.put(Key::new(16, ItemKind::Dirent, v.cookie(b"f") + 1), value.clone());
        v.edit(16, |i| i.size += 1);
        v.edit(18, |i| i.nlink += 1);
    };
    broken(cookie, &["\"other\" stands under the wrong cookie"]);
    let twice = |v: &mut Volume| {
        let value = Dirent { ino: 18, file_type: 8, name: b"f".to_vec() }.encode();
        v.put(Key::new(16, ItemKind::Dirent, v.cookie(b"f") + 1), value);
        v.edit(16, |i| i.size += 1);
        v.edit(18, |i| i.nlink += 1);
    };
    broken(twice, &["directory /a (inode 16): \"f\" stands there twice"]);
}

#[test]
fn wrong_orphans_and_ownerless_items_are_found() {
    let orphan = |v: &mut Volume, ino| v.put(Key::new(ORPHANS, ItemKind::Orphan, ino), vec![0; 8]);
    broken(|v| orphan(v, 18), &["is on the list of orphans and has a name"]);
    broken(|v| orphan(v, 500), &["list of orphans: inode 500 does not exist"]);
    broken(|v| v.add_inode(20, FILE, 0, 0, (1, 0)), &["inode 20: has no link and is not on the list of orphans"]);
    let linked = |v: &mut Volume| {
        v.add_inode(20, FILE, 2, 0, (1, 0));
        orphan(v, 20);
    };
    broken(linked, &["inode 20: says 2 links, has 0"]);
    broken(|v| v.xattr(40, b"user.x", 4000), &["inode 40 does not exist, but has 3 items"]);
    let cut = |v: &mut Volume| {
        v.xattr(18, b"user.x", 4000);
        v.delete(Key::new(18, ItemKind::Xattr, 77 << 24 | 2));
    };
    broken(cut, &["extended attribute at 0x4d000000: lacks its last parts"]);
    let tail = |v: &mut Volume| {
        v.xattr(18, b"user.x", 4000);
        v.delete(Key::new(18, ItemKind::Xattr, 77 << 24));
    };
    broken(tail, &["follows its first part", "follows its first part"]);
    broken(|v| v.put(Key::new(16, ItemKind::Dirent, 5000), vec![1, 2]), &["has a name of 1 to 255 bytes"]);
}

#[test]
fn wrong_space_is_found() {
    // The extent of `a/f`, and a block inside.
    let extent = |v: &Volume| {
        let end = Key::new(18, ItemKind::Extent, u64::MAX);
        let (key, value) = v.store.scan(Key::new(18, ItemKind::Extent, 0), end, 1).unwrap().remove(0);
        (key, crate::format::Extent::decode(key, &value).unwrap())
    };
    let leak = |v: &mut Volume| {
        let span = v.store.allocator().alloc(v.store.mirror(), Class::Data, 9).unwrap();
        v.store.allocator().claim(v.store.mirror(), span).unwrap();
        v.edit(18, |i| i.uid = 1);
    };
    broken(leak, &["9 blocks are marked allocated and not in use"]);
    let free = |v: &mut Volume| {
        let addr = extent(v).1.addr().unwrap() + 1;
        v.store.allocator().release(v.store.mirror(), Span { addr, blocks: 2 }).unwrap();
        v.edit(18, |i| i.uid = 1);
    };
    broken(free, &["2 blocks in use are marked free"]);
    let twice = |v: &mut Volume| {
        let (_, mut other) = extent(v);
        other.birth = 1;
        v.put(Key::new(19, ItemKind::Extent, 10), other.encode());
        v.put(Key::new(19, ItemKind::FileMap, 0), FileMap { blocks: 1 + u64::from(other.blocks) }.encode());
    };
    broken(twice, &["of /a/b/g (inode 19): 5 blocks at"]);
    let outside = |v: &mut Volume| {
        let body = crate::format::ExtentBody::Unwritten { addr: 3 };
        v.put(Key::new(19, ItemKind::Extent, 10), crate::format::Extent { blocks: 2, birth: 1, body }.encode());
        v.put(Key::new(19, ItemKind::FileMap, 0), FileMap { blocks: 3 }.encode());
    };
    broken(outside, &["2 blocks at 3 cannot hold it"]);
    let overlap = |v: &mut Volume| {
        let body = crate::format::ExtentBody::Inline(vec![1]);
        v.put(Key::new(18, ItemKind::Extent, 0), crate::format::Extent { blocks: 1, birth: 1, body }.encode());
        v.put(Key::new(18, ItemKind::FileMap, 0), FileMap { blocks: 6 }.encode());
    };
    broken(overlap, &["/a/f (inode 18): two extents cover block 0"]);
}

#[test]
fn repairs_of_zones_are_the_right_bitmaps() {
    let volume = Volume::filled(true);
    let zone = volume.store.label().geometry.locate(reachable(&volume).into_iter().rev().nth(3).unwrap()).unwrap().0;
    let root = volume.store.durable_root();
    assert!(!root.space.is_pristine());
    // Lost on both replicas: rebuilt from what is in use, bit for bit but for units without space below.
    let bitmaps = [volume.store.label().geometry.bitmap(zone, 0), volume.store.label().geometry.bitmap(zone, 1)];
    let before: Vec<_> = bitmaps.iter().map(|addr| volume.disks[0].peek(*addr)).collect();
    for disk in &volume.disks {
        bitmaps.iter().for_each(|addr| disk.junk(*addr));
    }
    let report = volume.check_as_it_is(false);
    assert_eq!(report.block_findings(), 2, "{}", said(&report));
    let rebuilt = &report.repairs.zones[&zone];
    assert!(report.complete);
    let same = before
        .iter()
        .any(|block| block[96..].chunks(8).zip(rebuilt.bits.iter()).all(|(bytes, word)| bytes == word.to_le_bytes()));
    assert!(same, "the rebuilt bitmap is the one that was lost");
}

/// Live blocks are marked free while a leaf is lost elsewhere: what is known to be in use is marked, nothing is freed.
#[test]
fn blocks_in_use_are_marked_although_not_everything_was_reached() {
    let volume = Volume::filled(true);
    let large = volume.inodes.iter().find(|(_, inode)| inode.size > 100_000 && !inode.is_dir()).unwrap().0;
    let end = Key::new(*large, ItemKind::Extent, u64::MAX);
    let (key, value) = volume.store.scan(Key::new(*large, ItemKind::Extent, 0), end, 1).unwrap().remove(0);
    let addr = crate::format::Extent::decode(key, &value).unwrap().addr().unwrap() + 1;
    volume.store.allocator().release(volume.store.mirror(), Span { addr, blocks: 2 }).unwrap();
    volume.store.commit(crate::store::commit::Force::Always).unwrap();
    let mut leaves = Vec::new();
    let source = StoreSource::new(&volume.store);
    let _ = tree::walk(&Paths::new(&source), volume.store.durable_root().tree, &mut |level, ptr, _| {
        leaves.extend((level == 0).then_some(ptr.addr));
        ControlFlow::Continue(())
    });
    // The last leaf: orphans, not this file.
    for disk in &volume.disks {
        disk.zero(*leaves.last().unwrap());
    }
    let report = volume.check_as_it_is(true);
    assert!(!report.complete && said(&report).contains("2 blocks in use are marked free"), "{}", said(&report));
    let (zone, bit) = volume.store.label().geometry.locate(addr).unwrap();
    let repaired = &report.repairs.zones[&zone];
    assert!(repaired.get(bit) && repaired.get(bit + 1));
    assert!(report.repairs.inodes.is_empty() && report.repairs.backed.is_none());
}

/// Overwrites, deletes, commits, fsyncs and power cuts, with a check after each commit and each recovery.
fn churn(seed: u64, grows: bool) {
    let mut random = sim::Random::new(seed);
    let mut v = Volume::empty(grows);
    v.store.sync().unwrap();
    let mut files: Vec<(u64, Vec<u8>)> = Vec::new();
    for step in 0..150 {
        let blocks = 1 + random.below(40) as usize;
        match random.below(10) {
            0..4 => {
                let name = format!("n{step}").into_bytes();
                let ino = v.make(ROOT_INO, &name, FILE, &vec![step as u8; blocks * 1000]);
                files.push((ino, name));
            }
            4 | 5 if !files.is_empty() => {
                let (ino, name) = files.swap_remove(random.below(files.len() as u64) as usize);
                let mut t = v.store.begin(Need { items: 3, data_blocks: 0, may_use_reserve: true }).unwrap();
                t.punch(ino, 0, u64::MAX);
                t.delete(Key::inode(ino));
                t.delete(Key::new(ROOT_INO, ItemKind::Dirent, v.cookie(&name)));
                t.count_inodes(-1);
                let root = v.inodes.get_mut(&ROOT_INO).unwrap();
                root.size -= 1;
                t.put(Key::inode(ROOT_INO), root.encode());
                t.commit();
            }
            6 | 7 if !files.is_empty() => {
                let ino = files[random.below(files.len() as u64) as usize].0;
                let pages = v.store.prepare_pages(ino, random.below(60) * 4096, &vec![9; blocks * 4096]).unwrap();
                let need = Need { items: 1, data_blocks: pages.len() as u64, may_use_reserve: false };
                let mut t = v.store.begin(need).unwrap();
                t.write_pages(ino, pages, 0);
                t.commit();
                v.edit(ino, |i| i.size = i.size.max(100 * 4096));
            }
            8 if !files.is_empty() => {
                let ino = files[random.below(files.len() as u64) as usize].0;
                let first = random.below(30);
                let mut t = v.store.begin(Need { items: 1, data_blocks: 9, may_use_reserve: false }).unwrap();
                t.punch(ino, first, first + 7);
                t.reserve(ino, first + 2, 3).unwrap();
                t.commit();
            }
            _ => {
                let report = v.check_as_it_is(false);
                assert!(report.is_clean(), "seed {seed}, step {step}, committed state:\n{}", said(&report));
                v.store.sync().unwrap();
                let report = v.check_as_it_is(false);
                assert!(report.is_clean(), "seed {seed}, step {step}:\n{}", said(&report));
            }
        }
        if random.below(4) == 0 && !files.is_empty() {
            let ino = files[random.below(files.len() as u64) as usize].0;
            let done = Arc::new(Mutex::new(None));
            let slot = done.clone();
            v.store.fsync(ino, Box::new(move |result| *slot.lock() = Some(result)));
            while done.lock().is_none() {
                v.store.log_step();
            }
        }
    }
    let disks = v.disks[0].world().revive(sim::CrashPlan::Random);
    drop(v);
    let store = mount(&disks);
    let v = Volume { disks, store, inodes: BTreeMap::new() };
    let report = v.check_as_it_is(false);
    assert!(report.is_clean(), "seed {seed}, after the cut:\n{}", said(&report));
}

#[test]
fn every_committed_state_of_a_busy_volume_is_clean() {
    for seed in 0..24 {
        churn(seed, seed % 2 == 0);
    }
}
