//! Promise: bad input gets one clear line and a non-zero exit, and nothing is written.

use assert_cmd::cargo::CommandCargoExt;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "fresh", "mnt", "around/replica", "foreign"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        std::fs::write(directory.path().join("file"), b"text").unwrap();
        std::fs::write(directory.path().join("foreign/precious"), b"data").unwrap();
        let scratch = Scratch { directory };
        for pair in [["a", "b"], ["c", "d"]] {
            let output = scratch.run(&["format", "--size", "32M", pair[0], pair[1]]);
            assert!(output.status.success(), "{output:?}");
        }
        scratch
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::cargo_bin("stablefs").unwrap();
        // What this host knows of volumes is theirs, too.
        command.env("STABLEFS_STATE_DIR", self.directory.path().join("state"));
        command.args(words).current_dir(self.directory.path()).output().unwrap()
    }

    /// Every file with its content.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(self.directory.path(), &mut found);
        found
    }
}

fn collect(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn bad_input_is_one_line_and_writes_nothing() {
    let scratch = Scratch::new();
    let before = scratch.content();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["mount", "a", "mnt"], 1, "degraded"),
        (&["mount", "a", "missing", "mnt"], 1, "missing"),
        (&["mount", "a", "c", "mnt"], 1, "two volumes"),
        (&["mount", "a", "a", "mnt"], 1, "twice"),
        (&["mount", "fresh", "b", "mnt"], 1, "fresh"),
        (&["mount", "file", "b", "mnt"], 1, "file"),
        (&["mount", "a", "b", "nowhere"], 1, "mkdir"),
        (&["mount", "a", "b", "file"], 1, "not a directory"),
        (&["mount", "a", "b", "a"], 1, "inside the replica"),
        (&["mount", "around/replica", "b", "around"], 1, "inside the mount point"),
        (&["mount", "-o", "bogus", "a", "b", "mnt"], 1, "bogus"),
        (&["mount", "-o", "deadline=never", "a", "b", "mnt"], 1, "never"),
        (&["mount", "-o", "threads=1", "a", "b", "mnt"], 1, "threads"),
        (&["format", "fresh"], 1, "2 to 4"),
        (&["format", "fresh", "fresh"], 1, "twice"),
        (&["format", "--size", "1M", "fresh", "mnt"], 1, "too small"),
        (&["format", "--size", "4000T", "fresh", "mnt"], 1, "no space"),
        (&["format", "a", "fresh"], 1, "--force"),
        (&["format", "foreign", "fresh"], 1, "foreign"),
        (&["format", "fresh", "nowhere"], 1, "nowhere"),
        (&["format", "fresh", "/dev/null"], 1, "/dev/null"),
        (&["status", "mnt"], 2, "not in a stablefs mount"),
        (&["status", "nowhere"], 2, "not in a stablefs mount"),
        (&["sync", "mnt"], 1, "not in a stablefs mount"),
        (&["umount", "mnt"], 1, "not in a stablefs mount"),
        (&["scrub", "mnt"], 1, "not in a stablefs mount"),
        (&["replace", "mnt", "a", "b"], 1, "not in a stablefs mount"),
    ];
    for (words, code, says) in cases {
        let output = scratch.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*code), "{words:?}: {said}");
        assert!(said.starts_with("stablefs: ") && said.contains(says), "{words:?} says {said:?}");
        assert_eq!(said.trim_end().lines().count(), 1, "{words:?} says {said:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    assert_eq!(before.keys().collect::<Vec<_>>(), scratch.content().keys().collect::<Vec<_>>());
    assert!(before == scratch.content(), "a refused command changed a file");
}

#[test]
fn a_replica_in_use_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.directory.path().join("a");
    let held = stablefs::disk::open(&path, stablefs::disk::Mode::Write, None).unwrap();
    for words in [&["mount", "a", "b", "mnt"][..], &["format", "--force", "a", "b"]] {
        let output = scratch.run(words);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{output:?}");
    }
    held.close();
}

#[test]
fn fsck_says_wrong_usage_as_fsck_does() {
    let scratch = Scratch::new();
    for words in [&["fsck"][..], &["fsck", "-n", "-y", "a", "b"], &["fsck", "--bogus", "a", "b"]] {
        assert_eq!(scratch.run(words).status.code(), Some(16), "{words:?}");
    }
    assert_eq!(scratch.run(&["fsck", "--help"]).status.code(), Some(0));
    assert_eq!(scratch.run(&["format", "--bogus"]).status.code(), Some(2));
}
