//! `debug`: hidden commands for tests and for a look at a volume from outside.
//!
//! *Guarantees*: reads one replica's bytes as they stand, with `format` alone: an account of a volume that shares no
//! code with the store and the checker. Takes no lock and writes nothing, so it also looks at a mounted volume; if
//! that is being written to, blocks may change under the walk.
//! *Assumes*: nothing of the bytes. *Fails when*: no root on that replica proves itself; a block that does not prove
//! itself is left out with all below it, said on standard error, and makes the exit code 1.
//! *Order*: labels, root, tree, dead lists, space. *Not here*: repair, other replicas, the log.

use crate::disk::file::CONTAINER;
use crate::format::geometry::ROOT_SLOTS;
use crate::format::node::{self, Node};
use crate::format::space::{Bitmap, SpaceEntry, decode_node};
use crate::format::{
    Addr, BLOCK, BlockPtr, Corrupt, Extent, ExtentBody, Geometry, ItemKind, Label, Root, VolumeSeed, dead,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest chain of dead lists that is followed.
const CHAIN_MAX: usize = 1 << 20;

/// Reads one block.
type Read<'a> = &'a dyn Fn(Addr) -> io::Result<Vec<u8>>;

struct Walk<'a> {
    read: Read<'a>,
    complain: &'a mut dyn FnMut(&str),
    label: Label,
    seed: VolumeSeed,
    /// Kind of each block that is reachable.
    found: BTreeMap<Addr, &'static str>,
    wrong: u64,
}

/// Print `address kind` for each block that the newest root of the replica at `path` reaches.
pub(super) fn blocks(path: &Path) -> Result<(), String> {
    let place = if path.is_dir() { path.join(CONTAINER) } else { path.to_owned() };
    let file = File::open(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let fail = |text: &str| format!("{}: {text}", place.display());
    let (found, wrong) =
        account(&|addr| read(&file, addr), &mut |text| super::complain(text)).map_err(|text| fail(&text))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (addr, kind) in &found {
        writeln!(out, "{addr} {kind}").map_err(|error| error.to_string())?;
    }
    out.flush().map_err(|error| error.to_string())?;
    match wrong {
        0 => Ok(()),
        wrong => Err(fail(&format!("{wrong} blocks do not prove themselves"))),
    }
}

/// The kind of each block that the newest root reaches, and how many do not prove themselves.
///
/// # Errors
/// There is no label or no root.
pub fn account(read: Read<'_>, complain: &mut dyn FnMut(&str)) -> Result<(BTreeMap<Addr, &'static str>, u64), String> {
    let labels = Geometry::label_copies().map(|addr| read(addr).ok().map(|block| Label::decode(&block, addr)));
    let label = labels.into_iter().flatten().find_map(Result::ok).ok_or("holds no label")?;
    let slots = (0..ROOT_SLOTS).filter_map(|slot| {
        let block = read(Root::addr(slot)).ok()?;
        Some((slot, Root::decode(&block, slot, label.volume, &label.geometry).ok()?))
    });
    let (slot, root) = slots.max_by_key(|(_, root)| root.version).ok_or("holds no root")?;
    let seed = VolumeSeed::new(label.volume);
    let mut walk = Walk { read, complain, label, seed, found: BTreeMap::new(), wrong: 0 };
    walk.found.extend(Geometry::label_copies().map(|addr| (addr, "label")));
    walk.found.insert(Root::addr(slot), "root");
    if let Some((level, top)) = root.tree {
        walk.tree(level, &top);
    }
    root.dead.iter().for_each(|head| walk.dead_list(head.ptr));
    walk.space(walk.label.geometry.space_levels(), 0, &root.space);
    Ok((walk.found, walk.wrong))
}

fn read(file: &File, addr: Addr) -> io::Result<Vec<u8>> {
    let mut block = vec![0; BLOCK];
    file.read_exact_at(&mut block, addr.saturating_mul(BLOCK as u64))?;
    Ok(block)
}

impl Walk<'_> {
    fn prove(&mut self, addr: Addr, sum: u64, kind: &'static str) -> Option<Vec<u8>> {
        if self.found.insert(addr, kind).is_some() {
            return self.bad(addr, kind, "is reached twice");
        }
        match (self.read)(addr) {
            Ok(block) if self.seed.checksum(addr, &block) == sum => Some(block),
            Ok(_) => self.bad(addr, kind, "does not match its checksum"),
            Err(error) => self.bad(addr, kind, &error.to_string()),
        }
    }

    fn bad<T>(&mut self, addr: Addr, kind: &str, why: &str) -> Option<T> {
        self.wrong += 1;
        (self.complain)(&format!("{kind} at block {addr}: {why}"));
        None
    }

    fn decoded<T>(&mut self, addr: Addr, kind: &str, result: Result<T, Corrupt>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => self.bad(addr, kind, &error.to_string()),
        }
    }

    fn tree(&mut self, level: u8, ptr: &BlockPtr) {
        let kind = if level == 0 { "leaf" } else { "inner" };
        let Some(block) = self.prove(ptr.addr, ptr.sum, kind) else { return };
        let node = node::decode(&block, self.label.volume, ptr, level);
        match self.decoded(ptr.addr, kind, node) {
            Some(Node::Inner(children)) if level > 0 => {
                children.iter().for_each(|(_, child)| self.tree(level - 1, child));
            }
            Some(Node::Leaf(items)) => {
                for (key, range) in items.into_iter().filter(|(key, _)| key.kind == ItemKind::Extent) {
                    let extent = Extent::decode(key, &block[range]);
                    let Some(extent) = self.decoded(ptr.addr, kind, extent) else { continue };
                    if let ExtentBody::Written { addr, sums } = extent.body {
                        (addr..).zip(sums).for_each(|(addr, sum)| {
                            self.prove(addr, u64::from(sum), "data");
                        });
                    }
                }
            }
            _ => {}
        }
    }

    fn dead_list(&mut self, head: BlockPtr) {
        let mut next = Some(head);
        for _ in 0..CHAIN_MAX {
            let Some(ptr) = next.take() else { return };
            let Some(block) = self.prove(ptr.addr, ptr.sum, "dead-list") else { return };
            let decoded = dead::decode(&block, self.label.volume, &ptr);
            next = self.decoded(ptr.addr, "dead-list", decoded).and_then(|(next, _)| next);
        }
    }

    fn space(&mut self, level: usize, index: u64, entry: &SpaceEntry) {
        if entry.is_pristine() {
            return;
        }
        let (geometry, volume) = (self.label.geometry.clone(), self.label.volume);
        if level == 0 {
            let addr = geometry.bitmap(index, entry.slot);
            let Some(block) = self.prove(addr, entry.sum, "bitmap") else { return };
            let decoded = Bitmap::decode(&block, volume, addr, entry.birth, geometry.zone_len(index));
            self.decoded(addr, "bitmap", decoded);
            return;
        }
        let addr = geometry.space_node(level, index, entry.slot);
        let Some(block) = self.prove(addr, entry.sum, "space-node") else { return };
        let count = geometry.space_entries(level, index);
        let decoded = decode_node(&block, volume, addr, entry.birth, level as u8, count);
        for (below, child) in (index * crate::format::geometry::SPACE_FANOUT..)
            .zip(self.decoded(addr, "space-node", decoded).unwrap_or_default())
        {
            self.space(level - 1, below, &child);
        }
    }
}
