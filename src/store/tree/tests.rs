//! Goal: the tree equals a `BTreeMap` after any batches, frees exactly what it replaced, and stays readable, well
//! filled and finite. Method: an in-memory store that keeps every block, with counts of allocations and frees.

use super::*;
use crate::format::node::{encode_inner, encode_leaf};
use crate::format::{BLOCK, ItemKind, VolumeSeed, node};
use crate::sync::Mutex;
use crate::world::{Seeded, World};
use std::collections::{BTreeMap, HashMap, HashSet};

const VOLUME: Uuid = Uuid([3; 16]);

#[derive(Default)]
struct Memory {
    blocks: HashMap<Addr, Vec<u8>>,
    next: Addr,
    room: u64,
    freed: Vec<BlockPtr>,
    allocated: Vec<Addr>,
    lost: HashSet<Addr>,
    reads: Mutex<u64>,
}

impl Memory {
    fn new() -> Memory {
        Memory { next: 1000, room: u64::MAX, ..Memory::default() }
    }
    fn plant(&mut self, birth: Txg, block: impl FnOnce(Addr) -> Vec<u8>) -> BlockPtr {
        let addr = self.alloc().unwrap();
        let sum = self.write(addr, block(addr));
        BlockPtr { addr, sum, birth }
    }
}

impl NodeStore for Memory {
    fn volume(&self) -> Uuid {
        VOLUME
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        *self.reads.lock() += 1;
        let damage = StoreError::Corrupt { addr: ptr.addr, corrupt: Corrupt { what: "test", rule: "is there" } };
        if self.lost.contains(&ptr.addr) {
            return Err(damage);
        }
        let block = self.blocks.get(&ptr.addr).ok_or(damage)?.clone();
        assert_eq!(VolumeSeed::new(VOLUME).checksum(ptr.addr, &block), ptr.sum);
        let node = node::decode(&block, VOLUME, ptr, level)?;
        Ok(Arc::new(CachedNode { block, node }))
    }
}

impl NodeWriter for Memory {
    fn alloc(&mut self) -> Result<Addr, StoreError> {
        self.room = self.room.checked_sub(1).ok_or(StoreError::NoSpace)?;
        self.next += 1;
        self.allocated.push(self.next);
        Ok(self.next)
    }
    fn write(&mut self, addr: Addr, block: Vec<u8>) -> u64 {
        let sum = VolumeSeed::new(VOLUME).checksum(addr, &block);
        assert!(self.blocks.insert(addr, block).is_none(), "never overwrites");
        sum
    }
    fn free(&mut self, ptr: &BlockPtr) {
        self.freed.push(*ptr);
    }
}

type Model = BTreeMap<Key, Vec<u8>>;

/// Every node: address to (level, bytes used, entries).
fn shape(store: &Memory, top: Top) -> HashMap<Addr, (u8, usize, usize)> {
    let mut out = HashMap::new();
    let end = walk(store, top, &mut |level, ptr, node| {
        let node = node.expect("readable");
        let used = u32::from_le_bytes(node.block[12..16].try_into().unwrap()) as usize;
        let entries = match &node.node {
            Node::Leaf(items) => items.len(),
            Node::Inner(children) => children.len(),
        };
        assert!(out.insert(ptr.addr, (level, used, entries)).is_none(), "each node once");
        ControlFlow::Continue(())
    });
    assert!(end.is_continue());
    out
}

fn items(store: &Memory, top: Top, from: Key) -> Vec<(Key, Vec<u8>)> {
    let mut cursor = Cursor::new(store, top, from);
    std::iter::from_fn(|| cursor.next().unwrap()).map(|(k, v)| (k, v.to_vec())).collect()
}

