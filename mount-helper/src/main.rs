//! `mount.stablefs` and `umount.stablefs`: what `mount(8)`, `umount(8)` and `fstab(5)` call; turns their words into those
//! of `stablefs`, and its exit codes into theirs.
//!
//! *Guarantees*: exit codes are those of mount(8): 0, 1 for wrong words, 32 for a failure. `umount` returns when the daemon
//! has ended, so when the replicas are free. *Assumes*: `stablefs` stands beside this program, in `../bin`, or in `PATH`.
//! *Fails when*: the words are not those of mount(8), or `stablefs` fails or cannot be started: one line each.
//! *Order*: find the program, then enter the namespace that `-N` names. *Not here*: what options and sources mean.
//!
//! | called as | does |
//! |---|---|
//! | `mount.*` SOURCE DIR [-sfnvrw] [-N namespace] [-o options] [-t type] | `stablefs mount -o … -- SOURCE DIR` |
//! | `umount.*` DIR [-flnrv] [-N namespace] [-t type] | `stablefs umount -- DIR`; with -f what `umount -i -f` does |

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// mount(8): incorrect invocation.
const USAGE: u8 = 1;
/// mount(8): mount failure.
const FAILED: u8 = 32;
/// Exit code of `stablefs` for wrong usage.
const STABLEFS_USAGE: i32 = 2;

/// What `mount(8)` or `umount(8)` asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    places: Vec<OsString>,
    options: Vec<OsString>,
    namespace: Option<OsString>,
    sloppy: bool,
    verbose: bool,
    /// `-f` of mount: do nothing.
    pretend: bool,
    /// `-f` of umount.
    force: bool,
    lazy: bool,
}

/// Under which name this program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Mount,
    Umount,
}

impl Part {
    fn of(program: &OsStr) -> Part {
        let name = Path::new(program).file_name().unwrap_or_default();
        if name.as_bytes().starts_with(b"umount") { Part::Umount } else { Part::Mount }
    }

    fn name(self) -> &'static str {
        match self {
            Part::Mount => "mount.stablefs",
            Part::Umount => "umount.stablefs",
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let part = Part::of(&words.next().unwrap_or_default());
    let outcome = match parse(part, words.collect()) {
        Ok(asked) => act(part, &asked),
        Err(text) => Err((USAGE, text)),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, text)) => {
            eprintln!("{}: {text}", part.name());
            ExitCode::from(code)
        }
    }
}

fn parse(part: Part, words: Vec<OsString>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            asked.places.extend(words);
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            asked.places.push(word);
            continue;
        }
        for (at, letter) in bytes.iter().enumerate().skip(1) {
            match (letter, part) {
                (b'n' | b'r', Part::Umount) | (b'n', Part::Mount) => {} // no mtab; the rest of -r is umount(8)'s
                (b'v', _) => asked.verbose = true,
                (b'f', Part::Mount) => asked.pretend = true,
                (b's', Part::Mount) => asked.sloppy = true,
                (b'r', Part::Mount) => asked.options.push("ro".into()),
                (b'w', Part::Mount) => asked.options.push("rw".into()),
                (b'f', Part::Umount) => asked.force = true,
                (b'l', Part::Umount) => asked.lazy = true,
                (b'N' | b't', _) | (b'o', Part::Mount) => {
                    let rest = OsString::from_vec(bytes[at + 1..].to_vec());
                    let value = if rest.is_empty() { words.next() } else { Some(rest) };
                    let value = value.ok_or_else(|| format!("option -{} needs a value", char::from(*letter)))?;
                    match letter {
                        b'o' => asked.options.push(unquote(&value)),
                        b'N' => asked.namespace = Some(value),
                        _ => {} // the type is ours, or we would not have been called
                    }
                    break;
                }
                _ => return Err(format!("unknown option {}", word.to_string_lossy())),
            }
        }
    }
    match (part, asked.places.len()) {
        (Part::Mount, 2) | (Part::Umount, 1) => Ok(asked),
        (Part::Mount, _) => {
            Err("give a source and a directory: mount -t stablefs /replica-a:/replica-b /mnt/safe".into())
        }
        (Part::Umount, _) => Err("give one mount point: umount /mnt/safe".into()),
    }
}

/// `name="a,b"`, as mount(8) hands it on, in the language of `stablefs`: `name=a\,b`.
fn unquote(list: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(list.len());
    let mut quoted = false;
    let mut bytes = list.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if quoted => out.extend(b"\\,"),
            b'\\' => {
                out.push(byte);
                out.extend(bytes.next());
            }
            _ => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

/// Words for `stablefs`, or for `umount(8)` where it must not wait for a daemon.
fn arguments(part: Part, asked: &Asked) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    match part {
        Part::Mount => {
            words.push("mount".into());
            if !asked.options.is_empty() {
                words.extend(["-o".into(), asked.options.join(OsStr::new(","))]);
            }
            words.extend(asked.sloppy.then(|| "--sloppy".into()));
        }
        Part::Umount if asked.force => words.extend(["-i".into(), "-f".into()]),
        Part::Umount => words.push("umount".into()),
    }
    words.extend(asked.lazy.then(|| "-l".into()));
    words.push("--".into());
    words.extend(asked.places.iter().cloned());
    words
}

