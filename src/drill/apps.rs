//! The applications: two that write into files and sync, one that streams, one that makes and removes names, and
//! readers that prove what they read.
//!
//! *Guarantees*: whatever they do is in the model before it is asked for, so that every byte and name can be judged at any
//! time. *Assumes*: nobody else writes below the folder. *Fails when*: a call fails: counted by the probe; the turn ends.
//! *Order*: model lock, then calls, for each file: readers never meet a write of theirs half done.
//! *Not here*: starting and ending them (`load`), the whole proof (`verify`).

use super::content::{BLOCK, HOLE, Name, Random, check, fill};
use super::known::Known;
use super::load::Shared;
use super::names::{Item, Step, Written};
use super::probe::Lane;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Bytes of one write of the stream.
const CHUNK: u64 = 1 << 20;
/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// Chunks of a streamed file.
const CHUNKS: u64 = 16;
/// Chunks between two fsyncs of the stream.
const SYNC_EVERY: u64 = 4;
/// Files of the stream that are kept.
const STREAMS_KEPT: usize = 2;
/// Names of the loop that are kept.
const NAMES_KEPT: usize = 60;
/// Numbers of files: streams from here on.
pub const STREAM_FIRST: u64 = 1_000_000;
/// Numbers of files: those that a scenario writes from here on.
pub const EXTRA_FIRST: u64 = 1_500_000;
/// Bytes of one of these.
const EXTRA_BYTES: u64 = 1 << 20;
/// Numbers of files: names of the loop from here on.
pub const NAME_FIRST: u64 = 2_000_000;
/// Bytes of a file of the names loop.
pub const NAME_BYTES: usize = 200;
/// Folder of the names loop.
pub const NAMES: &str = "names";

/// Read a whole file from the disks: what the kernel keeps of it is dropped first.
pub fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let _advice = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed); // an advice
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same by an application, each call for itself.
fn read_timed(shared: &Shared, lane: &Lane, path: &Path) -> io::Result<Vec<u8>> {
    let mut file = shared.probe.call(lane, "open", path, || File::open(path))?;
    let _advice = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed); // an advice
    let mut bytes = Vec::new();
    loop {
        let known = bytes.len();
        bytes.resize(known + READ_BYTES, 0);
        let count = shared.probe.call(lane, "read", path, || file.read(&mut bytes[known..]))?;
        bytes.truncate(known + count);
        if count == 0 {
            return Ok(bytes);
        }
    }
}

/// One turn of a writer: some blocks of one of its files get a new version, and are synced.
pub fn write_and_sync(shared: &Shared, lane: &Lane, first: usize, count: usize, random: &mut Random) -> io::Result<()> {
    let file = &shared.written[first + random.below(count as u64) as usize];
    let mut known = file.write();
    let path = shared.folder.join(&known.path);
    let length = known.length();
    let blocks = length.div_ceil(BLOCK as u64);
    let handle = shared.probe.call(lane, "open", &path, || File::options().write(true).open(&path))?;
    for _ in 0..=random.below(3) {
        let from = random.below(blocks);
        let until = (from + 1 + random.below(16)).min(blocks);
        let version = (from..until).map(|block| known.version(block)).max().unwrap_or(0) + 1;
        let bytes = known.ask(from, version, (until * BLOCK as u64).min(length));
        shared.probe.call(lane, "write", &path, || handle.write_all_at(&bytes, from * BLOCK as u64))?;
        known.done(from, (until - from) as usize);
        shared.probe.moved(bytes.len() as u64, 0);
    }
    shared.probe.call(lane, "fsync", &path, || handle.sync_all())?;
    known.acknowledged();
    Ok(())
}

/// One turn of a reader: a file from the disks, every byte proven.
pub fn read_and_prove(shared: &Shared, lane: &Lane, random: &mut Random) -> io::Result<()> {
    let (still, written) = (&shared.still, &shared.written);
    let chosen = random.below((still.len() + written.len() / 2) as u64) as usize;
    let file = still.get(chosen).unwrap_or_else(|| &written[chosen % written.len()]);
    let known = file.read();
    let path = shared.folder.join(&known.path);
    let bytes = read_timed(shared, lane, &path)?;
    shared.probe.wrong(known.judge(Some(&bytes), false));
    shared.probe.moved(0, bytes.len() as u64);
    Ok(())
}

