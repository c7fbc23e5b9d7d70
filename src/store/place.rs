//! Write-out: pages get their place on disk, in large sequential runs.
//!
//! *Guarantees*: a page becomes `Placed` only after every replica in sync has taken its bytes, and only if nobody
//! replaced it meanwhile. *Assumes*: the place lock is held, so that no page is written twice.
//! *Fails when*: no block is left, or no replica takes writes; pages stay pages.
//! *Order*: place lock, then space, then shards. *Not here*: flushing (log and commit do that).

use super::delta::Group;
use super::space::{Class, Span};
use super::{Store, StoreError, add_signed};
use crate::disk::buffer::Slice;
use crate::sync::MutexGuard;

/// Blocks in one batch: 8 MiB.
const BATCH: usize = 2048;

/// A page to be placed.
pub struct PageToPlace {
    ino: u64,
    block: u64,
    page: Slice,
    serial: u64,
}

impl Store {
    /// Place the pages of the files `inos` (in that order) of `group`; those that `keep` wants in memory stay.
    pub(crate) fn place_files(
        &self,
        _held: &MutexGuard<'_, ()>,
        group: &Group,
        inos: &[u64],
        keep: &dyn Fn(u64, u64) -> bool,
    ) -> Result<u64, StoreError> {
        let mut batch: Vec<PageToPlace> = Vec::new();
        let mut total = 0;
        for &ino in inos {
            let mut from = 0;
            loop {
                let pages = group.pages_of(ino, from, BATCH - batch.len());
                let Some(last) = pages.last().map(|p| p.0) else { break };
                from = last + 1;
                let wanted = pages.into_iter().filter(|(block, ..)| !keep(ino, *block));
                batch.extend(wanted.map(|(block, page, serial)| PageToPlace { ino, block, page, serial }));
                if batch.len() >= BATCH {
                    total += self.place_batch(group, std::mem::take(&mut batch))?;
                }
            }
        }
        Ok(total + self.place_batch(group, batch)?)
    }

    fn place_batch(&self, group: &Group, batch: Vec<PageToPlace>) -> Result<u64, StoreError> {
        if batch.is_empty() {
            return Ok(0);
        }
        let mut addrs = Vec::with_capacity(batch.len());
        while addrs.len() < batch.len() {
            let want = (batch.len() - addrs.len()) as u32;
            match self.space.alloc(&self.mirror, Class::Data, want) {
                Ok(span) => addrs.extend(span.addr..span.addr + u64::from(span.blocks)),
                Err(error) => {
                    for addr in addrs {
                        self.space.forget(&self.mirror, Span { addr, blocks: 1 })?;
                    }
                    return Err(error);
                }
            }
        }
        let sums: Vec<u32> =
            batch.iter().zip(&addrs).map(|(p, addr)| self.seed.checksum(*addr, &p.page) as u32).collect();
        let writes = batch.iter().zip(&addrs).map(|(p, addr)| (*addr, p.page.clone())).collect();
        if let Err(error) = self.mirror.write(writes) {
            // Whatever reached a disk stands on blocks that nothing names; they stay busy until the next mount.
            return Err(error.into());
        }
        let mut placed = 0;
        for ((page, addr), sum) in batch.iter().zip(addrs).zip(sums) {
            if group.page_placed(page.ino, page.block, page.serial, addr, sum) {
                placed += 1;
            }
        }
        add_signed(&self.pages, -placed);
        self.signal_room();
        Ok(placed as u64)
    }

    /// One round of background write-out: place what the open group holds, largest files first.
    pub fn place_step(&self) -> Result<u64, StoreError> {
        let held = self.place_lock.lock();
        let group = self.view().current.clone();
        let mut files: Vec<(u64, u64)> = group.files().into_iter().filter(|(_, pages)| *pages > 1).collect();
        files.sort_unstable_by_key(|(_, pages)| std::cmp::Reverse(*pages));
        let mut inos = Vec::new();
        let mut pages = 0;
        for (ino, count) in files {
            inos.push(ino);
            pages += count;
            if pages >= 2 * BATCH as u64 {
                break;
            }
        }
        if inos.is_empty() {
            // Only small files: the commit places them.
            self.engine.want_commit();
            return Ok(0);
        }
        let placed = self.place_files(&held, &group, &inos, &|_, _| false)?;
        if group.placed.load(crate::sync::atomic::Ordering::Relaxed) > self.options.placed_max {
            self.engine.want_commit();
        }
        Ok(placed)
    }
}