/// Apply one batch to tree and model and check everything that must hold between them.
fn step(store: &mut Memory, model: &mut Model, top: Top, birth: Txg, batch: &BTreeMap<Key, Option<Vec<u8>>>) -> Top {
    let before = shape(store, top);
    store.freed.clear();
    store.allocated.clear();
    let changes: Vec<(Key, Option<Value>)> =
        batch.iter().map(|(k, v)| (*k, v.as_ref().map(|v| Value::from(&v[..])))).collect();
    let top = apply(store, top, birth, &changes).unwrap();
    for (key, value) in batch {
        match value {
            Some(value) => drop(model.insert(*key, value.clone())),
            None => drop(model.remove(key)),
        }
    }
    let after = shape(store, top);
    let freed: HashSet<Addr> = store.freed.iter().map(|p| p.addr).collect();
    assert_eq!(freed.len(), store.freed.len(), "freed once");
    let gone: HashSet<Addr> = before.keys().filter(|a| !after.contains_key(a)).copied().collect();
    assert_eq!(freed, gone, "freed are the old nodes that are no longer reachable");
    let allocated: HashSet<Addr> = store.allocated.iter().copied().collect();
    let new: HashSet<Addr> = after.keys().filter(|a| !before.contains_key(a)).copied().collect();
    assert_eq!(allocated, new, "allocated are the new nodes that are reachable");
    assert_eq!(allocated.len(), store.allocated.len());
    top
}

fn check_equal(store: &Memory, model: &Model, top: Top) {
    let want: Vec<_> = model.iter().map(|(k, v)| (*k, v.clone())).collect();
    assert!(items(store, top, Key::MIN) == want, "tree and model differ");
    assert_eq!(top.is_none(), model.is_empty());
}

fn key(n: u64) -> Key {
    let kinds = [ItemKind::Inode, ItemKind::Dirent, ItemKind::Extent];
    Key::new(n / 8, kinds[(n % 8 / 3) as usize], n % 3)
}

fn random_run(seed: u64, size_max: u64, batches: u64) {
    let world = Seeded::new(seed);
    let below = |n: u64| world.random() % n;
    let (mut store, mut model, mut top) = (Memory::new(), Model::new(), None);
    for birth in 1..=batches {
        let mut batch = BTreeMap::new();
        let span = 1 + below(6000);
        let from = below(6000);
        let count = [1, 3, 20, 300, 2000][below(5) as usize];
        let deletes = [5, 50, 95][below(3) as usize];
        for _ in 0..count {
            let value = vec![birth as u8; below(size_max + 1) as usize];
            batch.insert(key(from + below(span)), (below(100) >= deletes).then_some(value));
        }
        if below(6) == 0 {
            let (low, high) = (key(from), key(from + span));
            batch.extend(model.range(low..high).map(|(k, _)| (*k, None)));
        }
        top = step(&mut store, &mut model, top, birth, &batch);
        if birth % 4 == 0 {
            check_equal(&store, &model, top);
        }
        for _ in 0..20 {
            let key = key(below(12_000));
            let found = get(&store, top, key).unwrap();
            assert_eq!(found.as_deref(), model.get(&key).map(|v| &v[..]));
            let mut cursor = Cursor::new(&store, top, key);
            assert_eq!(cursor.next().unwrap().map(|f| f.0), model.range(key..).next().map(|m| *m.0));
        }
    }
    check_equal(&store, &model, top);
    let all = model.keys().map(|k| (*k, None)).collect();
    assert_eq!(step(&mut store, &mut model, top, batches + 1, &all), None);
}

#[test]
fn random_batches_equal_a_map() {
    for seed in 0..12 {
        random_run(seed, [0, 60, 300, 1984][seed as usize % 4], 40);
    }
}

#[test]
fn bulk_load_in_rising_order_fills_leaves() {
    let (mut store, mut model, mut top) = (Memory::new(), Model::new(), None);
    for birth in 1..=40 {
        let batch = (0..500).map(|i| (key(birth * 500 + i), Some(vec![7; 120]))).collect();
        top = step(&mut store, &mut model, top, birth, &batch);
    }
    check_equal(&store, &model, top);
    let leaves: Vec<usize> = shape(&store, top).values().filter(|n| n.0 == 0).map(|n| n.1).collect();
    let fill = leaves.iter().sum::<usize>() as f64 / (leaves.len() * node_payload()) as f64;
    assert!(fill > 0.9, "fill {fill}");
}

fn node_payload() -> usize {
    BLOCK - crate::format::block::HEADER
}

