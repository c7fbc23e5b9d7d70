//! The daemon's log.
//!
//! *Guarantees*: never more than two files of [`BYTES_MAX`]; a log that cannot be written, or hangs with its disk, does not
//! disturb the daemon: whoever logs may hold any lock, and never waits. At most [`LINES_MAX`] lines wait; what is
//! dropped beyond, or could not be written, is counted, and said. A log that is removed is begun anew, where it was or
//! where the socket would be: a user's runtime directory goes when they log out.
//! *Assumes*: the log stands outside of the mount. *Fails when*: never.
//! *Order*: lines in the order in which they came. *Not here*: what is logged.
//!
//! Lines go straight to standard error until [`divert`] starts the thread that writes them. Panics are logged as bugs.

use crate::control::place;
use crate::disk::file::isolate;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Bytes of a log file before it becomes `FILE.old`.
pub const BYTES_MAX: u64 = 4 << 20;

/// Lines that wait to be written.
pub const LINES_MAX: usize = 4096;

enum Message {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Settle(Sender<()>),
}

/// To the thread that writes.
static QUEUE: Mutex<Option<SyncSender<Message>>> = Mutex::new(None);

/// Lines for which there was no room, or which could not be written.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// What `STABLEFS_LOG` lets through, once nobody is looking at standard error.
static WANTED: OnceLock<log::LevelFilter> = OnceLock::new();

/// Where the log stands now.
static PLACE: Mutex<Option<PathBuf>> = Mutex::new(None);

struct Target {
    file: File,
    path: PathBuf,
    written: u64,
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queue = QUEUE.lock().clone();
        match queue {
            None => io::stderr().write(line),
            Some(queue) => {
                if queue.try_send(Message::Line(line.to_vec())).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
                Ok(line.len())
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Write what comes, until nobody can send any more.
fn serve(out: &mut dyn Write, messages: &Receiver<Message>, lost: &AtomicU64) {
    for message in messages {
        let dropped = lost.swap(0, Ordering::Relaxed);
        if dropped > 0 && writeln!(out, "[{dropped} lines were dropped here: the log could not be written]").is_err() {
            lost.fetch_add(dropped, Ordering::Relaxed); // said when it can be
        }
        match message {
            Message::Line(line) if out.write_all(&line).is_err() => drop(lost.fetch_add(1, Ordering::Relaxed)),
            Message::Line(_) => {}
            Message::Settle(settled) => drop(settled.send(())),
        }
    }
}

impl Write for Target {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_removed() {
            self.begin_anew();
        }
        if self.written > BYTES_MAX {
            self.rotate();
        }
        let count = self.file.write(line)?;
        self.written += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Target {
    fn open(path: &Path) -> io::Result<Target> {
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        let written = file.metadata()?.len();
        Ok(Target { file, path: path.to_owned(), written })
    }

    /// Whether no name leads to what is written any more.
    fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.nlink() == 0)
    }

    /// Go on in a new file; if there can be none, in the one that nobody sees, and try again at the next line.
    fn begin_anew(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        let elsewhere = || Target::open_ours(&place::prepare()?.join(name));
        if let Ok(fresh) = Target::open_ours(&self.path).or_else(|_| elsewhere()) {
            *PLACE.lock() = Some(fresh.path.clone());
            *self = fresh;
            let _ = self.file.write(b"[the log before this was removed]\n"); // what follows is of more use
        }
    }

    /// Open a file that nobody else has put there meanwhile.
    fn open_ours(path: &Path) -> io::Result<Target> {
        let mut options = File::options();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.create(true).append(true).mode(0o600).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Target { file, path: path.to_owned(), written: found.len() })
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        let renamed = std::fs::rename(&self.path, old);
        match renamed.and_then(|()| Target::open(&self.path)) {
            Ok(fresh) => *self = fresh,
            Err(_) => self.written = 0, // go on with the file that we have; tried again after as many bytes
        }
    }
}

/// Start logging to standard error: warnings only, as somebody is looking.
pub fn start() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Info).parse_env("STABLEFS_LOG");
    builder.target(env_logger::Target::Pipe(Box::new(Sink)));
    if builder.try_init().is_ok() {
        let wanted = *WANTED.get_or_init(log::max_level);
        log::set_max_level(wanted.min(log::LevelFilter::Warn));
    }
    std::panic::set_hook(Box::new(|panic| {
        log::error!("bug: {panic}");
        settle(Duration::from_secs(1));
    }));
}

