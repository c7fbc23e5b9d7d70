//! A small volume that has all of it: two levels of space nodes, a tree of three levels, dead lists, a log to replay.

use stablefs::disk::ReplicaName;
use stablefs::disk::sim::{Block, CrashPlan, Image, Random, SimDisk};
use stablefs::format::geometry::ROOT_SLOTS;
use stablefs::format::log::{Entry, decode_head, entries};
use stablefs::format::node::Node;
use stablefs::format::space::{SpaceEntry, decode_node};
use stablefs::format::{BLOCK, BlockPtr, Extent, ExtentBody, Geometry, ItemKind, Key, Label, ORPHANS, ROOT_INO, Root};
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Caller, Filesystem, FsOptions};
use stablefs::simulate::generate::Weights;
use stablefs::simulate::{Bench, Setup};
use stablefs::store::commit::Force;
use stablefs::store::{Store, StoreOptions, tree};
use stablefs::volume::replace::{Place, resync};
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };
pub const XATTR: &[u8] = b"user.long";

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    File(Vec<u8>),
    Link(Vec<u8>),
    Directory,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub dir: u64,
    pub name: String,
    pub content: Content,
    pub xattr: Option<Vec<u8>>,
}

/// Everything that has a name, by inode number.
pub type Model = BTreeMap<u64, Item>;

/// What is lost with a block.
#[derive(Debug, Clone, Default)]
pub struct Hit {
    /// Keys: from, up to.
    pub keys: Option<(Key, Option<Key>)>,
    /// A file's block of data.
    pub data: Option<u64>,
}

impl Hit {
    /// Whether anything of `ino` may be lost.
    pub fn has(&self, ino: u64) -> bool {
        let keys =
            self.keys.is_some_and(|(from, to)| from < Key::inode(ino + 1) && to.is_none_or(|to| to > Key::inode(ino)));
        keys || self.data == Some(ino)
    }
}

/// A structure.
#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub addr: u64,
    /// The bytes of the block that are it.
    pub part: Range<usize>,
    /// What stood there before, on each disk.
    pub stale: [Box<Block>; 2],
    /// Another valid block of its kind, as it stands on each disk.
    pub other: [Box<Block>; 2],
    /// Writes of this block on each disk; the last one is the one that can be lost.
    pub writes: [u32; 2],
    pub hit: Hit,
}

pub struct Scene {
    pub setup: Setup,
    pub images: Vec<Image>,
    /// States that were made durable one after the other: what the last is, and it.
    pub states: Vec<(&'static str, Model)>,
    pub rows: Vec<Row>,
}

fn setup() -> Setup {
    let store = StoreOptions { cache_nodes: 512, ..StoreOptions::default() };
    Setup { blocks: 34_048, zone_blocks: 256, replicas: 2, grows: false, weights: Weights::usual(false), store }
}

/// Bytes that tell where they belong.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = vec![0; length];
    random.fill(&mut out);
    out
}

/// A mounted volume and what it should hold.
struct Maker {
    store: Arc<Store>,
    fs: Filesystem,
    model: Model,
    /// What all bytes of files are changed by: each life has others.
    life: u8,
}

impl Maker {
    fn file(&mut self, dir: u64, name: &str, mut content: Vec<u8>) -> u64 {
        content.iter_mut().for_each(|byte| *byte ^= self.life);
        let (attr, handle) = self.fs.create(dir, name.as_bytes(), 0o644, libc::O_RDWR, &CALLER).unwrap();
        self.fs.release(attr.ino, handle);
        if !content.is_empty() {
            self.fs.write(attr.ino, 0, &content, false, false).unwrap();
        }
        let item = Item { dir, name: name.into(), content: Content::File(content), xattr: None };
        self.model.insert(attr.ino, item);
        attr.ino
    }

    fn directory(&mut self, name: &str) -> u64 {
        let ino = self.fs.mkdir(ROOT_INO, name.as_bytes(), 0o755, &CALLER).unwrap().ino;
        let item = Item { dir: ROOT_INO, name: name.into(), content: Content::Directory, xattr: None };
        self.model.insert(ino, item);
        ino
    }

