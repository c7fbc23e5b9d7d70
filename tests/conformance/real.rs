//! A real directory: ours on a mount, or ext4's.

use super::place::{Entry, Errno, Handle, Kind, Moment, Place, Result, Stat, When, Who};
use rustix::fs::{
    Advice, AtFlags, CWD, Dev, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags,
    Timespec, Timestamps, Uid, XattrFlags,
};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A directory of our own on a filesystem of the machine.
pub struct Real {
    folder: PathBuf,
    kind: Kind,
    open: Mutex<HashMap<Handle, Arc<OwnedFd>>>,
    next: AtomicU64,
}

/// A directory to begin at, and the path from there.
struct Start(Option<Arc<OwnedFd>>, PathBuf);

impl Start {
    fn folder(&self) -> BorrowedFd<'_> {
        self.0.as_ref().map_or(CWD, |folder| folder.as_fd())
    }
}

impl Real {
    pub fn new(folder: &Path, kind: Kind) -> Real {
        Real { folder: folder.to_owned(), kind, open: Mutex::default(), next: AtomicU64::new(1) }
    }

    /// The path of a file for programs and calls that the trait does not have.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub fn file(&self, handle: Handle) -> Arc<OwnedFd> {
        Arc::clone(&self.open.lock().unwrap()[&handle])
    }

    fn start(&self, path: &str) -> Start {
        match path.strip_prefix('#').and_then(|rest| rest.split_once('/')) {
            Some((handle, name)) => Start(Some(self.file(handle.parse().unwrap())), name.into()),
            None => Start(None, self.path(path)),
        }
    }
}

/// This thread becomes `who`, for good.
fn put_on(who: &Who) {
    #![allow(unsafe_code)]
    use rustix::thread::{UnshareFlags, set_thread_gid, set_thread_groups, set_thread_uid, unshare_unsafe};
    // The umask is the process's otherwise. SAFETY: shares less with other threads, which name no descriptors by it.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
    rustix::process::umask(Mode::from_raw_mode(who.umask));
    if who.uid != 0 {
        set_thread_groups(&who.groups.iter().map(|group| Gid::from_raw(*group)).collect::<Vec<_>>()).unwrap();
        set_thread_gid(Gid::from_raw(who.gid)).unwrap();
        set_thread_uid(Uid::from_raw(who.uid)).unwrap();
    }
}

fn moment(time: rustix::fs::StatxTimestamp) -> Moment {
    (time.tv_sec, time.tv_nsec)
}

fn shown(stat: &rustix::fs::Statx) -> Stat {
    Stat {
        ino: stat.stx_ino,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: moment(stat.stx_atime),
        mtime: moment(stat.stx_mtime),
        ctime: moment(stat.stx_ctime),
    }
}

/// What the kernel says without asking, and what it says when it must ask: there may be no difference.
fn looked(folder: BorrowedFd<'_>, path: &Path, flags: AtFlags, kind: Kind) -> Result<Stat> {
    let look = |how: AtFlags| rustix::fs::statx(folder, path, flags | how, StatxFlags::BASIC_STATS);
    let held = look(AtFlags::empty())?;
    let asked = look(AtFlags::STATX_FORCE_SYNC)?;
    let (mut held, asked) = (shown(&held), shown(&asked));
    if kind == Kind::Writeback {
        held.blocks = asked.blocks; // those of pages that are held back are nobody's yet
    }
    assert_eq!(held, asked, "{}: what the kernel holds is not what is", path.display());
    Ok(asked)
}

fn when(time: When) -> Timespec {
    match time {
        When::At((sec, nsec)) => Timespec { tv_sec: sec, tv_nsec: nsec.into() },
        When::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        When::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    }
}

