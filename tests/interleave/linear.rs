//! Operations of two or three threads on one tree, or on one file.
//!
//! Goal: each operation seems to happen at one moment between its call and its return, also readdir, lookup, rename against
//! rmdir against create, and exchanges of directories; and what is on disk afterwards is what they left.
//! Method: record calls, results and when they were made; search for a serial order that respects these times and in which
//! the model (`simulate::model`) gives each of these results and the state found after a remount (Wing and Gong, "Testing
//! and verifying concurrent objects").

use crate::explorer::{Scenario, explore, happened, seed};
use crate::volume::{Volume, reopen};
use stablefs::disk::sim::Random;
use stablefs::error::errno;
use stablefs::format::ROOT_INO;
use stablefs::fs::{Filesystem, FsError, RENAME_EXCHANGE, RENAME_NOREPLACE};
use stablefs::simulate::model::{Content, Node, Op, State};
use stablefs::simulate::{clean, driver, judge};
use stablefs::store::commit::Force;
use stablefs::sync::thread;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

/// Something that a thread does.
#[derive(Debug, Clone)]
enum Call {
    Do(Op),
    Lookup { dir: u64, name: String },
    List { dir: u64 },
    Stat { ino: u64 },
    Read { ino: u64 },
}

/// What it got.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Done(u64),
    Attributes { ino: u64, nlink: u32, size: u64 },
    Names(BTreeMap<String, u64>),
    Bytes(Vec<u8>),
    Error(i32),
}

/// One call, and when.
#[derive(Debug, Clone)]
struct Event {
    thread: usize,
    call: Call,
    got: Got,
    begun: usize,
    ended: usize,
}

fn perform(fs: &Filesystem, call: &Call) -> Result<Got, FsError> {
    let attributes = |attr: stablefs::fs::Attr| Got::Attributes { ino: attr.ino, nlink: attr.nlink, size: attr.size };
    Ok(match call {
        Call::Lookup { dir, name } => attributes(fs.lookup(*dir, name.as_bytes())?),
        Call::Stat { ino } => attributes(fs.getattr(*ino)?),
        Call::List { dir } => {
            let entries = fs.readdir(*dir, 0, 1000, false)?;
            let names: BTreeMap<String, u64> = entries
                .iter()
                .skip(2)
                .map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry.ino))
                .collect();
            assert_eq!(names.len() + 2, entries.len(), "a listing shows each name once");
            Got::Names(names)
        }
        Call::Read { ino } => {
            let mut out = Vec::new();
            fs.read(*ino, 0, &mut out, 1 << 20)?;
            Got::Bytes(out)
        }
        Call::Do(op) => Got::Done(driver::perform(fs, op)?),
    })
}

/// The inodes that must exist for `call`, or it fails as one does for what is gone.
fn named(call: &Call) -> Vec<u64> {
    match call {
        Call::Lookup { dir, .. } | Call::List { dir } => vec![*dir],
        Call::Stat { ino } | Call::Read { ino } => vec![*ino],
        Call::Do(op) => match op {
            Op::Create { dir, .. } | Op::Mkdir { dir, .. } | Op::Unlink { dir, .. } | Op::Rmdir { dir, .. } => {
                vec![*dir]
            }
            Op::Link { ino, dir, .. } => vec![*ino, *dir],
            Op::Rename { dir, new_dir, .. } => vec![*dir, *new_dir],
            Op::Write { ino, .. } | Op::Truncate { ino, .. } => vec![*ino],
            other => panic!("{other:?} is not drawn here"),
        },
    }
}

/// Whether `call` may give `got` in `state`; changes it accordingly.
fn explains(state: &mut State, call: &Call, got: &Got) -> bool {
    if named(call).iter().any(|ino| !state.nodes.contains_key(ino)) {
        // Both words say that it is gone; a link to what is gone may also find its new name taken.
        let taken = |dir: &u64, name: &str| state.nodes.contains_key(dir) && state.find(*dir, name).is_some();
        let exists = matches!(call, Call::Do(Op::Link { dir, name, .. }) if taken(dir, name));
        return matches!(got, Got::Error(libc::ENOENT | libc::ESTALE)) || (exists && *got == Got::Error(libc::EEXIST));
    }
    let attributes = |ino: u64| {
        let node = &state.nodes[&ino];
        Got::Attributes { ino, nlink: node.nlink, size: node.size() }
    };
    match call {
        Call::Lookup { dir, name } => match state.find(*dir, name) {
            Some(ino) => *got == attributes(ino),
            None => *got == Got::Error(libc::ENOENT),
        },
        Call::Stat { ino } => *got == attributes(*ino),
        Call::List { dir } => *got == Got::Names(state.names(*dir).clone()),
        Call::Read { ino } => {
            matches!(got, Got::Bytes(bytes) if Some(bytes) == state.nodes[ino].file().map(|file| &**file))
        }
        Call::Do(op) => match got {
            Got::Done(ino) => state.apply(op, *ino).is_ok(),
            Got::Error(code) => state.clone().apply(op, u64::MAX) == Err(*code),
            _ => false,
        },
    }
}