    fn write(&mut self, ino: u64, offset: usize, data: &[u8]) {
        let data: Vec<u8> = data.iter().map(|byte| byte ^ self.life).collect();
        self.fs.write(ino, offset as u64, &data, false, false).unwrap();
        let Some(Item { content: Content::File(content), .. }) = self.model.get_mut(&ino) else { panic!("a file") };
        content.resize(content.len().max(offset + data.len()), 0);
        content[offset..offset + data.len()].copy_from_slice(&data);
    }

    fn remove(&mut self, ino: u64) {
        let item = self.model.remove(&ino).unwrap();
        self.fs.unlink(item.dir, item.name.as_bytes()).unwrap();
    }

    fn commit(&self) {
        self.store.commit(Force::Always).unwrap();
    }
}

/// Inodes that rows speak of.
struct Known {
    many: u64,
    names: Vec<u64>,
    big: u64,
    data: u64,
    reserved: u64,
    attributes: u64,
    links: Vec<u64>,
    /// The newest root before the replicas changed.
    before: Box<Block>,
}

fn populate(maker: &mut Maker) -> Known {
    for i in 0..100 {
        maker.file(ROOT_INO, &format!("a name in the root directory {i}"), bytes(i, 20));
    }
    let many = maker.directory("many");
    let names = (0..120)
        .map(|i| maker.file(many, &format!("a small file with a rather long name {i}"), bytes(1000 + i, 1500)))
        .collect();
    let big = maker.file(ROOT_INO, "big", vec![]);
    for odd in [0, 1] {
        for block in (odd..160).step_by(2) {
            maker.write(big, block * BLOCK, &bytes(2000 + block as u64, BLOCK));
        }
        maker.commit();
    }
    let data = maker.file(ROOT_INO, "data", bytes(3000, 12 * BLOCK));
    let reserved = maker.file(ROOT_INO, "reserved", vec![]);
    maker.fs.fallocate(reserved, 0, 4 * BLOCK as u64, 0).unwrap();
    maker.model.get_mut(&reserved).unwrap().content = Content::File(vec![0; 4 * BLOCK]);
    let attributes = maker.file(ROOT_INO, "attributes", bytes(4000, 100));
    let value = bytes(4001, 16_000);
    maker.fs.setxattr(attributes, XATTR, &value, 0, &CALLER).unwrap();
    maker.model.get_mut(&attributes).unwrap().xattr = Some(value);
    let mut links = Vec::new();
    for i in 0..4 {
        let (name, target) = (format!("link {i}"), vec![b'a' + i as u8; 1500]);
        let ino = maker.fs.symlink(ROOT_INO, name.as_bytes(), &target, &CALLER).unwrap().ino;
        links.push(ino);
        let item = Item { dir: ROOT_INO, name, content: Content::Link(target), xattr: None };
        maker.model.insert(ino, item);
    }
    Known { many, names, big, data, reserved, attributes, links, before: Box::new([0; BLOCK]) }
}

/// A past: a root, then a mount of disk 0 alone, and the return of disk 1 as another replica. So the chain has two epochs,
/// and the table of replicas is another one than in that root, which is given back.
fn grow_old(bench: &mut Bench) -> Box<Block> {
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    store.commit(Force::Always).unwrap();
    let (volume, geometry) = (store.label().volume, store.label().geometry.clone());
    drop(store);
    let disks = bench.disks.clone();
    let finder = Finder { disks: &disks, geometry, nodes: vec![], data: vec![], rows: vec![], before: None };
    let before = Box::new(finder.block(Root::addr(newest_roots(&finder, volume)[0].0)));
    let (store, _) = bench.open(&[0], true).unwrap();
    store.commit(Force::Always).unwrap();
    let slot = (0..2).find(|slot| !store.mirror().members().contains(*slot)).expect("one is out");
    let name = ReplicaName { uuid: store.world().uuid(), path: "/disk/1".into() };
    resync(&store, Place::Free(slot), name, bench.disks[1].reopen(), &mut |_| true).unwrap();
    assert_eq!(store.mirror().members().count(), 2);
    live_and_go(Arc::new(store));
    // Where that life left gaps, data of a still older one.
    for addr in finder.geometry.zones_at..finder.geometry.zones_at + 16 * u64::from(setup().zone_blocks) {
        for disk in &bench.disks {
            if finder.geometry.holds_data(addr, 1) && disk.peek(addr) == [0; BLOCK] {
                disk.poke(addr, bytes(5000 + addr, BLOCK).try_into().expect("a block"));
            }
        }
    }
    before
}

