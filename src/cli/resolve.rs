//! `resolve`: replicas that were written apart are shown, and by a person's word one of them wins.
//!
//! *Guarantees*: without `--keep` and a yes nothing is written to a replica; what could not be saved is not overwritten.
//! *Assumes*: nothing. *Fails when*: one line. *Order*: look → ask → save → have it win. *Not here*: the work
//! (`volume::resolve`).

use super::{ResolveArgs, progress_bar, task};
use crate::daemon::report::shell_word;
use crate::volume::resolve::{KeepReport, Resolve, SaveReport, SideReport};
use crate::world::{Machine, World};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything, as `--json` tells it.
#[derive(Debug, Default, serde::Serialize)]
struct Told {
    /// Each history, newest version first; one: nothing has to be decided.
    histories: Vec<SideReport>,
    /// Replicas that are only behind: a mount brings them up.
    behind: Vec<String>,
    /// What was saved.
    saved: Vec<SaveReport>,
    /// What was done.
    kept: Option<KeepReport>,
}

/// Compare, and decide where asked.
pub(super) fn resolve(args: &ResolveArgs) -> Result<(), String> {
    super::fsck::tell_waiting();
    let mut told = Told::default();
    let outcome = run(args, &mut told);
    if args.json && !told.histories.is_empty() {
        task::print_json(&serde_json::to_value(&told).map_err(|error| error.to_string())?)?;
    }
    outcome
}

fn run(args: &ResolveArgs, told: &mut Told) -> Result<(), String> {
    let say = |error: crate::store::StoreError| error.to_string();
    let replicas = super::replicas_of(&args.replicas)?;
    let keep = args.keep.as_deref();
    let resolve = Resolve::open(&replicas, keep.is_some() && !args.dry_run).map_err(say)?;
    let world: Arc<dyn World> = Arc::new(Machine);
    told.histories = resolve.compare(keep, &world).map_err(say)?;
    told.behind = resolve.behind();
    if !args.json {
        print(told);
    }
    let Some(keep) = keep else {
        if !args.json && told.histories.len() > 1 {
            println!("one of them can win: stablefs resolve --keep REPLICA [--save DIR] {}", words(&replicas));
        }
        return Ok(());
    };
    if told.histories.len() == 1 && told.behind.is_empty() {
        return Ok(());
    }
    if !args.json {
        plan(keep, told, args.save.as_deref());
    }
    if args.dry_run || !(args.yes || is_agreed()?) {
        return if args.dry_run { Ok(()) } else { Err("nothing was changed".into()) };
    }
    if let Some(directory) = args.save.as_deref().filter(|_| told.histories.len() > 1) {
        told.saved = save(&resolve, keep, directory, &world, args.json)?;
    }
    let bar = progress_bar("{msg} [{bar:40}] {percent}% of {len} blocks, {eta} left", Some(0), args.json);
    let kept = resolve.keep_here(keep, &mut |at| {
        bar.set_length(at.total.max(at.done));
        bar.set_position(at.done);
        bar.set_message(at.what.clone());
        true
    });
    bar.finish_and_clear();
    let kept = told.kept.insert(kept.map_err(say)?);
    if !args.json {
        kept.brought.iter().for_each(|brought| println!("{}", brought.summary));
    }
    match &kept.left[..] {
        [] if args.json => Ok(()),
        [] => {
            println!("mount it: stablefs mount {} MOUNTPOINT", words(&replicas));
            Ok(())
        }
        left => Err(format!("{}: wins, but: {}", kept.kept, left.join("; "))),
    }
}

fn save(
    resolve: &Resolve,
    keep: &Path,
    directory: &Path,
    world: &Arc<dyn World>,
    is_quiet: bool,
) -> Result<Vec<SaveReport>, String> {
    let bar = progress_bar("saving: {pos} files", None, is_quiet);
    let saved = resolve.save(keep, directory, world, &mut |files| bar.set_position(files));
    bar.finish_and_clear();
    let saved = saved.map_err(|error| error.to_string())?;
    for report in &saved {
        report.unreadable.iter().for_each(|line| eprintln!("not saved: {line}"));
        if !is_quiet {
            println!(
                "saved in {}: {} files ({} bytes), {} directories, {} others{}",
                report.directory,
                report.files,
                report.bytes,
                report.directories,
                report.others,
                match report.attributes_lost {
                    0 => String::new(),
                    lost => format!("; {lost} owners, modes, times or extended attributes could not be kept"),
                }
            );
        }
    }
    match saved.iter().map(|report| report.unreadable_count).sum::<u64>() {
        0 => Ok(saved),
        count => Err(format!(
            "{count} things could not be read and are not saved; no replica was changed. What could be read is in {}: to go \
             on without the rest, say the same without --save",
            directory.display()
        )),
    }
}

fn print(told: &Told) {
    if let [one] = &told.histories[..] {
        println!("one history, at root {} of {}: nothing has to be decided", one.version, one.last_write);
        told.behind
            .iter()
            .for_each(|path| println!("{path} is behind: a mount of all of them brings it up to the others"));
        return;
    }
    println!("{} histories, which were written apart:", told.histories.len());
    for side in &told.histories {
        let paths = std::iter::once(&side.replica).chain(&side.beside).cloned().collect::<Vec<_>>().join(" and ");
        let commits = side.commits_since.map_or_else(String::new, |commits| format!(", {commits} commits since"));
        let parted = side.parted_after.map_or_else(String::new, |root| format!("; parted after root {root}{commits}"));
        println!("{paths}: root {}, last written {}{parted}", side.version, side.last_write);
        side.changed.iter().for_each(|path| println!("  changed: {path}"));
        if side.more {
            println!("  … and more");
        } else if side.changed.is_empty() && side.unreadable.is_empty() {
            println!("  no file was changed");
        }
        side.unreadable.iter().for_each(|line| println!("  cannot be read: {line}"));
    }
}

/// Say what is about to be done.
fn plan(keep: &Path, told: &Told, save: Option<&Path>) {
    let keep = keep.canonicalize().unwrap_or_else(|_| keep.to_owned());
    let is_kept = |side: &&SideReport| side.beside.iter().chain([&side.replica]).all(|path| Path::new(path) != keep);
    let losers: Vec<&str> = told.histories.iter().filter(is_kept).map(|side| side.replica.as_str()).collect();
    if losers.is_empty() {
        println!("{} is brought up to {}", told.behind.join(" and "), keep.display());
        return;
    }
    let saved = match save {
        Some(directory) => format!(", after it was saved in {}", directory.display()),
        None => " for good (--save DIR copies it elsewhere before)".into(),
    };
    println!("{} wins; what was changed on {} is given up{saved}", keep.display(), losers.join(" and "));
}

/// Ask at the terminal.
fn is_agreed() -> Result<bool, String> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err("nothing was changed; to go on without being asked, say --yes".into());
    }
    eprint!("Go on? Type yes: ");
    let _ = std::io::stderr().flush(); // a prompt only
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer.trim() == "yes")
}

fn words(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| shell_word(&path.display().to_string())).collect::<Vec<_>>().join(" ")
}
