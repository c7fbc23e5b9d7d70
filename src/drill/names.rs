//! Names that come and go, and the rule that after a crash they are a prefix of history.
//!
//! *Guarantees*: [`Names::judge`] accepts a tree only if it is the one after some number of the changes asked for, at
//! least all that an fsync has acknowledged (SEMANTICS CRASH-1, CRASH-2), and while the mount lives exactly the last one.
//! *Assumes*: one thread changes names, and notes before it asks; a file's number stands in its name.
//! *Fails when*: never. *Order*: [`Names::ask`], the call, [`Names::done`] or [`Names::undone`].
//! *Not here*: the calls (`apps`).

use std::collections::BTreeMap;
use std::path::Path;

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// A directory.
    Folder,
    /// The file with this number.
    File(u64),
}

/// Names below the folder of the loop.
pub type Tree = BTreeMap<String, Item>;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// mkdir
    MakeFolder(String),
    /// creat
    Create(String, u64),
    /// rename
    Rename(String, String),
    /// unlink or rmdir
    Remove(String),
}

impl Step {
    fn apply(&self, tree: &mut Tree) {
        match self {
            Step::MakeFolder(name) => drop(tree.insert(name.clone(), Item::Folder)),
            Step::Create(name, file) => drop(tree.insert(name.clone(), Item::File(*file))),
            Step::Rename(from, to) => {
                if let Some(item) = tree.remove(from) {
                    tree.insert(to.clone(), item);
                }
            }
            Step::Remove(name) => drop(tree.remove(name)),
        }
    }
}

/// What a file of the loop holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// The write returned.
    pub done: bool,
    /// And an fsync of the file after it.
    pub safe: bool,
}

/// All names of the loop.
#[derive(Debug)]
pub struct Names {
    safe: Tree,
    later: Vec<Step>,
    /// The newest of `later` returned.
    sure: bool,
    /// By number of the file.
    pub written: BTreeMap<u64, Written>,
}

impl Default for Names {
    fn default() -> Names {
        Names { safe: Tree::new(), later: Vec::new(), sure: true, written: BTreeMap::new() }
    }
}

impl Names {
    /// About to do `step`.
    pub fn ask(&mut self, step: Step) {
        self.later.push(step);
        self.sure = false;
    }
    /// It returned.
    pub fn done(&mut self) {
        self.sure = true;
    }
    /// It was refused by a daemon that lives, so it did not happen.
    pub fn undone(&mut self) {
        self.later.pop();
        self.sure = true;
    }
    /// An fsync returned, of whatever, that began after the last step did: it covers names, not what is in the files.
    pub fn acknowledged(&mut self) {
        if self.sure {
            let later = std::mem::take(&mut self.later);
            later.iter().for_each(|step| step.apply(&mut self.safe));
            let live: Vec<u64> = self.safe.values().filter_map(|item| file_of(*item)).collect();
            self.written.retain(|file, _| live.contains(file));
        }
    }
    /// The tree after every step.
    pub fn now(&self) -> Tree {
        let mut tree = self.safe.clone();
        self.later.iter().for_each(|step| step.apply(&mut tree));
        tree
    }
    /// Judge the names that were found.
    ///
    /// # Errors
    /// They are no state that the steps explain; one line.
    pub fn judge(&self, found: &Tree, after_crash: bool) -> Result<(), String> {
        let least = match (after_crash, self.sure) {
            (true, _) => 0,
            (false, true) => self.later.len(),
            (false, false) => self.later.len().saturating_sub(1),
        };
        let mut tree = self.safe.clone();
        for count in 0..=self.later.len() {
            if count > 0 {
                self.later[count - 1].apply(&mut tree);
            }
            if count >= least && tree == *found {
                return Ok(());
            }
        }
        let now = self.now();
        let lost: Vec<&String> = now.keys().filter(|name| !found.contains_key(*name)).take(3).collect();
        let extra: Vec<&String> = found.keys().filter(|name| !now.contains_key(*name)).take(3).collect();
        Err(format!(
            "names are no state of history ({} steps since the last fsync); missing {lost:?}, too many {extra:?}",
            self.later.len()
        ))
    }
    /// After a crash: what was found (and judged to be right) is what there is. `full` says which files hold their bytes.
    pub fn settle(&mut self, found: Tree, full: &dyn Fn(u64) -> bool) {
        let files = found.values().filter_map(|item| file_of(*item));
        self.written = files.map(|file| (file, Written { done: full(file), safe: full(file) })).collect();
        (self.safe, self.sure) = (found, true);
        self.later.clear();
    }
}

/// Number of the file, if it is one.
pub fn file_of(item: Item) -> Option<u64> {
    match item {
        Item::File(file) => Some(file),
        Item::Folder => None,
    }
}

/// The names below `folder`.
///
/// # Errors
/// It cannot be listed, or a name is none of ours.
pub fn list(folder: &Path) -> std::io::Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![String::new()];
    while let Some(inside) = open.pop() {
        for entry in std::fs::read_dir(folder.join(&inside))? {
            let entry = entry?;
            let base = entry.file_name().to_string_lossy().into_owned();
            let name = if inside.is_empty() { base.clone() } else { format!("{inside}/{base}") };
            let item = if entry.file_type()?.is_dir() {
                open.push(name.clone());
                Item::Folder
            } else {
                let number = base.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse();
                Item::File(number.map_err(|_| std::io::Error::other(format!("{name}: a name that nobody made")))?)
            };
            tree.insert(name, item);
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[(&str, u64)]) -> Tree {
        names.iter().map(|(name, file)| ((*name).to_owned(), Item::File(*file))).collect()
    }

    #[test]
    fn only_a_prefix_of_history_is_accepted() {
        let mut names = Names::default();
        for (name, file) in [("n1", 1), ("n2", 2)] {
            names.ask(Step::Create(name.into(), file));
            names.done();
        }
        names.acknowledged();
        names.ask(Step::Rename("n1".into(), "m1".into()));
        names.done();
        names.ask(Step::Remove("n2".into()));
        names.done();
        let (all, renamed, removed) =
            (tree(&[("n1", 1), ("n2", 2)]), tree(&[("m1", 1), ("n2", 2)]), tree(&[("m1", 1)]));
        for state in [&all, &renamed, &removed] {
            names.judge(state, true).unwrap();
        }
        names.judge(&removed, false).unwrap();
        assert!(names.judge(&renamed, false).is_err(), "what returned must be there");
        for state in [tree(&[("n1", 1)]), tree(&[("n1", 1), ("m1", 1), ("n2", 2)]), tree(&[]), tree(&[("n2", 2)])] {
            assert!(names.judge(&state, true).is_err(), "{state:?} is no state of history");
        }
        names.acknowledged();
        assert!(names.judge(&renamed, true).is_err(), "an acknowledged step is missing");
    }
}