/// Fill the volume as it will be filled, and remove all of it: so something else stood where something will stand.
fn live_and_go(store: Arc<Store>) {
    let fs = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default()).unwrap();
    let mut maker = Maker { store, fs, model: Model::new(), life: 0x5a };
    populate(&mut maker);
    wear(&mut maker, "worn");
    for (ino, item) in maker.model.clone() {
        if item.content != Content::Directory {
            maker.remove(ino);
        }
    }
    for item in maker.model.values() {
        maker.fs.rmdir(ROOT_INO, item.name.as_bytes()).unwrap();
    }
    while maker.fs.reclaim_step().unwrap() {}
    (0..3).for_each(|_| maker.store.commit(Force::Clean).unwrap());
}

/// Use each slot of the roots and each block of the log more than once, and blocks of the tree again.
fn wear(maker: &mut Maker, name: &str) {
    let worn = maker.file(ROOT_INO, name, bytes(5500, BLOCK));
    for round in 0..ROOT_SLOTS as u64 + 1 {
        for part in 0..8 {
            maker.write(worn, 0, &bytes(5501 + 8 * round + part, BLOCK));
            maker.store.fsync_wait(worn).unwrap();
        }
        maker.commit();
    }
}

/// The volume, after a power cut. `lost`: a block, and after how many of its writes one is lost, on each disk.
fn build(lost: &HashMap<u64, [Option<u32>; 2]>) -> (Bench, Vec<(&'static str, Model)>, Known) {
    let mut bench = Bench::with(7, setup(), Random::new(7));
    for (index, disk) in bench.disks.iter().enumerate() {
        disk.faults(|faults| {
            faults.lost_after = lost.iter().filter_map(|(addr, after)| Some((*addr, after[index]?))).collect();
        });
    }
    let before = grow_old(&mut bench);
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    let store = Arc::new(store);
    let fs = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default()).unwrap();
    let mut maker = Maker { store, fs, model: Model::new(), life: 0 };
    let mut known = populate(&mut maker);
    known.before = before;
    wear(&mut maker, "worn");
    // Open while it loses its name: an orphan.
    let gone = maker.file(ROOT_INO, "unlinked", bytes(5000, 3 * BLOCK));
    let _handle = maker.fs.open(gone, libc::O_RDWR).unwrap();
    maker.remove(gone);
    let logged = maker.directory("logged");
    let mut states = Vec::new();
    for round in 0..4 {
        maker.write(known.data, (4 + round) * BLOCK, &bytes(6000 + round as u64, BLOCK));
        maker.write(known.big, (2 * round + 1) * BLOCK, &bytes(6010 + round as u64, BLOCK));
        maker.file(logged, &format!("covered {round}"), bytes(6020 + round as u64, 6000));
        maker.store.fsync_wait(known.data).unwrap();
        maker.commit();
        states = vec![("the group before the newest one", states.pop().map_or(Model::new(), |(_, model)| model))];
        states.push(("the newest group", maker.model.clone()));
    }
    let first = maker.file(logged, "fresh 1", bytes(7000, 3000));
    maker.store.fsync_wait(first).unwrap();
    states.push(("the first record of the log", maker.model.clone()));
    let large = maker.file(logged, "large", bytes(7001, 30 * BLOCK));
    maker.store.fsync_wait(large).unwrap();
    states.push(("the second record of the log", maker.model.clone()));
    let last = maker.file(logged, "fresh 2", bytes(7002, 3000));
    maker.store.fsync_wait(last).unwrap();
    states.push(("the last record of the log", maker.model.clone()));
    // If the newest root is lost, the log still says more than the one before: all but bytes that nobody synced. What
    // was logged after that root may rest on those.
    let newest = states.iter().find(|(name, _)| *name == "the newest group").expect("its model");
    let mut unsynced = newest.1.clone();
    let old = bytes(2007, BLOCK);
    for item in unsynced.values_mut() {
        match (&mut item.content, item.name.as_str()) {
            (Content::File(content), "big") => content[7 * BLOCK..8 * BLOCK].copy_from_slice(&old),
            (Content::File(content), "covered 3") => content.clear(),
            _ => {}
        }
    }
    states.insert(0, ("what was synced of the newest group", unsynced));
    drop(maker);
    bench.disks = bench.power.revive(CrashPlan::KeepAll);
    (bench, states, known)
}

