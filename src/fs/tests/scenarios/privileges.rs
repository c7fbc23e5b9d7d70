//! What is taken from a file that changes: set-id bits and file capabilities.

use super::*;

on_both! {
    changes_of_content_take_set_id_and_capabilities,
    changes_of_attributes_take_what_they_should,
    orders_to_take_are_judged_by_who_gives_them,
}

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };
const WEAK_ROOT: Caller = Caller { lacks_fsetid: true, ..ROOT };
const STRANGER: Caller = Caller { uid: 2000, gid: 2000, ..ROOT };
const CAPABILITY: &[u8] = b"security.capability";
const NONE: SetAttr = SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, ctime: None };

/// A change of the file.
type Deed<'a> = &'a dyn Fn(&Filesystem, u64, &Caller);

/// A file of `USER` with these mode bits and capabilities.
fn privileged(fs: &Filesystem, mode: u32) -> u64 {
    let _ = fs.unlink(ROOT_INO, b"f");
    let ino = file(fs, b"f", &[1; 9_000]);
    fs.setxattr(ino, b"user.other", b"stays", 0, &USER).unwrap();
    fs.setxattr(ino, CAPABILITY, b"cap", 0, &ROOT).unwrap();
    fs.setattr(ino, &USER, &SetAttr { mode: Some(mode), ..NONE }).unwrap();
    ino
}

/// Mode bits, and whether there are capabilities.
fn rights(fs: &Filesystem, ino: u64) -> (u32, bool) {
    assert_eq!(fs.getxattr(ino, b"user.other").unwrap(), b"stays");
    (fs.getattr(ino).unwrap().mode & 0o7777, fs.getxattr(ino, CAPABILITY).is_ok())
}

fn changes_of_content_take_set_id_and_capabilities(rig: &Rig) {
    let fs = rig.mount();
    let source = file(&fs, b"source", &[2; 5_000]);
    let told = Arc::new(crate::sync::Mutex::new(vec![]));
    let tells = Arc::clone(&told);
    fs.tell_of_modes(Box::new(move |ino| tells.lock().push(ino)));
    let write: Deed<'_> = &|fs, ino, who| {
        fs.write(ino, 100, b"new", who.takes_set_id(), false).unwrap();
    };
    let allocate: Deed<'_> = &|fs, ino, who| fs.fallocate_by(ino, 0, 20_000, 0, who).unwrap();
    let keep: Deed<'_> = &|fs, ino, who| fs.fallocate_by(ino, 0, 4096, libc::FALLOC_FL_KEEP_SIZE, who).unwrap();
    let punch: Deed<'_> = &|fs, ino, who| fs.fallocate_by(ino, 0, 4096, PUNCH, who).unwrap();
    let zero: Deed<'_> = &|fs, ino, who| fs.fallocate_by(ino, 9, 100, libc::FALLOC_FL_ZERO_RANGE, who).unwrap();
    let copy: Deed<'_> = &|fs, ino, who| {
        assert_eq!(fs.copy_file_range_by((source, 0), (ino, 0), 5_000, who).unwrap(), 5_000);
    };
    let open: Deed<'_> = &|fs, ino, who| fs.release(ino, fs.open_by(ino, libc::O_WRONLY | libc::O_TRUNC, who).unwrap());
    let create: Deed<'_> = &|fs, ino, who| {
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let (attr, handle) = fs.create(ROOT_INO, b"f", 0o600, flags, who).unwrap();
        assert_eq!(attr.ino, ino);
        fs.release(ino, handle);
    };
    let cut: Deed<'_> = &|fs, ino, who| {
        fs.setattr(ino, who, &SetAttr { size: Some(5), ..NONE }).unwrap();
    };
    let grow: Deed<'_> = &|fs, ino, who| {
        fs.setattr(ino, who, &SetAttr { size: Some(50_000), ..NONE }).unwrap();
    };
    // The answer of the last two carries the mode; of the others the kernel must be told.
    let deeds = [write, allocate, keep, punch, zero, copy, open, create, cut, grow];
    for (number, deed) in deeds.into_iter().enumerate() {
        for (mode, stripped) in [(0o6755, 0o755), (0o2745, 0o2745), (0o4711, 0o711), (0o644, 0o644)] {
            for who in [USER, STRANGER, WEAK_ROOT, ROOT] {
                let ino = privileged(&fs, mode);
                deed(&fs, ino, &who);
                let expected = if who == ROOT { mode } else { stripped };
                assert_eq!(rights(&fs, ino), (expected, false), "deed {number}, {mode:o}, {who:?}");
                let tells = if number < 8 && expected != mode { vec![ino] } else { vec![] };
                assert_eq!(std::mem::take(&mut *told.lock()), tells, "deed {number}, {mode:o}, {who:?}");
                deed(&fs, ino, &who);
                assert_eq!(rights(&fs, ino), (expected, false), "deed {number} again");
                assert!(told.lock().is_empty(), "nothing is left to be taken");
            }
        }
    }
    let ino = privileged(&fs, 0o6755);
    fs.write(ino, 0, b"late", false, true).unwrap();
    assert_eq!(rights(&fs, ino), (0o6755, true), "pages of the kernel's cache take nothing");
    fs.open_by(ino, libc::O_RDWR, &USER).unwrap();
    assert_eq!(rights(&fs, ino), (0o6755, true), "opening takes nothing");
}

