//! The control socket: how commands talk to the daemon of a mount.
//!
//! *Guarantees*: the socket stands outside of the mount, in a directory that only its owner can enter, and serves only
//! the owner and root. A request is one line of JSON; the answer is any number of `{"progress":…}` lines and then one
//! `{"ok":…}` or `{"error":"…"}`. A client that hangs or sends junk costs one thread and no more.
//! *Assumes*: `/run` or the user's runtime directory is a local filesystem.
//! *Fails when*: the directory belongs to somebody else ([`io::Error`]); the daemon is gone ([`CallError::Gone`]).
//! *Order*: bind in the directory, restrict, listen, answer; a socket that vanishes is made again. *Not here*: what requests do ([`Control`], `daemon`).

pub mod place;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of the longest request line.
const LINE_MAX: u64 = 64 * 1024;
/// Bytes of the longest line of an answer.
const ANSWER_MAX: u64 = 64 << 20;
/// Clients served at once.
const CLIENTS_MAX: usize = 32;
/// How long a client may be silent before a request, or refuse to read an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What can be asked of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// State of the volume; touches no backing.
    Status {},
    /// Events that are remembered; touches no backing.
    Events {
        /// Only those with a number above this.
        #[serde(default)]
        after: u64,
    },
    /// Make everything durable.
    Sync {},
    /// Prove and heal every block.
    Scrub {
        /// Start, look or stop.
        action: ScrubAction,
    },
    /// Resync a replica onto a new place.
    Replace {
        /// Path or number of the replica to replace.
        old: String,
        /// Path of the new one; may be the same.
        new: String,
    },
    /// Attach one more replica.
    Attach {
        /// Path of its place.
        new: String,
        /// Whatever stands there.
        force: bool,
    },
    /// Detach a replica for ever.
    Detach {
        /// Path or number of the replica.
        replica: String,
    },
    /// Send a replica away.
    Offline {
        /// Path or number of the replica.
        replica: String,
        /// Until the next mount only.
        temporary: bool,
    },
    /// Let a replica return that is away, now.
    Online {
        /// Path or number of the replica.
        replica: String,
    },
    /// Keep a replica in another way.
    Role {
        /// Path or number of the replica.
        replica: String,
        /// `hot`, `warm` or `cold`.
        role: String,
    },
    /// Unmount, make everything durable, end.
    Umount {
        /// Detach although files are open.
        lazy: bool,
        /// Number of the mount that is meant, from the table of mounts; the daemon leaves copies of its own one alone
        /// (`mount --bind`, other namespaces) and says `copy`, and `last` if nothing else is mounted where it lives.
        #[serde(default)]
        mount: Option<u64>,
    },
}

/// What to do about the scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubAction {
    /// Start one, or follow the one that runs, to its end.
    Start,
    /// Tell about the one that runs or the last one.
    Status,
    /// Stop the one that runs.
    Stop,
}

/// How far a long request is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What is being done, in a few words.
    pub what: String,
    /// Blocks done.
    pub done: u64,
    /// Blocks in all; 0 if not known.
    pub total: u64,
    /// Damaged blocks found so far.
    pub damaged: u64,
    /// Of those healed.
    pub healed: u64,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// More will follow.
    Progress(Progress),
    /// Done; the result.
    Ok(Value),
    /// Not done; one line for the user.
    Error(String),
}

/// The daemon's side of a request.
pub trait Control: Send + Sync + 'static {
    /// Do what is asked. `progress` returns false once the client is gone; the work may then go on or not.
    ///
    /// # Errors
    /// One line for the user.
    fn answer(&self, request: Request, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String>;
}

/// How often the socket is looked for.
const LOOK: Duration = Duration::from_secs(3);

/// A listening socket; removed from the directory when dropped.
pub struct Server {
    place: Arc<Mutex<Place>>,
    clients: Arc<AtomicUsize>,
}

/// Where the socket stands.
struct Place {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    /// The daemon ends: it is not made again.
    is_closed: bool,
}

impl Server {
    /// Listen at `path`, whose directory is private already ([`place::prepare`]).
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> io::Result<Server> {
        let mut listener = listen(path)?;
        let place = Place { path: path.to_owned(), identity: identity(path), is_closed: false };
        let server = Server { place: Arc::new(Mutex::new(place)), clients: Arc::default() };
        let (place, clients) = (server.place.clone(), server.clients.clone());
        std::thread::Builder::new().name("control".into()).spawn(move || {
            let look = Timespec { tv_sec: LOOK.as_secs() as i64, tv_nsec: 0 };
            loop {
                let asked = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&look));
                match asked
                    .map_err(io::Error::from)
                    .and_then(|count| (count > 0).then(|| listener.accept()).transpose())
                {
                    Ok(Some((stream, _))) => admit(stream, &control, &clients),
                    Ok(None) => match place.lock().make_again() {
                        Ok(None) => {}
                        Ok(Some(again)) => listener = again,
                        Err(error) => log::debug!("the control socket cannot be made again: {error}"),
                    },
                    Err(_) => std::thread::sleep(Duration::from_millis(100)), // out of descriptors: do not spin
                }
            }
        })?;
        Ok(server)
    }

    /// The daemon ends: what takes the socket away now may have a right to the place.
    pub fn close(&self) {
        self.place.lock().is_closed = true;
    }

    /// Wait until every client has hung up, or `patience` is over.
    pub fn drain(&self, patience: Duration) {
        let step = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        while self.clients.load(Ordering::Relaxed) > 0 && waited < patience {
            std::thread::sleep(step);
            waited += step;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut place = self.place.lock();
        place.is_closed = true;
        // Device numbers are used again: after our unmount the place may be another daemon's.
        if place.identity.is_some() && identity(&place.path) == place.identity {
            let _ = std::fs::remove_file(&place.path); // a left-over socket is refused by connect(2)
        }
    }
}

