//! Names that come, move and go, and what is open meanwhile.

use super::place::{Errno, Place, Usual, at, refused};
use std::collections::{BTreeMap, BTreeSet};

const RDWR: i32 = libc::O_RDWR;
const FOLDER: i32 = libc::O_RDONLY | libc::O_DIRECTORY;

pub fn an_open_file_without_a_name(place: &dyn Place) {
    place.make("file", b"content");
    let file = place.open("file", RDWR, 0).unwrap();
    let ino = place.stat("file").unwrap().ino;
    place.unlink("file").unwrap();
    assert!(!place.exists("file"));
    assert_eq!(place.stat_open(file).unwrap().nlink, 0);
    assert_eq!(place.stat_open(file).unwrap().ino, ino);
    place.write_all(file, 3, &[b'x'; 10_000]);
    place.fsync(file).unwrap();
    assert_eq!(place.read(file, 0, 5).unwrap(), b"conxx");
    place.resize(file, 4).unwrap();
    place.allocate(file, 0, 0, 100_000).unwrap();
    assert_eq!(place.stat_open(file).unwrap().size, 100_000);
    assert_eq!(place.read(file, 2, 4).unwrap(), b"nx\0\0");
    refused(place.link_open(file, "back"), Errno::NOENT);
    place.make("file", b"another");
    assert_ne!(place.stat("file").unwrap().ino, ino);
    assert_eq!(place.read(file, 0, 4).unwrap(), b"conx");
    place.close(file);
    assert_eq!((place.content("file"), place.names(".")), (b"another".to_vec(), vec!["file".to_owned()]));
}

pub fn an_open_file_that_is_replaced(place: &dyn Place) {
    place.make("old", b"old");
    place.make("new", b"new");
    let (old, new) = (place.open("old", RDWR, 0).unwrap(), place.open("new", RDWR, 0).unwrap());
    place.rename("new", "old", 0).unwrap();
    assert_eq!((place.stat_open(old).unwrap().nlink, place.stat_open(new).unwrap().nlink), (0, 1));
    place.write_all(old, 3, b"er");
    place.write_all(new, 3, b"er");
    assert_eq!(place.read(old, 0, 10).unwrap(), b"older");
    assert_eq!(place.content("old"), b"newer");
    refused(place.link_open(old, "back"), Errno::NOENT);
    place.link_open(new, "again").unwrap();
    assert_eq!(place.stat("old").unwrap().nlink, 2);
    place.close(old);
    place.close(new);
    assert_eq!(place.names("."), ["again", "old"]);
}

pub fn an_open_directory_that_is_removed(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    place.make("file", b"");
    let folder = place.open("folder", FOLDER, 0).unwrap();
    place.make(&at(folder, "entry"), b"");
    assert!(place.exists("folder/entry"));
    place.unlink(&at(folder, "entry")).unwrap();
    place.rmdir("folder").unwrap();
    assert_eq!(place.stat_open(folder).unwrap().nlink, 0);
    refused(place.open(&at(folder, "new"), libc::O_CREAT | RDWR, 0o600), Errno::NOENT);
    refused(place.mkdir(&at(folder, "new"), 0o755), Errno::NOENT);
    refused(place.mknod(&at(folder, "new"), libc::S_IFIFO | 0o600, 0), Errno::NOENT);
    refused(place.symlink("x", &at(folder, "new")), Errno::NOENT);
    refused(place.link("file", &at(folder, "new")), Errno::NOENT);
    refused(place.rename("file", &at(folder, "new"), 0), Errno::NOENT);
    refused(place.stat(&at(folder, "entry")), Errno::NOENT);
    // Its place is free for another one.
    place.mkdir("folder", 0o755).unwrap();
    place.make("folder/other", b"");
    refused(place.stat(&at(folder, "other")), Errno::NOENT);
    assert!(place.list(folder, 0).is_err() || place.list_from(folder, 0).is_empty());
    place.close(folder);
}

pub fn an_open_directory_that_is_replaced(place: &dyn Place) {
    place.mkdir("old", 0o755).unwrap();
    place.mkdir("new", 0o755).unwrap();
    place.make("new/entry", b"");
    let folder = place.open("old", FOLDER, 0).unwrap();
    place.rename("new", "old", 0).unwrap();
    assert_eq!(place.stat_open(folder).unwrap().nlink, 0);
    refused(place.mkdir(&at(folder, "x"), 0o755), Errno::NOENT);
    assert_eq!(place.names("old"), ["entry"]);
    place.close(folder);
}