/// Images of the volume if the last write of `row`'s block was lost on the disks `which`.
pub fn with_lost_write(scene: &Scene, row: &Row, which: &[usize]) -> Vec<Image> {
    let after = [0, 1].map(|disk| which.contains(&disk).then(|| row.writes[disk].saturating_sub(1)));
    if row.writes == [0, 0] {
        // Written by format alone.
        let mut images = scene.images.clone();
        for disk in which {
            Arc::make_mut(&mut images[*disk]).remove(&row.addr);
        }
        return images;
    }
    let (bench, ..) = build(&HashMap::from([(row.addr, after)]));
    bench.disks.iter().map(|disk| disk.snapshot()).collect()
}

/// A node of the healthy tree.
pub struct Seen {
    pub level: u8,
    pub ptr: BlockPtr,
    from: Key,
    to: Option<Key>,
    pub items: Vec<(Key, Vec<u8>)>,
}

pub fn nodes(store: &Store) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut bounds: HashMap<u64, (Key, Option<Key>)> = HashMap::new();
    let top = store.durable_root().tree;
    let _ = tree::walk(store, top, &mut |level, ptr, node| {
        let node = node.unwrap();
        let (from, to) = bounds.get(&ptr.addr).copied().unwrap_or((Key::MIN, None));
        let mut items = Vec::new();
        match &node.node {
            Node::Inner(children) => {
                for (i, (lower, child)) in children.iter().enumerate() {
                    bounds.insert(child.addr, (*lower, children.get(i + 1).map(|next| next.0).or(to)));
                }
            }
            Node::Leaf(all) => items = all.iter().map(|(k, range)| (*k, node.block[range.clone()].to_vec())).collect(),
        }
        seen.push(Seen { level, ptr: *ptr, from, to, items });
        ControlFlow::Continue(())
    });
    seen
}

/// Finds structures and makes rows of them.
struct Finder<'a> {
    disks: &'a [Arc<SimDisk>],
    geometry: Geometry,
    nodes: Vec<Seen>,
    data: Vec<u64>,
    rows: Vec<Row>,
    /// A root from before the replicas changed.
    before: Option<Box<Block>>,
}

