//! Who holds the lock of a backing that is in use: a daemon that is about to let go, or one that stays.
//!
//! *Guarantees*: nobody is asked, nothing is held. *Assumes*: `/proc` is mounted; the backing answered just now.
//! *Fails when*: the holder cannot be seen (another namespace's): then it stays.
//! *Order*: the one that ends takes another name; `/proc/locks` says which process holds the lock, and that its name.
//! *Not here*: waiting for it (`volume`).
//!
//! `umount(8)` returns before the daemon has written its last commit; whoever then opens the volume again means the one
//! that comes after.

use super::{CONTAINER, inspect};
use crate::disk::backing::BackingKind;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Name of a process that ends; 15 bytes at most.
const ENDING: &str = "stablefs-ending";

/// Process that holds the backing at `path` and serves no mount any more.
pub fn ending_holder(path: &Path) -> Option<u32> {
    let found = inspect(path).ok()?;
    let place = if found.kind == BackingKind::Directory { found.path.join(CONTAINER) } else { found.path };
    let inode = fs::metadata(place).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holders(&locks, inode).into_iter().find(|process| is_ending(*process))
}

/// Processes that hold a lock on a file of this number. Its device is not compared: filesystems show another one here.
fn holders(locks: &str, inode: u64) -> Vec<u32> {
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "FLOCK")?;
        let (process, place) = (words.get(at + 3)?, words.get(at + 4)?);
        let number = place.rsplit(':').next()?.parse::<u64>().ok()?;
        if number == inode { process.parse().ok() } else { None }
    };
    locks.lines().filter_map(holder).collect()
}

fn is_ending(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim_end() == ENDING)
}

/// This process serves no mount any more, and is about to let go of its backings.
pub fn say_ending() {
    let _ = fs::write("/proc/self/comm", ENDING); // whoever comes next is refused at once then
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_by_the_number_of_the_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 31481 fe:00:5628005 0 EOF\n2: POSIX  ADVISORY  WRITE 7 fe:00:5628005 0 EOF\n\
            2: -> FLOCK  ADVISORY  READ 9 00:1b:5628005 0 EOF\n3: FLOCK  ADVISORY  READ 31 fe:00:17 0 EOF\n";
        assert_eq!(holders(locks, 5_628_005), [31_481, 9]);
        assert_eq!(holders(locks, 1), [0; 0]);
    }
}
