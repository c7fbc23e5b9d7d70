//! Set-id bits and file capabilities, which the kernel leaves to the daemon: taken as ext4 takes them.

use super::bed::{Bed, can_mount_as_root};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, StatxFlags, Uid, XattrFlags, chownat, copy_file_range, fallocate,
    ftruncate, getxattr, open, setxattr, statfs, statx,
};
use rustix::io::{Errno, pwrite};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::os::fd::OwnedFd;
use std::path::Path;

const OWNER: u32 = 1234;
const GROUP: u32 = 4321;
const CAPABILITY: &str = "security.capability";
/// cap_net_raw+ep
const RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Owner,
    Stranger,
    WeakRoot,
    Root,
}

impl Who {
    /// The calling thread becomes this one, for good.
    fn put_on(self) {
        let user = |uid, gid, groups: &[Gid]| {
            set_thread_groups(groups).expect("groups");
            set_thread_gid(Gid::from_raw(gid)).expect("a group");
            set_thread_uid(Uid::from_raw(uid)).expect("a user");
        };
        match self {
            Who::Owner => user(OWNER, GROUP, &[Gid::from_raw(GROUP + 1)]),
            Who::Stranger => user(65_534, 65_534, &[]),
            Who::WeakRoot => {
                let mut sets = capabilities(None).expect("capabilities");
                sets.effective.remove(CapabilitySet::FSETID);
                set_capabilities(None, sets).expect("fewer capabilities");
            }
            Who::Root => {}
        }
    }
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Write,
    Append,
    Direct,
    Truncate,
    OpenTruncating,
    Create,
    Allocate,
    Keep,
    Punch,
    Zero,
    Copy,
    Chgrp,
    ChownToSame,
    ChownToNothing,
    Look,
}

const DEEDS: [Deed; 15] = [
    Deed::Write,
    Deed::Append,
    Deed::Direct,
    Deed::Truncate,
    Deed::OpenTruncating,
    Deed::Create,
    Deed::Allocate,
    Deed::Keep,
    Deed::Punch,
    Deed::Zero,
    Deed::Copy,
    Deed::Chgrp,
    Deed::ChownToSame,
    Deed::ChownToNothing,
    Deed::Look,
];

impl Deed {
    fn is_chown(self) -> bool {
        matches!(self, Deed::Chgrp | Deed::ChownToSame | Deed::ChownToNothing)
    }

    fn run(self, folder: &Path) -> Result<(), Errno> {
        let path = folder.join("file");
        let opened = |flags| open(&path, flags, Mode::from_raw_mode(0o600));
        let allocated = |flags| fallocate(opened(OFlags::WRONLY)?, flags, 0, 8192);
        let chown = |uid: Option<u32>, gid: Option<u32>| {
            chownat(CWD, &path, uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::empty())
        };
        let cut = OFlags::WRONLY | OFlags::TRUNC;
        let closed = |_: OwnedFd| ();
        match self {
            Deed::Write => pwrite(opened(OFlags::WRONLY)?, b"x", 0).map(|_| ()),
            Deed::Append => pwrite(opened(OFlags::WRONLY | OFlags::APPEND)?, b"x", 0).map(|_| ()),
            Deed::Direct => {
                let space = vec![7; 8192];
                let at = space.as_ptr().align_offset(4096);
                pwrite(opened(OFlags::WRONLY | OFlags::DIRECT)?, &space[at..at + 4096], 0).map(|_| ())
            }
            Deed::Truncate => ftruncate(opened(OFlags::WRONLY)?, 5),
            Deed::OpenTruncating => opened(cut).map(closed),
            Deed::Create => opened(cut | OFlags::CREATE).map(closed),
            Deed::Allocate => allocated(FallocateFlags::empty()),
            Deed::Keep => allocated(FallocateFlags::KEEP_SIZE),
            Deed::Punch => allocated(FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE),
            Deed::Zero => allocated(FallocateFlags::ZERO_RANGE),
            Deed::Copy => {
                let from = open(folder.join("source"), OFlags::RDONLY, Mode::empty())?;
                copy_file_range(from, None, opened(OFlags::WRONLY)?, None, 100).map(|_| ())
            }
            Deed::Chgrp => chown(None, Some(GROUP + 1)),
            Deed::ChownToSame => chown(Some(OWNER), Some(GROUP)),
            Deed::ChownToNothing => chown(None, None),
            Deed::Look => opened(OFlags::RDWR).map(closed),
        }
    }
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    outcome: Result<(), Errno>,
    /// Mode bits, asked for alone: what the kernel holds must have been given up, whatever else it asks for anew.
    mode: u16,
    capability: bool,
}

/// Let `who` do `deed` to a new file in `folder`.
fn done(folder: &Path, mode: u32, capability: bool, who: Who, deed: Deed) -> Seen {
    let path = folder.join("file");
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, [1; 9000]).unwrap();
    let (owner, group) = (Some(Uid::from_raw(OWNER)), Some(Gid::from_raw(GROUP)));
    chownat(CWD, &path, owner, group, AtFlags::empty()).unwrap();
    if capability {
        setxattr(&path, CAPABILITY, &RAW, XattrFlags::empty()).unwrap();
    }
    rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).unwrap();
    let shown = || statx(CWD, &path, AtFlags::empty(), StatxFlags::MODE).unwrap().stx_mode & 0o7777;
    assert_eq!(u32::from(shown()), mode);
    let outcome = std::thread::scope(|scope| {
        let deed = scope.spawn(|| {
            who.put_on();
            deed.run(folder)
        });
        deed.join().unwrap()
    });
    let mode = shown();
    assert_eq!(rustix::fs::stat(&path).unwrap().st_mode & 0o7777, u32::from(mode), "{who:?} {deed:?}");
    let mut value = [0; 64];
    Seen { outcome, mode, capability: getxattr(&path, CAPABILITY, &mut value).is_ok() }
}

