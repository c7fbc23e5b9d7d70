//! What stands at a path, found without locking or changing anything.
//!
//! *Guarantees*: reads at most 1 MiB and one directory listing. *Assumes*: nothing.
//! *Fails when*: [`OpenError`]. *Order*: none.
//! *Not here*: whether to use it (`format`).

use super::opening::explain;
use super::{CONTAINER, Inspection, OpenError};
use crate::disk::backing::BackingKind;
use crate::format::{BLOCK, Geometry, Label};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes looked at for data that is not ours.
const LOOK: u64 = 1 << 20;

/// What stands at `path`, without locking or changing it. May hang with the disk.
pub fn inspect(path: &Path) -> Result<Inspection, OpenError> {
    let fail = |error: io::Error| explain(path, error);
    let canonical = std::fs::canonicalize(path).map_err(fail)?;
    let metadata = std::fs::metadata(&canonical).map_err(fail)?;
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => BackingKind::Directory,
        kind if kind.is_file() => BackingKind::File,
        kind if kind.is_block_device() => BackingKind::Device,
        _ => return Err(OpenError::WrongKind(path.to_owned())),
    };
    let is_device = kind == BackingKind::Device;
    let free_bytes = match rustix::fs::statvfs(&canonical) {
        Ok(below) if !is_device => below.f_bavail.saturating_mul(below.f_frsize),
        _ => 0,
    };
    let mut found = Inspection {
        path: canonical.clone(),
        kind,
        size_bytes: 0,
        free_bytes,
        device: if is_device { metadata.rdev() } else { metadata.dev() },
        container: kind != BackingKind::Directory,
        label: None,
        foreign: None,
    };
    if kind == BackingKind::Directory {
        let container = canonical.join(CONTAINER);
        match std::fs::symlink_metadata(&container) {
            Ok(inside) if inside.is_file() => {
                found.container = true;
                look_into(&container, &mut found, "stablefs.data holds data without a label").map_err(fail)?;
            }
            Ok(_) => return Err(OpenError::WrongKind(container)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        if let Some(other) = other_entry(&canonical).map_err(fail)? {
            found.foreign = Some(format!("is not empty (holds {other:?})"));
        }
    } else {
        look_into(&canonical, &mut found, "holds other data (the first MiB is not empty)").map_err(fail)?;
    }
    Ok(found)
}

fn other_entry(directory: &Path) -> io::Result<Option<std::ffi::OsString>> {
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name != CONTAINER && name != "lost+found" {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn look_into(path: &Path, found: &mut Inspection, foreign: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    found.size_bytes = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LOOK).read_to_end(&mut bytes)?;
    let copy = |addr: u64| {
        let at = addr as usize * BLOCK;
        bytes.get(at..at + BLOCK).and_then(|block| Label::decode(block, addr).ok())
    };
    found.label = Geometry::label_copies().into_iter().find_map(copy);
    if found.label.is_none() && bytes.iter().any(|byte| *byte != 0) {
        found.foreign = Some(foreign.to_owned());
    }
    Ok(())
}
