//! The load: what the applications share, and their beginning and end.
//!
//! *Guarantees*: works in any directory, mounted or not. [`Load::stop`] never waits for ever: an application that is stuck
//! in a call is left where it is, and said. *Assumes*: the folder is empty. *Fails when*: a file cannot be made: one line.
//! *Order*: [`Load::prepare`], a sync, [`Load::synced`], [`Load::start`], [`Load::stop`].
//! *Not here*: what they do (`apps`), what is right (`known`, `names`).

use super::apps::{self, NAMES, NamesLoop};
use super::content::Random;
use super::known::Known;
use super::names::Names;
use super::outage::Outage;
use super::probe::{Lane, Probe};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Files that nobody changes.
const STILL: u64 = 240;
/// Their lengths, in turn, bytes.
const STILL_BYTES: [u64; 5] = [700, 9_000, 130_000, 1, 40_960];
/// Writers, and files of each.
const WRITERS: usize = 2;
const WRITTEN_EACH: usize = 12;
/// Lengths of these, in turn, bytes.
const WRITTEN_BYTES: [u64; 3] = [262_144, 20_000, 4_096];
/// Readers.
const READERS: usize = 2;
/// Numbers of files: the written ones from here on.
const WRITTEN_FIRST: u64 = 100_000;
/// After a refused call.
const PAUSE: Duration = Duration::from_millis(10);

/// What the applications share.
#[derive(Debug)]
pub struct Shared {
    /// Of the run.
    pub seed: u64,
    /// Everything is below this folder.
    pub folder: PathBuf,
    /// Watches the calls.
    pub probe: Probe,
    /// Whether there is a daemon.
    pub outage: Outage,
    /// Files that nobody changes.
    pub still: Vec<RwLock<Known>>,
    /// Files of the writers.
    pub written: Vec<RwLock<Known>>,
    /// Files of the stream.
    pub streams: Mutex<Vec<Known>>,
    /// Files that the scenario itself writes.
    pub extra: Mutex<Vec<Known>>,
    /// Names of the names loop.
    pub names: Mutex<Names>,
    stop: AtomicBool,
    stream_number: AtomicU64,
    name_number: AtomicU64,
}

impl Shared {
    /// Whether an application should end its turn early.
    pub fn should_rest(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.outage.is_down()
    }
    /// A number that no streamed file had.
    pub fn next_stream(&self) -> u64 {
        self.stream_number.fetch_add(1, Ordering::SeqCst)
    }
    /// A number that no name had.
    pub fn next_name(&self) -> u64 {
        self.name_number.fetch_add(1, Ordering::SeqCst)
    }
    /// Folder of the names loop.
    pub fn names_folder(&self) -> PathBuf {
        self.folder.join(NAMES)
    }
}

/// A running or ended load.
#[derive(Debug)]
pub struct Load {
    /// What the applications share.
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Make the folders and files in `folder`.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn prepare(seed: u64, folder: &Path, began: Instant) -> io::Result<Load> {
        for name in ["still", "written", "stream", "extra", NAMES] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let make = |file: u64, path: String, bytes: u64| -> io::Result<RwLock<Known>> {
            let mut known = Known::new(seed, file, path.into());
            let content = known.ask(0, 1, bytes);
            std::fs::write(folder.join(&known.path), &content)?;
            known.done(0, usize::MAX);
            Ok(RwLock::new(known))
        };
        let still = (0..STILL).map(|i| make(i, format!("still/f{i}"), STILL_BYTES[i as usize % STILL_BYTES.len()]));
        let written = (0..(WRITERS * WRITTEN_EACH) as u64)
            .map(|i| make(WRITTEN_FIRST + i, format!("written/w{i}"), WRITTEN_BYTES[i as usize % WRITTEN_BYTES.len()]));
        let shared = Shared {
            seed,
            folder: folder.to_owned(),
            probe: Probe::new(began),
            outage: Outage::default(),
            still: still.collect::<io::Result<_>>()?,
            written: written.collect::<io::Result<_>>()?,
            streams: Mutex::default(),
            extra: Mutex::default(),
            names: Mutex::default(),
            stop: AtomicBool::new(false),
            stream_number: AtomicU64::new(0),
            name_number: AtomicU64::new(1),
        };
        Ok(Load { shared: Arc::new(shared), threads: Vec::new() })
    }

    /// All that was prepared has been made durable.
    pub fn synced(&self) {
        self.shared.still.iter().chain(&self.shared.written).for_each(|known| known.write().acknowledged());
    }

    /// Begin.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(&mut self) -> io::Result<()> {
        let seed = self.shared.seed;
        for writer in 0..WRITERS {
            let mut random = Random::new(&[seed, 1, writer as u64]);
            self.spawn(&format!("writer {writer}"), move |shared, lane, _| {
                apps::write_and_sync(shared, lane, writer * WRITTEN_EACH, WRITTEN_EACH, &mut random)
            })?;
        }
        for reader in 0..READERS {
            let mut random = Random::new(&[seed, 2, reader as u64]);
            self.spawn(&format!("reader {reader}"), move |shared, lane, _| {
                apps::read_and_prove(shared, lane, &mut random)
            })?;
        }
        self.spawn("stream", |shared, lane, _| apps::stream_one(shared, lane))?;
        let mut names = NamesLoop::default();
        self.spawn("names", move |shared, lane, resumed| {
            if resumed {
                names.resume(shared);
            }
            names.turn(shared, lane)
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        mut turn: impl FnMut(&Shared, &Lane, bool) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.shared.clone();
        let lane = shared.probe.lane(name);
        let work = move || {
            let mut resumed = false;
            while !shared.stop.load(Ordering::SeqCst) {
                if shared.outage.pass(&shared.stop) {
                    resumed = true;
                    continue;
                }
                if turn(&shared, &lane, std::mem::take(&mut resumed)).is_err() {
                    std::thread::sleep(PAUSE);
                }
            }
        };
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    /// Applications that are at work.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Ask all to end, and wait so long.
    ///
    /// # Errors
    /// Some do not end, or had a bug; one line.
    pub fn stop(&mut self, patience: Duration) -> Result<(), String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let until = Instant::now() + patience;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > until {
                let call = self.shared.probe.longest_now().map_or(String::new(), |stall| stall.call);
                return Err(format!("an application does not come back: {call}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended: Vec<bool> = self.threads.drain(..).map(|thread| thread.join().is_ok()).collect();
        if ended.contains(&false) { Err("an application of the drill hit a bug of its own".into()) } else { Ok(()) }
    }
}