/// Do it; the exit code for mount(8), and the line to say if nothing else has said one.
fn act(part: Part, asked: &Asked) -> Result<u8, (u8, String)> {
    let words = arguments(part, asked);
    if asked.verbose {
        let shown: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let program = if asked.force { "umount" } else { "stablefs" };
        println!("{}: {program} {}", part.name(), shown.join(" "));
    }
    if asked.pretend {
        return Ok(0);
    }
    let failed = |text: String| (FAILED, text);
    let (program, file) = if asked.force {
        (PathBuf::from("umount"), None)
    } else {
        let (program, file) = find()
            .ok_or_else(|| failed("cannot find the program stablefs; install it beside this one, or in PATH".into()))?;
        (program, Some(file))
    };
    let mut command = match (&asked.namespace, &file) {
        (Some(namespace), file) => {
            enter(namespace).map_err(|error| {
                failed(format!("cannot enter the mount namespace {}: {error}", namespace.to_string_lossy()))
            })?;
            // Its path may lead elsewhere there; the file that is open here is the same.
            let path = file.as_ref().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
            Command::new(path.map_or(program, PathBuf::from))
        }
        (None, _) => Command::new(program),
    };
    if file.is_some() {
        command.arg0("stablefs");
    }
    let shown = if asked.force { "umount" } else { "stablefs" };
    let status = command.args(words).status().map_err(|error| failed(format!("cannot start {shown}: {error}")))?;
    Ok(match status.code() {
        Some(0) => 0,
        // umount(8) itself: its codes are these already.
        Some(code) if asked.force => u8::try_from(code).unwrap_or(FAILED),
        Some(STABLEFS_USAGE) => USAGE,
        _ => FAILED,
    })
}

fn enter(namespace: &OsStr) -> std::io::Result<()> {
    let file = File::open(namespace)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// The program `stablefs`, and the file of it.
fn find() -> Option<(PathBuf, File)> {
    let mut folders = Vec::new();
    if let Some(own) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend([own.to_owned(), own.join("../bin")]);
    }
    folders.extend(["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin"].map(PathBuf::from));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).filter(|f| f.is_absolute()));
    folders.into_iter().find_map(|folder| {
        let program = folder.join("stablefs");
        let file = File::open(&program).ok()?;
        file.metadata().is_ok_and(|found| found.is_file()).then_some((program, file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(part: Part, line: &[&str]) -> Result<Vec<OsString>, String> {
        parse(part, line.iter().map(OsString::from).collect()).map(|asked| arguments(part, &asked))
    }

    #[test]
    fn the_words_of_mount_become_ours() {
        let got =
            words(Part::Mount, &["/a:/b\\:c", "/mnt", "-rn", "-o", "degraded,noatime", "-t", "stablefs"]).unwrap();
        assert_eq!(got, ["mount", "-o", "ro,degraded,noatime", "--", "/a:/b\\:c", "/mnt"].map(OsString::from));
        let got = words(Part::Mount, &["/a:/b", "/mnt", "-sv", "-orw", "-N/proc/1/ns/mnt"]).unwrap();
        assert_eq!(got, ["mount", "-o", "rw", "--sloppy", "--", "/a:/b", "/mnt"].map(OsString::from));
        let got = words(Part::Mount, &["-w", "--", "-a:-b", "/mnt"]).unwrap();
        assert_eq!(got, ["mount", "-o", "rw", "--", "-a:-b", "/mnt"].map(OsString::from));
    }

    #[test]
    fn the_words_of_umount_become_ours() {
        assert_eq!(Part::of(OsStr::new("/sbin/umount.fuse.stablefs")), Part::Umount);
        assert_eq!(Part::of(OsStr::new("mount.fuse.stablefs")), Part::Mount);
        let got = words(Part::Umount, &["/mnt", "-nvr", "-l", "-t", "fuse.stablefs"]).unwrap();
        assert_eq!(got, ["umount", "-l", "--", "/mnt"].map(OsString::from));
        let got = words(Part::Umount, &["/mnt", "-f"]).unwrap();
        assert_eq!(got, ["-i", "-f", "--", "/mnt"].map(OsString::from), "force must not wait for a daemon");
    }

    #[test]
    fn quoted_commas_do_not_separate() {
        let unquoted = |text: &str| unquote(OsStr::new(text)).into_string().unwrap();
        assert_eq!(unquoted("ro,fsname=\"a,b\",rw"), "ro,fsname=a\\,b,rw");
        assert_eq!(unquoted("fsname=a\\,b\\\\,ro"), "fsname=a\\,b\\\\,ro");
    }

    #[test]
    fn wrong_words_are_refused() {
        for line in [&["/a"][..], &["/a", "/m", "/x"], &["/a", "/m", "-o"], &["/a", "/m", "-Z"], &["/a", "/m", "-l"]] {
            assert!(words(Part::Mount, line).is_err(), "{line:?}");
        }
        for line in [&[][..], &["/m", "/x"], &["/m", "-o", "ro"], &["/m", "-N"]] {
            assert!(words(Part::Umount, line).is_err(), "{line:?}");
        }
    }
}
