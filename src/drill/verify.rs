//! The whole proof: every name and every byte that the applications know of, and nothing beside.
//!
//! *Guarantees*: whatever differs is told by path and block. *Assumes*: the applications stand still.
//! *Fails when*: never: what cannot be read is a difference. *Order*: model locks one by one.
//! *Not here*: from which replicas is read: that is up to the mount.

use super::apps::{self, NAMES};
use super::known::Known;
use super::load::Shared;
use super::names;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What was proven.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Files, each whole.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is not as it should be.
    pub wrong: Vec<String>,
}

/// Prove everything below `folder`. After a crash what was not acknowledged may be missing, and what is found is from then
/// on what there is.
pub fn verify(shared: &Shared, folder: &Path, after_crash: bool) -> Proof {
    let mut proof = Proof::default();
    let mut expected = BTreeSet::new();
    for known in shared.still.iter().chain(&shared.written) {
        prove_file(&mut known.write(), folder, after_crash, &mut proof, &mut expected);
    }
    for known in shared.streams.lock().iter_mut().chain(shared.extra.lock().iter_mut()) {
        prove_file(known, folder, after_crash, &mut proof, &mut expected);
    }
    for name in ["still", "written", "stream", "extra"] {
        let entries = std::fs::read_dir(folder.join(name)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match entries {
            Err(error) => proof.wrong.push(format!("{name}: cannot be listed: {error}")),
            Ok(entries) => {
                let found = entries.iter().map(|entry| Path::new(name).join(entry.file_name()));
                let more = found.filter(|path| !expected.contains(path));
                proof.wrong.extend(more.map(|path| format!("{}: nobody made it", path.display())));
            }
        }
    }
    prove_names(shared, folder, after_crash, &mut proof);
    proof
}

fn prove_file(
    known: &mut Known,
    folder: &Path,
    after_crash: bool,
    proof: &mut Proof,
    expected: &mut BTreeSet<PathBuf>,
) {
    expected.insert(known.path.clone());
    let found = match apps::read_whole(&folder.join(&known.path)) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            proof.wrong.push(format!("{}: cannot be read: {error}", known.path.display()));
            return;
        }
    };
    proof.wrong.extend(known.judge(found.as_deref(), after_crash));
    proof.files += u64::from(found.is_some());
    proof.bytes += found.as_ref().map_or(0, |bytes| bytes.len() as u64);
    if after_crash {
        known.settle(found.as_deref());
    }
}

fn prove_names(shared: &Shared, folder: &Path, after_crash: bool, proof: &mut Proof) {
    let place = folder.join(NAMES);
    let mut names = shared.names.lock();
    let found = match names::list(&place) {
        Ok(found) => found,
        Err(error) => {
            proof.wrong.push(format!("{NAMES}: cannot be listed: {error}"));
            return;
        }
    };
    proof.wrong.extend(names.judge(&found, after_crash).err());
    let mut full = BTreeMap::new();
    for (name, item) in &found {
        let Some(number) = names::file_of(*item) else { continue };
        let written = names.written.get(&number).copied().unwrap_or_default();
        let proven = apps::read_whole(&place.join(name)).map_err(|error| format!("{name}: cannot be read: {error}"));
        let proven = proven.and_then(|bytes| {
            proof.files += 1;
            proof.bytes += bytes.len() as u64;
            apps::prove_name(shared.seed, number, written, &bytes, after_crash)
        });
        match proven {
            Ok(is_full) => drop(full.insert(number, is_full)),
            Err(line) => proof.wrong.push(format!("{NAMES}/{line}")),
        }
    }
    if after_crash {
        names.settle(found, &|number| full.get(&number).copied().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Load;
    use super::*;
    use std::time::{Duration, Instant};

    /// A load that ran for a moment in a plain directory.
    fn ran() -> (tempfile::TempDir, Load) {
        let folder = tempfile::tempdir().unwrap();
        let mut load = Load::prepare(11, folder.path(), Instant::now()).unwrap();
        load.start().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        load.stop(Duration::from_secs(20)).unwrap();
        (folder, load)
    }

    #[test]
    fn a_directory_that_keeps_its_promises_is_proven() {
        let (folder, load) = ran();
        let tally = load.shared.probe.tally();
        assert_eq!((tally.errors, tally.wrong), (0, 0), "{tally:?}");
        assert!(tally.calls > 20, "{tally:?}");
        let proof = verify(&load.shared, folder.path(), false);
        assert!(proof.wrong.is_empty() && proof.files > 250, "{proof:?}");
    }

    #[test]
    fn every_kind_of_harm_is_seen() {
        let (folder, load) = ran();
        let harm = |change: &dyn Fn(&Path), what: &str| {
            change(folder.path());
            let wrong = verify(&load.shared, folder.path(), false).wrong;
            assert!(wrong.iter().any(|line| line.contains(what)), "{what}: {wrong:?}");
            wrong.len()
        };
        let flip = |path: &Path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[300] ^= 1;
            std::fs::write(path, bytes).unwrap();
        };
        assert_eq!(harm(&|root| flip(&root.join("still/f0")), "still/f0: block 0, byte 300"), 1);
        assert_eq!(harm(&|root| std::fs::remove_file(root.join("written/w1")).unwrap(), "written/w1: is gone"), 2);
        assert_eq!(harm(&|root| std::fs::write(root.join("still/f9999"), b"").unwrap(), "nobody made it"), 3);
        let made = |root: &Path| std::fs::create_dir(root.join("names/d9999")).unwrap();
        assert_eq!(harm(&made, "no state of history"), 4);
    }
}
