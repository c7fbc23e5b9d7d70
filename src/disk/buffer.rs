//! Memory that the kernel can move to and from a disk without copying.
//!
//! *Guarantees*: a [`Buf`] begins at a multiple of 4096 and its length is one, as O_DIRECT wants. A [`Slice`] is
//! frozen: nobody can change its bytes while any I/O still owns it (trap 9).
//! *Assumes*: the allocator honours alignment.
//! *Fails when*: memory runs out: the process aborts, as for every other allocation.
//! *Order*: none.
//! *Not here*: pools, limits on memory (`store`).
#![allow(unsafe_code)]

use crate::format::BLOCK;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Heap memory aligned to 4096 bytes; its length is a multiple of 4096.
pub struct Buf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: `Buf` owns its allocation alone; access follows the usual borrow rules through `Deref`.
unsafe impl Send for Buf {}
// SAFETY: as above; `&Buf` gives only `&[u8]`.
unsafe impl Sync for Buf {}

impl Buf {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK).expect("a buffer is smaller than the address space")
    }

    /// `len` zero bytes.
    ///
    /// # Panics
    /// If `len` is not a multiple of 4096: our bug.
    pub fn zeroed(len: usize) -> Buf {
        assert_eq!(len % BLOCK, 0, "buffers are whole blocks");
        if len == 0 {
            return Buf { start: NonNull::<u8>::dangling(), len };
        }
        let layout = Buf::layout(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Buf { start, len }
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn from_slice(bytes: &[u8]) -> Buf {
        let mut buf = Buf::zeroed(bytes.len().next_multiple_of(BLOCK));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    /// Whole blocks that it holds.
    pub fn blocks(&self) -> usize {
        self.len / BLOCK
    }

    /// The bytes of block `index`.
    pub fn block(&self, index: usize) -> &[u8] {
        &self[index * BLOCK..(index + 1) * BLOCK]
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes (or dangling with length 0) for the life of `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with the same layout and not freed before.
            unsafe { dealloc(self.start.as_ptr(), Buf::layout(self.len)) }
        }
    }
}

impl Clone for Buf {
    fn clone(&self) -> Buf {
        Buf::from_slice(self)
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// A frozen, block-aligned part of a shared buffer.
#[derive(Clone)]
pub struct Slice {
    buf: Arc<Buf>,
    start: usize,
    len: usize,
}

impl Slice {
    /// `len` bytes of `buf` from byte `start`.
    ///
    /// # Panics
    /// If the part is not whole blocks inside the buffer: our bug.
    pub fn new(buf: Arc<Buf>, start: usize, len: usize) -> Slice {
        assert!(start.is_multiple_of(BLOCK), "slices begin at a block");
        assert!(len.is_multiple_of(BLOCK), "slices are whole blocks");
        assert!(start.checked_add(len).is_some_and(|end| end <= buf.len()), "slices stay inside their buffer");
        Slice { buf, start, len }
    }

    /// All of `buf`.
    pub fn whole(buf: Buf) -> Slice {
        let len = buf.len();
        Slice::new(Arc::new(buf), 0, len)
    }

    /// `len` bytes from byte `start` of this slice, without copying.
    ///
    /// # Panics
    /// If the part is not whole blocks inside the slice: our bug.
    pub fn part(&self, start: usize, len: usize) -> Slice {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "parts stay inside their slice");
        Slice::new(self.buf.clone(), self.start + start, len)
    }

    /// Whole blocks that it holds.
    pub fn blocks(&self) -> u64 {
        (self.len / BLOCK) as u64
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_padded_and_zero() {
        let buf = Buf::from_slice(&[7; 5000]);
        assert_eq!(buf.len(), 2 * BLOCK);
        assert_eq!(buf.as_ptr() as usize % BLOCK, 0);
        assert_eq!(&buf[4999..5001], &[7, 0]);
        assert!(Buf::zeroed(0).is_empty());
    }

    #[test]
    fn slices_share_and_part() {
        let mut buf = Buf::zeroed(4 * BLOCK);
        buf[2 * BLOCK] = 9;
        let slice = Slice::whole(buf).part(BLOCK, 2 * BLOCK);
        assert_eq!(slice.blocks(), 2);
        assert_eq!(slice.part(BLOCK, BLOCK)[0], 9);
    }

    #[test]
    #[should_panic(expected = "inside")]
    fn a_slice_cannot_leave_its_buffer() {
        Slice::new(Arc::new(Buf::zeroed(BLOCK)), BLOCK, BLOCK);
    }
}
