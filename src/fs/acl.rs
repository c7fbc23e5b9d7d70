//! POSIX ACLs: what their extended attributes mean for modes.
//!
//! *Guarantees*: a decoded ACL obeys the rules of acl(5): one owner, group and other entry, named entries in order,
//! a mask if there are named entries. *Assumes*: nothing of the bytes; they come from users and from disk.
//! *Fails when*: a rule is broken: [`FsError::Invalid`]. *Order*: none; pure functions.
//! *Not here*: checking access (the kernel), where the value stands (`xattr`).
//!
//! Value: version 2 (4 bytes), then entries of tag 2, permissions 2, id 4; little-endian.

use super::FsError;
use super::cache::XattrFacts;
use crate::format::item::{le16, le32};

/// The ACL that says who may do what.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The ACL that new files in a directory inherit.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AclEntry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid access control list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

/// What a new inode gets from its directory.
#[derive(Default)]
pub(super) struct Inherited {
    /// Its mode.
    pub mode: u32,
    /// Items of its extended attributes: (key offset, value).
    pub items: Vec<(u64, Vec<u8>)>,
    /// What is known of them.
    pub facts: XattrFacts,
}

impl Acl {
    /// Decode the value of an ACL attribute.
    ///
    /// # Errors
    /// [`FsError::Invalid`]; an ACL without entries is invalid too (setting one means removing it).
    pub fn decode(value: &[u8]) -> Result<Acl, FsError> {
        if value.len() < 4 || !(value.len() - 4).is_multiple_of(8) || le32(value, 0) != VERSION {
            return Err(FsError::Invalid);
        }
        let entry = |at| AclEntry { tag: le16(value, at), permissions: le16(value, at + 2), id: le32(value, at + 4) };
        let acl = Acl { entries: (4..value.len()).step_by(8).map(entry).collect() };
        if acl.is_valid() { Ok(acl) } else { Err(FsError::Invalid) }
    }

    /// Whether `value` is an ACL of the right version without entries.
    pub fn is_empty_value(value: &[u8]) -> bool {
        value.is_empty() || (value.len() == 4 && le32(value, 0) == VERSION)
    }

    fn is_valid(&self) -> bool {
        let ordered = self.entries.windows(2).all(|pair| pair[0].tag <= pair[1].tag);
        let known = self.entries.iter().all(|entry| {
            matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER) && entry.permissions & !7 == 0
        });
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let whole = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1) && count(MASK) <= 1;
        let masked = count(USER) + count(GROUP) == 0 || count(MASK) == 1;
        ordered && known && whole && masked
    }

    /// Encode as the value of an attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.permissions.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// Whether the mode says it all.
    pub fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine permission bits that this ACL stands for.
    pub fn mode_bits(&self) -> u32 {
        let of = |tag| self.entries.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permissions));
        let group = of(MASK).or(of(GROUP_OBJ)).unwrap_or(0);
        of(USER_OBJ).unwrap_or(0) << 6 | group << 3 | of(OTHER).unwrap_or(0)
    }

    /// Follow a chmod to `mode`: owner, mask (without one: group) and other.
    pub fn chmod(&mut self, mode: u32) {
        self.each_of_mode(|permissions, shift| *permissions = (mode >> shift & 7) as u16);
    }

    /// Turn a default ACL into the access ACL of a new inode that asked for `mode`; gives the mode it gets.
    pub fn create(&mut self, mode: u32) -> u32 {
        self.each_of_mode(|permissions, shift| *permissions &= (mode >> shift & 7) as u16);
        mode & !0o777 | self.mode_bits()
    }

    fn each_of_mode(&mut self, mut change: impl FnMut(&mut u16, u32)) {
        let group = if self.entries.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ };
        for entry in &mut self.entries {
            match entry.tag {
                USER_OBJ => change(&mut entry.permissions, 6),
                OTHER => change(&mut entry.permissions, 0),
                tag if tag == group => change(&mut entry.permissions, 3),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ACL value: owner, one named user, group, mask, other.
    pub fn named(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
        let entry = |tag, permissions, id| AclEntry { tag, permissions, id };
        let none = u32::MAX;
        let entries = vec![
            entry(USER_OBJ, owner, none),
            entry(USER, user, 1000),
            entry(GROUP_OBJ, group, none),
            entry(MASK, mask, none),
            entry(OTHER, other, none),
        ];
        Acl { entries }.encode()
    }

    #[test]
    fn modes_follow_the_mask() {
        let mut acl = Acl::decode(&named(7, 6, 5, 7, 0)).unwrap();
        assert_eq!(acl.mode_bits(), 0o770);
        assert!(!acl.is_minimal());
        acl.chmod(0o4751);
        assert_eq!(acl.encode(), named(7, 6, 5, 5, 1));
        let mut inherited = Acl::decode(&named(7, 6, 5, 7, 5)).unwrap();
        assert_eq!(inherited.create(0o100_640), 0o100_640);
        assert_eq!(inherited.encode(), named(6, 6, 5, 4, 0));
    }

    #[test]
    fn broken_lists_are_refused() {
        let good = named(7, 6, 5, 7, 0);
        for cut in 0..good.len() {
            assert!(Acl::decode(&good[..cut]).is_err(), "{cut} bytes");
        }
        for (at, value) in [(0, 3), (4, 0x40), (4, 2), (6, 8)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Acl::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Acl::is_empty_value(&good[..4]));
    }
}
