//! Names whose hashes are equal.
//!
//! Method: a volume gets its hash key from its world, and this world always says the same one. For that key two pairs of
//! names with one hash were found by trying 2^29 of them; the checker recomputes every hash, so it judges, too. The hashes
//! of extended attributes are shorter, and collisions of them are found here.

use super::BLOCKS;
use super::core::Core;
use super::place::{Errno, Place, Usual, at, refused};
use stablefs::format::item::name_cookie_base;
use stablefs::world::{Seeded, World};
use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const KEY: [u64; 2] = [0x5eed, 0x0c01_11de];
const PAIRS: [[&str; 2]; 2] = [["01c3825d", "0c2a36ae"], ["09210efd", "0c32d7cf"]];

/// A seeded world in which the two random numbers after the first identity are [`KEY`].
struct Keyed {
    seeded: Seeded,
    asked: AtomicU64,
}

impl World for Keyed {
    fn now_ns(&self) -> i64 {
        self.seeded.now_ns()
    }
    fn random(&self) -> u64 {
        match self.asked.fetch_add(1, Ordering::Relaxed) {
            index @ 2..4 => KEY[index as usize - 2],
            _ => self.seeded.random(),
        }
    }
}

fn keyed() -> Core {
    let core = Core::in_world(BLOCKS, |seed| Arc::new(Keyed { seeded: Seeded::new(seed), asked: AtomicU64::new(0) }));
    assert_eq!(core.store.label().hash_key, KEY, "a volume draws its key elsewhere now: adapt `Keyed`");
    for [one, other] in PAIRS {
        assert_eq!(name_cookie_base(KEY, one.as_bytes()), name_cookie_base(KEY, other.as_bytes()));
    }
    core
}

/// Goal: names that share a hash are different names for every call, and a listing shows each of them once, wherever it stops.
#[test]
fn names_with_one_hash_are_different_names() {
    let core = keyed();
    let place: &dyn Place = &core;
    for [one, other] in PAIRS {
        place.make(one, b"one");
        refused(place.stat(other), Errno::NOENT);
        refused(place.unlink(other), Errno::NOENT);
        refused(place.rename(other, "x", 0), Errno::NOENT);
        place.mkdir(other, 0o755).unwrap();
        assert_eq!(place.content(one), b"one");
        refused(place.mkdir(one, 0o755), Errno::EXIST);
        refused(place.rmdir(one), Errno::NOTDIR);
        refused(place.unlink(other), Errno::ISDIR);
        refused(place.rename(one, other, 0), Errno::ISDIR);
        // One goes, and the other one keeps its place, with another one beside it again.
        let folder = place.open(".", libc::O_RDONLY, 0).unwrap();
        let kept = place.list_from(folder, 0).into_iter().find(|entry| entry.name == other).unwrap();
        place.unlink(one).unwrap();
        refused(place.stat(one), Errno::NOENT);
        assert!(place.list_from(folder, 0).contains(&kept));
        place.rename(other, one, 0).unwrap();
        refused(place.stat(other), Errno::NOENT);
        place.make(other, b"other");
        place.rename(one, other, libc::RENAME_EXCHANGE).unwrap();
        assert_eq!((place.content(one), place.names(other)), (b"other".to_vec(), vec![]));
        core.check();
        // A name in place of the one that has its hash.
        place.rmdir(other).unwrap();
        place.make(other, b"new");
        place.rename(one, other, 0).unwrap();
        assert_eq!(place.content(other), b"other");
        refused(place.stat(one), Errno::NOENT);
        place.link(other, one).unwrap();
        assert_eq!(place.stat(one).unwrap().nlink, 2);
        place.rename(one, other, 0).unwrap();
        place.rename(one, "aside", libc::RENAME_WHITEOUT).unwrap();
        place.rename("aside", one, 0).unwrap();
        place.close(folder);
        core.check();
    }
    // Stopped and resumed at every entry, and with any of them gone meanwhile.
    let folder = place.open(".", libc::O_RDONLY, 0).unwrap();
    let all = place.list_from(folder, 0);
    assert_eq!(all.len(), 4);
    for (index, entry) in all.iter().enumerate() {
        assert_eq!(place.list_from(folder, entry.cookie), all[index + 1..]);
        let path = at(folder, &entry.name);
        place.rename(&path, "away", 0).unwrap();
        let rest = place.list_from(folder, entry.cookie);
        assert_eq!(rest.iter().filter(|entry| entry.name != "away").cloned().collect::<Vec<_>>(), all[index + 1..]);
        place.rename("away", &path, 0).unwrap();
    }
    place.close(folder);
    core.check();
}

/// Three names of extended attributes with one hash.
fn attribute_names() -> [String; 3] {
    let mut seen: HashMap<u64, Vec<u32>> = HashMap::new();
    for index in 0.. {
        let name = format!("user.{index}");
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(KEY[0], KEY[1]);
        hasher.write(name.as_bytes());
        let same = seen.entry(hasher.finish() >> 33).or_default();
        same.push(index);
        if let [a, b, c] = same[..] {
            return [a, b, c].map(|index| format!("user.{index}"));
        }
    }
    unreachable!("some are found after a few millions")
}

/// Goal: the same for extended attributes, of any length.
#[test]
fn attributes_with_one_hash_are_different_attributes() {
    let core = keyed();
    let place: &dyn Place = &core;
    place.make("file", b"");
    let names = attribute_names();
    let value = |index: usize, length: usize| vec![index as u8 + 1; length];
    for lengths in [[1, 2, 3], [10_000, 0, 5000], [0, 9000, 1]] {
        for (index, name) in names.iter().enumerate() {
            refused(place.attribute("file", name), Errno::NODATA);
            refused(place.remove_attribute("file", name), Errno::NODATA);
            refused(place.set_attribute("file", name, b"x", libc::XATTR_REPLACE), Errno::NODATA);
            place.set_attribute("file", name, &value(index, lengths[index]), libc::XATTR_CREATE).unwrap();
        }
        let mut sorted = names.to_vec();
        sorted.sort();
        assert_eq!(place.attributes("file").unwrap(), sorted);
        place.remove_attribute("file", &names[1]).unwrap();
        for index in [0, 2] {
            assert_eq!(place.attribute("file", &names[index]).unwrap(), value(index, lengths[index]));
        }
        refused(place.attribute("file", &names[1]), Errno::NODATA);
        place.set_attribute("file", &names[0], b"shorter", libc::XATTR_REPLACE).unwrap();
        place.set_attribute("file", &names[1], &value(1, 20_000), 0).unwrap();
        assert_eq!(place.attribute("file", &names[0]).unwrap(), b"shorter");
        assert_eq!(place.attribute("file", &names[1]).unwrap(), value(1, 20_000));
        assert_eq!(place.attribute("file", &names[2]).unwrap(), value(2, lengths[2]));
        core.check();
        names.iter().for_each(|name| place.remove_attribute("file", name).unwrap());
    }
    place.unlink("file").unwrap();
    core.check();
}
