//! Texts that users type: `-o` lists, sizes, durations, sources of `mount(8)`.
//!
//! *Guarantees*: what is not understood is refused by name; nothing is guessed. *Assumes*: nothing.
//! *Fails when*: a text means nothing: one line for the user. *Order*: none. *Not here*: clap's part (`cli`).

use crate::volume::Lag;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Deadline of a backing, unless asked otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);
/// The least that a warm replica may miss.
const LAG_BYTES_MIN: u64 = 1 << 20;
/// Requests served at once, unless asked otherwise.
pub const THREADS_DEFAULT: usize = 8;
/// Most and fewest threads that can be asked for.
pub const THREADS: std::ops::RangeInclusive<usize> = 3..=64;
/// Smallest limit of a resync, in bytes a second.
const RATE_MIN: u64 = 1 << 20;

/// What `-o` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `degraded`: mount although replicas are missing.
    pub degraded: bool,
    /// `accept_stale`: mount although this host has seen a newer state on a replica that is missing now.
    pub accept_stale: bool,
    /// `force-owner`: do not wait to see whether another host still uses the volume.
    pub force_owner: bool,
    /// `allow_other`; `None`: root allows, others do not.
    pub allow_other: Option<bool>,
    /// `deadline=5s`: how long a backing may take.
    pub deadline: Duration,
    /// `lag=`: how far a warm replica may be behind.
    pub lag: Lag,
    /// `slow=warm`: a slow replica becomes warm, and hot again later; else (`slow=keep`) it stays hot.
    pub slow_becomes_warm: bool,
    /// `fsname=`: source in the table of mounts.
    pub fsname: Option<String>,
    /// `subtype=`.
    pub subtype: String,
    /// `writeback`: the kernel may hold written pages back.
    pub writeback: bool,
    /// `threads=`.
    pub threads: usize,
    /// `log=FILE`.
    pub log: Option<PathBuf>,
    /// Replicas that were away are taken back without being asked; `noreturn`: only by `stablefs online`.
    pub takes_back: bool,
    /// `resync-rate=SIZE`: bytes a second that a resync moves at most; 0: as fast as it goes beside others.
    pub resync_rate: u64,
    /// `full=out`: a replica without room is left behind; else (`full=enospc`) nobody gets any.
    pub full_leaves: bool,
    /// `on-event=PROGRAM`: run for each event.
    pub on_event: Option<PathBuf>,
    /// `foreground`.
    pub foreground: bool,
    /// `dev`.
    pub device_nodes: bool,
    /// `suid`.
    pub set_user_id: bool,
    /// `exec`.
    pub execute: bool,
    /// `noatime`.
    pub no_access_times: bool,
    /// `remount`: change flags of what is mounted.
    pub remount: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            read_only: false,
            degraded: false,
            accept_stale: false,
            force_owner: false,
            allow_other: None,
            deadline: DEADLINE_DEFAULT,
            lag: Lag::default(),
            slow_becomes_warm: false,
            fsname: None,
            subtype: "stablefs".into(),
            writeback: false,
            threads: THREADS_DEFAULT,
            log: None,
            takes_back: true,
            resync_rate: 0,
            full_leaves: false,
            on_event: None,
            foreground: false,
            device_nodes: true,
            set_user_id: true,
            execute: true,
            no_access_times: false,
            remount: false,
        }
    }
}

/// Options of `mount(8)` and `fstab(5)` that say nothing to us.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "noauto",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "noowner",
    "nostrictatime",
    "nouser",
    "nousers",
    "owner",
    "silent",
    "user",
    "users",
];

/// What the kernel shows for a FUSE mount; mount(8) repeats it when something is to change (`remount`).
const KERNELS: &[&str] = &["blksize", "group_id", "max_read", "user_id"];

/// Every option that means something, for the error text.
const KNOWN: &str = "ro, rw, degraded, accept_stale, force-owner, allow_other, deadline=, fsname=, subtype=, writeback, threads=, noatime, log=, \
                     on-event=, lag=, return, noreturn, resync-rate=, full=, slow=, foreground, dev, nodev, suid, nosuid, exec, noexec, remount";

/// What to do with options that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Say no.
    Refuse,
    /// Leave them out, and only them (`mount -s`).
    Ignore,
}