fn changes_of_attributes_take_what_they_should(rig: &Rig) {
    let fs = rig.mount();
    let time = Some(TimeOrNow::Now);
    let takes = [
        SetAttr { uid: Some(5), ..NONE },
        SetAttr { gid: Some(5), ..NONE },
        SetAttr { uid: Some(USER.uid), gid: Some(USER.gid), ..NONE },
        NONE,
        SetAttr { ctime: Some(Time { sec: 9, nsec: 0 }), ..NONE },
    ];
    let leaves = [
        SetAttr { mtime: time, atime: time, ..NONE },
        SetAttr { atime: time, ..NONE },
        SetAttr { mtime: time, ctime: Some(Time { sec: 9, nsec: 0 }), ..NONE },
        SetAttr { mode: Some(0o6755), ..NONE },
    ];
    for who in [USER, ROOT, WEAK_ROOT] {
        for (wanted, all) in takes.iter().map(|wanted| (wanted, true)).chain(leaves.iter().map(|kept| (kept, false))) {
            let ino = privileged(&fs, 0o6755);
            let attr = fs.setattr(ino, &who, wanted).unwrap();
            let expected = if all { (0o755, false) } else { (0o6755, true) };
            assert_eq!(rights(&fs, ino), expected, "{wanted:?} of {who:?}");
            assert_eq!(attr.mode & 0o7777, expected.0, "the answer says so");
        }
    }
    let ino = privileged(&fs, 0o6745);
    fs.setattr(ino, &ROOT, &SetAttr { gid: Some(5), ..NONE }).unwrap();
    assert_eq!(rights(&fs, ino), (0o2745, false), "set-group-id is no right where the group may not execute");
    let ino = privileged(&fs, 0o6755);
    fs.setattr(ino, &ROOT, &SetAttr { uid: Some(5), mode: Some(0o4755), ..NONE }).unwrap();
    assert_eq!(rights(&fs, ino), (0o4755, false), "a mode that comes along is the last word");
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o6777, &USER).unwrap().ino;
    for wanted in [NONE, SetAttr { gid: Some(5), ..NONE }] {
        fs.setattr(dir, &USER, &wanted).unwrap();
        assert_eq!(fs.getattr(dir).unwrap().mode & 0o7777, 0o6777, "directories keep everything");
    }
}

/// A SETATTR that sets nothing: chown to -1 and -1, or what the kernel sends ahead of a write.
fn orders_to_take_are_judged_by_who_gives_them(rig: &Rig) {
    let fs = rig.mount();
    let ino = privileged(&fs, 0o6755);
    assert_eq!(errno(fs.setattr(ino, &STRANGER, &NONE)), libc::EPERM, "chown by a stranger");
    assert_eq!(rights(&fs, ino), (0o6755, true));
    let plain = privileged(&fs, 0o755);
    fs.setattr(plain, &STRANGER, &NONE).expect("chown that takes nothing");
    let reads = |fs: &Filesystem, ino| fs.open_by(ino, libc::O_RDONLY, &STRANGER).unwrap();
    let writes = |fs: &Filesystem, ino| fs.open_by(ino, libc::O_WRONLY, &STRANGER).unwrap();
    let cases =
        [(STRANGER, (0o6755, true)), (USER, (0o755, false)), (WEAK_ROOT, (0o755, false)), (ROOT, (0o6755, false))];
    for (who, expected) in cases {
        let ino = privileged(&fs, 0o6755);
        let handles = [reads(&fs, ino), writes(&fs, ino)];
        fs.setattr(ino, &who, &NONE).unwrap();
        assert_eq!(rights(&fs, ino), expected, "ahead of a write by {who:?}");
        for handle in handles {
            fs.release(ino, handle);
        }
        if who == STRANGER {
            let _reader = reads(&fs, ino);
            assert_eq!(errno(fs.setattr(ino, &who, &NONE)), libc::EPERM, "nobody can write it");
        }
    }
}
