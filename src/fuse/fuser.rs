//! The only module that names the FUSE library: its trait, translated into [`Requests`].
//!
//! *Guarantees*: no callback panics: a bug in a call is logged and answered EIO. Capabilities are asked for one by one,
//! so that one that the kernel lacks costs only itself. An fsync is parked and holds no thread.
//! *Assumes*: fuser 0.18 (its defects are listed at [`capabilities`] and in `times`); the descriptor was mounted by us,
//! so that the library never unmounts. *Fails when*: the kernel does not say INIT: [`std::io::Error`].
//! *Order*: see `lanes`. *Not here*: what requests mean (`fs`).

mod callbacks;
mod words;

use super::lanes::{Lanes, Matter};
use super::{Requests, ServeOptions};
use fuser::{
    Config, Errno, FopenFlags, INodeNo, InitFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, SessionACL,
};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use words::answer_empty_outcome;

/// How long the kernel may trust names and attributes: nobody else changes them.
const TRUST: Duration = Duration::from_secs(3600);
/// Entries asked of `fs` at first for a listing without attributes.
const LISTING_STEP: usize = 64;
/// Seeks that may wait at once for the kernel to send what it holds of a file.
const SEEKERS: usize = 8;
/// Requests that the kernel may have waiting in the background.
const BACKGROUND_MAX: u16 = 64;

/// A mount that is being served.
pub struct Session {
    inner: fuser::BackgroundSession,
    /// Lent to whoever serves: it keeps the device open.
    _notifier: Arc<fuser::Notifier>,
    stopped: Arc<AtomicBool>,
}

impl Session {
    /// Greet the kernel over the descriptor of `/dev/fuse` and serve `requests` on threads of its own.
    /// `on_end` is called once nothing is mounted any more.
    ///
    /// # Errors
    /// The kernel hung up, or threads cannot be started.
    pub fn start(
        descriptor: OwnedFd,
        requests: Arc<dyn Requests>,
        options: &ServeOptions,
        on_end: Box<dyn FnOnce() + Send + Sync>,
    ) -> io::Result<Session> {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut open_flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        open_flags.set(FopenFlags::FOPEN_NOFLUSH, !options.writeback);
        let core = Arc::new(Core { requests: requests.clone(), stopped: stopped.clone(), open_flags });
        let kernel = Arc::new(Kernel::default());
        let adapter = Adapter {
            core,
            lanes: Lanes::start(options.threads)?,
            seekers: Lanes::start(SEEKERS)?,
            kernel: kernel.clone(),
            writeback: options.writeback,
            on_end: Some(on_end),
        };
        let mut config = Config::default();
        config.n_threads = Some(options.threads);
        // Each clone opens the device again: an ordinary user may not be allowed to.
        config.clone_fd =
            rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok();
        let session = fuser::Session::from_fd(adapter, descriptor, SessionACL::All, config)?;
        let notifier = Arc::new(session.notifier());
        kernel.notifier.get_or_init(|| Arc::downgrade(&notifier));
        requests.tell_of_modes(Box::new(move |ino| kernel.look_again(INodeNo(ino))));
        Ok(Session { inner: session.spawn()?, _notifier: notifier, stopped })
    }

    /// Answer every request from now on with ENOTCONN.
    pub fn stop_answering(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether nothing is mounted any more.
    pub fn is_ended(&self) -> bool {
        self.inner.guard.is_finished()
    }
}

/// What we tell the kernel unasked.
#[derive(Default)]
struct Kernel {
    /// Set before the first request is served.
    notifier: OnceLock<Weak<fuser::Notifier>>,
}

impl Kernel {
    /// Have it ask for the attributes of `ino` when it needs them. They alone, at no offset: this waits for nobody, also
    /// while the kernel waits for our answer.
    fn look_again(&self, ino: INodeNo) {
        if let Some(Err(error)) = self.notifier().map(|notifier| notifier.inval_inode(ino, -1, 0)) {
            log::debug!("the kernel did not take the news of the mode of inode {ino}: {error}");
        }
    }

    /// Have it send every page of `ino` from `offset` on that it holds and did not send, and forget them all
    /// (`invalidate_inode_pages2_range` in mm/truncate.c). Says whether it did. Waits for our answers to these WRITEs: only
    /// for threads that answer none.
    fn send_pages(&self, ino: INodeNo, offset: i64) -> bool {
        self.notifier().is_some_and(|notifier| notifier.inval_inode(ino, offset.max(0), 0).is_ok())
    }