/// Read one `-o` list into `options`; later words win. A comma inside a value is written `\,`.
///
/// # Errors
/// An unknown option, unless such are ignored, or a value that means nothing.
pub fn parse_list(list: &str, unknown: Unknown, options: &mut MountOptions) -> Result<(), String> {
    for word in split_escaped(list, ',') {
        if !word.is_empty() && !parse_word(&word, options)? && unknown == Unknown::Refuse {
            return Err(format!("unknown option \"{word}\"; known are: {KNOWN}"));
        }
    }
    Ok(())
}

/// Read one option; false: nobody knows it.
fn parse_word(word: &str, options: &mut MountOptions) -> Result<bool, String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    if name.starts_with("x-")
        || name.starts_with("X-")
        || name == "comment"
        || name == "user" // mount(8) makes user=bob of it where bob may mount
        || name == "uhelper" // what umount(8) is to call
        || (value.is_some() && KERNELS.contains(&name))
        || (value.is_none() && IGNORED.contains(&name))
    {
        return Ok(true);
    }
    match (name, value) {
        ("ro", None) => options.read_only = true,
        ("rw", None) => options.read_only = false,
        ("degraded", None) => options.degraded = true,
        ("accept_stale", None) => options.accept_stale = true,
        ("force-owner" | "force_owner", None) => options.force_owner = true,
        ("allow_other", None) => options.allow_other = Some(true),
        ("noallow_other", None) => options.allow_other = Some(false),
        ("writeback", None) => options.writeback = true,
        ("return", None) => options.takes_back = true,
        ("noreturn", None) => options.takes_back = false,
        ("foreground", None) => options.foreground = true,
        ("noatime", None) => options.no_access_times = true,
        ("atime" | "relatime" | "strictatime", None) => options.no_access_times = false,
        ("remount", None) => options.remount = true,
        ("dev", None) => options.device_nodes = true,
        ("nodev", None) => options.device_nodes = false,
        ("suid", None) => options.set_user_id = true,
        ("nosuid", None) => options.set_user_id = false,
        ("exec", None) => options.execute = true,
        ("noexec", None) => options.execute = false,
        ("deadline", Some(value)) => options.deadline = parse_duration(value)?,
        ("fsname", Some(value)) => options.fsname = Some(value.to_owned()),
        ("subtype", Some(value)) => options.subtype = parse_subtype(value)?,
        ("full", Some(value)) => options.full_leaves = parse_full(value)?,
        ("threads", Some(value)) => options.threads = parse_threads(value)?,
        ("log", Some(value)) if !value.is_empty() => options.log = Some(PathBuf::from(value)),
        ("on-event", Some(value)) if !value.is_empty() => options.on_event = Some(PathBuf::from(value)),
        ("lag", Some(value)) => options.lag = parse_lag(value, options.lag)?,
        ("slow", Some("warm")) => options.slow_becomes_warm = true,
        ("slow", Some("keep")) => options.slow_becomes_warm = false,
        ("slow", Some(value)) => return Err(format!("option slow={value}: give slow=keep or slow=warm")),
        ("resync-rate", Some(value)) => options.resync_rate = parse_rate(value)?,
        (
            "deadline" | "lag" | "slow" | "fsname" | "full" | "subtype" | "threads" | "log" | "on-event"
            | "resync-rate",
            _,
        ) => {
            return Err(format!("option {name} needs a value: -o {name}=…"));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse_rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let size = parse_size(text).map_err(|why| format!("option resync-rate={text}: {why}"))?;
    if size < RATE_MIN {
        Err(format!("option resync-rate={text}: at least 1M (a second), or 0 for no limit"))
    } else {
        Ok(size)
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| THREADS.contains(count))
        .ok_or_else(|| format!("option threads={text}: give a number from {} to {}", THREADS.start(), THREADS.end()))
}

fn parse_full(text: &str) -> Result<bool, String> {
    match text {
        "out" => Ok(true),
        "enospc" => Ok(false),
        _ => Err(format!("option full={text}: give full=enospc or full=out")),
    }
}

fn parse_subtype(text: &str) -> Result<String, String> {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
        return Ok(text.to_owned());
    }
    Err(format!("option subtype={text}: only letters, digits, - and _ are possible"))
}

/// `5s`, `500ms`, `2m`, or bare seconds.
///
/// # Errors
/// Not a duration, or not from 100 ms to an hour.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_time("deadline", text)
}