/// Of everything that can differ here: times are forgotten.
fn fingerprint(state: &State) -> u64 {
    let mut hash = DefaultHasher::new();
    for (ino, node) in &state.nodes {
        (ino, node.mode, node.owner, node.nlink, &node.xattrs).hash(&mut hash);
        match &node.content {
            Content::File(bytes) => (0, bytes).hash(&mut hash),
            Content::Directory(names) => (1, names).hash(&mut hash),
            Content::Link(target) => (2, target).hash(&mut hash),
            Content::Special => 3.hash(&mut hash),
        }
    }
    hash.finish()
}

/// Depth first over all orders in which no event comes before one that had ended when it began.
fn search(events: &[Event], done: u32, state: &State, last: &State, seen: &mut HashSet<(u32, u64)>) -> bool {
    if done.count_ones() as usize == events.len() {
        return judge::same(state, last).is_ok();
    }
    if !seen.insert((done, fingerprint(state))) {
        return false;
    }
    let open = |index: usize| done >> index & 1 == 0;
    let first_end = (0..events.len()).filter(|i| open(*i)).map(|i| events[i].ended).min().expect("one is open");
    (0..events.len()).filter(|i| open(*i) && events[*i].begun <= first_end).any(|index| {
        let mut next = state.clone();
        explains(&mut next, &events[index].call, &events[index].got)
            && search(events, done | 1 << index, &next, last, seen)
    })
}

/// The tree that threads work on: directories and files, and the state of the model.
struct Tree {
    dirs: Vec<u64>,
    files: Vec<u64>,
    state: State,
}