impl Finder<'_> {
    fn block(&self, addr: u64) -> Block {
        self.disks[0].peek(addr)
    }

    fn add(&mut self, name: &'static str, addr: u64, hit: Hit) {
        self.add_part(name, addr, 0..BLOCK, hit);
    }

    fn add_part(&mut self, name: &'static str, addr: u64, part: Range<usize>, hit: Hit) {
        assert_eq!(self.rows.iter().filter(|row| row.name == name).count(), 0, "{name} twice");
        let mut stale = [0, 1].map(|disk: usize| {
            let now = self.disks[disk].peek(addr);
            self.disks[disk].stale(addr);
            let before = self.disks[disk].peek(addr);
            self.disks[disk].poke(addr, now);
            Box::new(before)
        });
        let at = self.twin(addr);
        let mut other = [0, 1].map(|disk: usize| Box::new(self.disks[disk].peek(at)));
        for disk in 0..2 {
            let now = self.disks[disk].peek(addr);
            // All roots that are left agree in what changed long ago.
            let agrees = |block: &mut &mut Box<Block>| block[part.clone()] == now[part.clone()] && part.len() < BLOCK;
            for block in
                [&mut stale[disk], &mut other[disk]].into_iter().filter_map(|mut b| agrees(&mut b).then_some(b))
            {
                block.clone_from(self.before.as_ref().expect("a root from before"));
            }
            let is_fixed = name.starts_with("label") || name.contains("never written");
            let is_real =
                |block: &Block| block.iter().any(|byte| *byte != 0) && block[part.clone()] != now[part.clone()];
            assert!(is_fixed || is_real(&stale[disk]), "{name}: nothing else stood there before on disk {disk}");
            assert!(is_real(&other[disk]), "{name}: another block of its kind on disk {disk}");
        }
        self.rows.push(Row { name, addr, part, stale, other, writes: [0, 0], hit });
    }

    /// Another block of the same kind and level; of file data another one.
    fn twin(&self, addr: u64) -> u64 {
        let now = self.block(addr);
        let is_kind = |at: u64| {
            let block = self.block(at);
            at != addr && block[..6] == now[..6] && block != now
        };
        if self.data.contains(&addr) {
            return *self.data.iter().find(|at| self.block(**at) != now).expect("other data");
        }
        let found = self.disks[0].addresses().into_iter().find(|at| is_kind(*at));
        // The only one of its kind and level: any node.
        let node = self.nodes.iter().map(|node| node.ptr.addr).find(|at| *at != addr);
        found.or(node).expect("another block")
    }

    fn node(&mut self, name: &'static str, wanted: impl Fn(&Seen) -> bool) {
        let node = self.nodes.iter().find(|node| wanted(node)).unwrap_or_else(|| panic!("no {name}"));
        let (addr, hit) = (node.ptr.addr, Hit { keys: Some((node.from, node.to)), data: None });
        self.add(name, addr, hit);
    }

    fn extents(&self, ino: u64) -> Vec<Extent> {
        let items = self.nodes.iter().flat_map(|node| &node.items);
        let mine = items.filter(|(key, _)| key.ino == ino && key.kind == ItemKind::Extent);
        mine.map(|(key, value)| Extent::decode(*key, value).unwrap()).collect()
    }
}

fn newest_roots(finder: &Finder, volume: stablefs::format::Uuid) -> Vec<(usize, Root)> {
    let slots = 0..stablefs::format::geometry::ROOT_SLOTS;
    let decode =
        |slot| Some((slot, Root::decode(&finder.block(Root::addr(slot)), slot, volume, &finder.geometry).ok()?));
    let mut roots: Vec<_> = slots.filter_map(decode).collect();
    roots.sort_by_key(|(_, root)| std::cmp::Reverse(root.version));
    roots
}

fn fixed_rows(finder: &mut Finder, roots: &[(usize, Root)]) {
    let [first, second] = Geometry::label_copies();
    finder.add("label, first copy", first, Hit::default());
    finder.add("label, second copy", second, Hit::default());
    let newest = Root::addr(roots[0].0);
    finder.add("root, newest", newest, Hit::default());
    finder.add_part("root, newest: entry of the top space node", newest, 176..208, Hit::default());
    finder.add_part("root, newest: replica table (membership)", newest, 256..512, Hit::default());
    finder.add_part("root, newest: chain of epochs", newest, 512..2048, Hit::default());
    finder.add_part("root, newest: heads of dead lists", newest, 2048..4096, Hit::default());
    finder.add("root, the one before", Root::addr(roots[1].0), Hit::default());
}