/// A time, or a size; the other one stays as it was.
fn parse_lag(text: &str, lag: Lag) -> Result<Lag, String> {
    match (parse_time("lag", text), parse_size(text)) {
        (Ok(time), _) => Ok(Lag { time, ..lag }),
        (Err(_), Ok(bytes)) if bytes >= LAG_BYTES_MIN && !text.ends_with('m') => Ok(Lag { bytes: Some(bytes), ..lag }),
        (Err(_), Ok(_)) if text.ends_with(['K', 'M', 'G', 'T', 'B']) => {
            Err(format!("lag {text} is out of range; give 1M or more"))
        }
        (Err(why), _) => Err(why),
    }
}

fn parse_time(what: &str, text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale_ms = match &text[digits.len()..] {
        "ms" => Some(1.0),
        "" | "s" => Some(1000.0),
        "m" | "min" => Some(60_000.0),
        _ => None,
    };
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
    let duration_ms = scale_ms.zip(number).map(|(scale, number)| scale * number);
    match duration_ms {
        Some(ms) if (100.0..=3_600_000.0).contains(&ms) => Ok(Duration::from_millis(ms as u64)),
        Some(_) => Err(format!("{what} {text} is out of range; give 100ms to 60m")),
        None => Err(format!("\"{text}\" is not a duration; write for example 5s or 500ms")),
    }
}

