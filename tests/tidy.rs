//! Rules of this repository that a machine can check, so that nobody has to remember them.
//!
//! Goal: what `docs/HACKING.md` says of the sources is true. Method: read them as text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a source file before its tests.
const LINES_MAX: usize = 700;
/// What each opening comment says, in this order.
const PARTS: [&str; 5] = ["*Guarantees*", "*Assumes*", "*Fails when*", "*Order*", "*Not here*"];

/// What each layer may name, beside itself. `disk::buffer` alone: the type of frozen pages, no more.
const EDGES: &[(&str, &[&str])] = &[
    ("format", &[]),
    ("world", &["format"]),
    ("disk", &["format"]),
    ("store", &["disk", "format", "world"]),
    ("fs", &["store", "format", "world", "disk::buffer"]),
    ("error", &["fs", "store", "disk"]),
    ("fuse", &["fs", "error", "world", "format"]),
    ("mount", &[]),
    ("control", &["mount"]),
    ("volume", &["fs", "store", "disk", "format", "world", "control"]),
    ("drill", &["volume", "daemon", "control", "mount", "world"]),
];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn name(&self) -> String {
        self.path.display().to_string()
    }
    /// Whether it is compiled for tests only.
    fn is_test(&self) -> bool {
        let name = self.name();
        name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("fs/memory.rs")
    }
    /// The text before the tests at its end.
    fn body(&self) -> &str {
        self.text.find("#[cfg(test)]\nmod tests").map_or(&self.text, |at| &self.text[..at])
    }
    /// First folder or file below `src/`.
    fn layer(&self) -> String {
        let name = self.name();
        let rest = name.strip_prefix("src/").unwrap_or(&name);
        rest.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                files_below(&path, extension, out);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            out.push(path);
        }
    }
}

fn read_all(folders: &[&str], extension: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        files_below(&root().join(folder), extension, &mut paths);
    }
    paths.sort();
    let strip = |path: &Path| path.strip_prefix(root()).expect("below the root").to_owned();
    paths
        .iter()
        .map(|path| Source { path: strip(path), text: fs::read_to_string(path).expect("a readable file") })
        .collect()
}

