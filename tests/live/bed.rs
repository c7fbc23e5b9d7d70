//! A scratch volume and its mount, and how to run programs on it.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long any command may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much a test does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// Nothing is mounted.
    Quick,
    /// Nobody said: light tests only.
    Light,
    /// What CI runs.
    Default,
    /// Hours, if need be.
    All,
}

pub fn scale() -> Scale {
    match std::env::var("STABLEFS_TEST_SCALE").as_deref() {
        Ok("quick") => Scale::Quick,
        Ok("default") => Scale::Default,
        Ok("all") => Scale::All,
        Ok(other) => panic!("STABLEFS_TEST_SCALE={other}: quick, default or all"),
        Err(_) => Scale::Light,
    }
}

/// Whether this machine can run mounted tests; says why not. With a scale set, not being able to is a failure.
pub fn can_mount() -> bool {
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match (scale(), fuse) {
        (Scale::Quick, _) => {
            println!("skipped: --quick mounts nothing");
            false
        }
        (_, Ok(_)) => true,
        (Scale::Light, Err(error)) => {
            println!("skipped: /dev/fuse: {error}");
            false
        }
        (_, Err(error)) => panic!("/dev/fuse: {error}"),
    }
}

/// As [`can_mount`], for tests that take long: only where a scale is asked for.
pub fn can_work_hard() -> bool {
    if scale() == Scale::Light {
        println!("skipped: takes long; scripts/test runs it");
        return false;
    }
    can_mount()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As [`can_mount`], for tests that need root `to` do something.
pub fn can_mount_as_root(to: &str) -> bool {
    if !is_root() {
        println!("skipped: needs root, {to}");
        return false;
    }
    can_mount()
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("STABLEFS_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_stablefs").into(), PathBuf::from)
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub command: String,
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// It ended with code 0, else the test fails and shows everything.
    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, 0, "{self}");
        self
    }
    #[track_caller]
    pub fn code(self, code: i32) -> Said {
        assert_eq!(self.code, code, "{self}");
        self
    }
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tail = |text: &str| {
            text.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        write!(f, "\n$ {}\n{}\n{}\nexit code {}", self.command, tail(&self.out), tail(&self.err), self.code)
    }
}

/// Run `command` to its end; the test fails if that does not come.
#[track_caller]
pub fn run(command: &mut Command) -> Said {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    // Files and not pipes: a daemon that kept one open must not keep us here.
    let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let clone = |file: &fs::File| Stdio::from(file.try_clone().expect("a descriptor"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(clone(&out))
        .stderr(clone(&err))
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("{line}: did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |mut file: fs::File| {
        use std::io::{Read, Seek};
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("what it said");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Said { command: line, code, out: text(out), err: text(err) }
}

/// Run a shell command in `folder`; `set -e` is on.
#[track_caller]
pub fn shell(folder: &Path, script: &str) -> Said {
    run(Command::new("bash").args(["-ec", script]).current_dir(folder).env("LC_ALL", "C"))
}

/// Run `script` as an ordinary user, in a folder of his own with the program, in a mount namespace in which everybody may
/// open `/dev/fuse`, as on a desktop; `before` is done there first, by root.
#[track_caller]
pub fn as_ordinary_user(folder: &Path, before: &str, script: &str) -> Said {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("a folder of ours");
    fs::copy(program(), folder.join("stablefs")).expect("a copy of the program");
    fs::write(folder.join("script"), script).expect("a file");
    let outer = format!(
        "mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; {before}
         exec setpriv --reuid 65534 --regid 65534 --clear-groups -- bash -ec \"$(cat script)\""
    );
    let said = run(Command::new("unshare").args(["-m", "bash", "-ec", &outer]).current_dir(folder));
    mounts_in(folder).iter().for_each(|place| detach(place));
    said
}

/// A scratch folder with two replicas and a mount point.
pub struct Bed {
    folder: tempfile::TempDir,
    pub a: PathBuf,
    pub b: PathBuf,
    pub mnt: PathBuf,
}

impl Bed {
    /// Folders only.
    pub fn bare() -> Bed {
        let folder = tempfile::Builder::new().prefix("live.").tempdir().expect("a scratch folder");
        let at = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("a folder");
            path
        };
        let (a, b, mnt) = (at("a"), at("b"), at("mnt"));
        at("state");
        Bed { a, b, mnt, folder }
    }
    /// A volume of `size`, not mounted.
    #[track_caller]
    pub fn formatted(size: &str) -> Bed {
        let bed = Bed::bare();
        bed.stablefs(["format".as_ref(), "--size".as_ref(), size.as_ref(), bed.a.as_os_str(), bed.b.as_os_str()]).ok();
        bed
    }
    /// A volume of `size`, mounted.
    #[track_caller]
    pub fn mounted(size: &str) -> Bed {
        let bed = Bed::formatted(size);
        bed.mount("").ok();
        bed
    }
    /// The scratch folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
    /// Let other users come through the scratch folder.
    pub fn open_to_others(&self) {
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).expect("a folder of ours");
    }
    /// A path below the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }
    /// `stablefs` with `words`; the host's witness stands in the scratch folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.env("STABLEFS_STATE_DIR", self.path().join("state")).env("RUST_BACKTRACE", "1");
        command
    }
    #[track_caller]
    pub fn stablefs<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Said {
        run(self.command().args(words))
    }
    /// Mount both replicas.
    #[track_caller]
    pub fn mount(&self, options: &str) -> Said {
        self.mount_of(&[&self.a, &self.b], options)
    }
    #[track_caller]
    pub fn mount_of(&self, replicas: &[&Path], options: &str) -> Said {
        let mut command = self.command();
        command.arg("mount");
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        run(command.args(replicas).arg(&self.mnt))
    }
    #[track_caller]
    pub fn umount(&self) -> Said {
        self.stablefs([OsStr::new("umount"), self.mnt.as_os_str()])
    }
    #[track_caller]
    pub fn sync(&self) {
        self.stablefs([OsStr::new("sync"), self.mnt.as_os_str()]).ok();
    }
    /// `status --json`, whatever it says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.stablefs([OsStr::new("status"), OsStr::new("--json"), self.mnt.as_os_str()]).json()
    }
    #[track_caller]
    pub fn scrub(&self) -> Value {
        self.stablefs([OsStr::new("scrub"), OsStr::new("--json"), self.mnt.as_os_str()]).ok().json()
    }
    #[track_caller]
    pub fn fsck(&self, flag: &str) -> Said {
        self.stablefs([OsStr::new("fsck"), OsStr::new(flag), self.a.as_os_str(), self.b.as_os_str()])
    }
    /// Unmount a volume that is healthy to the end, and have the checker find nothing.
    #[track_caller]
    pub fn umount_and_check(&self) {
        let status = self.status();
        assert_eq!(status["state"], "healthy", "a replica went out that nobody had hurt: {:#}", status["replicas"]);
        self.umount().ok();
        self.fsck("-n").ok();
    }
    /// Wait until `status` says what `holds` wants; fails after `patience`.
    #[track_caller]
    pub fn wait_for(&self, patience: Duration, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + patience;
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < until, "not within {patience:?}: {what}; status says\n{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    /// Process of the daemon.
    #[track_caller]
    pub fn daemon(&self) -> i32 {
        self.status()["mount"]["process"].as_i64().expect("status tells the process") as i32
    }
    /// End the daemon as `kill -9` does, and detach its dead mount.
    #[track_caller]
    pub fn kill(&self) {
        let daemon = self.daemon();
        end(daemon);
        detach(&self.mnt);
    }
    /// A line of /proc/PID/status, in KiB.
    #[track_caller]
    pub fn memory_kib(&self, line: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.daemon())).expect("the daemon lives");
        let found = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in\n{text}"));
        found.trim_matches([':', ' ', '\t']).trim_end_matches("kB").trim().parse().expect("a number")
    }
}

