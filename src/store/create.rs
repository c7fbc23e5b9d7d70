//! Making a volume on empty backings.
//!
//! *Guarantees*: the labels are written last, so that what was interrupted is not a volume. *Assumes*: backings are
//! open for writing and may be overwritten. *Fails when*: a backing does not take writes or has no room.
//! *Order*: wipe → fixed structures and log ring allocated and written → first commit → labels → flush.
//! *Not here*: sizes and paths (`volume`).

use super::commit::{Force, RootState};
use super::log::Log;
use super::{Need, Opening, Store, StoreError, StoreOptions, space};
use crate::disk::backing::Backing;
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Mirror, ReplicaName};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::root::Epoch;
use crate::format::{BLOCK, FIRST_INO, Geometry, Key, Label, Member, MemberState, Role, Root, VolumeSeed};
use crate::world::World;
use std::sync::Arc;
use std::time::Duration;

/// What a new volume is.
pub struct CreateStore {
    /// Where everything stands.
    pub geometry: Geometry,
    /// What the user calls it, at most 64 bytes.
    pub name: String,
    /// Whether space below is allocated as it is needed.
    pub grows: bool,
    /// Items of the root directory.
    pub root_items: Vec<(Key, Vec<u8>)>,
    /// Deadline of one request.
    pub deadline: Duration,
}

/// Blocks of zeros written at once.
const ZEROS: u64 = 256;

/// Make a volume; returns the labels in the order of `backings`.
pub fn create(
    backings: Vec<(String, Arc<dyn Backing>)>,
    create: CreateStore,
    world: Arc<dyn World>,
) -> Result<Vec<Label>, StoreError> {
    let volume = world.uuid();
    let created_ns = world.now_ns().max(0) as u64;
    let hash_key = [world.random(), world.random()];
    let labels: Vec<Label> = backings
        .iter()
        .map(|_| Label {
            volume,
            replica: world.uuid(),
            created_ns,
            geometry: create.geometry.clone(),
            grows: create.grows,
            hash_key,
            name: create.name.clone(),
        })
        .collect();
    let names = backings
        .into_iter()
        .zip(&labels)
        .map(|((path, backing), label)| (ReplicaName { uuid: label.replica, path }, backing, true))
        .collect();
    let seed = VolumeSeed::new(volume);
    let mirror = Arc::new(Mirror::new(seed, create.geometry.clone(), names, create.deadline));
    let all = mirror.members();
    prepare(&mirror, &create.geometry)?;

    let root = first_root(&labels, &create, &*world);
    let log = Log::new(create.geometry.log_blocks, world.random());
    let roots = RootState::new(root, 0, [None; ROOT_SLOTS]);
    let options = StoreOptions { cache_nodes: 64, ..StoreOptions::default() };
    let label = labels[0].clone();
    let store = Store::assemble(Opening { label, world, mirror: mirror.clone(), options, roots, log });
    let mut transaction = store.begin(Need { items: create.root_items.len() as u32, ..Need::default() })?;
    create.root_items.into_iter().for_each(|(key, value)| transaction.put(key, value));
    transaction.count_inodes(1);
    transaction.commit();
    store.commit(Force::Clean)?;
    fill_slots(&store)?;
    for (replica, label) in labels.iter().enumerate() {
        for addr in Geometry::label_copies() {
            mirror.write_raw(replica, addr, Slice::whole(Buf::from_slice(&label.encode(addr))))?;
        }
        mirror.flush_raw(replica)?;
    }
    if mirror.members().in_sync != all.in_sync {
        return Err(StoreError::Refused("a replica failed while the volume was made on it".into()));
    }
    Ok(labels)
}

/// Everything before the first zone is allocated, and written with zeros.
fn prepare(mirror: &Mirror, geometry: &Geometry) -> Result<(), StoreError> {
    let zeros = |blocks: u64| Slice::whole(Buf::zeroed(blocks as usize * BLOCK));
    let labels = Geometry::label_copies().map(|addr| (addr, zeros(1)));
    mirror.write(labels.into())?;
    mirror.flush()?;
    mirror.allocate(0, geometry.front_blocks())?;
    let mut at = 0;
    while at < geometry.front_blocks() {
        let blocks = ZEROS.min(geometry.front_blocks() - at);
        mirror.write(vec![(at, zeros(blocks))])?;
        at += blocks;
    }
    mirror.flush()?;
    Ok(())
}

/// Write the first root to every slot: no slot is ever empty, so one that is has lost its root.
fn fill_slots(store: &Store) -> Result<(), StoreError> {
    let (first, root) = store.newest_root();
    let others = (0..ROOT_SLOTS).filter(|slot| *slot != first);
    let writes = others.map(|slot| (Root::addr(slot), Slice::whole(Buf::from_slice(&root.encode(slot)))));
    store.mirror().write(writes.collect())?;
    Ok(store.mirror().flush()?)
}

fn first_root(labels: &[Label], create: &CreateStore, world: &dyn World) -> Root {
    let now = world.now_ns().max(0) as u64;
    Root {
        volume: labels[0].volume,
        version: 0,
        txg: 0,
        mount_count: 0,
        time_ns: now,
        clean: true,
        next_ino: FIRST_INO,
        inodes: 0,
        log_id: 0,
        log_seq: 1,
        log_at: 0,
        tree: None,
        space: space::pristine_top(&create.geometry),
        backed: if create.grows { 0 } else { space::all_backed(&create.geometry) },
        grow_zone: 0,
        at_risk_since_ns: 0,
        members: labels
            .iter()
            .map(|label| Member {
                replica: label.replica,
                state: MemberState::InSync,
                role: Role::Hot,
                since_version: 1,
                since_ns: now,
                synced_txg: 0,
                synced_version: 0,
                missed: None,
                offline: false,
            })
            .collect(),
        chain: vec![Epoch { id: world.uuid(), first_version: 1 }],
        dead: Vec::new(),
    }
}