pub fn exchanges(place: &dyn Place) {
    const EXCHANGE: u32 = libc::RENAME_EXCHANGE;
    place.mkdir("folder", 0o755).unwrap();
    place.mkdir("folder/below", 0o755).unwrap();
    place.mkdir("other", 0o755).unwrap();
    place.make("other/file", b"content");
    let (file, below) = (place.stat("other/file").unwrap().ino, place.stat("folder/below").unwrap().ino);
    place.rename("folder/below", "other/file", EXCHANGE).unwrap();
    assert_eq!((place.stat("folder/below").unwrap().ino, place.stat("other/file").unwrap().ino), (file, below));
    assert_eq!(place.content("folder/below"), b"content");
    assert_eq!((place.stat("folder").unwrap().nlink, place.stat("other").unwrap().nlink), (2, 3));
    refused(place.rename("folder/below", "other/none", EXCHANGE), Errno::NOENT);
    refused(place.rename("other/none", "folder/below", EXCHANGE), Errno::NOENT);
    place.symlink("x", "symlink").unwrap();
    place.rename("symlink", "folder", EXCHANGE).unwrap();
    assert_eq!((place.readlink("folder").unwrap(), place.names("symlink")), ("x".into(), vec!["below".to_owned()]));
}

pub fn hard_links(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    place.make("a", b"1");
    place.link("a", "folder/b").unwrap();
    place.symlink("a", "s").unwrap();
    place.link("s", "folder/s").unwrap();
    assert_eq!(place.readlink("folder/s").unwrap(), "a", "the link itself has another name");
    let ino = place.stat("a").unwrap().ino;
    assert_eq!((place.stat("folder/b").unwrap().ino, place.stat("folder/b").unwrap().nlink), (ino, 2));
    let file = place.open("folder/b", RDWR, 0).unwrap();
    place.write_all(file, 1, b"23");
    place.close(file);
    assert_eq!(place.content("a"), b"123");
    // Two names of one file: rename(2) does nothing, with success.
    place.rename("a", "folder/b", 0).unwrap();
    place.rename("a", "folder/b", libc::RENAME_EXCHANGE).unwrap();
    assert!(place.exists("a") && place.exists("folder/b"));
    place.unlink("a").unwrap();
    assert_eq!(place.stat("folder/b").unwrap().nlink, 1);
    place.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    place.link("fifo", "folder/fifo").unwrap();
    assert_eq!(place.stat("fifo").unwrap().nlink, 2);
}