/// Log records; returns the blocks that they name.
fn log_rows(finder: &mut Finder, root: &Root) -> Vec<u64> {
    let (at, blocks) = (finder.geometry.log_at, finder.geometry.log_blocks);
    let head = |addr: u64| decode_head(&finder.block(addr), root.volume, addr, blocks).ok();
    let all: Vec<_> = (at..at + u64::from(blocks)).filter_map(|addr| Some((addr, head(addr)?))).collect();
    let mut live: Vec<_> =
        all.iter().filter(|(_, h)| h.log_id == root.log_id && h.seq >= root.log_seq).cloned().collect();
    let covered = all.iter().find(|(_, h)| h.seq < root.log_seq).expect("a covered record").0;
    live.sort_by_key(|(_, head)| head.seq);
    assert_eq!(live.len(), 3, "three records wait");
    let mut named = Vec::new();
    for (addr, head) in &live {
        let whole: Vec<u8> = (*addr..*addr + u64::from(head.blocks)).flat_map(|at| finder.block(at)).collect();
        let mut rest = entries(&whole, head).unwrap();
        while !rest.is_empty() {
            let (entry, next) = Entry::decode(rest).unwrap();
            if let Entry::Run { addr, sums, .. } = entry {
                named.extend(addr..addr + sums.len() as u64);
            }
            rest = next;
        }
    }
    finder.add("log record, replay needs it", live[1].0, Hit::default());
    finder.add("log record, replay needs it, the last one", live[2].0, Hit::default());
    finder.add("log record, covered by a root", covered, Hit::default());
    named
}

fn space_rows(finder: &mut Finder, root: &Root, in_log: u64) {
    let geometry = finder.geometry.clone();
    let decode = |finder: &Finder, level: usize, entry: &SpaceEntry| {
        let addr = geometry.space_node(level, 0, entry.slot);
        let count = geometry.space_entries(level, 0);
        decode_node(&finder.block(addr), root.volume, addr, entry.birth, level as u8, count).unwrap()
    };
    assert_eq!(geometry.space_levels(), 2);
    let below = decode(finder, 2, &root.space)[0];
    let zones = decode(finder, 1, &below);
    finder.add("space node, top, current slot", geometry.space_node(2, 0, root.space.slot), Hit::default());
    finder.add("space node, top, other slot", geometry.space_node(2, 0, 1 - root.space.slot), Hit::default());
    finder.add("space node, level 1 (zone table), current slot", geometry.space_node(1, 0, below.slot), Hit::default());
    finder.add(
        "space node, level 1 (zone table), other slot",
        geometry.space_node(1, 0, 1 - below.slot),
        Hit::default(),
    );
    let log_zone = geometry.locate(in_log).unwrap().0;
    let used: Vec<u64> = (0..zones.len() as u64).filter(|zone| !zones[*zone as usize].is_pristine()).collect();
    let other = *used.iter().find(|zone| **zone != log_zone).expect("two zones are in use");
    let slot = |zone: u64| zones[zone as usize].slot;
    finder.add("bitmap, current slot", geometry.bitmap(other, slot(other)), Hit::default());
    finder.add(
        "bitmap, current slot, of a zone that the log names",
        geometry.bitmap(log_zone, slot(log_zone)),
        Hit::default(),
    );
    finder.add("bitmap, other slot", geometry.bitmap(other, 1 - slot(other)), Hit::default());
    finder.add("dead list, oldest", root.dead[0].ptr.addr, Hit::default());
    finder.add("dead list, newest", root.dead.last().unwrap().ptr.addr, Hit::default());
}

fn tree_rows(finder: &mut Finder, known: &Known) {
    let top = finder.nodes[0].level;
    assert_eq!(top, 2, "three levels");
    let last = finder.nodes.iter().rfind(|node| node.level == 0).unwrap().ptr;
    let last_inner = finder.nodes.iter().rfind(|node| node.level == 1).unwrap().ptr;
    let only = |node: &Seen, kind: ItemKind| node.level == 0 && node.items.iter().all(|(key, _)| key.kind == kind);
    let holds = |node: &Seen, ino: u64| node.items.iter().any(|(key, _)| *key == Key::inode(ino));
    let inside = |node: &Seen, ino: u64| node.from.ino == ino && node.to.is_some_and(|to| to.ino == ino);
    finder.node("tree: top node", |node| node.level == top);
    finder.node("tree: inner node, first", |node| node.level == 1);
    finder.node("tree: inner node, last", |node| node.ptr == last_inner);
    finder.node("leaf: root directory", |node| node.level == 0);
    finder.node("leaf: list of orphans", |node| node.items.iter().any(|(key, _)| key.ino == ORPHANS));
    finder.node("leaf: names", |node| only(node, ItemKind::Dirent) && inside(node, known.many));
    finder.node("leaf: inodes and inline data", |node| holds(node, known.names[60]));
    finder.node("leaf: extents", |node| only(node, ItemKind::Extent) && inside(node, known.big));
    finder.node("leaf: extended attribute", |node| only(node, ItemKind::Xattr) && inside(node, known.attributes));
    finder.node("leaf: symbolic link", |node| holds(node, known.links[1]));
    finder.node("leaf: last", |node| node.ptr == last);
}

