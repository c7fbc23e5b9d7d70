//! The scenarios: a table, and one file each.
//!
//! *Guarantees*: names are unique and stay. *Assumes*: nothing. *Fails when*: never. *Order*: that of the table, which is
//! that of `drill run all`. *Not here*: what all of them do (`stage`).
//!
//! A new scenario is a file with a type that implements [`Scenario`], and a line in [`ALL`].

mod away;
mod emptied;
mod full;
mod hung;
mod killed;
mod rotten;
mod shutdown;

use super::Stop;
use super::disks::DiskKind;
use super::stage::Stage;
use std::path::PathBuf;

/// Size of the volumes.
const SIZE: &str = "512M";

/// One way to break a volume, and to bring it back.
pub trait Scenario: Sync {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// What is done, one line.
    fn about(&self) -> &'static str;
    /// Why it cannot be run by this user on this machine.
    fn lacking(&self) -> Option<String> {
        None
    }
    /// Do it, to the proof at its end.
    ///
    /// # Errors
    /// A promise is broken so that going on makes no sense, or it cannot be carried out.
    fn run(&self, stage: &mut Stage<'_>) -> Result<(), Stop>;
}

/// Two replicas in folders.
fn two_folders(stage: &Stage<'_>) -> Result<Vec<PathBuf>, Stop> {
    Ok(vec![stage.bed.folder("a")?, stage.bed.folder("b")?])
}

/// One replica in a folder, the other one on a filesystem of its own; where that is mounted, and the replicas.
fn folder_and_disk(stage: &Stage<'_>, kind: DiskKind, size_mib: u64) -> Result<(PathBuf, Vec<PathBuf>), Stop> {
    let disk = stage.bed.disk("disk-b", kind, size_mib)?;
    Ok((disk, vec![stage.bed.folder("a")?, stage.bed.folder("disk-b/replica")?]))
}

/// All of them.
pub const ALL: &[&dyn Scenario] = &[
    &emptied::Emptied,
    &away::Away,
    &rotten::Rotten,
    &killed::Killed,
    &shutdown::ShutDown(DiskKind::Ext4),
    &shutdown::ShutDown(DiskKind::Xfs),
    &full::Full,
    &hung::Hung,
];

/// The scenarios that `names` ask for (`all`: each), in the order of the table.
///
/// # Errors
/// A name means nothing; one line.
pub fn choose(names: &[String]) -> Result<Vec<&'static dyn Scenario>, String> {
    let known = |name: &String| name == "all" || ALL.iter().any(|scenario| scenario.name() == name.as_str());
    if let Some(name) = names.iter().find(|name| !known(name)) {
        return Err(format!("there is no scenario {name}; see them all: stablefs drill list"));
    }
    let wanted = |name: &str| names.iter().any(|asked| asked == "all" || asked == name);
    Ok(ALL.iter().copied().filter(|scenario| wanted(scenario.name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_words() {
        let names: BTreeSet<&str> = ALL.iter().map(|scenario| scenario.name()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || "-0123456789".contains(c))));
        assert!(!names.contains("all"));
    }

    #[test]
    fn scenarios_are_chosen_by_name() {
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&names).map(|chosen| chosen.iter().map(|scenario| scenario.name()).collect::<Vec<_>>())
        };
        assert_eq!(named(&["killed", "emptied"]), Ok(vec!["emptied", "killed"]));
        assert_eq!(named(&["all", "emptied"]).unwrap().len(), ALL.len());
        assert!(named(&["emptied", "bogus"]).unwrap_err().contains("bogus"));
    }
}
