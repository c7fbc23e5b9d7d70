//! The command line: one program for everything, also under the names `mkfs.stablefs`, `fsck.stablefs` and `mount.fuse` calls.
//!
//! *Guarantees*: a refusal is one line on standard error, names the next command, and changes nothing. Results go to
//! standard output, progress to standard error and only to a terminal.
//! *Assumes*: nothing. *Fails when*: see the exit codes. *Order*: none. *Not here*: the work (`volume`, `daemon`).
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; `status`: healthy |
//! | 1 | failed; `status`: something is hurt |
//! | 2 | wrong usage; `status`: cannot be asked |
//! | 0 1 4 8 16 | `fsck`, as fsck(8): clean, repaired, errors left, failed, wrong usage (sums of these) |

pub mod debug;
mod drill;
mod events;
mod fsck;
mod mounting;
mod offline;
pub mod options;
mod resolve;
mod simulate;
mod status;
mod talk;
mod task;

use crate::simulate::worlds::Kind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Exit code: failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code: wrong usage.
pub(crate) const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "stablefs",
    version,
    about = "A mirrored filesystem that is stable memory: every block on two disks, every read proven, damage healed on the way"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new volume on two to four replicas (directories, files or block devices)
    Format(FormatArgs),
    /// Mount a volume; returns when it is mounted
    Mount(MountArgs),
    /// Tell how a mounted volume is, what that means and what to do
    Status(StatusArgs),
    /// Show what happened to a volume and its replicas, newest last
    Events(EventsArgs),
    /// Copy everything onto a new replica in place of an old one, on the live mount
    Replace(ReplaceArgs),
    /// Add one more replica to a volume, filled and proven on the live mount
    Attach(AttachArgs),
    /// Take a replica out of a volume, for ever
    Detach(DetachArgs),
    /// Let a replica return that is away, now; it is sent what it missed
    Online(OnlineArgs),
    /// Send a replica away, to unplug its disk for example; it returns with `online`
    Offline(OfflineArgs),
    /// Keep a replica hot (written before anything is acknowledged), warm (follows within a bounded time) or cold (follows when
    /// it is attached)
    Role(RoleArgs),
    /// Prove every block on every replica from the medium, and heal what is damaged
    Scrub(ScrubArgs),
    /// Make everything durable that was done on a mount (sync(2) does not reach it)
    Sync(PlaceArgs),
    /// Unmount; returns when everything is durable and the daemon is gone
    Umount(UmountArgs),
    /// Check a volume that is not mounted, and repair it
    Fsck(FsckArgs),
    /// Compare replicas that were written apart, and have one of them win
    Resolve(ResolveArgs),
    /// Attack this program in a simulated world: seeded histories with crashes, faults, late I/O, replace, scrub, fsck
    Simulate(SimulateArgs),
    /// Break scratch volumes for real, under load, bring them back, and prove every byte
    #[command(subcommand)]
    Drill(drill::DrillCommand),
    /// Tell the version
    Version,
    /// Look inside of a volume, for tests
    #[command(hide = true, subcommand)]
    Debug(DebugCommand),
}

/// `stablefs debug`.
#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// Print `address kind` for each block that the newest root of a replica reaches
    Blocks {
        /// Place of the replica
        replica: PathBuf,
    },
}

/// `stablefs simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// First seed; equal seeds do the same in the same version [default: a fresh one]
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds [default: 1, or as many as there is time for]
    #[arg(long)]
    count: Option<u64>,
    /// Begin new ones for so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads [default: one for each core]
    #[arg(long)]
    jobs: Option<usize>,
    /// What a seed stands for: life (everything), cuts, everywhere (a cut at each write), fault, soak (a mixture)
    #[arg(long, default_value = "life", value_parser = parse_kind)]
    kind: Kind,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// `stablefs format`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Places of the replicas, best on different disks
    #[arg(required = true, num_args = 1..)]
    replicas: Vec<PathBuf>,
    /// Size of the volume, for example 100G [default: what the smallest replica has room for]
    #[arg(long, short, value_parser = options::parse_size)]
    size: Option<u64>,
    /// Name of the volume
    #[arg(long, short = 'L', default_value = "")]
    label: String,
    /// Overwrite what is there
    #[arg(long, short)]
    force: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Places of the replicas, then the mount point
    #[arg(required = true, num_args = 2.., value_names = ["REPLICA", "MOUNTPOINT"])]
    places: Vec<PathBuf>,
    /// Options, separated by commas: ro, degraded, allow_other, deadline=5s, fsname=NAME, writeback, threads=8, noatime, log=FILE, on-event=PROGRAM, …
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Run this program for each event (a replica goes out, returns, …), with the event as JSON on its standard input
    #[arg(long, value_name = "PROGRAM")]
    on_event: Option<PathBuf>,
    /// Stay in the foreground; log to standard error
    #[arg(long, short)]
    foreground: bool,
    /// Pass over unknown options (mount(8) -s)
    #[arg(long, hide = true)]
    sloppy: bool,
    #[arg(long, hide = true)]
    daemon_child: bool,
}

