//! Finding the daemon of a mount, and showing how far it is.
//!
//! *Guarantees*: no request reaches the mount itself, so that a mount that hangs or has died can be asked about.
//! *Assumes*: as `mount::table`. *Fails when*: there is no such mount or daemon: one line with the next command.
//! *Order*: none. *Not here*: the requests.

use super::progress_bar;
use crate::control::{CallError, Client, Progress, Request, place};
use crate::daemon::report::shell_word;
use crate::mount::table::{self, Entry};
use indicatif::ProgressBar;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The mount that `path` lies in.
pub(super) fn find(path: &Path) -> Result<Entry, String> {
    let entries = table::read().map_err(|error| format!("cannot read the table of mounts: {error}"))?;
    let named = |path: PathBuf| table::containing(&entries, &path).filter(|entry| place::is_ours(entry)).cloned();
    let lexical = table::lexical(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if let Some(other) = table::containing(&entries, &lexical).filter(|entry| entry.is_fuse() && !place::is_ours(entry))
    {
        // Nothing in it is looked at: its daemon may hang.
        return Err(format!("{} is in a mount of type {}, not in one of stablefs", path.display(), other.kind));
    }
    named(lexical.clone())
        .or_else(|| {
            let parent = lexical.parent()?.canonicalize().ok()?;
            named(parent.join(lexical.file_name()?))
        })
        .or_else(|| named(path.canonicalize().ok()?))
        .ok_or_else(|| format!("{} is not in a stablefs mount; see what is mounted: stablefs status", path.display()))
}

/// Talk to the daemon of a mount.
pub(super) fn connect(entry: &Entry) -> Result<Client, String> {
    let place = shell_word(&entry.path.to_string_lossy());
    place::connect(entry).and_then(Client::new).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => format!("only root and whoever mounted {place} may ask its daemon"),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no stablefs daemon answers for {place}; if it has died, detach the mount: stablefs umount {place}")
        }
        _ => format!("cannot talk to the daemon of {place}: {error}"),
    })
}

/// Whether nobody listens where the daemon of a mount should.
pub(super) fn is_silent(entry: &Entry) -> bool {
    place::connect(entry).is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

/// Ask the daemon of the mount that `path` lies in; shows progress on a terminal.
pub(super) fn ask(path: &Path, request: &Request) -> Result<Value, String> {
    let entry = find(path)?;
    let mut client = connect(&entry)?;
    let mut bar = Bar::default();
    let outcome = client.call(request, &mut |progress| bar.show(progress));
    bar.clear();
    outcome.map_err(|error| explain(&entry, error))
}

/// A failed call in one line.
pub(super) fn explain(entry: &Entry, error: CallError) -> String {
    match error {
        CallError::Refused(text) => text,
        CallError::Gone(_) => {
            format!("{error}; see its state: stablefs status {}", shell_word(&entry.path.to_string_lossy()))
        }
    }
}

/// A progress bar on standard error; nothing if that is no terminal.
#[derive(Default)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Show how far it is.
    pub(super) fn show(&mut self, progress: &Progress) {
        let template = "{msg} {wide_bar} {percent} % {elapsed} (left {eta})";
        let bar = self.bar.get_or_insert_with(|| progress_bar(template, Some(0), false));
        bar.set_length(progress.total.max(progress.done));
        bar.set_position(progress.done);
        let found = match (progress.damaged, progress.healed) {
            (0, _) => String::new(),
            (damaged, healed) => format!(", {damaged} damaged, {healed} healed"),
        };
        bar.set_message(format!("{}{found}", progress.what));
    }

    /// Take it from the screen.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