pub fn links_of_directories(place: &dyn Place) {
    let links = |path: &str| place.stat(path).unwrap().nlink;
    place.mkdir("a", 0o755).unwrap();
    place.mkdir("b", 0o755).unwrap();
    for index in 0..5 {
        place.mkdir(&format!("a/{index}"), 0o755).unwrap();
        place.make(&format!("b/{index}"), b"");
    }
    assert_eq!((links("a"), links("b")), (7, 2));
    place.rename("a/0", "b/moved", 0).unwrap();
    assert_eq!((links("a"), links("b")), (6, 3));
    place.rename("a/1", "a/2", 0).unwrap();
    assert_eq!(links("a"), 5);
    place.rename("a/3", "b/moved", 0).unwrap();
    assert_eq!((links("a"), links("b")), (4, 3));
    place.rename("a/4", "b/4", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((links("a"), links("b")), (3, 4));
    place.rmdir("b/moved").unwrap();
    assert_eq!(links("b"), 3);
}

/// What overlayfs wants of an upper layer.
pub fn whiteouts(place: &dyn Place) {
    const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
    place.mkdir("folder", 0o755).unwrap();
    place.make("file", b"content");
    place.make("folder/target", b"target");
    let is_whiteout = |path: &str| {
        let stat = place.stat(path).unwrap();
        stat.mode & libc::S_IFMT == libc::S_IFCHR && stat.rdev == 0 && stat.nlink == 1
    };
    place.rename("file", "folder/target", WHITEOUT).unwrap();
    assert!(is_whiteout("file") && place.content("folder/target") == b"content");
    place.rename("folder", "moved", WHITEOUT).unwrap();
    assert!(is_whiteout("folder") && place.names("moved") == ["target"]);
    refused(place.rename("moved", "file", WHITEOUT | libc::RENAME_NOREPLACE), Errno::EXIST);
    place.rename("moved", "back", WHITEOUT | libc::RENAME_NOREPLACE).unwrap();
    assert!(is_whiteout("moved"));
    // A whiteout moves as anything else, and can be made by hand.
    place.rename("file", "elsewhere", 0).unwrap();
    place.mknod("made", libc::S_IFCHR | 0o600, 0).unwrap();
    assert!(is_whiteout("elsewhere") && is_whiteout("made"));
    for (name, value) in [("trusted.overlay.opaque", &b"y"[..]), ("trusted.overlay.redirect", &b"/x"[..])] {
        place.set_attribute("back", name, value, 0).unwrap();
        assert_eq!(place.attribute("back", name).unwrap(), value);
    }
    for name in ["folder", "moved", "elsewhere", "made"] {
        place.unlink(name).unwrap();
    }
    assert_eq!(place.names("."), ["back"]);
}

/// What stays is listed exactly once, whatever comes and goes meanwhile; a place in the list can be gone back to.
pub fn listed_while_names_come_and_go(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    let stays = |index: usize| format!("folder/a name that stays {index}");
    let goes = |index: usize| format!("folder/a name that goes {index}");
    for index in 0..150 {
        place.make(&stays(index), b"");
        place.make(&goes(index), b"");
    }
    let folder = place.open("folder", FOLDER, 0).unwrap();
    let (mut seen, mut places, mut cookie, mut round) = (BTreeMap::<String, usize>::new(), vec![], 0, 0);
    loop {
        let some = place.list(folder, cookie).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        places.push(cookie);
        for entry in some {
            *seen.entry(entry.name).or_default() += 1;
        }
        if round < 140 {
            place.unlink(&goes(round)).unwrap();
            place.make(&format!("folder/a name that comes {round}"), b"");
            place.rename(&goes(149 - round / 2), &goes(149 - round / 2), 0).unwrap_or(());
            if round % 2 == 0 {
                place.rename(&stays(round), "away", 0).unwrap();
                place.rename("away", &stays(round), 0).unwrap();
            }
        }
        round += 1;
    }
    for (name, times) in &seen {
        // A name that was taken away and put back is another entry to POSIX: it may be seen twice, or not.
        let moved = (0..round.min(140)).step_by(2).any(|index| stays(index).ends_with(&format!("/{name}")));
        assert!(*times == 1 || moved, "{name}: {times} times");
    }
    for index in (0..150).filter(|index| index % 2 == 1 || *index >= round.min(140)) {
        assert!(seen.contains_key(stays(index).strip_prefix("folder/").unwrap()), "{}", stays(index));
    }
    // Each place leads to the same rest, also after the entry before it has gone.
    let middle = places[places.len() / 2];
    let rest: BTreeSet<String> = place.list_from(folder, middle).into_iter().map(|entry| entry.name).collect();
    let kept: Vec<&String> = rest.iter().filter(|name| name.contains("stays")).collect();
    assert!(!kept.is_empty());
    for name in rest.iter().filter(|name| !name.contains("stays")) {
        place.unlink(&format!("folder/{name}")).unwrap();
    }
    let again: BTreeSet<String> = place.list_from(folder, middle).into_iter().map(|entry| entry.name).collect();
    assert_eq!(again.iter().collect::<Vec<_>>(), kept);
    place.close(folder);
}

pub fn many_names(place: &dyn Place) {
    const COUNT: usize = 3000;
    place.mkdir("folder", 0o755).unwrap();
    for index in 0..COUNT {
        let path = format!("folder/{index}{}", "x".repeat(index % 200));
        if index.is_multiple_of(3) { place.mkdir(&path, 0o755).unwrap() } else { place.make(&path, b"") }
    }
    let folder = place.open("folder", FOLDER, 0).unwrap();
    let found = place.list_from(folder, 0);
    assert_eq!(found.len(), COUNT);
    assert_eq!(found.iter().map(|entry| &entry.name).collect::<BTreeSet<_>>().len(), COUNT);
    assert_eq!(found.iter().map(|entry| entry.cookie).collect::<BTreeSet<_>>().len(), COUNT);
    for entry in found.iter().step_by(97) {
        assert_eq!(place.stat(&at(folder, &entry.name)).unwrap().ino, entry.ino);
    }
    assert_eq!(place.stat("folder").unwrap().nlink, 2 + COUNT.div_ceil(3) as u64);
    refused(place.rmdir("folder"), Errno::NOTEMPTY);
    // Removing what was just listed, as `rm -r` does.
    let mut cookie = 0;
    loop {
        let some = place.list(folder, cookie).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        for entry in some.iter().filter(|entry| entry.name != "." && entry.name != "..") {
            let path = at(folder, &entry.name);
            let number: usize = entry.name.trim_end_matches('x').parse().unwrap();
            if number.is_multiple_of(3) { place.rmdir(&path).unwrap() } else { place.unlink(&path).unwrap() }
        }
    }
    place.close(folder);
    place.rmdir("folder").unwrap();
}