/// By the manual: chown(2), write(2), truncate(2), capabilities(7).
fn expected(mode: u32, capability: bool, who: Who, deed: Deed) -> Seen {
    let user = matches!(who, Who::Owner | Who::Stranger);
    let bits = if mode & 0o010 == 0 { mode & !0o4000 } else { mode & !0o6000 };
    let outcome = match deed {
        _ if who != Who::Stranger => Ok(()),
        Deed::Chgrp | Deed::ChownToSame => Err(Errno::PERM),
        Deed::ChownToNothing if bits != mode => Err(Errno::PERM),
        Deed::ChownToNothing => Ok(()),
        _ if mode & 0o002 == 0 => Err(Errno::ACCESS),
        _ => Ok(()),
    };
    let takes = outcome.is_ok() && deed != Deed::Look;
    let takes_bits = takes && (deed.is_chown() || user || who == Who::WeakRoot);
    Seen { outcome, mode: (if takes_bits { bits } else { mode }) as u16, capability: capability && !takes }
}

fn all_are_taken(options: &str) {
    const EXT4: i64 = 0xef53;
    let bed = Bed::formatted("64M");
    bed.mount(options).ok();
    let beside = bed.path().join("beside");
    std::fs::create_dir(&beside).unwrap();
    let mode = |path: &Path| rustix::fs::chmod(path, Mode::from_raw_mode(0o755)).unwrap();
    [bed.path(), &bed.mnt, &beside].into_iter().for_each(mode);
    for folder in [&bed.mnt, &beside] {
        std::fs::write(folder.join("source"), [2; 100]).unwrap();
    }
    let compares = statfs(&beside).unwrap().f_type as i64 == EXT4;
    println!("compared with ext4: {compares}");
    for (mode, capability) in [
        (0o6755, false),
        (0o6777, false),
        (0o2745, false),
        (0o4766, false),
        (0o755, true),
        (0o777, true),
        (0o6775, true),
    ] {
        for who in [Who::Owner, Who::Stranger, Who::WeakRoot, Who::Root] {
            for deed in DEEDS {
                // SEMANTICS says in what ext4 differs: set-group-id that is no right, of those outside the group; and
                // the kernel takes a capability before we can refuse.
                let outsider = matches!(who, Who::Stranger | Who::WeakRoot) && mode & 0o2010 == 0o2000;
                if who == Who::Stranger && deed == Deed::ChownToNothing && capability && mode & 0o6000 != 0 {
                    continue;
                }
                let case = format!("{who:?} {deed:?} {mode:o} {capability}");
                let seen = done(&bed.mnt, mode, capability, who, deed);
                assert_eq!(seen, expected(mode, capability, who, deed), "{case}");
                if compares && !outsider {
                    assert_eq!(seen, done(&beside, mode, capability, who, deed), "ext4: {case}");
                }
            }
        }
    }
    bed.umount_and_check();
}

/// Goal: whoever changes a file takes the rights of those who execute it, at once, as on ext4.
#[test]
fn set_id_bits_and_capabilities_are_taken_as_by_ext4() {
    // SEMANTICS: NS-6
    if !can_mount_as_root("to act as other users") {
        return;
    }
    all_are_taken("");
}

/// Goal: the same with the kernel's writeback cache.
#[test]
fn set_id_bits_and_capabilities_are_taken_with_the_writeback_cache() {
    if !can_mount_as_root("to act as other users") {
        return;
    }
    all_are_taken("writeback");
}

/// Goal: a program that a stranger has written to is not executed with its owner's rights, also where nobody has looked
/// at its attributes since.
#[test]
fn a_program_that_was_written_to_has_no_rights_left() {
    if !can_mount_as_root("to act as other users") {
        return;
    }
    let bed = Bed::mounted("64M");
    bed.open_to_others();
    rustix::fs::chmod(&bed.mnt, Mode::from_raw_mode(0o755)).unwrap();
    let path = bed.at("id");
    let user_of = || {
        let said = std::thread::scope(|scope| {
            let runs = scope.spawn(|| {
                Who::Stranger.put_on();
                std::process::Command::new(&path).arg("-u").output()
            });
            runs.join().unwrap().expect("id")
        });
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    std::fs::copy("/usr/bin/id", &path).unwrap();
    chownat(CWD, &path, Some(Uid::from_raw(OWNER)), None, AtFlags::empty()).unwrap();
    rustix::fs::chmod(&path, Mode::from_raw_mode(0o4777)).unwrap();
    assert_eq!(user_of(), OWNER.to_string(), "set-user-id works");
    let magic = *b"\x7fELF";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            Who::Stranger.put_on();
            let file = open(&path, OFlags::WRONLY, Mode::empty()).unwrap();
            pwrite(file, &magic, 0).unwrap();
        });
    });
    assert_eq!(user_of(), "65534", "it is somebody else's program now");
    bed.umount_and_check();
}