/// `stablefs status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Mount point [default: all that are mounted]
    mountpoint: Option<PathBuf>,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Tell it as JSON: a list, or with --follow one event in a line
    #[arg(long)]
    json: bool,
    /// Go on with what happens from now on, until the mount ends
    #[arg(long, short)]
    follow: bool,
}

/// `stablefs replace`.
#[derive(Debug, Args)]
pub(crate) struct ReplaceArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Path or number of the replica to replace, as status tells it
    old: String,
    /// Place of the new one; may be the same place, emptied
    new: PathBuf,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Place of the new replica
    new: PathBuf,
    /// Overwrite what is there
    #[arg(long, short)]
    force: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs detach`.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Path or number of the replica, as status tells it
    replica: String,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs online`.
#[derive(Debug, Args)]
pub(crate) struct OnlineArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Path or number of the replica, as status tells it
    replica: String,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs offline`.
#[derive(Debug, Args)]
pub(crate) struct OfflineArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Path or number of the replica, as status tells it
    replica: String,
    /// Until the next mount only
    #[arg(short = 't', long)]
    temporary: bool,
}

/// `stablefs role`.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Path or number of the replica, as status tells it
    replica: String,
    /// How to keep it
    #[arg(value_parser = ["hot", "warm", "cold"])]
    role: String,
}

/// `stablefs scrub`.
#[derive(Debug, Args)]
pub(crate) struct ScrubArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Tell how far it is, or what the last one found
    #[arg(long, conflicts_with = "stop")]
    status: bool,
    /// Stop the one that runs
    #[arg(long)]
    stop: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// A command that needs a mount point only.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Mount point
    mountpoint: PathBuf,
}

/// `stablefs umount`.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Mount point
    mountpoint: PathBuf,
    /// Detach it although files are open; they stay usable until they are closed
    #[arg(long, short)]
    lazy: bool,
}

/// `stablefs fsck`.
#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Places of the replicas
    #[arg(required = true, num_args = 1..)]
    replicas: Vec<PathBuf>,
    /// Look only, change nothing
    #[arg(short = 'n', conflicts_with_all = ["repair", "preen"])]
    look: bool,
    /// Repair everything that can be repaired; rebuild replicas that have vanished or were left behind
    #[arg(short = 'y')]
    repair: bool,
    /// Repair, but rebuild no replica: for boot, where a disk may only be late
    #[arg(short = 'p', visible_short_alias = 'a')]
    preen: bool,
    /// Check although the volume was closed in order (it always is checked)
    #[arg(short = 'f', hide = true)]
    force: bool,
    /// Do not wait to see whether another host still uses the volume: you know that it is dead
    #[arg(long)]
    force_owner: bool,
    /// Tell more
    #[arg(short, long)]
    verbose: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// `stablefs resolve`.
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// Places of all replicas that are there
    #[arg(required = true, num_args = 1..)]
    replicas: Vec<PathBuf>,
    /// The one that wins: what was changed on the others since they parted is given up
    #[arg(long, value_name = "REPLICA")]
    keep: Option<PathBuf>,
    /// Before that, copy what was changed on the others into this folder, which must be empty or not exist
    #[arg(long, value_name = "DIR", requires = "keep")]
    save: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long, requires = "keep")]
    yes: bool,
    /// Only say what would be done
    #[arg(short = 'n', long, conflicts_with = "yes")]
    dry_run: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
}

/// Run the command that `words` (with the program's name first) ask for; returns the exit code.
pub fn run(words: Vec<OsString>) -> u8 {
    let words = translate(words);
    let is_fsck = words.get(1).is_some_and(|word| word == "fsck");
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nobody to tell
            let usage = if is_fsck { offline::FSCK_USAGE } else { USAGE };
            return if error.use_stderr() { usage } else { 0 };
        }
    };
    match cli.command {
        Command::Format(args) => told(offline::format(&args)),
        Command::Mount(args) => told(mounting::mount(&args)),
        Command::Status(args) => status::status(&args),
        Command::Events(args) => told(events::events(&args)),
        Command::Replace(args) => told(task::replace(&args)),
        Command::Attach(args) => told(task::attach(&args)),
        Command::Detach(args) => told(task::detach(&args)),
        Command::Online(args) => told(task::online(&args)),
        Command::Offline(args) => told(task::offline(&args)),
        Command::Role(args) => told(task::role(&args)),
        Command::Scrub(args) => told(task::scrub(&args)),
        Command::Sync(args) => told(mounting::sync(&args.mountpoint)),
        Command::Umount(args) => told(mounting::umount(&args)),
        Command::Fsck(args) => fsck::fsck(&args),
        Command::Resolve(args) => told(resolve::resolve(&args)),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Drill(command) => drill::drill(&command),
        Command::Debug(DebugCommand::Blocks { replica }) => told(debug::blocks(&replica)),
        Command::Version => {
            println!("stablefs {} (format {})", env!("CARGO_PKG_VERSION"), crate::format::label::FORMAT_VERSION);
            0
        }
    }
}

fn told(outcome: Result<(), String>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(text) => {
            if !text.is_empty() {
                complain(&text);
            }
            FAILED
        }
    }
}

/// One line to standard error.
pub(crate) fn complain(text: &str) {
    eprintln!("stablefs: {text}");
}

/// Other names of this program become commands, and `stablefs /a:/b /mnt` (what mount.fuse calls) becomes a mount.
fn translate(mut words: Vec<OsString>) -> Vec<OsString> {
    let program = words.first().and_then(|first| Path::new(first).file_name()).unwrap_or_default();
    let command = match &*program.to_string_lossy() {
        "mkfs.stablefs" => Some("format"),
        "fsck.stablefs" => Some("fsck"),
        "mount.stablefs" | "mount.fuse.stablefs" => Some("mount"),
        "umount.stablefs" | "umount.fuse.stablefs" => Some("umount"),
        _ => {
            let is_path = words.get(1).is_some_and(|word| word.as_bytes().contains(&b'/'));
            is_path.then_some("mount")
        }
    };
    let name = OsString::from("stablefs");
    match (command, words.is_empty()) {
        (_, true) => words.push(name),
        (Some(command), false) => {
            words[0] = name;
            words.insert(1, command.into());
        }
        (None, false) => words[0] = name,
    }
    words
}

/// A bar on standard error, as `template` describes it; it is drawn only to a terminal, and not if it `is_hidden`.
fn progress_bar(template: &str, length: Option<u64>, is_hidden: bool) -> ProgressBar {
    if is_hidden {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Replicas as typed: several words, or one `/a:/b` that is no path itself.
pub(crate) fn replicas_of(words: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    match words {
        [one] if is_source(one) => options::split_source(one.as_os_str()),
        _ => Ok(words.to_vec()),
    }
}

/// Whether this is a source as mount(8) has it, and not a path.
pub(crate) fn is_source(word: &Path) -> bool {
    word.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b'\\')) && word.symlink_metadata().is_err()
}

/// The definition of the command line, for tests and manuals.
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Command, clap::Error> {
        let words = translate(line.iter().map(OsString::from).collect());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn other_names_are_commands() {
        assert!(matches!(parse(&["/sbin/mkfs.stablefs", "-L", "x", "/a", "/b"]), Ok(Command::Format(_))));
        let Ok(Command::Fsck(fsck)) = parse(&["fsck.stablefs", "-p", "/a", "/b"]) else { panic!("fsck") };
        assert!(fsck.preen && !fsck.repair && !fsck.look);
        let Ok(Command::Mount(mount)) = parse(&["stablefs", "/a:/b", "/mnt", "-o", "rw,dev"]) else { panic!("mount") };
        assert_eq!(replicas_of(&mount.places[..1]).unwrap(), ["/a", "/b"].map(PathBuf::from));
        assert_eq!(mount.options, ["rw,dev"]);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            &["stablefs"][..],
            &["stablefs", "bogus"],
            &["stablefs", "mount", "/a"],
            &["stablefs", "format"],
            &["stablefs", "format", "--size", "10X", "/a", "/b"],
            &["stablefs", "fsck", "-n", "-y", "/a"],
            &["stablefs", "scrub", "--status", "--stop", "/m"],
            &["stablefs", "umount"],
            &["stablefs", "drill"],
            &["stablefs", "drill", "run"],
            &["stablefs", "drill", "run", "all", "--seed", "x"],
            &["stablefs", "mount", "--bogus", "/a", "/b", "/m"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