impl Place {
    /// Make the socket again if it is gone, in the same directory or in the next one that serves: a user's runtime
    /// directory goes when they log out, and `/tmp` is tidied up.
    fn make_again(&mut self) -> io::Result<Option<UnixListener>> {
        let is_gone =
            |path: &Path| matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        if self.is_closed || !is_gone(&self.path) {
            return Ok(None);
        }
        let name = self.path.file_name().unwrap_or_default();
        let path = match self.path.parent().map(place::make) {
            Some(Ok(())) => self.path.clone(),
            _ => place::prepare()?.join(name),
        };
        let listener = listen(&path)?;
        log::info!("the control socket was gone; it stands at {} now", path.display());
        (self.identity, self.path) = (identity(&path), path);
        Ok(Some(listener))
    }
}

/// Listen at `path`.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // the device number is ours now, so a socket of that name is a dead daemon's
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Device and inode of what stands at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn admit(stream: UnixStream, control: &Arc<dyn Control>, clients: &Arc<AtomicUsize>) {
    if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
        clients.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (control, clients_of_thread) = (control.clone(), clients.clone());
    let spawned = std::thread::Builder::new().name("control-client".into()).spawn(move || {
        if is_trusted(&stream) {
            let _ = serve(stream, &*control); // the client is gone: nobody to tell
        }
        clients_of_thread.fetch_sub(1, Ordering::Relaxed);
    });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

/// Answer requests of one client until it hangs up.
///
/// # Errors
/// The stream broke.
pub fn serve(stream: UnixStream, control: &dyn Control) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let length = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_slice::<Request>(&line) {
            _ if !line.ends_with(b"\n") => Reply::Error("the request is not one line, or too long".into()),
            Err(error) => Reply::Error(format!("the request is not understood: {error}")),
            Ok(request) => {
                let mut alive = true;
                let mut tell = |progress: &Progress| {
                    alive = alive && send(&mut writer, &Reply::Progress(progress.clone())).is_ok();
                    alive
                };
                answer_safely(control, request, &mut tell)
            }
        };
        send(&mut writer, &reply)?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

/// A bug in one answer must not take the thread count or the daemon with it.
fn answer_safely(control: &dyn Control, request: Request, tell: &mut dyn FnMut(&Progress) -> bool) -> Reply {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| control.answer(request, tell)));
    match outcome {
        Ok(Ok(value)) => Reply::Ok(value),
        Ok(Err(text)) => Reply::Error(text),
        Err(_) => Reply::Error("the daemon hit a bug while answering; its log has the place".into()),
    }
}

fn send(writer: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with this line.
    #[error("{0}")]
    Refused(String),
    /// The connection broke before the answer.
    #[error("the daemon hung up ({0})")]
    Gone(io::Error),
}

/// A connection to a daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Client {
    /// Talk over `stream`.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub fn new(stream: UnixStream) -> io::Result<Client> {
        Ok(Client { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// Ask, and wait for the answer; `on_progress` sees what comes before it.
    ///
    /// # Errors
    /// The daemon refuses or is gone.
    pub fn call(&mut self, request: &Request, on_progress: &mut dyn FnMut(&Progress)) -> Result<Value, CallError> {
        let mut line = serde_json::to_vec(request).map_err(|error| CallError::Gone(error.into()))?;
        line.push(b'\n');
        self.writer.write_all(&line).map_err(CallError::Gone)?;
        loop {
            let mut line = Vec::new();
            let length = self.reader.by_ref().take(ANSWER_MAX).read_until(b'\n', &mut line).map_err(CallError::Gone)?;
            if length == 0 {
                return Err(CallError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_slice(&line).map_err(|error| CallError::Gone(error.into()))? {
                Reply::Progress(progress) => on_progress(&progress),
                Reply::Ok(value) => return Ok(value),
                Reply::Error(text) => return Err(CallError::Refused(text)),
            }
        }
    }

    /// Process of the daemon.
    pub fn peer_process(&self) -> Option<rustix::process::Pid> {
        rustix::net::sockopt::socket_peercred(&self.writer).ok().map(|peer| peer.pid)
    }
}

#[cfg(test)]
mod tests;