/// The stream: a large file, chunk by chunk, read back in the end; older ones are removed.
pub fn stream_one(shared: &Shared, lane: &Lane) -> io::Result<()> {
    remove_old_streams(shared, lane)?; // also what a refused turn has left
    let number = shared.next_stream();
    let name = format!("stream/s{number}");
    let path = shared.folder.join(&name);
    shared.streams.lock().push(Known::new(shared.seed, STREAM_FIRST + number, name.into()));
    // Only this thread adds and removes; the lock is never held in a call.
    let with = |change: &mut dyn FnMut(&mut Known)| {
        let mut streams = shared.streams.lock();
        streams.iter_mut().filter(|known| known.file == STREAM_FIRST + number).for_each(change);
    };
    with(&mut |known| drop(known.ask(0, 1, 0)));
    let handle = shared.probe.call(lane, "create", &path, || File::create_new(&path))?;
    with(&mut |known| known.done(0, 0));
    let per_chunk = CHUNK / BLOCK as u64;
    for chunk in 0..CHUNKS {
        if shared.should_rest() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        with(&mut |known| bytes = known.ask(chunk * per_chunk, 1, (chunk + 1) * CHUNK));
        shared.probe.call(lane, "write", &path, || handle.write_all_at(&bytes, chunk * CHUNK))?;
        with(&mut |known| known.done(chunk * per_chunk, per_chunk as usize));
        shared.probe.moved(CHUNK, 0);
        if (chunk + 1) % SYNC_EVERY == 0 {
            shared.probe.call(lane, "fsync", &path, || handle.sync_all())?;
            shared.streams.lock().iter_mut().for_each(Known::acknowledged_name);
            with(&mut Known::acknowledged);
        }
        std::thread::sleep(Duration::from_millis(4)); // a stream, not a flood
    }
    let found = read_timed(shared, lane, &path)?;
    with(&mut |known| shared.probe.wrong(known.judge(Some(&found), false)));
    shared.probe.moved(0, found.len() as u64);
    Ok(())
}

fn remove_old_streams(shared: &Shared, lane: &Lane) -> io::Result<()> {
    loop {
        let old = {
            let mut streams = shared.streams.lock();
            streams.retain(|known| known.presence(true).0);
            let is_there = |known: &Known| known.presence(false) == (true, false);
            let there = streams.iter().filter(|known| is_there(known)).count();
            let oldest = streams.iter_mut().find(|known| is_there(known));
            oldest.filter(|_| there > STREAMS_KEPT).map(|known| {
                known.ask_removal();
                (known.file, shared.folder.join(&known.path))
            })
        };
        let Some((file, path)) = old else { return Ok(()) };
        let removed = shared.probe.call(lane, "unlink", &path, || std::fs::remove_file(&path));
        let mut streams = shared.streams.lock();
        let known = streams.iter_mut().find(|known| known.file == file);
        if removed.is_ok() {
            known.into_iter().for_each(|known| known.done(0, 0));
        }
        removed?;
    }
}

/// What a scenario does itself: one more file, synced.
pub fn write_extra(shared: &Shared, lane: &Lane) -> io::Result<()> {
    let mut extra = shared.extra.lock();
    let number = extra.len() as u64;
    let mut known = Known::new(shared.seed, EXTRA_FIRST + number, format!("extra/e{number}").into());
    let path = shared.folder.join(&known.path);
    let bytes = known.ask(0, 1, EXTRA_BYTES);
    extra.push(known);
    let handle = shared.probe.call(lane, "create", &path, || File::create_new(&path))?;
    shared.probe.call(lane, "write", &path, || handle.write_all_at(&bytes, 0))?;
    shared.probe.moved(EXTRA_BYTES, 0);
    extra.iter_mut().rev().take(1).for_each(|known| known.done(0, usize::MAX));
    shared.probe.call(lane, "fsync", &path, || handle.sync_all())?;
    extra.iter_mut().rev().take(1).for_each(Known::acknowledged);
    Ok(())
}

/// What the names loop has in hand between two turns.
#[derive(Debug, Default)]
pub struct NamesLoop {
    folder: Option<String>,
    files: VecDeque<String>,
}

