//! `mount`, `umount`, `sync`.
//!
//! *Guarantees*: as the commands say in `cli`. *Assumes*: nothing. *Fails when*: one line. *Order*: for `umount`: hold on
//! to the daemon's process, ask, hang up, wait for its end. *Not here*: the daemon.

use super::options::{self, MountOptions, Unknown};
use super::{MountArgs, UmountArgs, complain, is_source, replicas_of, talk};
use crate::control::{CallError, Request};
use crate::daemon::{self, Job, journal, launch, report::shell_word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::path::Path;

/// How long a daemon may take to end after its last answer, s.
const PROCESS_END_MAX_S: i64 = 30;

/// Mount.
pub(super) fn mount(args: &MountArgs) -> Result<(), String> {
    let job = job(args)?;
    if job.options.remount {
        return remount(&job);
    }
    if args.daemon_child {
        return launch::run_child(&job).map_err(|_told_already| String::new());
    }
    if job.options.foreground {
        journal::start();
        let outcome = daemon::serve(&job, &mut |_| {
            let log = job.options.log.as_deref();
            journal::divert(log).map_err(|error| format!("the log cannot be opened: {error}"))
        });
        journal::settle(launch::LOG_WAIT);
        return outcome;
    }
    let mut words: Vec<OsString> = Vec::new();
    for list in &args.options {
        words.extend(["-o".into(), list.into()]);
    }
    if let Some(program) = &args.on_event {
        words.extend(["--on-event".into(), program.clone().into_os_string()]);
    }
    if args.sloppy {
        words.push("--sloppy".into());
    }
    words.push("--".into());
    words.extend(args.places.iter().map(|place| place.clone().into_os_string()));
    launch::launch(&words)
}

fn job(args: &MountArgs) -> Result<Job, String> {
    let mut options = MountOptions::default();
    let unknown = if args.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    for list in &args.options {
        options::parse_list(list, unknown, &mut options)?;
    }
    options.foreground |= args.foreground;
    options.on_event = args.on_event.clone().or(options.on_event);
    let (mountpoint, replicas) = args.places.split_last().ok_or("give replicas and a mount point")?;
    // What mount(8) was told stays as it is in the table of mounts: it looks there for what is mounted already.
    if let ([source], None) = (replicas, &options.fsname)
        && is_source(source)
        && source.is_absolute()
    {
        options.fsname = source.to_str().map(str::to_owned);
    }
    Ok(Job { replicas: replicas_of(replicas)?, mountpoint: mountpoint.clone(), options })
}

/// Change the flags of a mount: whether it can be written to, and the like. Other options stay as they are.
fn remount(job: &Job) -> Result<(), String> {
    let entry = talk::find(&job.mountpoint)?;
    let place = shell_word(&entry.path.to_string_lossy());
    let status = talk::ask(&entry.path, &Request::Status {})?;
    if !job.options.read_only && status["read_only"] == true {
        return Err(format!(
            "{place} was mounted for reading only, and its daemon cannot write; unmount it first: stablefs umount {place}"
        ));
    }
    talk::ask(&entry.path, &Request::Sync {})?;
    let mut plan = daemon::plan(job, &job.replicas, entry.path.clone());
    if entry.owner() != Some(0) {
        // What an ordinary user brought along stays without rights, whoever remounts it.
        (plan.device_nodes, plan.set_user_id) = (false, false);
    }
    crate::mount::remount(&plan).map_err(|error| error.to_string())
}

/// Make everything durable.
pub(super) fn sync(mountpoint: &Path) -> Result<(), String> {
    talk::ask(mountpoint, &Request::Sync {}).map(|_| ())
}

/// Unmount, and wait until the daemon is gone.
pub(super) fn umount(args: &UmountArgs) -> Result<(), String> {
    let entry = talk::find(&args.mountpoint)?;
    let wanted = crate::mount::table::lexical(&args.mountpoint).unwrap_or_default();
    if wanted.starts_with(&entry.path) && wanted != entry.path {
        let (wanted, place) = (args.mountpoint.display(), entry.path.display());
        return Err(format!("{wanted} is not a mount point, it lies in the one at {place}: stablefs umount {place}"));
    }
    let mut client = match talk::connect(&entry) {
        Ok(client) => client,
        Err(_) if crate::mount::detach_dead(&entry).is_ok() => {
            crate::control::place::forget(&entry);
            let place = entry.path.display();
            complain(&format!("the daemon of {place} had died; detached it. What was synced is safe: mount it again"));
            return Ok(());
        }
        Err(_) if talk::is_silent(&entry) => {
            let place = shell_word(&entry.path.to_string_lossy());
            let tool = if rustix::process::geteuid().is_root() { "umount -i" } else { "fusermount3 -u" };
            return Err(format!(
                "some process serves {place}, but no stablefs daemon answers for it; unmount it from outside: {tool} {place}; \
                 all is durable once that process has ended"
            ));
        }
        Err(error) => return Err(error),
    };
    let process = client.peer_process().and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
    let outcome = client.call(&Request::Umount { lazy: args.lazy, mount: Some(entry.id) }, &mut |_| {});
    drop(client); // the daemon waits for us to hang up
    let place = shell_word(&entry.path.to_string_lossy());
    match outcome {
        Ok(answer) if answer["copy"] == true => {
            crate::mount::unmount_copy(&entry, args.lazy).map_err(|error| error.to_string())?;
            if answer["last"] != true {
                return Ok(()); // the daemon goes on serving the others
            }
        }
        Ok(answer) => {
            let hanging: Vec<String> =
                answer.get("hanging").cloned().and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default();
            for path in &hanging {
                complain(&format!("{path} still hangs; a remainder of the daemon waits for it, and locks it so long"));
            }
            if !hanging.is_empty() {
                return Ok(()); // that process ends when the disk answers, not before
            }
        }
        Err(CallError::Refused(text)) => return Err(text),
        Err(CallError::Gone(_)) => {
            return Err(format!(
                "the daemon of {place} died while it unmounted; what was synced is safe, the rest may be missing"
            ));
        }
    }
    let Some(process) = process else { return Ok(()) };
    let wait = if args.lazy { 0 } else { PROCESS_END_MAX_S };
    let mut waited = [PollFd::new(&process, PollFlags::IN)];
    loop {
        match poll(&mut waited, Some(&Timespec { tv_sec: wait, tv_nsec: 0 })) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) if !args.lazy => {
                return Err(format!("{place} is unmounted and durable, but its daemon has not ended"));
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(format!("cannot wait for the daemon of {place}: {error}")),
        }
    }
}