/// Say more from now on, into `path` if there is one, else to standard error.
///
/// # Errors
/// The file cannot be opened.
pub fn divert(path: Option<&Path>) -> io::Result<()> {
    let path = path.map(Path::to_owned);
    let (sender, messages) = sync_channel(LINES_MAX);
    let (told, opened) = channel();
    std::thread::Builder::new().name("stablefs-log".into()).spawn(move || {
        let target = path.map(|path| {
            // A thread that hangs with the log's disk must keep nothing else alive.
            isolate()?;
            Target::open(&path)
        });
        match target {
            None => {
                drop(told.send(Ok(())));
                serve(&mut io::stderr(), &messages, &DROPPED);
            }
            Some(Ok(mut target)) => {
                *PLACE.lock() = Some(target.path.clone());
                drop(told.send(Ok(())));
                serve(&mut target, &messages, &DROPPED);
            }
            Some(Err(error)) => drop(told.send(Err(error))),
        }
    })?;
    opened.recv().unwrap_or_else(|_| Err(io::Error::other("the log's thread has ended")))?;
    *QUEUE.lock() = Some(sender);
    log::set_max_level(WANTED.get().copied().unwrap_or(log::LevelFilter::Info));
    Ok(())
}

/// Where the log stands now, if it is a file.
pub fn place() -> Option<PathBuf> {
    PLACE.lock().clone()
}

/// Wait up to `patience` until what was logged is written: before the process ends.
pub fn settle(patience: Duration) {
    let Some(queue) = QUEUE.lock().clone() else { return };
    let (settled, is_settled) = channel();
    if queue.try_send(Message::Settle(settled)).is_ok() {
        let _ = is_settled.recv_timeout(patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_becomes_the_old_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        std::fs::write(&path, b"before\n").unwrap();
        let mut target = Target::open(&path).unwrap();
        assert_eq!(target.written, 7);
        target.rotate();
        assert_eq!(target.written, 0);
        target.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after\n");
        assert_eq!(std::fs::read(scratch.path().join("log.old")).unwrap(), b"before\n");
    }

    /// Where the log's disk is full for a while, what could not be written is counted, until that can be said.
    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        struct Full(usize, Vec<u8>);
        impl Write for Full {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                if self.0 > 0 {
                    self.0 -= 1;
                    return Err(io::Error::from_raw_os_error(libc::ENOSPC));
                }
                self.1.write(line)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, messages) = channel();
        for line in ["one\n", "two\n", "three\n"] {
            sender.send(Message::Line(line.into())).unwrap();
        }
        drop(sender);
        let mut out = Full(3, vec![]); // the first line, the word that it is missing, and the second line
        serve(&mut out, &messages, &AtomicU64::new(0));
        let said = String::from_utf8(out.1).unwrap();
        assert_eq!(said, "[2 lines were dropped here: the log could not be written]\nthree\n");
    }

    /// Nobody reads the pipe that the log is: whoever logs goes on, and what had no room is counted.
    #[test]
    fn a_log_that_hangs_holds_nobody_up() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        divert(Some(&path)).unwrap();
        let line = [b'x'; 1 << 10];
        for _ in 0..2 * LINES_MAX {
            assert_eq!(Sink.write(&line).unwrap(), line.len());
        }
        assert!(DROPPED.load(Ordering::Relaxed) > 0, "a pipe holds no 8 MiB");
        drop(reader);
        *QUEUE.lock() = None;
    }
}
