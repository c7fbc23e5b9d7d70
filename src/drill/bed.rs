//! A scratch folder with replicas and a mount point, and the program's own commands on them, as a user types them.
//!
//! *Guarantees*: whatever happens to this process, nothing stays: it clears up itself, also when it panics, and a guard
//! process does it if this one is killed. A command that does not end in time is ended.
//! *Assumes*: `/proc/self/exe` is stablefs. *Fails when*: a command fails or hangs ([`Stop::Broken`]), or a signal asks for
//! the end ([`Stop::Interrupted`]). *Order*: the guard before anything is made.
//! *Not here*: the order of things (`stage`), what is undone by force (`sweep`).

use super::disks::{self, DiskKind};
use super::{Halt, Stop, sweep};
use crate::control::{Client, Request, place};
use crate::daemon::report::Report;
use crate::mount::table;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// Longest that a daemon may take to tell its state.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const STEP: Duration = Duration::from_millis(5);
/// `statfs` type of tmpfs: a file in memory is no disk.
const TMPFS: i64 = 0x0102_1994;

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// As typed.
    pub command: String,
    /// Exit code; 128 and more: ended by a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// It ended well.
    ///
    /// # Errors
    /// It did not; with what it said.
    pub fn ok(self) -> Result<Said, Stop> {
        if self.code == 0 {
            return Ok(self);
        }
        let text = [self.err.trim(), self.out.trim()].into_iter().find(|text| !text.is_empty()).unwrap_or("");
        let tail: Vec<&str> = text.lines().rev().take(4).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("; ");
        Err(Stop::Broken(format!("`{}` ended with code {}: {tail}", self.command, self.code)))
    }
    /// It ended well, and said JSON.
    ///
    /// # Errors
    /// It did not.
    pub fn json(self) -> Result<Value, Stop> {
        let said = self.ok()?;
        serde_json::from_str(&said.out)
            .map_err(|error| Stop::Broken(format!("`{}` did not say JSON: {error}", said.command)))
    }
}

/// The scratch folder.
#[derive(Debug)]
pub struct Bed {
    root: PathBuf,
    /// Mount point.
    pub mnt: PathBuf,
    keep: bool,
    halt: Halt,
    guard: Option<Child>,
}

/// Where scratch folders are made unless told otherwise: where files are on a disk.
fn default_parent() -> PathBuf {
    let given = std::env::temp_dir();
    let in_memory = |path: &Path| rustix::fs::statfs(path).is_ok_and(|found| found.f_type == TMPFS);
    let other = PathBuf::from("/var/tmp");
    if in_memory(&given) && other.is_dir() && !in_memory(&other) { other } else { given }
}

