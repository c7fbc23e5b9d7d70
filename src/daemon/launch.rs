//! Becoming a background process: the program starts itself again and waits until the mount answers.
//!
//! *Guarantees*: the caller returns when the mount answers, or with the reason why it never will. If the caller is
//! killed while it waits, the new process undoes the mount.
//! *Assumes*: `/proc` is mounted. *Fails when*: the new process says so or dies: one line.
//! *Order*: the new process says `ready` or `error: …` on its standard output, then closes it. *Not here*: serving (`daemon`).

use super::{Job, journal};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The word that tells the program that it is the new process.
pub const CHILD_FLAG: &str = "--daemon-child";

/// How long the end of a daemon waits for its log.
pub const LOG_WAIT: Duration = Duration::from_secs(1);

/// Start `stablefs mount --daemon-child WORDS…` and wait until it is ready.
///
/// # Errors
/// What it said, or that it died.
pub fn launch(words: &[OsString]) -> Result<(), String> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("stablefs")
        .args(["mount", CHILD_FLAG])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the daemon: {error}"))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut said); // nothing is an answer, too
    }
    let said = said.trim_end();
    if said == "ready" {
        return Ok(());
    }
    if let Some(reason) = said.strip_prefix("error: ") {
        let _ = child.wait(); // so that replicas and mount point are free again
        return Err(reason.to_owned());
    }
    let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
    Err(format!("the daemon died before the mount was ready ({status}); try --foreground to see why"))
}

/// The new process: serve, and tell the caller how it went.
///
/// # Errors
/// As [`super::serve`]; told to the caller already if it still waited.
pub fn run_child(job: &Job) -> Result<(), String> {
    let _ = crate::disk::file::close_inherited(); // an old kernel: they stay open, as they would with any program
    journal::start();
    let _ = rustix::process::setsid(); // fails if we lead a group already, which is as good
    let mut told = false;
    let outcome = super::serve(job, &mut |log| {
        let settled = settle(log);
        told = settled.is_ok();
        settled
    });
    journal::settle(LOG_WAIT);
    if let (Err(error), false) = (&outcome, told) {
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "error: {error}"); // the caller is gone: nobody to tell
        let _ = stdout.flush();
    }
    outcome
}

/// The mount answers: let go of the terminal, the directory and the caller.
fn settle(log: Option<&Path>) -> Result<(), String> {
    if let Some(log) = log {
        let opened = std::path::absolute(log).and_then(|log| journal::divert(Some(&log)));
        opened.map_err(|error| format!("the log {} cannot be opened: {error}", log.display()))?;
    }
    let _ = std::env::set_current_dir("/"); // it is only kept from being unmounted
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready")
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("whoever asked for the mount is gone: {error}"))?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| format!("cannot open /dev/null: {error}"))?;
    let _ = rustix::stdio::dup2_stderr(&null);
    rustix::stdio::dup2_stdout(&null).map_err(|error| format!("cannot let go of the caller: {error}"))
}