#[test]
fn one_huge_batch_and_its_deletion() {
    let (mut store, mut model) = (Memory::new(), Model::new());
    let load: BTreeMap<_, _> = (0..200_000).map(|i| (key(i), Some(vec![1; 40]))).collect();
    let top = step(&mut store, &mut model, None, 1, &load);
    check_equal(&store, &model, top);
    let nodes = shape(&store, top);
    let used: usize = nodes.values().filter(|n| n.0 == 0).map(|n| n.1).sum();
    let leaves = nodes.values().filter(|n| n.0 == 0).count();
    assert!(used as f64 > 0.8 * (leaves * node_payload()) as f64);
    // A middle range goes: only its edges are rewritten beside the path.
    let hole = (50_000..150_000).map(|i| (key(i), None)).collect();
    let top = step(&mut store, &mut model, top, 2, &hole);
    check_equal(&store, &model, top);
    assert!(store.allocated.len() <= 12, "{} nodes written for a hole", store.allocated.len());
    // All but one: the root shrinks to a leaf.
    let rest = model.keys().skip(1).map(|k| (*k, None)).collect();
    let top = step(&mut store, &mut model, top, 3, &rest);
    assert_eq!(top.map(|t| t.0), Some(0));
}

#[test]
fn a_small_change_rewrites_one_path() {
    let (mut store, mut model) = (Memory::new(), Model::new());
    let load: BTreeMap<_, _> = (0..50_000).map(|i| (key(i), Some(vec![1; 100]))).collect();
    let top = step(&mut store, &mut model, None, 1, &load);
    let levels = usize::from(top.unwrap().0) + 1;
    let one = BTreeMap::from([(key(25_000), Some(vec![2; 100]))]);
    *store.reads.lock() = 0;
    let changes: Vec<_> = one.iter().map(|(k, v)| (*k, v.as_deref().map(Value::from))).collect();
    store.allocated.clear();
    apply(&mut store, top, 2, &changes).unwrap();
    assert_eq!((store.allocated.len(), *store.reads.lock()), (levels, levels as u64));
    // Reading all reads each node once.
    let nodes = shape(&store, top).len() as u64;
    *store.reads.lock() = 0;
    assert_eq!(items(&store, top, Key::MIN).len(), 50_000);
    assert_eq!(*store.reads.lock(), nodes);
}

#[test]
fn nodes_stay_a_quarter_full_under_random_deletes() {
    for size in [0, 100, 900, 1984] {
        let world = Seeded::new(size);
        let (mut store, mut model) = (Memory::new(), Model::new());
        let load: BTreeMap<_, _> = (0..20_000).map(|i| (key(i), Some(vec![1; size as usize]))).collect();
        let mut top = step(&mut store, &mut model, None, 1, &load);
        for birth in 2..80 {
            let batch = (0..240).map(|_| (key(world.random() % 20_000), None)).collect();
            top = step(&mut store, &mut model, top, birth, &batch);
            let nodes = shape(&store, top);
            let root = top.unwrap();
            let small = nodes.iter().filter(|(a, n)| **a != root.1.addr && n.1 < node_payload() / 4).count();
            assert!(small <= 1, "{small} of {} nodes are small", nodes.len());
            if root.0 > 0 {
                assert!(nodes[&root.1.addr].2 > 1, "the root has more than one child");
            }
        }
        check_equal(&store, &model, top);
    }
}

#[test]
fn out_of_room_harms_nothing() {
    let (mut store, mut model) = (Memory::new(), Model::new());
    let load: BTreeMap<_, _> = (0..5000).map(|i| (key(i), Some(vec![1; 100]))).collect();
    let top = step(&mut store, &mut model, None, 1, &load);
    let changes: Vec<_> = (0..5000).step_by(7).map(|i| (key(i), Some(Value::from(&[2_u8; 300][..])))).collect();
    for room in [0, 1, 5, 50] {
        store.room = room;
        assert!(matches!(apply(&mut store, top, 2, &changes), Err(StoreError::NoSpace)));
        check_equal(&store, &model, top);
    }
}

#[test]
fn a_lost_sibling_does_not_stop_a_delete() {
    let (mut store, mut model) = (Memory::new(), Model::new());
    let load: BTreeMap<_, _> = (0..100).map(|i| (key(i), Some(vec![1; 900]))).collect();
    let top = step(&mut store, &mut model, None, 1, &load);
    let Some((1, ptr)) = top else { panic!("two levels") };
    let Node::Inner(children) = store.read_node(1, &ptr).unwrap().node.clone() else { panic!() };
    store.lost.insert(children[5].1.addr);
    // Leaf 4 keeps one item: too little, and its next sibling cannot be read.
    let Node::Leaf(four) = store.read_node(0, &children[4].1).unwrap().node.clone() else { panic!() };
    let changes: Vec<_> = four[1..].iter().map(|(k, _)| (*k, None)).collect();
    let top = apply(&mut store, top, 2, &changes).unwrap();
    assert!(get(&store, top, four[0].0).unwrap().is_some());
    // The cursor says so once and goes on behind.
    let mut cursor = Cursor::new(&store, top, Key::MIN);
    let (mut found, mut errors) = (0, 0);
    loop {
        match cursor.next() {
            Ok(Some(_)) => found += 1,
            Ok(None) => break,
            Err(_) => errors += 1,
        }
    }
    assert_eq!((found, errors), (100 - changes.len() - 4, 1));
    // A change inside the lost leaf cannot be made.
    assert!(apply(&mut store, top, 3, &[(children[5].0, None)]).is_err());
}

