//! What the filesystem asks of the store.
//!
//! *Guarantees*: [`StoreApi`] is the store's contract, method for method, so that `fs` runs on the real store and,
//! in tests, on a map.
//! *Assumes*: a transaction joins the open group as a whole when it is committed, and not at all when it is dropped.
//! Reads see every committed transaction.
//! *Fails when*: the store says so: [`StoreError`].
//! *Order*: the store knows no locks of ours; `begin` may wait for room, `commit` never waits.
//! *Not here*: how any of it is done (`store`).

use crate::disk::buffer::Slice;
use crate::format::Key;
use crate::format::item::Time;
use crate::store::{Need, SpaceInfo, Store, StoreError, Transaction, Value};
use std::ops::Range;

/// Called once with the outcome of an fsync.
pub type Synced = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The store, as the filesystem sees it.
pub trait StoreApi: Send + Sync {
    /// Key of the hash of names.
    fn hash_key(&self) -> [u64; 2];
    /// Wall clock.
    fn now(&self) -> Time;
    /// How often the volume has been mounted.
    fn mount_count(&self) -> u64;
    /// The item at `key`.
    fn get(&self, key: Key) -> Result<Option<Value>, StoreError>;
    /// At most `max` items from `from` up to `end` (exclusive), rising.
    fn scan(&self, from: Key, end: Key, max: usize) -> Result<Vec<(Key, Value)>, StoreError>;
    /// Bytes of a file from `offset`; holes are zeros; knows nothing of the size.
    fn read_file(&self, ino: u64, offset: u64, out: &mut [u8]) -> Result<(), StoreError>;
    /// Full pages that hold `data` at `offset`, edges merged with what is there.
    fn prepare_pages(&self, ino: u64, offset: u64, data: &[u8]) -> Result<Vec<(u64, Slice)>, StoreError>;
    /// First file block at or after `block` that is not a hole.
    fn next_data(&self, ino: u64, block: u64) -> Result<Option<u64>, StoreError>;
    /// First file block at or after `block` that is a hole.
    fn next_hole(&self, ino: u64, block: u64) -> Result<u64, StoreError>;
    /// Blocks that the file occupies.
    fn file_blocks(&self, ino: u64) -> Result<u64, StoreError>;
    /// Whether all content of `ino` can be given up at once.
    fn probe_content(&self, ino: u64) -> Result<(), StoreError> {
        let _ = ino;
        Ok(())
    }
    /// Start a transaction; may wait for room.
    fn begin(&self, need: Need) -> Result<Box<dyn TransactionApi + '_>, StoreError>;
    /// As [`StoreApi::begin`], for data of `blocks` of file `ino`: also on a full volume, if each of them has an address
    /// of its own, written or set aside.
    fn begin_write(&self, need: Need, ino: u64, blocks: Range<u64>)
    -> Result<Box<dyn TransactionApi + '_>, StoreError>;
    /// Make all metadata and the data of `ino` durable; `done` is called when that is so.
    fn fsync(&self, ino: u64, done: Synced);
    /// Make everything durable.
    fn sync(&self) -> Result<(), StoreError>;
    /// Room.
    fn space(&self) -> SpaceInfo;
    /// An inode number that was never handed out.
    fn new_ino(&self) -> u64;
}

/// One atomic change.
pub trait TransactionApi {
    /// Set an item.
    fn put(&mut self, key: Key, value: Vec<u8>);
    /// Remove an item.
    fn delete(&mut self, key: Key);
    /// Set whole file blocks. `size_before`: size of the file before this change, in bytes; `u64::MAX`: it does not
    /// grow by them.
    fn write_pages(&mut self, ino: u64, pages: Vec<(u64, Slice)>, size_before: u64);
    /// The file gets `size` bytes; `edges` are whole blocks that are zeros from its old or new end on.
    fn resize(&mut self, ino: u64, size: u64, edges: Vec<(u64, Slice)>);
    /// Make file blocks `first..end` a hole.
    fn punch(&mut self, ino: u64, first: u64, end: u64);
    /// Turn what is a hole now among `blocks` blocks from `first` into reserved blocks. May read the disk.
    fn reserve(&mut self, ino: u64, first: u64, blocks: u64) -> Result<(), StoreError>;
    /// Change the number of inodes.
    fn count_inodes(&mut self, change: i64);
    /// Whether the change can be applied. May read the disk; nothing has changed if it fails.
    fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }
    /// As [`TransactionApi::prepare`], without the disk; `None`: something would have to be read.
    fn prepare_in_memory(&self) -> Option<Result<(), StoreError>> {
        Some(self.prepare())
    }
    /// Forget what was filled in, but not what was reserved.
    fn clear(&mut self);
    /// Join the open group.
    fn commit(self: Box<Self>);
}