impl NamesLoop {
    /// One turn: a folder now and then, a file created, filled, moved; an old one removed; a sync now and then.
    pub fn turn(&mut self, shared: &Shared, lane: &Lane) -> io::Result<()> {
        let number = shared.next_name();
        if self.folder.is_none() || number.is_multiple_of(24) {
            let folder = format!("d{number}");
            self.step(shared, lane, Step::MakeFolder(folder.clone()))?;
            self.folder = Some(folder);
        }
        let name = format!("n{number}");
        let created = self.step(shared, lane, Step::Create(name.clone(), number))?;
        self.files.push_back(name.clone());
        if let Some(handle) = created {
            let mut bytes = vec![0; NAME_BYTES];
            fill(Name { seed: shared.seed, file: NAME_FIRST + number, block: 0 }, 1, &mut bytes);
            shared.probe.call(lane, "write", &shared.names_folder().join(&name), || handle.write_all_at(&bytes, 0))?;
            shared.names.lock().written.insert(number, Written { done: true, safe: false });
            if number.is_multiple_of(5) {
                shared.probe.call(lane, "fsync", &shared.names_folder().join(&name), || handle.sync_all())?;
                let mut names = shared.names.lock();
                names.written.insert(number, Written { done: true, safe: true });
                names.acknowledged();
            }
        }
        if let Some(folder) = self.folder.clone() {
            let moved = format!("{folder}/{name}");
            self.step(shared, lane, Step::Rename(name, moved.clone()))?;
            self.files.pop_back();
            self.files.push_back(moved);
        }
        if self.files.len() > NAMES_KEPT {
            self.remove_oldest(shared, lane)?;
        }
        if number.is_multiple_of(33) {
            let place = shared.names_folder();
            let folder = shared.probe.call(lane, "open", &place, || File::open(&place))?;
            shared.probe.call(lane, "fsync", &place, || folder.sync_all())?;
            shared.names.lock().acknowledged();
        }
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }

    /// After a crash: begin from what there is.
    pub fn resume(&mut self, shared: &Shared) {
        let now = shared.names.lock().now();
        self.folder = None;
        self.files =
            now.iter().filter(|(_, item)| matches!(item, Item::File(_))).map(|(name, _)| name.clone()).collect();
    }

    fn remove_oldest(&mut self, shared: &Shared, lane: &Lane) -> io::Result<()> {
        let Some(oldest) = self.files.front().cloned() else { return Ok(()) };
        self.step(shared, lane, Step::Remove(oldest.clone()))?;
        self.files.pop_front();
        let Some((folder, _)) = oldest.split_once('/') else { return Ok(()) };
        let inside = format!("{folder}/");
        let is_used = self.folder.as_deref() == Some(folder);
        if !is_used && !self.files.iter().any(|name| name.starts_with(&inside)) {
            self.step(shared, lane, Step::Remove(folder.to_owned()))?;
        }
        Ok(())
    }

    /// Do one step; the file that it made.
    fn step(&mut self, shared: &Shared, lane: &Lane, step: Step) -> io::Result<Option<File>> {
        let place = |name: &str| shared.names_folder().join(name);
        shared.names.lock().ask(step.clone());
        let probe = &shared.probe;
        let done = match &step {
            Step::MakeFolder(name) => {
                probe.call(lane, "mkdir", &place(name), || std::fs::create_dir(place(name)).map(|()| None))
            }
            Step::Create(name, _) => {
                probe.call(lane, "create", &place(name), || File::create_new(place(name)).map(Some))
            }
            Step::Rename(from, to) => {
                probe.call(lane, "rename", &place(from), || std::fs::rename(place(from), place(to)).map(|()| None))
            }
            Step::Remove(name) if name.contains('/') || name.starts_with('n') => {
                probe.call(lane, "unlink", &place(name), || std::fs::remove_file(place(name)).map(|()| None))
            }
            Step::Remove(name) => {
                probe.call(lane, "rmdir", &place(name), || std::fs::remove_dir(place(name)).map(|()| None))
            }
        };
        match &done {
            Ok(_) => shared.names.lock().done(),
            // A daemon that lives and refuses has done nothing; one that was killed may have.
            Err(_) if !shared.outage.is_down() => shared.names.lock().undone(),
            Err(_) => {}
        }
        done
    }
}

/// Whether the bytes of file `number` of the names loop are what `written` allows; true: they have been written.
///
/// # Errors
/// They are not; one line.
pub fn prove_name(seed: u64, number: u64, written: Written, found: &[u8], after_crash: bool) -> Result<bool, String> {
    let must = if after_crash { written.safe } else { written.done };
    if found.is_empty() {
        return if must { Err(format!("n{number}: is empty")) } else { Ok(false) };
    }
    if found.len() != NAME_BYTES {
        return Err(format!("n{number}: is {} bytes long", found.len()));
    }
    let allowed: &[u64] = if must { &[1] } else { &[HOLE, 1] };
    let version = check(Name { seed, file: NAME_FIRST + number, block: 0 }, allowed, found);
    version.map(|version| version == 1).map_err(|wrong| format!("n{number}: {wrong}"))
}
