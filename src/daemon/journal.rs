//! The daemon's log.
//!
//! *Guarantees*: never more than two files of [`BYTES_MAX`]; a log that cannot be written does not disturb the daemon.
//! *Assumes*: the log stands outside of the mount. *Fails when*: never. *Order*: none. *Not here*: what is logged.
//!
//! Lines go to standard error until [`divert`] names a file. Panics are logged as bugs.

use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a log file before it becomes `FILE.old`.
pub const BYTES_MAX: u64 = 4 << 20;

struct Target {
    file: File,
    path: PathBuf,
    written: u64,
}

static TARGET: Mutex<Option<Target>> = Mutex::new(None);

struct Sink;

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut target = TARGET.lock();
        match &mut *target {
            None => io::stderr().write(line),
            Some(target) => {
                if target.written > BYTES_MAX {
                    target.rotate();
                }
                target.written += line.len() as u64;
                target.file.write(line)
            }
        }
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
        log::set_max_level(log::max_level().min(log::LevelFilter::Warn));
    }
    std::panic::set_hook(Box::new(|panic| log::error!("bug: {panic}")));
}

/// Say more from now on, into `path` if there is one.
///
/// # Errors
/// The file cannot be opened.
pub fn divert(path: Option<&Path>) -> io::Result<()> {
    if let Some(path) = path {
        *TARGET.lock() = Some(Target::open(path)?);
    }
    log::set_max_level(log::LevelFilter::Info);
    Ok(())
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
        target.file.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after\n");
        assert_eq!(std::fs::read(scratch.path().join("log.old")).unwrap(), b"before\n");
    }
}