fn plant(fs: &Filesystem, random: &mut Random) -> Tree {
    let mut state = State::new(Node::new(Content::Directory(BTreeMap::new()), libc::S_IFDIR | 0o755, 2));
    let mut done = |op: Op| {
        let ino = driver::perform(fs, &op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        state.apply(&op, ino).expect("the model agrees");
        ino
    };
    let a = done(Op::Mkdir { dir: ROOT_INO, name: "a".into(), mode: 0o755 });
    let b = done(Op::Mkdir { dir: ROOT_INO, name: "b".into(), mode: 0o755 });
    let inner = done(Op::Mkdir { dir: a, name: "p".into(), mode: 0o755 });
    let f = done(Op::Create { dir: b, name: "q".into(), mode: 0o644 });
    let g = done(Op::Create { dir: ROOT_INO, name: "p".into(), mode: 0o644 });
    done(Op::Write { ino: f, offset: 0, length: random.range(1, 9000), fill: 7 });
    if random.below(2) == 0 {
        done(Op::Link { ino: g, dir: inner, name: "q".into() });
    }
    Tree { dirs: vec![ROOT_INO, a, b, inner], files: vec![f, g], state }
}

const NAMES: [&str; 4] = ["a", "b", "p", "q"];

fn draw(random: &mut Random, tree: &Tree, mine: &[u64]) -> Call {
    let dirs: Vec<u64> = tree.dirs.iter().chain(mine).copied().collect();
    let dir = *random.pick(&dirs);
    let name = || -> fn(&mut Random) -> String { |random| (*random.pick(&NAMES)).to_owned() };
    let name = name()(random);
    let ino = *random.pick(&tree.files);
    let other = (*random.pick(&dirs), (*random.pick(&NAMES)).to_owned());
    // By seed mostly what is hard: names that move within a directory, and listings of it.
    let kinds = if seed().is_multiple_of(4) { 10..19 } else { 0..20 };
    let other = if seed().is_multiple_of(4) && random.below(2) == 0 { (dir, other.1) } else { other };
    match random.range(kinds.start, kinds.end) {
        0..2 => Call::Do(Op::Create { dir, name, mode: 0o644 }),
        2..4 => Call::Do(Op::Mkdir { dir, name, mode: 0o755 }),
        4 => Call::Do(Op::Link { ino, dir, name }),
        5..7 => Call::Do(Op::Unlink { dir, name }),
        7..10 => Call::Do(Op::Rmdir { dir, name }),
        10..15 => {
            let flags = *random.pick(&[0, 0, 0, RENAME_EXCHANGE, RENAME_EXCHANGE, RENAME_NOREPLACE]);
            Call::Do(Op::Rename { dir, name, new_dir: other.0, new_name: other.1, flags })
        }
        15..17 => Call::Lookup { dir, name },
        17..19 => Call::List { dir },
        _ => Call::Stat { ino: *random.pick(&[dir, ino]) },
    }
}

fn draw_bytes(random: &mut Random, tree: &Tree) -> Call {
    let ino = tree.files[0];
    let (offset, fill) = (random.below(9000), random.range(1, 1 << 40));
    match random.below(6) {
        0..3 => Call::Do(Op::Write { ino, offset, length: random.range(1, 9000), fill }),
        3 => Call::Do(Op::Truncate { ino, size: *random.pick(&[0, 1, 4096, 5000, 12_000]) }),
        4 => Call::Stat { ino },
        _ => Call::Read { ino },
    }
}

/// Run threads that draw their calls, and return what happened.
fn history(volume: &Volume, tree: &Arc<Tree>, random: &mut Random, of_bytes: bool) -> Vec<Event> {
    // A real mutex: it is never held over a step.
    let events = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..random.range(2, 4) as usize)
        .map(|thread| {
            let (fs, tree, events, mut random) = (volume.fs.clone(), tree.clone(), events.clone(), random.fork());
            thread::spawn(move || {
                let mut mine = Vec::new();
                for _ in 0..random.range(2, 5) {
                    let call = if of_bytes { draw_bytes(&mut random, &tree) } else { draw(&mut random, &tree, &mine) };
                    let begun = shuttle::current::context_switches();
                    let got = perform(&fs, &call).unwrap_or_else(|error| Got::Error(errno(&error)));
                    let ended = shuttle::current::context_switches();
                    if let (Call::Do(Op::Mkdir { .. }), Got::Done(ino)) = (&call, &got) {
                        mine.push(*ino);
                    }
                    events.lock().expect("not poisoned").push(Event { thread, call, got, begun, ended });
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    std::mem::take(&mut *events.lock().expect("not poisoned"))
}

/// The scenarios here, by name.
pub const SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "names",
        count: 4_000,
        happens: &["two at once", "a name moved", "names exchanged", "a directory removed", "refused as not empty"],
        run: || scenario(false),
    },
    Scenario {
        name: "bytes",
        count: 1_500,
        happens: &["two at once", "a write", "a truncate", "a read beside a write"],
        run: || scenario(true),
    },
];

/// Count what was to be explored.
fn count(events: &[Event]) {
    let beside = |one: &Event| {
        let at_once = |other: &&Event| other.begun < one.ended && one.begun < other.ended && other.thread != one.thread;
        events.iter().filter(at_once).collect::<Vec<_>>()
    };
    let is_write = |event: &Event| matches!(event.call, Call::Do(Op::Write { .. }));
    for event in events {
        let others = beside(event);
        if !others.is_empty() {
            happened("two at once");
        }
        match (&event.call, &event.got) {
            (Call::Do(Op::Rename { flags, .. }), Got::Done(_)) if *flags == RENAME_EXCHANGE => {
                happened("names exchanged");
            }
            (Call::Do(Op::Rename { .. }), Got::Done(_)) => happened("a name moved"),
            (Call::Do(Op::Rmdir { .. }), Got::Done(_)) => happened("a directory removed"),
            (_, Got::Error(libc::ENOTEMPTY)) => happened("refused as not empty"),
            (Call::Do(Op::Write { .. }), Got::Done(_)) => happened("a write"),
            (Call::Do(Op::Truncate { .. }), Got::Done(_)) => happened("a truncate"),
            (Call::Read { .. }, Got::Bytes(_)) if others.into_iter().any(is_write) => happened("a read beside a write"),
            _ => {}
        }
    }
}

fn scenario(of_bytes: bool) {
    let mut random = Random::new(seed() ^ 0x11ea);
    let mut volume = Volume::new(seed(), 1100);
    let tree = Arc::new(plant(&volume.fs, &mut random));
    let with_commits = random.below(3);
    if with_commits == 1 {
        volume.start_engine();
    }
    let committer = (with_commits == 2).then(|| {
        let store = volume.store.clone();
        thread::spawn(move || {
            for _ in 0..3 {
                store.commit(Force::Always).expect("nothing is wrong with the disks");
            }
        })
    });
    let events = history(&volume, &tree, &mut random, of_bytes);
    count(&events);
    committer.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    volume.stop_engine();
    volume.fs.sync().expect("nothing is wrong with the disks");
    let mut bench = volume.abandon();
    let driver = reopen(&mut bench);
    let mut last = driver.now().clone();
    let mut first = tree.state.clone();
    for state in [&mut last, &mut first] {
        state.nodes.keys().copied().collect::<Vec<_>>().into_iter().for_each(|ino| state.forget_times(ino));
    }
    if !search(&events, 0, &first, &last, &mut HashSet::new()) {
        let line = |event: &Event| {
            let Event { thread, call, got, begun, ended } = event;
            format!("  steps {begun:5} to {ended:5}, thread {thread}: {call:?} gave {got:?}")
        };
        let lines: Vec<String> = events.iter().map(line).collect();
        panic!("no serial order explains\n{}\nfrom {first:#?}\nto {last:#?}", lines.join("\n"));
    }
    if seed().is_multiple_of(16) {
        clean(&driver.store).unwrap_or_else(|found| panic!("{found}"));
    }
}

#[test]
fn operations_on_names_happen_at_one_moment() {
    explore(&SCENARIOS[0]);
}

#[test]
fn operations_on_the_bytes_of_one_file_happen_at_one_moment() {
    explore(&SCENARIOS[1]);
}