/// `kill -9` one process of ours and wait until it is gone.
#[track_caller]
pub fn end(process: i32) {
    let pid = rustix::process::Pid::from_raw(process).expect("a process");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    wait_until("kill -9 ends it", || !lives(process));
}

/// Whether a process has not ended. It has when only its name is left: before that its files and sockets may still be open.
pub fn lives(process: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!((tasks, state), (0, _) | (_, None) | (1, Some('Z' | 'X')))
}

/// Wait until something `holds` that is certain to come; fails if it does not within a minute.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Detach a mount that may be dead.
pub fn detach(place: &Path) {
    let tools: [(&str, &[&str]); 2] = [("umount", &["-l"]), ("fusermount3", &["-uz"])];
    for (tool, words) in tools {
        let done = Command::new(tool).args(words).arg(place).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            return;
        }
    }
}

/// Mount points at or below `folder`, deepest first.
pub fn mounts_in(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = places.filter(|place| place.starts_with(folder)).collect();
    found.sort();
    found.reverse();
    found
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = Command::new(program()).args(["status".as_ref(), self.mnt.as_os_str()]).output();
            if let Ok(said) = log {
                println!("{}", String::from_utf8_lossy(&said.stdout));
            }
        }
        for place in mounts_in(self.path()) {
            let polite = place == self.mnt && {
                let mut child = self.command();
                child.args(["umount".as_ref(), place.as_os_str()]).stdout(Stdio::null()).stderr(Stdio::null());
                child.status().is_ok_and(|status| status.success())
            };
            if !polite {
                detach(&place);
            }
        }
        for process in daemons_of(self.path()) {
            end(process);
        }
    }
}

/// Daemons whose command line names a path in `folder`.
pub fn daemons_of(folder: &Path) -> Vec<i32> {
    let needle = format!("{}/", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let words = String::from_utf8_lossy(&words).into_owned();
        if words.split('\0').next().is_some_and(|first| first.ends_with("stablefs")) && words.contains(&needle) {
            found.push(process);
        }
    }
    found
}

/// Names, states and bytes of a status.
pub fn state_of(status: &Value, replica: &Path) -> String {
    let all = status["replicas"].as_array().expect("replicas");
    let one = all.iter().find(|r| r["path"].as_str() == replica.to_str());
    one.map_or_else(|| "unknown".into(), |r| r["state"].as_str().unwrap_or("").to_owned())
}

/// Sum of a counter over the replicas.
pub fn counter(status: &Value, name: &str) -> u64 {
    status["replicas"].as_array().expect("replicas").iter().map(|r| r[name].as_u64().unwrap_or(0)).sum()
}

/// Bytes that follow from a seed: xorshift, so that any part can be had again.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Checksum of every file in `folder` (names, sizes and bytes), to see whether anything changed.
pub fn fingerprint(folder: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(one) = folders.pop() {
        let mut names: Vec<PathBuf> = fs::read_dir(&one).into_iter().flatten().flatten().map(|e| e.path()).collect();
        names.sort();
        for path in names {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            (path.as_os_str(), meta.len(), meta.mode()).hash(&mut hasher);
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() {
                fs::read(&path).expect("a readable file").hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}
