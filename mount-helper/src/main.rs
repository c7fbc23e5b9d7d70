//! `mount.stablefs`: what `mount -t stablefs` and `fstab(5)` call; turns their words into `stablefs mount`.
//!
//! *Guarantees*: becomes `stablefs mount A B DIR -o …` by exec, so that its exit code is the answer to `mount(8)`.
//! *Assumes*: `stablefs` stands beside this program or in `PATH`. *Fails when*: the words are not those of `mount(8)`
//! (exit 1, one line), or `stablefs` cannot be started (exit 1). *Order*: none. *Not here*: what options mean.
//!
//! `mount.stablefs SOURCE DIR [-sfnvrw] [-N namespace] [-o options] [-t type]`; SOURCE is `/a:/b`, a colon in a path is
//! written `\:`; `\040` and its like (as fstab has them) are blanks.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What `mount(8)` asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    source: OsString,
    directory: OsString,
    options: Vec<OsString>,
    pretend: bool,
    sloppy: bool,
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args_os().skip(1).collect()) {
        Ok(asked) => asked,
        Err(text) => {
            eprintln!("mount.stablefs: {text}");
            return ExitCode::from(1);
        }
    };
    if asked.pretend {
        return ExitCode::SUCCESS;
    }
    let words = arguments(&asked);
    let mut last = None;
    for program in programs() {
        last = Some(Command::new(program).args(&words).exec());
    }
    let reason = last.map(|error| error.to_string()).unwrap_or_default();
    eprintln!("mount.stablefs: cannot start stablefs: {reason}; install it beside mount.stablefs or in PATH");
    ExitCode::from(1)
}

/// Where `stablefs` may be, best first.
fn programs() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Ok(own) = std::env::current_exe() {
        places.push(own.with_file_name("stablefs"));
    }
    for directory in ["", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"] {
        places.push(PathBuf::from(directory).join("stablefs"));
    }
    places
}

fn parse(words: Vec<OsString>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut places = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            places.push(word);
            continue;
        }
        for (at, letter) in bytes.iter().enumerate().skip(1) {
            match letter {
                b'f' => asked.pretend = true,
                b's' => asked.sloppy = true,
                b'n' | b'v' => {}
                b'r' => asked.options.push("ro".into()),
                b'w' => asked.options.push("rw".into()),
                b'o' | b'N' | b't' => {
                    let rest = OsString::from_vec(bytes[at + 1..].to_vec());
                    let value = if rest.is_empty() { words.next() } else { Some(rest) };
                    let value = value.ok_or_else(|| format!("option -{} needs a value", char::from(*letter)))?;
                    match letter {
                        b'o' => asked.options.push(value),
                        b'N' => return Err("mounting in another namespace (-N) is not possible; use nsenter -m".into()),
                        _ => {} // the type is ours, or mount(8) would not have called
                    }
                    break;
                }
                _ => return Err(format!("unknown option {}", word.to_string_lossy())),
            }
        }
    }
    let [source, directory] = <[OsString; 2]>::try_from(places)
        .map_err(|_| "give a source and a directory: mount -t stablefs /replica-a:/replica-b /mnt/safe".to_owned())?;
    (asked.source, asked.directory) = (source, directory);
    Ok(asked)
}

/// Words for `stablefs`.
fn arguments(asked: &Asked) -> Vec<OsString> {
    let mut words = vec![OsString::from("mount")];
    if !asked.options.is_empty() {
        words.extend(["-o".into(), asked.options.join(OsStr::new(","))]);
    }
    if asked.sloppy {
        words.push("--sloppy".into());
    }
    words.push("--".into());
    words.extend(split_source(&asked.source));
    words.push(asked.directory.clone());
    words
}

/// Split at colons; `\:` is a colon, `\\` a backslash, `\ooo` the byte of that octal number.
fn split_source(source: &OsStr) -> Vec<OsString> {
    let mut parts = vec![Vec::new()];
    let mut rest = source.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let literal = match (byte, tail.first(), code) {
            (b':', _, _) => {
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
    parts.into_iter().map(OsString::from_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Result<Vec<OsString>, String> {
        parse(line.iter().map(OsString::from).collect()).map(|asked| arguments(&asked))
    }

    #[test]
    fn the_words_of_mount_become_ours() {
        let got = words(&["/a:/b\\:c", "/mnt", "-rn", "-o", "degraded,noatime", "-t", "stablefs"]).unwrap();
        assert_eq!(got, ["mount", "-o", "ro,degraded,noatime", "--", "/a", "/b:c", "/mnt"].map(OsString::from));
        let got = words(&["/a:/b", "/mnt", "-s", "-orw"]).unwrap();
        assert_eq!(got, ["mount", "-o", "rw", "--sloppy", "--", "/a", "/b", "/mnt"].map(OsString::from));
    }

    #[test]
    fn escapes_of_fstab_are_undone() {
        assert_eq!(split_source(OsStr::new("/my\\040disk:/b\\\\c")), ["/my disk", "/b\\c"].map(OsString::from));
        assert_eq!(split_source(OsStr::new("/a\\")), ["/a\\"].map(OsString::from));
    }

    #[test]
    fn pretending_does_nothing_and_wrong_words_are_refused() {
        assert!(parse(["/a", "/m", "-f"].map(OsString::from).to_vec()).unwrap().pretend);
        for line in
            [&["/a"][..], &["/a", "/m", "/x"], &["/a", "/m", "-o"], &["/a", "/m", "-Z"], &["/a", "/m", "-N", "1"]]
        {
            assert!(words(line).is_err(), "{line:?}");
        }
    }
}