    fn notifier(&self) -> Option<Arc<fuser::Notifier>> {
        self.notifier.get()?.upgrade()
    }
}

/// What a request needs to be answered on any thread.
struct Core {
    requests: Arc<dyn Requests>,
    stopped: Arc<AtomicBool>,
    open_flags: FopenFlags,
}

struct Adapter {
    core: Arc<Core>,
    lanes: Lanes,
    /// For a seek in a file of which the kernel may hold pages: they wait for WRITEs, which take the other lanes.
    seekers: Lanes,
    kernel: Arc<Kernel>,
    writeback: bool,
    on_end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

/// A reply that can say no.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => { $(impl Refuse for $reply {
        fn refuse(self, errno: Errno) {
            self.error(errno);
        }
    })* };
}
refuse!(ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek);
refuse!(ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr);

type Outcome<T> = Result<T, super::Errno>;

impl Core {
    /// Do `work` and answer. A panic drops the reply, and that answers EIO.
    fn run<R: Refuse, T>(&self, reply: R, work: impl FnOnce(&dyn Requests) -> Outcome<T>, answer: impl FnOnce(R, T)) {
        if self.stopped.load(Ordering::Relaxed) {
            return reply.refuse(Errno::ENOTCONN);
        }
        let whole = AssertUnwindSafe(|| match work(&*self.requests) {
            Ok(value) => answer(reply, value),
            Err(code) => reply.refuse(Errno::from_i32(code)),
        });
        if catch_unwind(whole).is_err() {
            log::error!(
                "a request hit a bug and was answered with an I/O error; the place is in the message before this"
            );
        }
    }
}

impl Adapter {
    /// Do `work` on this thread: it looks at memory, or at most reads a little.
    fn now<R: Refuse, T>(&self, reply: R, work: impl FnOnce(&dyn Requests) -> Outcome<T>, answer: impl FnOnce(R, T)) {
        self.core.run(reply, work, answer);
    }

    /// Do `work` on this thread or on another: it may wait for a disk or for room.
    fn waits<R: Refuse, T>(
        &self,
        matter: Matter,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        if let Some(_pass) = self.lanes.enter(matter) {
            return self.core.run(reply, work, answer);
        }
        let core = self.core.clone();
        let job = Box::new(move || core.run(reply, work, answer));
        match matter {
            Matter::Names => self.lanes.push_names(job),
            Matter::Data => self.lanes.push_data(0, job),
        }
    }

    /// As [`Adapter::waits`], for changes of names and attributes.
    fn names<R: Refuse, T>(
        &self,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.waits(Matter::Names, reply, work, answer);
    }

    /// As [`Adapter::waits`], for content of files.
    fn data<R: Refuse, T>(
        &self,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.waits(Matter::Data, reply, work, answer);
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        if self.core.stopped.load(Ordering::Relaxed) {
            return reply.error(Errno::ENOTCONN);
        }
        let done = Box::new(move |outcome: Outcome<()>| answer_empty_outcome(reply, outcome));
        if catch_unwind(AssertUnwindSafe(|| self.core.requests.fsync(ino.0, done))).is_err() {
            log::error!("an fsync hit a bug and was answered with an I/O error");
        }
    }
}

/// What we ask of the kernel.
///
/// HANDLE_KILLPRIV_V2: set-id bits and file capabilities are taken by us (`fs::privileges`), and the kernel need not ask for
/// them before each write; fuser 0.18 hides the bit from us in SETATTR, OPEN and CREATE, so that we go by who asks
/// (`words::looked_up`).
///
/// Not ASYNC_DIO: after an asynchronous O_DIRECT write nothing drops the pages that somebody has read meanwhile
/// (`fuse_direct_IO` returns EIOCBQUEUED, `generic_file_direct_write` leaves them then), and others go on seeing old bytes
/// (xfstests generic/451). Not ATOMIC_O_TRUNC: by OPEN we would have cut a program that runs before the kernel refuses it
/// with `ETXTBSY`; without, it checks first and then asks by SETATTR.
///
/// Never with fuser 0.18: SETXATTR_EXT (panics), SECURITY_CTX, CREATE_SUPP_GROUP, ALLOW_IDMAP, REQUEST_TIMEOUT (accepted,
/// not implemented).
fn capabilities(writeback: bool) -> InitFlags {
    let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_EXPORT_SUPPORT
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_POSIX_ACL;
    wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, writeback);
    wanted
}
