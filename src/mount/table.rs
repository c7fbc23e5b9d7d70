//! The kernel's table of mounts, as this process sees it.
//!
//! *Guarantees*: reads `/proc/self/mountinfo` only; no filesystem in the table is touched, so that a mount whose daemon
//! hangs or is dead can be found. *Assumes*: `/proc` is mounted. *Fails when*: `/proc` cannot be read.
//! *Order*: none. *Not here*: mounting and unmounting.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The kernel's number of this mount; used again only after it is gone.
    pub id: u64,
    /// Device of the filesystem: `(major, minor)`.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub path: PathBuf,
    /// Flags of this mount, as in `rw,nosuid`.
    pub options: String,
    /// Type with subtype, as in `fuse.stablefs`.
    pub kind: String,
    /// What is mounted there, as the mounter named it.
    pub source: OsString,
    /// Options of the filesystem, as in `rw,user_id=0,group_id=0`.
    pub super_options: String,
}

impl Entry {
    /// Whether this is a filesystem in user space.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }

    /// User that mounted it (FUSE only).
    pub fn owner(&self) -> Option<u32> {
        self.super_options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    }
}

/// All mounts, oldest first for each place.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(entries(&std::fs::read("/proc/self/mountinfo")?))
}

/// The entries of a table; lines that are none are left out.
pub fn entries(table: &[u8]) -> Vec<Entry> {
    table.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// The topmost mount exactly at `path`.
pub fn at<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    entries.iter().rev().find(|entry| entry.path == path)
}

/// The mount that `path` (absolute) lies in.
pub fn containing<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    path.ancestors().find_map(|ancestor| at(entries, ancestor))
}

/// One line: `id parent major:minor root path options [optional fields] - kind source super-options`.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let _parent = fields.next()?;
    let device = text(fields.next()?);
    let (major, minor) = device.split_once(':')?;
    let _root = fields.next()?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = text(fields.next()?);
    fields.find(|field| *field == b"-")?;
    Some(Entry {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        path,
        options,
        kind: text(&unescape(fields.next()?)),
        source: OsString::from_vec(unescape(fields.next()?)),
        super_options: fields.next().map(text).unwrap_or_default(),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Undo the kernel's `\ooo` for blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// `path` made absolute without looking at the filesystem: `.` and `..` and double slashes are resolved as text.
pub fn lexical(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut out = PathBuf::from("/");
    for part in absolute.components() {
        match part {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    debug_assert!(out.as_os_str().as_bytes().starts_with(b"/"));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        br"812 29 0:57 / /mnt/my\040disk\134x rw,nosuid,nodev - fuse.stablefs /a:/b\054c rw,user_id=1000,group_id=100";

    #[test]
    fn a_line_is_taken_apart() {
        let entry = parse(LINE).unwrap();
        assert_eq!((entry.id, entry.device), (812, (0, 57)));
        assert_eq!(entry.path, Path::new("/mnt/my disk\\x"));
        assert_eq!((entry.kind.as_str(), entry.owner()), ("fuse.stablefs", Some(1000)));
        assert_eq!(entry.source, "/a:/b,c");
        assert!(entry.is_fuse());
    }

    #[test]
    fn optional_fields_are_skipped_and_junk_is_not_an_entry() {
        let line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue";
        assert_eq!(parse(line).unwrap().kind, "ext3");
        assert!(parse(b"").is_none());
        assert!(parse(b"36 35 98 /mnt1").is_none());
    }

    #[test]
    fn the_last_mount_at_a_place_is_on_top() {
        let mut below = parse(LINE).unwrap();
        below.path = "/m".into();
        let above = Entry { id: 900, ..below.clone() };
        let entries = [below, above];
        assert_eq!(at(&entries, Path::new("/m")).unwrap().id, 900);
        assert_eq!(containing(&entries, Path::new("/m/deep/file")).unwrap().id, 900);
        assert!(containing(&entries, Path::new("/mm")).is_none());
    }

    #[test]
    fn the_table_of_this_machine_has_a_root() {
        assert!(at(&read().unwrap(), Path::new("/")).is_some());
    }

    #[test]
    fn paths_are_normalised_as_text() {
        assert_eq!(lexical(Path::new("/a//b/../c/./")).unwrap(), Path::new("/a/c"));
    }
}