impl StoreApi for Store {
    fn hash_key(&self) -> [u64; 2] {
        self.label().hash_key
    }
    fn now(&self) -> Time {
        self.world().now()
    }
    fn mount_count(&self) -> u64 {
        Store::mount_count(self)
    }
    fn get(&self, key: Key) -> Result<Option<Value>, StoreError> {
        Store::get(self, key)
    }
    fn scan(&self, from: Key, end: Key, max: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        Store::scan(self, from, end, max)
    }
    fn read_file(&self, ino: u64, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        Store::read_file(self, ino, offset, out)
    }
    fn prepare_pages(&self, ino: u64, offset: u64, data: &[u8]) -> Result<Vec<(u64, Slice)>, StoreError> {
        Store::prepare_pages(self, ino, offset, data)
    }
    fn next_data(&self, ino: u64, block: u64) -> Result<Option<u64>, StoreError> {
        Store::next_data(self, ino, block)
    }
    fn next_hole(&self, ino: u64, block: u64) -> Result<u64, StoreError> {
        Store::next_hole(self, ino, block)
    }
    fn file_blocks(&self, ino: u64) -> Result<u64, StoreError> {
        Store::file_blocks(self, ino)
    }
    fn probe_content(&self, ino: u64) -> Result<(), StoreError> {
        Store::probe_content(self, ino)
    }
    fn begin(&self, need: Need) -> Result<Box<dyn TransactionApi + '_>, StoreError> {
        Ok(Box::new(Store::begin(self, need)?))
    }
    fn begin_write(
        &self,
        need: Need,
        ino: u64,
        blocks: Range<u64>,
    ) -> Result<Box<dyn TransactionApi + '_>, StoreError> {
        Ok(Box::new(Store::begin_write(self, need, ino, blocks)?))
    }
    fn fsync(&self, ino: u64, done: Synced) {
        Store::fsync(self, ino, done);
    }
    fn sync(&self) -> Result<(), StoreError> {
        Store::sync(self)
    }
    fn space(&self) -> SpaceInfo {
        Store::space(self)
    }
    fn new_ino(&self) -> u64 {
        Store::new_ino(self)
    }
}

impl TransactionApi for Transaction<'_> {
    fn put(&mut self, key: Key, value: Vec<u8>) {
        Transaction::put(self, key, value);
    }
    fn delete(&mut self, key: Key) {
        Transaction::delete(self, key);
    }
    fn write_pages(&mut self, ino: u64, pages: Vec<(u64, Slice)>, size_before: u64) {
        Transaction::write_pages(self, ino, pages, size_before);
    }
    fn resize(&mut self, ino: u64, size: u64, edges: Vec<(u64, Slice)>) {
        Transaction::resize(self, ino, size, edges);
    }
    fn punch(&mut self, ino: u64, first: u64, end: u64) {
        Transaction::punch(self, ino, first, end);
    }
    fn reserve(&mut self, ino: u64, first: u64, blocks: u64) -> Result<(), StoreError> {
        Transaction::reserve(self, ino, first, blocks)
    }
    fn count_inodes(&mut self, change: i64) {
        Transaction::count_inodes(self, change);
    }
    fn prepare(&self) -> Result<(), StoreError> {
        Transaction::prepare(self)
    }
    fn prepare_in_memory(&self) -> Option<Result<(), StoreError>> {
        Transaction::prepare_in_memory(self)
    }
    fn clear(&mut self) {
        Transaction::clear(self);
    }
    fn commit(self: Box<Self>) {
        Transaction::commit(*self);
    }
}