/// `10G`, `512MiB`, `4096`: bytes. Letters are powers of 1024, `KB`/`MB`/… are powers of 1000.
///
/// # Errors
/// Not a size, or beyond 2^63.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size; write for example 10G or 512MiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let (letter, rest) = unit.split_at(unit.len().min(1));
    let power = match letter {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let base = match rest {
        "" | "ib" if letter != "b" || rest.is_empty() => 1024f64,
        "b" if power > 0 => 1000f64,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    if !bytes.is_finite() || bytes < 0.0 || bytes >= i64::MAX as f64 {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Split a source as `mount(8)` has it: `/a:/b`. `\:` is a colon in a path, `\\` a backslash, `\ooo` the byte of that
/// octal number. `fstab(5)` undoes its octal numbers before we see them, so in a source that begins with `/` a bare colon
/// separates only where another `/` (or nothing) follows.
///
/// # Errors
/// An empty part.
pub fn split_source(source: &OsStr) -> Result<Vec<PathBuf>, String> {
    let absolute = source.as_bytes().first() == Some(&b'/');
    let mut parts = vec![Vec::new()];
    let mut rest = source.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let literal = match (byte, tail.first(), code) {
            (b':', next, _) if !absolute || next.is_none_or(|next| *next == b'/') => {
                parts.push(Vec::new());
                continue;
            }
            (b'\\', _, Some(code)) => {
                rest = &tail[3..];
                code
            }
            (b'\\', Some(b':' | b'\\'), _) => {
                rest = &tail[1..];
                tail[0]
            }
            _ => byte,
        };
        if let Some(part) = parts.last_mut() {
            part.push(literal);
        }
    }
    if parts.iter().any(Vec::is_empty) {
        let shown = source.to_string_lossy();
        return Err(format!("source \"{shown}\" has an empty part; write /replica-a:/replica-b"));
    }
    Ok(parts.into_iter().map(|part| PathBuf::from(OsString::from_vec(part))).collect())
}

/// The source for the table of mounts: the inverse of [`split_source`].
pub fn join_source(paths: &[PathBuf]) -> String {
    let escape = |path: &PathBuf| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
    paths.iter().map(escape).collect::<Vec<_>>().join(":")
}

fn split_escaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c == separator {
            parts.push(String::new());
            continue;
        }
        let escaped = c == '\\' && characters.peek().is_some_and(|next| *next == separator || *next == '\\');
        let c = if escaped { characters.next().unwrap_or(c) } else { c };
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, String> {
        let mut options = MountOptions::default();
        parse_list(list, Unknown::Refuse, &mut options).map(|()| options)
    }

    #[test]
    fn a_list_as_fstab_has_it() {
        let options = parse(
            "defaults,nofail,_netdev,user,user=bob,x-systemd.requires-mounts-for=/d1,comment=hi,ro,degraded,deadline=500ms,\
             fsname=a\\,b,writeback,threads=16,noatime,nodev,nosuid,noexec,allow_other,log=/tmp/l,lag=2m,lag=64M,slow=warm,on-event=/usr/bin/a\\,b,subtype=",
        )
        .unwrap();
        assert!(options.read_only && options.degraded && options.writeback && options.no_access_times);
        assert!(!options.device_nodes && !options.set_user_id && !options.execute);
        assert_eq!(options.deadline, Duration::from_millis(500));
        assert_eq!(options.fsname.as_deref(), Some("a,b"));
        assert_eq!((options.threads, options.allow_other), (16, Some(true)));
        assert_eq!(options.log.as_deref(), Some(std::path::Path::new("/tmp/l")));
        assert_eq!(options.on_event.as_deref(), Some(std::path::Path::new("/usr/bin/a,b")));
        assert_eq!(options.subtype, "");
        assert_eq!(options.lag, Lag { time: Duration::from_secs(120), bytes: Some(64 << 20) });
        assert!(options.slow_becomes_warm && !parse("slow=warm,slow=keep").unwrap().slow_becomes_warm);
        assert!(parse("full=out").unwrap().full_leaves && !parse("full=out,full=enospc").unwrap().full_leaves);
        assert!(!parse("ro,rw").unwrap().read_only);
        assert_eq!(parse("").unwrap(), MountOptions::default());
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (list, word) in [
            ("bogus", "bogus"),
            ("ro=1", "ro=1"),
            ("deadline", "needs a value"),
            ("deadline=soon", "soon"),
            ("deadline=1ms", "out of range"),
            ("deadline=nans", "not a duration"),
            ("threads=1", "3 to 64"),
            ("threads=x", "threads=x"),
            ("full=maybe", "full=enospc or full=out"),
            ("full", "needs a value"),
            ("lag=9K", "1M or more"),
            ("lag=soon", "not a duration"),
            ("slow=cold", "slow=keep or slow=warm"),
            ("log=", "needs a value"),
            ("on-event", "needs a value"),
            ("resync-rate", "needs a value"),
            ("resync-rate=9", "at least 1M"),
            ("resync-rate=fast", "not a size"),
            ("subtype=a b", "subtype=a b"),
            ("defaults=2", "defaults=2"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.contains(word), "{list}: {error}");
            assert!(!error.contains('\n'), "{list}: more than one line");
        }
    }

    #[test]
    fn sloppy_leaves_out_what_nobody_knows_and_nothing_else() {
        let mut options = MountOptions::default();
        parse_list("bogus,ro,also=bogus,degraded", Unknown::Ignore, &mut options).unwrap();
        assert!(options.read_only && options.degraded);
        let error = parse_list("bogus,deadline=soon", Unknown::Ignore, &mut options).unwrap_err();
        assert!(error.contains("soon"), "{error}");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10G", 10 << 30),
            ("512MiB", 512 << 20),
            ("1k", 1024),
            ("1KB", 1000),
            ("1.5g", 3 << 29),
            ("7B", 7),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "10X", "1GiX", "1e400", "nan", "9999P", "1bb"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sources_split_and_join() {
        let split = |source: &str| split_source(OsStr::new(source));
        let paths = split("/a\\:1:/b c:/d\\\\e").unwrap();
        assert_eq!(paths, ["/a:1", "/b c", "/d\\e"].map(PathBuf::from));
        assert_eq!(split(&join_source(&paths)).unwrap(), paths);
        assert!(split("/a:").is_err());
        assert!(split("").is_err());
    }

    #[test]
    fn sources_of_fstab_split() {
        let split = |source: &str| split_source(OsStr::new(source)).unwrap();
        assert_eq!(split("/my\\040disk:/b\\072/c\\054"), ["/my disk", "/b:/c,"].map(PathBuf::from));
        assert_eq!(split("/a:1:/b,c"), ["/a:1", "/b,c"].map(PathBuf::from), "fstab had undone \\072");
        assert_eq!(split("a:b"), ["a", "b"].map(PathBuf::from));
        assert_eq!(split("/a\\"), [PathBuf::from("/a\\")]);
        let bytes = split_source(OsStr::new("/\\377:/b")).unwrap();
        assert_eq!(bytes[0].as_os_str().as_bytes(), b"/\xff");
    }
}