impl Bed {
    /// Make the folder.
    ///
    /// # Errors
    /// It cannot be made; one line.
    pub fn new(parent: Option<&Path>, name: &str, keep: bool, halt: Halt) -> Result<Bed, Stop> {
        let parent = parent.map_or_else(default_parent, Path::to_owned);
        let unable =
            |error: std::io::Error| Stop::Unable(format!("no scratch folder in {}: {error}", parent.display()));
        let parent_path = parent.canonicalize().map_err(unable)?;
        let mut tries = 0;
        let root = loop {
            let random = crate::world::World::random(&crate::world::Machine) as u32;
            let root = parent_path.join(format!("stablefs-drill-{name}-{random:08x}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&root) {
                Ok(()) => break root,
                Err(error) if tries == 9 => return Err(unable(error)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => tries += 1,
                Err(error) => return Err(unable(error)),
            }
        };
        let mut bed = Bed { mnt: root.join("mnt"), root, keep, halt, guard: None };
        let guard = bed.start_guard().map_err(|error| {
            let _empty = std::fs::remove_dir(&bed.root); // nothing stays that nobody guards
            Stop::Unable(format!("no guard process: {error}"))
        });
        bed.guard = Some(guard?);
        bed.folder("mnt")?;
        bed.folder("state")?;
        Ok(bed)
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A process that clears up if this one dies: it reads from a pipe that only we hold open.
    fn start_guard(&self) -> std::io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("stablefs").args(["drill", "guard"]).arg(&self.root);
        command.args(self.keep.then_some("--keep"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/").process_group(0).spawn()
    }

    /// A folder inside.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Stop> {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).map_err(|error| Stop::Unable(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// A filesystem of its own, mounted inside; its path.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn disk(&self, name: &str, kind: DiskKind, size_mib: u64) -> Result<PathBuf, Stop> {
        let (place, image) = (self.folder(name)?, self.root.join(format!("{name}.img")));
        let made = File::create_new(&image).and_then(|file| file.set_len(size_mib << 20));
        made.map_err(|error| Stop::Unable(format!("{}: {error}", image.display())))?;
        let (maker, words) = kind.maker();
        let unable = |stop: Stop| match stop {
            Stop::Broken(text) => Stop::Unable(text),
            other => other,
        };
        let mut command = Command::new(maker);
        self.run(command.args(words).arg(&image))?.ok().map_err(unable)?;
        let mut command = Command::new("mount");
        command.args(["-t", kind.name(), "-o", "loop"]).arg(&image).arg(&place);
        self.run(&mut command)?.ok().map_err(unable)?;
        Ok(place)
    }

    /// Run a command to its end.
    ///
    /// # Errors
    /// It does not end, cannot be started, or a signal asks for the end.
    pub fn run(&self, command: &mut Command) -> Result<Said, Stop> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        let line = line.replace("/proc/self/exe", "stablefs");
        let unable = |error: std::io::Error| Stop::Unable(format!("`{line}`: {error}"));
        // Files and not pipes: a daemon that kept one open must not keep us here.
        let (out, err) = (self.root.join("said.out"), self.root.join("said.err"));
        let create = |path: &Path| File::create(path).map(Stdio::from).map_err(unable);
        command.stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?);
        // A group of its own: Ctrl-C is for us, who then end it.
        command.env("PATH", disks::search_path()).env("LC_ALL", "C").current_dir("/").process_group(0);
        let mut child = command.spawn().map_err(unable)?;
        let until = Instant::now() + COMMAND_MAX;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(unable)? {
                break status;
            }
            let asked = self.halt.check();
            if asked.is_err() || Instant::now() > until {
                let _ended = child.kill();
                let _hangs = child.try_wait(); // never waited for: it may hang with a disk
                asked?;
                return Err(Stop::Broken(format!("`{line}` does not end")));
            }
            std::thread::sleep(STEP);
        };
        let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Said { code, out: text(&out), err: text(&err), command: line })
    }

    /// Run stablefs itself; what this host remembers of volumes is in the scratch folder.
    ///
    /// # Errors
    /// As [`Bed::run`].
    pub fn stablefs<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<Said, Stop> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("stablefs").env("STABLEFS_STATE_DIR", self.root.join("state")).args(words);
        self.run(&mut command)
    }

    /// Make a volume.
    ///
    /// # Errors
    /// It is refused.
    pub fn format(&self, size: &str, replicas: &[PathBuf]) -> Result<(), Stop> {
        let words = ["format", "--size", size].map(OsString::from);
        self.stablefs(words.into_iter().chain(replicas.iter().map(Into::into)))?.ok().map(drop)
    }

    /// Mount it.
    ///
    /// # Errors
    /// It is refused.
    pub fn mount(&self, replicas: &[PathBuf], options: &str) -> Result<(), Stop> {
        let log = self.root.join("daemon.log").to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
        let words: [OsString; 3] = ["mount".into(), "-o".into(), format!("log={log},{options}").into()];
        let places = replicas.iter().chain([&self.mnt]).map(Into::into);
        self.stablefs(words.into_iter().chain(places))?.ok().map(drop)
    }

    /// Unmount it.
    ///
    /// # Errors
    /// It cannot be.
    pub fn umount(&self) -> Result<(), Stop> {
        self.stablefs([OsStr::new("umount"), self.mnt.as_os_str()])?.ok().map(drop)
    }

    /// State of the mounted volume.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn status(&self) -> Result<Report, Stop> {
        let broken = |text: String| Stop::Broken(format!("status cannot be asked: {text}"));
        let entries = table::read().map_err(|error| broken(error.to_string()))?;
        let entry = table::at(&entries, &self.mnt).ok_or_else(|| broken("it is not mounted".into()))?;
        let stream = place::connect(entry).map_err(|error| broken(error.to_string()))?;
        stream.set_read_timeout(Some(ANSWER_MAX)).map_err(|error| broken(error.to_string()))?;
        let mut client = Client::new(stream).map_err(|error| broken(error.to_string()))?;
        let value = client.call(&Request::Status {}, &mut |_| {}).map_err(|error| broken(error.to_string()))?;
        serde_json::from_value(value).map_err(|error| broken(error.to_string()))
    }

    /// `kill -9` the daemon, and wait until it is gone.
    ///
    /// # Errors
    /// There is none, or it survives.
    pub fn kill_daemon(&self, process: u32) -> Result<(), Stop> {
        let unable = |error: rustix::io::Errno| Stop::Unable(format!("the daemon cannot be killed: {error}"));
        let process = Pid::from_raw(process as i32).ok_or_else(|| Stop::Unable("no such daemon".into()))?;
        let handle = pidfd_open(process, PidfdFlags::empty()).map_err(unable)?;
        pidfd_send_signal(&handle, Signal::KILL).map_err(unable)?;
        let until = Instant::now() + Duration::from_secs(20);
        let place = format!("/proc/{}/exe", process.as_raw_nonzero());
        while std::fs::read_link(&place).is_ok() {
            if Instant::now() > until {
                return Err(Stop::Broken("the daemon survives kill -9".into()));
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Leave nothing behind. What stays in spite of all is said.
    ///
    /// # Errors
    /// Something stays; one line.
    pub fn clear(&mut self) -> Result<(), String> {
        let Some(mut guard) = self.guard.take() else { return Ok(()) };
        let left = sweep::sweep(&self.root);
        let removed = if self.keep || !left.is_empty() { Ok(()) } else { sweep::remove(&self.root) };
        drop(guard.stdin.take()); // it looks once more, finds nothing, and ends
        let waited = Instant::now();
        while matches!(guard.try_wait(), Ok(None)) && waited.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(STEP);
        }
        if !left.is_empty() {
            return Err(format!("could not be undone: {}", left.join(", ")));
        }
        removed
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _said = self.clear(); // only after a panic is there anything left to do
    }
}

/// What the guard does: wait until whoever started it is gone, then clear up.
pub fn guard(root: &Path, keep: bool) -> Result<(), String> {
    let _group = rustix::process::setsid(); // no signal of the terminal is for us
    let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink()); // however it ends, it has ended
    let left = sweep::sweep(root);
    match (left.is_empty(), keep) {
        (true, false) => sweep::remove(root),
        (true, true) => Ok(()),
        (false, _) => Err(left.join(", ")),
    }
}
