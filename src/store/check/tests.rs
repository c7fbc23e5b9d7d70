//! Goal: a clean volume has no finding; N damaged blocks are N findings, healed once and then gone; each broken rule
//! across items, names and space is found as that rule, and what `Repairs` says puts it right. Method: a real store on
//! two simulated disks; wrong items are written by ordinary transactions, wrong space through the allocator.

use super::*;
use crate::disk::sim::{self, SimDisk};
use crate::disk::{Backing, Buf, Combination};
use crate::format::item::{encode_xattr, name_cookie_base};
use crate::format::root::{Epoch, Member, MemberState, Role};
use crate::format::{Addr, Extent, FIRST_INO, Geometry, ItemKind, Label, ORPHANS, ROOT_INO, Root, Uuid};
use crate::store::recover::{OpenStore, Present, examine, open};
use crate::store::space::{Span, all_backed, pristine_top};
use crate::store::{Need, Store, StoreError, StoreOptions};
use crate::sync::Mutex;
use crate::world::Seeded;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

mod clean;
mod damage;
mod rules;

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
        role: Role::Hot,
        since_version: 1,
        since_ns: 1,
        synced_txg: 0,
        synced_version: 0,
        missed: None,
        offline: false,
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
        at_risk_since_ns: 0,
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

/// The value of a directory entry.
fn entry(name: &[u8], ino: u64, mode: u32) -> Vec<u8> {
    Dirent { ino, file_type: (mode >> 12) as u8, name: name.to_vec() }.encode()
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
        self.put(Key::new(directory, ItemKind::Dirent, self.cookie(name)), entry(name, ino, mode));
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
        t.put(Key::new(parent, ItemKind::Dirent, cookie), entry(name, ino, mode));
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
        run(&StoreSource::new(&self.store), CheckOptions { heal, parallel: false, ..CheckOptions::default() })
    }
    /// The first extent of a file.
    fn extent(&self, ino: u64) -> (Key, Extent) {
        let end = Key::new(ino, ItemKind::Extent, u64::MAX);
        let (key, value) = self.store.scan(Key::new(ino, ItemKind::Extent, 0), end, 1).unwrap().remove(0);
        (key, Extent::decode(key, &value).unwrap())
    }
    /// Free blocks that are in use.
    fn free(&self, addr: Addr, blocks: u32) {
        self.store.allocator().release(self.store.mirror(), Span { addr, blocks }).unwrap();
    }
}

/// Check to the end.
fn run(source: &impl CheckSource, options: CheckOptions) -> Report {
    check(source, &options, &mut |_| ControlFlow::Continue(()))
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
    fn combine(&self, addr: Addr, sum: u64, heal: bool) -> Combination {
        self.source.combine(addr, sum, heal)
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
    let report = run(&recorder, CheckOptions::default());
    assert!(report.is_clean(), "{}", said(&report));
    let seen = recorder.seen.into_inner();
    assert_eq!(seen[0], seen[1]);
    seen[0].iter().copied().collect()
}

fn said(report: &Report) -> String {
    report.findings.iter().map(|f| format!("{:?}: {f}\n", f.severity())).collect()
}
