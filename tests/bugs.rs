//! The deliberate bugs in `tests/bugs` fit the sources, and say what they are.
//!
//! Goal: `scripts/bugs`, which shows that the simulator finds each of them, can be run at any time. Method: each patch
//! applies to the checkout as it is (`git apply --check` changes nothing), and opens with the lines that its readers need.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What each patch says before its first change, in this order.
const HEADER: [&str; 4] = ["Bug: ", "Breaks: ", "Shows when: ", "Found after: "];
/// How many there are, numbered from 1.
const BUGS: usize = 10;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn patches() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("a patch is text"))
    };
    let entries = std::fs::read_dir(root().join("tests/bugs")).expect("tests/bugs is there");
    let mut all: Vec<_> = entries.map(|entry| read(entry.expect("can be listed").path())).collect();
    all.sort();
    all
}

#[test]
fn each_bug_says_what_it_is() {
    let all = patches();
    assert_eq!(all.len(), BUGS);
    for (index, (name, text)) in all.iter().enumerate() {
        assert!(name.starts_with(&format!("{:02}-", index + 1)) && name.ends_with(".patch"), "{name}");
        let lines: Vec<&str> = text.lines().take(HEADER.len()).collect();
        for (line, begins) in lines.iter().zip(HEADER) {
            assert!(line.len() > begins.len() + 3 && line.starts_with(begins), "{name}: no line {begins:?}: {line:?}");
        }
        let digits = lines[3].split(' ').find(|word| word.parse::<u32>().is_ok());
        assert!(digits.is_some(), "{name}: after how many histories?");
        let files: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
        assert!(!files.is_empty(), "{name} changes nothing");
        // A simulator that is changed along with the product proves nothing.
        let product = |file: &&str| file.starts_with("src/") && !file.starts_with("src/simulate");
        assert!(files.iter().all(product), "{name} changes {files:?}, not only the product");
    }
}

fn git(arguments: &[&str], patch: Option<&Path>) -> Option<(bool, String)> {
    let mut command = Command::new("git");
    command.current_dir(root()).args(arguments).args(patch);
    let output = command.output().ok()?;
    Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn each_bug_fits_the_sources() {
    // Inside another project's checkout `git apply` would look for that one's files.
    let here =
        git(&["rev-parse", "--is-inside-work-tree"], None).is_some_and(|(ok, _)| ok) && root().join(".git").exists();
    if !here {
        println!("skipped: no git, or no checkout");
        return;
    }
    for (name, _) in patches() {
        let path = root().join("tests/bugs").join(&name);
        let (fits, why) = git(&["apply", "--check"], Some(&path)).expect("git ran before");
        assert!(fits, "{name} no longer applies; make it anew, and run scripts/bugs {}:\n{why}", &name[..2]);
    }
}
