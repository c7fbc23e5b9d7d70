//! Extended attributes and ACLs: all lengths, beside writers, in step with modes.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

on_both! {
    extended_attributes_of_all_lengths,
    acls_and_modes_stay_in_step,
}

fn extended_attributes_of_all_lengths(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    assert_eq!(errno(fs.getxattr(ino, b"user.a")), libc::ENODATA);
    for length in [0, 1, 1599, 1600, 1601, 3200, 65_536, 10] {
        let value: Vec<u8> = (0..length).map(|i| i as u8).collect();
        fs.setxattr(ino, b"user.a", &value, 0, &USER).unwrap();
        assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), value);
    }
    assert_eq!(fs.xattr_keys(ino, 100).unwrap().len(), 1);
    fs.setxattr(ino, b"user.b", b"b", XATTR_CREATE, &USER).unwrap();
    assert_eq!(errno(fs.setxattr(ino, b"user.b", b"c", XATTR_CREATE, &USER)), libc::EEXIST);
    assert_eq!(errno(fs.setxattr(ino, b"user.c", b"c", XATTR_REPLACE, &USER)), libc::ENODATA);
    assert_eq!(errno(fs.setxattr(ino, b"user.c", &[0; 65_537], 0, &USER)), libc::E2BIG);
    assert_eq!(errno(fs.setxattr(ino, b"system.other", b"", 0, &USER)), libc::EOPNOTSUPP);
    let list = fs.listxattr(ino).unwrap();
    let mut names: Vec<_> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [b"user.a", b"user.b"]);
    fs.removexattr(ino, b"user.a").unwrap();
    assert_eq!(errno(fs.removexattr(ino, b"user.a")), libc::ENODATA);
    fs.setxattr(ino, b"security.capability", b"cap", 0, &USER).unwrap();
    fs.write(ino, 0, b"x", false, true).unwrap();
    assert_eq!(fs.getxattr(ino, b"security.capability").unwrap(), b"cap");
    fs.write(ino, 0, b"x", false, false).unwrap();
    assert_eq!(errno(fs.getxattr(ino, b"security.capability")), libc::ENODATA);
    assert_eq!(fs.getxattr(ino, b"user.b").unwrap(), b"b");
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(rig.items().len(), 1);
}

/// Goal: what the kernel asks on threads that must stay free does not wait for a writer that waits for room.
#[test]
fn attributes_are_read_while_somebody_writes() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    fs.setxattr(ino, b"user.a", &[5; 5_000], 0, &USER).unwrap();
    let link = fs.symlink(ROOT_INO, b"link", b"target", &USER).unwrap().ino;
    let keys = [ino, link].map(|ino| (lock::LockKey::Inode(ino), lock::Mode::Exclusive));
    let held = fs.locks.acquire(&keys);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let answer = (fs.getxattr(ino, b"user.a"), fs.listxattr(ino), fs.readlink(link));
            sender.send(answer).unwrap();
        });
        let answer = receiver.recv_timeout(std::time::Duration::from_secs(20));
        drop(held); // or a failure would never end
        let (value, names, target) = answer.expect("an answer while the inodes are locked");
        assert_eq!(
            (value.unwrap(), names.unwrap(), target.unwrap()),
            (vec![5; 5_000], b"user.a\0".to_vec(), b"target".to_vec())
        );
    });
}

/// Goal: a value is read whole or not at all while it changes.
#[test]
fn attributes_are_read_whole_while_they_change() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    let values = [vec![1; 10_000], vec![2; 3_000], vec![3; 60_000]];
    fs.setxattr(ino, b"user.a", &values[0], 0, &USER).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..600 {
                fs.setxattr(ino, b"user.a", &values[round % 3], 0, &USER).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let value = fs.getxattr(ino, b"user.a").unwrap();
            assert!(values.contains(&value), "{} bytes", value.len());
        }
    });
}

fn acls_and_modes_stay_in_step(rig: &Rig) {
    let fs = rig.mount();
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, &USER).unwrap().ino;
    fs.setxattr(dir, ACL_DEFAULT, &named(7, 6, 5, 7, 0), 0, &USER).unwrap();
    let umask = Caller { umask: 0o777, ..USER };
    let f = fs.mknod(dir, b"f", S_IFREG | 0o666, 0, &umask).unwrap();
    assert_eq!(f.mode & 0o777, 0o660, "the default ACL counts, not the umask");
    assert_eq!(fs.getxattr(f.ino, ACL_ACCESS).unwrap(), named(6, 6, 5, 6, 0));
    let sub = fs.mkdir(dir, b"sub", 0o777, &umask).unwrap();
    assert_eq!(fs.getxattr(sub.ino, ACL_DEFAULT).unwrap(), named(7, 6, 5, 7, 0));
    let attr = fs.setattr(f.ino, &USER, &SetAttr { mode: Some(0o604), ..SetAttr::default() }).unwrap();
    assert_eq!(attr.mode & 0o777, 0o604);
    assert_eq!(fs.getxattr(f.ino, ACL_ACCESS).unwrap(), named(6, 6, 5, 0, 4));
    fs.setxattr(f.ino, ACL_ACCESS, &named(4, 7, 4, 5, 1), 0, &USER).unwrap();
    assert_eq!(fs.getattr(f.ino).unwrap().mode & 0o777, 0o451);
    assert_eq!(errno(fs.setxattr(f.ino, ACL_ACCESS, b"junk", 0, &USER)), libc::EINVAL);
    assert_eq!(errno(fs.setxattr(f.ino, ACL_DEFAULT, &named(7, 7, 7, 7, 7), 0, &USER)), libc::EACCES);
    for (groups, keeps) in [(&[][..], false), (&[7, 555][..], true), (&[7][..], false)] {
        let owner = SetAttr { gid: Some(555), mode: Some(0o2755), ..SetAttr::default() };
        fs.setattr(f.ino, &Caller::default(), &owner).unwrap();
        fs.setxattr_of_group(f.ino, ACL_ACCESS, &named(4, 7, 4, 5, 1), 0, &USER, groups).unwrap();
        assert_eq!(fs.getattr(f.ino).unwrap().mode & S_ISGID != 0, keeps, "{groups:?}");
    }
    fs.removexattr(f.ino, ACL_ACCESS).unwrap();
    fs.removexattr(f.ino, ACL_ACCESS).unwrap();
    assert_eq!(errno(fs.getxattr(f.ino, ACL_ACCESS)), libc::ENODATA);
    fs.unlink(dir, b"f").unwrap();
    fs.rmdir(dir, b"sub").unwrap();
    fs.rmdir(ROOT_INO, b"dir").unwrap();
    assert_eq!(rig.items().len(), 1);
    rig.check();
}
