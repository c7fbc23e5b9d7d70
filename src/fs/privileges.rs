//! What a change of content or owner takes from a file: set-user-id, set-group-id, file capabilities.
//!
//! *Guarantees*: the kernel leaves this to us (`FUSE_HANDLE_KILLPRIV_V2`), whole. A file that is written, cut, allocated,
//! copied to or given to another owner has no `security.capability` afterwards, whoever did it. It loses set-user-id, and
//! set-group-id if its group may execute it, when its owner changes and when somebody without CAP_FSETID changes its
//! content. Where the answer does not carry the new mode, the kernel is told to forget the old one before it gets the answer:
//! it would execute by it. What a file has not costs a look at memory and no more.
//! *Assumes*: the kernel says of each write whether it takes (not of fallocate and copy: [`Caller::takes_set_id`]). A
//! SETATTR that sets nothing is chown to -1 and -1, by anybody, or comes ahead of a write, fallocate or copy by somebody
//! who has the file open for writing. Of the owner it takes in either case. Of root it does so unless it can be the second and root has
//! CAP_FSETID: then the file has capabilities, and they alone go. A stranger's is refused unless it can be the second, and then
//! the change itself takes. Pages written through a mapping take nothing, as on any filesystem of Linux, nor do late pages
//! of the kernel's cache.
//! *Fails when*: the items cannot be read, or no room is left for a change.
//! *Order*: the caller holds the inode exclusively; the kernel is told after the commit.
//! *Not here*: who has CAP_FSETID (`fuse`); ACLs, which take set-group-id by rules of their own (`xattr`).

use super::attributes::XattrChange;
use super::cache::Entry;
use super::lock::Held;
use super::{Caller, Filesystem, FsError, S_ISGID, S_ISUID, SetAttr};
use crate::format::{Inode, Key};
use crate::store::Need;
use std::sync::Arc;

/// Whose presence makes set-group-id a right: execution by the group.
const GROUP_EXECUTES: u32 = 0o010;

/// Told of an inode whose mode is no longer what the kernel was told last.
pub type ModeTold = Box<dyn Fn(u64) + Send + Sync>;

/// `mode` without set-user-id, and without set-group-id if the group may execute.
fn stripped(mode: u32) -> u32 {
    let mode = mode & !S_ISUID;
    if mode & GROUP_EXECUTES == 0 { mode } else { mode & !S_ISGID }
}

/// Take the set-id bits. Whether there were any.
pub(super) fn take_set_id(inode: &mut Inode) -> bool {
    let before = inode.mode;
    inode.mode = stripped(before);
    inode.mode != before
}

impl Caller {
    /// Whether a file loses its set-id bits when this caller changes its content. Of a user other than root nobody tells
    /// us whether he has CAP_FSETID: then rather too often than too seldom.
    pub(super) fn takes_set_id(&self) -> bool {
        self.uid != 0 || self.lacks_fsetid
    }
}

impl SetAttr {
    /// Whether nothing is set, but for the change time perhaps.
    pub(crate) fn sets_nothing(&self) -> bool {
        *self == SetAttr { ctime: self.ctime, ..SetAttr::default() }
    }
}

/// What a change of attributes takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub set_id: bool,
    pub capability: bool,
}

impl Taken {
    /// What `wanted` of `caller` takes from `inode`. `may_write`: somebody has it open for writing.
    pub(super) fn by(wanted: &SetAttr, caller: &Caller, inode: &Inode, may_write: bool) -> Result<Taken, FsError> {
        if wanted.size.is_some() {
            return Ok(Taken { set_id: caller.takes_set_id(), capability: true });
        }
        if inode.is_dir() {
            return Ok(Taken::default());
        }
        if wanted.uid.is_some() || wanted.gid.is_some() {
            // A mode that comes along is the last word: kernels that know nothing of all this send it.
            return Ok(Taken { set_id: wanted.mode.is_none(), capability: true });
        }
        if !wanted.sets_nothing() {
            return Ok(Taken::default());
        }
        if caller.uid == 0 || caller.uid == inode.uid {
            return Ok(Taken { set_id: !may_write || caller.takes_set_id(), capability: true });
        }
        if may_write || stripped(inode.mode) == inode.mode {
            return Ok(Taken::default());
        }
        Err(FsError::NotPermitted)
    }
}

impl Filesystem {
    /// From now on `tell` is called where a mode changed and the answer does not say so.
    pub fn tell_of_modes(&self, tell: ModeTold) {
        *self.mode_told.lock() = Some(tell);
    }

    /// The mode of `ino` is no longer what the kernel believes.
    pub(super) fn mode_taken(&self, ino: u64) {
        if let Some(tell) = &*self.mode_told.lock() {
            tell(ino);
        }
    }

    /// Keys of the file capabilities of `entry`, to be deleted.
    pub(super) fn capability_to_take(&self, entry: &Arc<Entry>) -> Result<Vec<Key>, FsError> {
        if self.facts(entry)?.capability { self.capability_keys(entry.ino) } else { Ok(vec![]) }
    }

    /// Take from a file what a change of its content takes, ahead of that change.
    pub(super) fn take_privileges(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        inode: &Inode,
        caller: &Caller,
    ) -> Result<(), FsError> {
        let xattrs = XattrChange { put: vec![], delete: self.capability_to_take(entry)? };
        let takes_set_id = caller.takes_set_id() && stripped(inode.mode) != inode.mode;
        if xattrs.delete.is_empty() && !takes_set_id {
            return Ok(());
        }
        let need = Need { items: 1 + xattrs.len(), data_blocks: 0, may_use_reserve: true };
        let now = self.store.now();
        self.change(held, need, &[entry], |change| {
            xattrs.apply(change, entry.ino);
            let inode = change.inode(entry.ino)?;
            inode.ctime = now;
            if takes_set_id {
                take_set_id(inode);
            }
            Ok(())
        })?;
        if takes_set_id {
            self.mode_taken(entry.ino);
        }
        Ok(())
    }
}
