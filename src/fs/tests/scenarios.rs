//! One scenario per operation.
//!
//! Goal: each operation does what its manual page says, also when it fails, when space or a disk does, and over a power
//! cut. Method: by hand, on a store in memory and on two simulated disks ([`on_both`]), or where only one of them can.

use super::*;
use crate::format::{BLOCK, FILE_SIZE_MAX, LINK_MAX};

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $name() { super::$name(&super::Rig::memory().1) })*
        }
        mod on_disks {
            $(#[test] fn $name() { super::$name(&super::Rig::disks(1)) })*
        }
    };
}
mod attributes;
mod bytes;
mod failures;
mod names;
mod power;
mod privileges;
mod times;

const BLOCK_U64: u64 = BLOCK as u64;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn file(filesystem: &Filesystem, name: &[u8], data: &[u8]) -> u64 {
    let attr = filesystem.mknod(ROOT_INO, name, S_IFREG | 0o644, 0, &USER).unwrap();
    assert_eq!(filesystem.write(attr.ino, 0, data, false, false).unwrap(), data.len() as u32);
    attr.ino
}

fn rename(filesystem: &Filesystem, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<(), FsError> {
    filesystem.rename(from.0, from.1, to.0, to.1, flags, &USER)
}

fn resize(filesystem: &Filesystem, ino: u64, size: u64) -> Attr {
    filesystem.setattr(ino, &USER, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap()
}

fn fsync(filesystem: &Filesystem, ino: u64) {
    filesystem.fsync(ino, Box::new(|outcome| outcome.unwrap()));
}