fn sources() -> Vec<Source> {
    let found = read_all(&["src", "mount-helper/src"], "rs");
    assert!(found.len() > 30, "only {} sources were found: the test looks at the wrong place", found.len());
    found
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_opens_with_its_theory() {
    let mut wrong = Vec::new();
    for source in sources() {
        let theory: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if theory.is_empty() {
            wrong.push(format!("{}: does not open with //!", source.name()));
            continue;
        }
        let thin = source.is_test() || matches!(source.name().as_str(), "src/main.rs" | "src/lib.rs");
        if thin {
            continue;
        }
        let theory = theory.iter().map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>().join(" ");
        let mut at = 0;
        for part in PARTS {
            match theory[at..].find(part) {
                None => wrong.push(format!("{}: says nothing under {part}, or not in its place", source.name())),
                Some(found) => {
                    at += found + part.len();
                    let said = theory[at..].split('*').next().unwrap_or_default().trim_matches([' ', ':', '.']);
                    if said.len() < 4 {
                        wrong.push(format!("{}: {part} is empty", source.name()));
                    }
                }
            }
        }
    }
    report(&wrong);
}

#[test]
fn nothing_is_marked_as_unfinished() {
    // Spelt in two halves, so that this file does not find itself.
    let marks = ["FIX\u{4d}E", "TO\u{44}O", "todo\u{21}(", "unimplemented\u{21}(", "#[ignor\u{65}", "dbg\u{21}("];
    let mut wrong = Vec::new();
    for source in sources().iter().chain(&read_all(&["tests"], "rs")) {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
                wrong.push(format!("{}:{}: {mark}", source.name(), number + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn layers_name_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let layer = source.layer();
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == layer) else { continue };
        if source.is_test() {
            continue;
        }
        for (number, line) in source.body().lines().enumerate() {
            for (at, _) in line.match_indices("crate::") {
                let rest = &line[at + "crate::".len()..];
                let named = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
                let edge = |allowed: &&str| match allowed.split_once("::") {
                    None => *allowed == named,
                    Some(_) => rest.starts_with(*allowed),
                };
                let free = named == layer || named == "sync" || allowed.iter().any(edge);
                if line.trim_start().starts_with("//") || free {
                    continue;
                }
                wrong.push(format!("{}:{}: {layer} must not name crate::{named}", source.name(), number + 1));
            }
        }
    }
    report(&wrong);
}

/// Files that never run under exploration, because they touch the machine or run many worlds at once; a cache that outlives
/// an execution; and the simulated disk, where a request is one step.
const REAL_THREADS: [&str; 14] = [
    "src/sync",
    "src/disk/file",
    "src/disk/sim.rs",
    "src/fuse",
    "src/daemon",
    "src/control",
    "src/cli",
    "src/drill",
    "src/mount",
    "src/simulate.rs",
    "src/simulate/crew.rs",
    "src/simulate/mutate/sample.rs",
    "src/simulate/small",
    "mount-helper/",
];

#[test]
fn locks_threads_and_the_clock_come_from_sync() {
    let machine = ["parking_lot::", "std::thread", "std::sync::atomic", "std::sync::mpsc", "time::Instant"];
    let named = ["Mutex", "RwLock", "Condvar", "Once", "Barrier", "Lazy"];
    let mut wrong = Vec::new();
    for source in sources() {
        if source.is_test() || REAL_THREADS.iter().any(|free| source.name().starts_with(free)) {
            continue;
        }
        for (number, line) in source.body().lines().enumerate() {
            let of_std = line.contains("std::sync::") && named.iter().any(|name| line.contains(name));
            let clock = line.contains("std::time::{") && line.contains("Instant");
            let bare = line.starts_with("thread_local!");
            let names_machine = machine.iter().any(|name| line.contains(name) && !line.contains("crate::sync"));
            if !line.trim_start().starts_with("//") && (of_std || clock || bare || names_machine) {
                wrong.push(format!("{}:{}: take it from crate::sync: {line}", source.name(), number + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn every_layer_with_an_edge_exists() {
    let layers: BTreeSet<String> = sources().iter().map(Source::layer).collect();
    let wrong: Vec<String> =
        EDGES.iter().filter(|(name, _)| !layers.contains(*name)).map(|(name, _)| format!("no layer {name}")).collect();
    report(&wrong);
}

#[test]
fn files_hold_one_idea() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.body().lines().count();
        if !source.is_test() && lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines before its tests, at most {LINES_MAX}", source.name()));
        }
    }
    report(&wrong);
}

/// Identifiers of promises: `**DUR-1**` at the head of a line of `docs/SEMANTICS.md`.
fn promises() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/SEMANTICS.md")).expect("docs/SEMANTICS.md");
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let Some(rest) = line.trim_start_matches("- ").strip_prefix("**") else { continue };
        let id = rest.split("**").next().unwrap_or_default();
        let parts = id.split_once('-');
        let is_id = parts.is_some_and(|(name, number)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase()) && number.parse::<u32>().is_ok()
        });
        if is_id {
            assert!(found.insert(id.to_owned()), "{id} is promised twice");
        }
    }
    assert!(found.len() > 10, "docs/SEMANTICS.md promises only {} things", found.len());
    found
}

#[test]
fn every_promise_has_a_test() {
    let mut cited: BTreeSet<String> = BTreeSet::new();
    for source in sources().iter().chain(&read_all(&["tests"], "rs")) {
        for line in source.text.lines() {
            let Some(rest) = line.trim_start().strip_prefix("// SEMANTICS:") else { continue };
            cited.extend(rest.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned));
        }
    }
    let promised = promises();
    let mut wrong: Vec<String> =
        promised.difference(&cited).map(|id| format!("{id}: no test says `// SEMANTICS: {id}`")).collect();
    wrong.extend(cited.difference(&promised).map(|id| format!("{id}: is cited but not promised")));
    report(&wrong);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut documents = read_all(&["docs"], "md");
    for name in ["README.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(name)).expect("a document at the top");
        documents.push(Source { path: name.into(), text });
    }
    for document in documents {
        let folder = root().join(document.path.parent().expect("a folder"));
        for (at, _) in document.text.match_indices("](") {
            let link = document.text[at + 2..].split([')', '#', ' ']).next().unwrap_or_default();
            if !link.is_empty() && !link.contains("://") && !folder.join(link).exists() {
                wrong.push(format!("{}: {link} does not exist", document.name()));
            }
        }
    }
    report(&wrong);
}

#[test]
fn what_the_readme_calls_is_there_and_runs() {
    use std::os::unix::fs::PermissionsExt;
    for name in ["scripts/test", "scripts/demo", "scripts/install", "scripts/uninstall", ".ci/run"] {
        let mode = fs::metadata(root().join(name)).unwrap_or_else(|_| panic!("{name} is missing")).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name} is not executable");
    }
}

#[test]
fn manual_pages_name_every_command_and_option() {
    let page = |name: &str| {
        let text =
            fs::read_to_string(root().join("docs/man").join(name)).unwrap_or_else(|_| panic!("{name} is missing"));
        text.replace("\\-", "-")
    };
    let all = ["stablefs.1", "mkfs.stablefs.8", "fsck.stablefs.8", "mount.stablefs.8"].map(page).concat();
    let mut wrong = Vec::new();
    let definition = stablefs::cli::definition();
    let mut open: Vec<(String, &clap::Command)> = vec![("stablefs".into(), &definition)];
    while let Some((name, command)) = open.pop() {
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            open.push((format!("{name} {}", inner.get_name()), inner));
        }
        if !all.contains(&name) {
            wrong.push(format!("no manual page names the command {name}"));
        }
        let options = command.get_arguments().filter(|option| !option.is_hide_set());
        for long in options.filter_map(|option| option.get_long()).filter(|long| *long != "help") {
            if !all.contains(&format!("--{long}")) {
                wrong.push(format!("no manual page names --{long} of {name}"));
            }
        }
    }
    report(&wrong);
}