#[test]
fn hostile_trees_are_corrupt_and_end() {
    let mut store = Memory::new();
    let leaf = |store: &mut Memory, keys: &[u64]| {
        let items: Vec<_> = keys.iter().map(|n| (Key::inode(*n), vec![0; 4])).collect();
        store.plant(1, |addr| encode_leaf(VOLUME, addr, 1, &items))
    };
    let inner = |store: &mut Memory, level: u8, children: &[(u64, BlockPtr)]| {
        let children: Vec<_> = children.iter().map(|(n, p)| (Key::inode(*n), *p)).collect();
        store.plant(1, |addr| encode_inner(VOLUME, addr, 1, level, &children))
    };
    let a = leaf(&mut store, &[10, 20]);
    let b = leaf(&mut store, &[30, 40]);
    let low = leaf(&mut store, &[1, 40]);
    let high = leaf(&mut store, &[15, 35]);
    let cases = [
        (inner(&mut store, 1, &[(10, a), (31, b)]), "a key below its bound"),
        (inner(&mut store, 1, &[(10, a), (30, low)]), "wrong order"),
        (inner(&mut store, 1, &[(10, high), (30, b)]), "a key in the next sibling's range"),
        (inner(&mut store, 1, &[(10, a), (20, a)]), "a node twice"),
        (inner(&mut store, 2, &[(10, a), (30, b)]), "a level skipped"),
    ];
    for (ptr, what) in cases {
        let level = store.blocks[&ptr.addr][5];
        let top = Some((level, ptr));
        let mut cursor = Cursor::new(&store, top, Key::MIN);
        let mut errors = 0;
        for _ in 0..10 {
            errors += usize::from(matches!(cursor.next(), Err(StoreError::Corrupt { .. })));
        }
        assert!(errors >= 1, "{what}");
        let mut bad = 0;
        let _ = walk(&store, top, &mut |_, _, node| {
            bad += usize::from(node.is_err());
            ControlFlow::Continue(())
        });
        assert!(bad >= 1, "{what}");
        let changes: Vec<_> = [5, 12, 25, 33, 50].map(|n| (Key::inode(n), Some(Value::from(&[1_u8][..])))).into();
        assert!(matches!(apply(&mut store, top, 2, &changes), Err(StoreError::Corrupt { .. })), "{what}");
    }
    // A node that names itself would have to be at two levels; and no tree is taller than the limit.
    let addr = store.alloc().unwrap();
    let own = BlockPtr { addr, sum: 0, birth: 1 };
    let block = encode_inner(VOLUME, addr, 1, 1, &[(Key::MIN, own)]);
    assert!(node::decode(&block, VOLUME, &own, 1).is_ok() && node::decode(&block, VOLUME, &own, 0).is_err());
    assert!(read_within(&store, LEVEL_MAX, &own, Key::MIN, None).is_err());
}

#[test]
fn walk_leaves_out_what_is_old_and_can_be_ended() {
    let (mut store, mut model) = (Memory::new(), Model::new());
    let load: BTreeMap<_, _> = (0..20_000).map(|i| (key(i), Some(vec![1; 100]))).collect();
    let top = step(&mut store, &mut model, None, 1, &load);
    let one = BTreeMap::from([(key(9000), Some(vec![2; 100]))]);
    let top = step(&mut store, &mut model, top, 2, &one);
    let mut seen = 0;
    let _ = walk_born_after(&store, top, 1, &mut |_, ptr, node| {
        assert!(node.is_ok() && ptr.birth == 2);
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(seen, usize::from(top.unwrap().0) + 1);
    let mut calls = 0;
    let end = walk(&store, top, &mut |_, _, _| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(end.is_break() && calls == 3);
}