/// A value of unknown length, from a call that is told where to put it and how much room is there.
fn whole(get: impl Fn(*mut u8, usize) -> isize) -> Result<Vec<u8>> {
    let get = |out: &mut [u8]| match get(out.as_mut_ptr(), out.len()) {
        count @ 0.. => Ok(count as usize),
        _ => Err(last_error()),
    };
    let length = get(&mut [])?;
    let mut value = vec![0; length];
    if length > 0 {
        assert_eq!(get(&mut value)?, length, "a value has the length that it says");
        assert_eq!(get(&mut vec![0; length + 100])?, length);
        if length > 1 {
            assert_eq!(get(&mut vec![0; length - 1]), Err(Errno::RANGE), "a byte too little");
        }
    }
    Ok(value)
}

fn text(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

impl Place for Real {
    fn kind(&self) -> Kind {
        self.kind
    }
    fn size_max(&self) -> u64 {
        const EXT4_BLOCKS_MAX: u64 = u32::MAX as u64;
        if self.kind == Kind::Ext4 { EXT4_BLOCKS_MAX * 4096 } else { stablefs::format::FILE_SIZE_MAX }
    }
    fn tick(&self) {
        std::thread::sleep(Duration::from_millis(11)); // a jiffy at 100 Hz
    }
    fn act(&self, who: &Who, deed: &mut (dyn FnMut() + Send)) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                put_on(who);
                deed();
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn open(&self, path: &str, flags: i32, mode: u32) -> Result<Handle> {
        let start = self.start(path);
        let flags = OFlags::from_bits_retain(flags as u32) | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(start.folder(), &start.1, flags, Mode::from_raw_mode(mode))?;
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, Arc::new(file));
        Ok(handle)
    }
    fn close(&self, handle: Handle) {
        self.open.lock().unwrap().remove(&handle).unwrap();
    }
    fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; length];
        let count = rustix::io::pread(&*self.file(handle), &mut out, offset)?;
        out.truncate(count);
        Ok(out)
    }
    fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<usize> {
        rustix::io::pwrite(&*self.file(handle), data, offset)
    }
    fn fsync(&self, handle: Handle) -> Result<()> {
        rustix::fs::fsync(&*self.file(handle))
    }
    fn forget(&self, handle: Handle) {
        let file = self.file(handle);
        let _ = rustix::fs::fsync(&*file); // dirty pages are not given up; the handle may not be one that can
        rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
    }
    fn seek(&self, handle: Handle, offset: u64, whence: i32) -> Result<u64> {
        let whence = if whence == libc::SEEK_DATA { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        rustix::fs::seek(&*self.file(handle), whence)
    }
    fn allocate(&self, handle: Handle, mode: i32, offset: u64, length: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        rustix::fs::fallocate(&*self.file(handle), mode, offset, length)
    }
    fn copy(&self, from: (Handle, u64), to: (Handle, u64), length: usize) -> Result<usize> {
        let (mut off_in, mut off_out) = (from.1, to.1);
        let files = (self.file(from.0), self.file(to.0));
        rustix::fs::copy_file_range(&*files.0, Some(&mut off_in), &*files.1, Some(&mut off_out), length)
    }
    fn resize(&self, handle: Handle, size: u64) -> Result<()> {
        rustix::fs::ftruncate(&*self.file(handle), size)
    }
    fn resize_path(&self, path: &str, size: u64) -> Result<()> {
        #![allow(unsafe_code)]
        let path = text(&self.path(path));
        // SAFETY: a path that ends in a NUL; rustix has no truncate(2).
        let done = unsafe { libc::truncate(path.as_ptr(), size as i64) };
        if done == 0 { Ok(()) } else { Err(last_error()) }
    }
    fn stat(&self, path: &str) -> Result<Stat> {
        let start = self.start(path);
        looked(start.folder(), &start.1, AtFlags::SYMLINK_NOFOLLOW, self.kind)
    }
    fn stat_open(&self, handle: Handle) -> Result<Stat> {
        looked(self.file(handle).as_fd(), Path::new(""), AtFlags::EMPTY_PATH, self.kind)
    }

    fn mkdir(&self, path: &str, mode: u32) -> Result<()> {
        let start = self.start(path);
        rustix::fs::mkdirat(start.folder(), &start.1, Mode::from_raw_mode(mode))
    }
    fn mknod(&self, path: &str, mode: u32, device: u64) -> Result<()> {
        let start = self.start(path);
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode));
        rustix::fs::mknodat(start.folder(), &start.1, kind, mode, device as Dev)
    }
    fn symlink(&self, target: &str, path: &str) -> Result<()> {
        let start = self.start(path);
        rustix::fs::symlinkat(target, start.folder(), &start.1)
    }
    fn readlink(&self, path: &str) -> Result<String> {
        let start = self.start(path);
        Ok(rustix::fs::readlinkat(start.folder(), &start.1, vec![])?.into_string().unwrap())
    }
    fn link(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.start(from), self.start(to));
        rustix::fs::linkat(from.folder(), &from.1, to.folder(), &to.1, AtFlags::empty())
    }
    fn link_open(&self, handle: Handle, to: &str) -> Result<()> {
        use std::os::fd::AsRawFd;
        let to = self.start(to);
        let from = format!("/proc/self/fd/{}", self.file(handle).as_raw_fd());
        rustix::fs::linkat(CWD, from, to.folder(), &to.1, AtFlags::SYMLINK_FOLLOW)
    }
    fn unlink(&self, path: &str) -> Result<()> {
        let start = self.start(path);
        rustix::fs::unlinkat(start.folder(), &start.1, AtFlags::empty())
    }
    fn rmdir(&self, path: &str) -> Result<()> {
        let start = self.start(path);
        rustix::fs::unlinkat(start.folder(), &start.1, AtFlags::REMOVEDIR)
    }
    fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (from, to) = (self.start(from), self.start(to));
        let flags = RenameFlags::from_bits_retain(flags);
        rustix::fs::renameat_with(from.folder(), &from.1, to.folder(), &to.1, flags)
    }
    fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        let start = self.start(path);
        rustix::fs::chmodat(start.folder(), &start.1, Mode::from_raw_mode(mode), AtFlags::empty())
    }
    fn chown(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let start = self.start(path);
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(start.folder(), &start.1, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }
    fn utimes(&self, path: &str, atime: When, mtime: When) -> Result<()> {
        let start = self.start(path);
        let times = Timestamps { last_access: when(atime), last_modification: when(mtime) };
        rustix::fs::utimensat(start.folder(), &start.1, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
    fn list(&self, handle: Handle, cookie: u64) -> Result<Vec<Entry>> {
        let file = self.file(handle);
        rustix::fs::seek(&*file, SeekFrom::Start(cookie))?;
        let mut space = [MaybeUninit::uninit(); 512];
        let mut raw = rustix::fs::RawDir::new(&*file, &mut space);
        let mut found = vec![];
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_str().unwrap().to_owned();
            found.push(Entry { name, ino: entry.ino(), cookie: entry.next_entry_cookie() });
            if raw.is_buffer_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn set_attribute(&self, path: &str, name: &str, value: &[u8], flags: i32) -> Result<()> {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        rustix::fs::lsetxattr(self.path(path), name, value, flags)
    }
    fn attribute(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        let (path, name) = (text(&self.path(path)), std::ffi::CString::new(name).unwrap());
        whole(|out, length| {
            #[allow(unsafe_code)]
            // SAFETY: two texts and the room that is told; rustix keeps the size of an empty buffer to itself.
            unsafe {
                libc::lgetxattr(path.as_ptr(), name.as_ptr(), out.cast(), length)
            }
        })
    }
    fn attributes(&self, path: &str) -> Result<Vec<String>> {
        let path = text(&self.path(path));
        let all = whole(|out, length| {
            #[allow(unsafe_code)]
            // SAFETY: as above.
            unsafe {
                libc::llistxattr(path.as_ptr(), out.cast(), length)
            }
        })?;
        let names = all.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
        // What a security module of this machine adds is not ours.
        names.retain(|name| name != "security.selinux");
        names.sort();
        Ok(names)
    }
    fn remove_attribute(&self, path: &str, name: &str) -> Result<()> {
        rustix::fs::lremovexattr(self.path(path), name)
    }
}

/// errno of the last call of libc.
pub fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap())
}