/// Build the volume and find everything in it.
pub fn make() -> Scene {
    let (bench, states, known) = build(&HashMap::new());
    let images: Vec<Image> = bench.disks.iter().map(|disk| disk.snapshot()).collect();
    let disks = bench.disks.clone();
    let label = Label::decode(&disks[0].peek(0), 0).unwrap();
    let (volume, geometry) = (label.volume, label.geometry);
    let mut finder = Finder {
        disks: &disks,
        geometry,
        nodes: vec![],
        data: vec![],
        rows: vec![],
        before: Some(known.before.clone()),
    };
    let roots = newest_roots(&finder, volume);
    finder.nodes = walk_at(&images);
    let extent = |finder: &Finder, ino: u64| {
        let run = |extent: &Extent| match &extent.body {
            ExtentBody::Written { addr, .. } | ExtentBody::Unwritten { addr } => Some(*addr),
            ExtentBody::Inline(_) => None,
        };
        finder.extents(ino).iter().find_map(run).expect("an extent")
    };
    let data = extent(&finder, known.data);
    finder.data = vec![data, extent(&finder, known.big), extent(&finder, known.reserved)];
    fixed_rows(&mut finder, &roots);
    let named = log_rows(&mut finder, &roots[0].1);
    finder.data.push(named[3]);
    space_rows(&mut finder, &roots[0].1, named[0]);
    tree_rows(&mut finder, &known);
    finder.add("extent data", data, Hit { keys: None, data: Some(known.data) });
    let large = states.last().unwrap().1.iter().find(|(_, item)| item.name == "large").unwrap();
    finder.add("extent data that only the log names", named[3], Hit { keys: None, data: Some(*large.0) });
    finder.add("extent data, reserved and never written", extent(&finder, known.reserved), Hit::default());
    let mut rows = finder.rows;
    count_writes(&mut rows);
    Scene { setup: setup(), images, states, rows }
}

/// Entries of the top space node that `root` names.
pub fn below_top(bench: &Bench, geometry: &Geometry, root: &Root) -> Vec<SpaceEntry> {
    let addr = geometry.space_node(2, 0, root.space.slot);
    let block = bench.disks[0].peek(addr);
    decode_node(&block, root.volume, addr, root.space.birth, 2, geometry.space_entries(2, 0)).unwrap()
}

/// The tree of the newest root in `images`.
fn walk_at(images: &[Image]) -> Vec<Seen> {
    let mut bench = bench(&setup(), images);
    bench.setup.store.read_only = true;
    let (store, _) = bench.open(&[0, 1], false).unwrap();
    nodes(&store)
}

/// A world with disks that hold `images`.
pub fn bench(setup: &Setup, images: &[Image]) -> Bench {
    let bench = Bench::with(11, setup.clone(), Random::new(11));
    for (disk, image) in bench.disks.iter().zip(images) {
        disk.restore(image.clone());
    }
    bench
}

/// Find out how often each row's block is written while the volume is made.
fn count_writes(rows: &mut [Row]) {
    let watched = rows.iter().map(|row| (row.addr, [Some(u32::MAX); 2])).collect();
    let (bench, ..) = build(&watched);
    // A replica joins only with its labels on the medium: what is lost of them is lost later.
    for row in rows.iter_mut().filter(|row| !row.name.starts_with("label")) {
        for (disk, writes) in bench.disks.iter().zip(&mut row.writes) {
            disk.faults(|faults| *writes = u32::MAX - faults.lost_after[&row.addr]);
        }
    }
}
