//! Small worlds, exhaustively: every short sequence of operations, cut at every write and flush, recovered in every way.
//!
//! *Guarantees*: [`sequences`] lists every sequence of one or two operations that succeed on the prepared volume, each
//! followed by every persistence point; [`run`] cuts the power at each write and flush of one, with each outcome, and
//! recovers with each twin asked for. What is found is judged, and life goes on.
//! *Assumes*: equal requests give equal runs, so that a run is recorded once and each crash is rebuilt from its writes.
//! *Fails when*: a promise is broken: [`Failure`], whose first line replays the case.
//! *Order*: none. *Not here*: histories by chance (`simulate`), procedures (`procedure`), faults of requests (`nth`).
//!
//! | file | part |
//! |---|---|
//! | `acts` | operations and their operands |
//! | `nth` | the N-th request of a disk fails |
//! | `procedure` | cuts in recovery, replace, scrub and repair |
//! | `tape` | what was written, and what a cut leaves |
//! | `twin` | recovery: both disks good, one corrupt, stale, absent |
//!
//! What is left out, because it is no new case: operations that fail (they change nothing; each is run once), cuts in
//! the first of two operations (the sequence of one has them), and two operations without a persistence point after
//! the second one (nothing is written then).

pub mod acts;
pub mod nth;
pub mod procedure;
pub mod tape;
pub mod twin;

use super::driver::Driver;
use super::judge::{Known, judge};
use super::model::{Op, State};
use super::{Bench, DEADLINE, Failure, Setup, look_at, tally};
use crate::disk::backing::Backing;
use crate::disk::sim::{Image, Random, SimDisk, World as Power};
use crate::format::ROOT_INO;
use crate::store::commit::Force;
use crate::store::recover::{OpenStore, Report, open};
use crate::store::{Store, StoreError, StoreOptions};
use crate::world::Seeded;
use acts::Act;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use tape::{Crashes, Events, Outcome, Tape};
use twin::Twin;

/// Stages of a case have a clock and identities of their own, as two boots have.
pub(crate) const RUNS: u64 = 1;
pub(crate) const RECOVERS: u64 = 2;
pub(crate) const RUNS_AGAIN: u64 = 3;

tally! {
    /// What a run covered.
    Covered,
    /// Sequences of operations, or runs of a procedure.
    sequences: "sequences",
    /// Writes and flushes at which the power was cut, ends of sequences included.
    cuts: "crash points",
    /// Cuts with their outcomes.
    crashes: "crashes",
    /// Different states of both disks among these.
    images: "of these different",
    /// Recoveries from these, with one disk corrupt, stale or absent included.
    recoveries: "recoveries",
    /// Of these, cut again.
    recoveries_cut: "recoveries cut again",
    /// Log records replayed.
    replayed: "log records replayed",
    /// Faults injected: disks made corrupt, stale or absent, requests that failed.
    faults: "faults injected",
    /// Copies healed.
    healed: "copies healed",
}

/// What the volumes of the small world are.
pub(crate) fn setup() -> Setup {
    let store = StoreOptions {
        read_only: false,
        pages_max: 256,
        pages_start: 64,
        items_bytes_max: 1 << 20,
        placed_max: 512,
        cache_nodes: 64,
        window: 2,
        resync_rate: 0,
    };
    Setup {
        blocks: 1100,
        zone_blocks: 256,
        replicas: 2,
        grows: true,
        weights: super::generate::Weights::usual(false),
        store,
    }
}

/// The volume that every sequence begins with.
pub(crate) struct Prepared {
    /// Its disks, cleanly unmounted.
    pub images: Vec<Image>,
    /// What is in it.
    pub state: State,
}

/// Files of all kinds, with a past: freed blocks, dead lists, a log that was used.
pub(crate) fn prepared() -> &'static Prepared {
    static MADE: OnceLock<Prepared> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut bench = Bench::with(11, setup(), Random::new(11));
        let mut driver = bench.mount().expect("an empty volume");
        let mut step = |op: Op| driver.step(&op).expect("a good disk");
        let file = |dir, name: &str| Op::Create { dir, name: name.into(), mode: 0o644 };
        let write = |ino, length, fill| Op::Write { ino, offset: 0, length, fill };
        let (large, dir, inner) = (16, 17, 18);
        step(file(ROOT_INO, "foo"));
        step(Op::Mkdir { dir: ROOT_INO, name: "A".into(), mode: 0o755 });
        step(file(dir, "foo"));
        step(Op::Mkdir { dir, name: "bar".into(), mode: 0o755 });
        step(write(large, 20_000, 3));
        step(Op::Sync);
        step(write(inner, 100, 4));
        step(Op::Fsync { ino: inner });
        step(Op::Truncate { ino: large, size: 10_000 });
        step(write(large, 10_000, 5));
        for ino in [large, dir] {
            step(Op::SetXattr { ino, name: "user.a".into(), length: 30, fill: 6 });
        }
        step(Op::Sync);
        driver.compare().expect("a good disk");
        driver.store.commit(Force::Clean).expect("a good disk");
        let images = bench.disks.iter().map(|disk| disk.snapshot()).collect();
        Prepared { images, state: driver.now().clone() }
    })
}

/// Disks with power, and a clock.
pub(crate) struct Ground {
    pub power: Power,
    pub disks: Vec<Arc<SimDisk>>,
    pub clock: Arc<Seeded>,
}

impl Ground {
    /// Disks that hold `images`, in a boot of their own.
    pub fn new(images: &[Image], stage: u64) -> Ground {
        let power = Power::new(stage);
        let blocks = setup().blocks;
        let disks = images.iter().map(|image| power.disk_from(blocks, image.clone())).collect();
        Ground { power, disks, clock: Arc::new(Seeded::new(stage)) }
    }

    /// Open what is on the disks `which`.
    pub fn open(&mut self, which: &[usize], degraded: bool) -> Result<(Store, Report), StoreError> {
        self.open_held(which, degraded, false)
    }

    /// As [`Ground::open`]; `hold`: without replaying or writing anything.
    pub fn open_held(&mut self, which: &[usize], degraded: bool, hold: bool) -> Result<(Store, Report), StoreError> {
        let handle = |index: &usize| {
            self.disks[*index] = self.disks[*index].reopen();
            (*index, self.disks[*index].clone() as Arc<dyn Backing>)
        };
        let (present, _) = look_at(which.iter().map(handle).collect::<Vec<_>>());
        let options = OpenStore { degraded, deadline: DEADLINE, store: setup().store, on_shrink: None, hold };
        open(present, options, self.clock.clone())
    }
}

/// What is made durable after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// Nothing.
    None,
    /// The so-manieth inode that the operation touched.
    Fsync(usize),
    /// Everything.
    Sync,
}

/// Operations (as indices of [`acts::all`]), and what is made durable after each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence(pub Vec<(usize, Persist)>);

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (act, persist)) in self.0.iter().enumerate() {
            write!(f, "{}{act}", if i > 0 { "+" } else { "" })?;
            match persist {
                Persist::None => {}
                Persist::Fsync(index) => write!(f, "f{index}")?,
                Persist::Sync => f.write_str("s")?,
            }
        }
        Ok(())
    }
}

/// Inodes that differ and are still there.
fn touched(before: &State, after: &State) -> Vec<u64> {
    let same = |ino: &u64, node| before.nodes.get(ino).is_some_and(|old| Arc::ptr_eq(old, node));
    after.nodes.iter().filter(|(ino, node)| node.nlink > 0 && !same(ino, node)).map(|(ino, _)| *ino).collect()
}

/// `act` on `state`: what is touched and what is there then. `None`: it cannot be done.
fn possible(act: Act, state: &State) -> Option<(Vec<u64>, State)> {
    let mut next = state.clone();
    next.apply(&act.resolve(state, 1)?, 900 + state.nodes.len() as u64).ok()?;
    Some((touched(state, &next), next))
}

/// Every sequence of one operation, or of `two`. Of two, the first one is made durable by nothing, by an fsync of the
/// first inode that it touched, or by a sync.
pub fn sequences(two: bool) -> Vec<Sequence> {
    let acts = acts::all();
    let mut all = Vec::new();
    let start = &prepared().state;
    for (first, act) in acts.iter().enumerate() {
        let Some((inodes, state)) = possible(*act, start) else { continue };
        let fsyncs = |inodes: &[u64]| (0..inodes.len()).map(Persist::Fsync).collect::<Vec<_>>();
        if !two {
            let persists = [vec![Persist::None, Persist::Sync], fsyncs(&inodes)].concat();
            all.extend(persists.into_iter().map(|persist| Sequence(vec![(first, persist)])));
            continue;
        }
        let firsts = [Persist::None, Persist::Fsync(0), Persist::Sync];
        for between in firsts.into_iter().filter(|p| *p != Persist::Fsync(0) || !inodes.is_empty()) {
            for (second, act) in acts.iter().enumerate() {
                let Some((inodes, _)) = possible(*act, &state) else { continue };
                for last in [vec![Persist::Sync], fsyncs(&inodes)].concat() {
                    all.push(Sequence(vec![(first, between), (second, last)]));
                }
            }
        }
    }
    all
}

/// Operations that must fail on the prepared volume do, as the model says, and change nothing. Gives their number.
///
/// # Errors
/// One did not.
pub fn refused() -> Result<u64, Failure> {
    let mut ground = Ground::new(&prepared().images, RUNS);
    let mut count = 0;
    let mut all = || {
        let (store, _) = ground.open(&[0, 1], false).map_err(|error| error.to_string())?;
        let mut driver = Driver::new(store, &ground.power)?;
        for act in acts::all() {
            if let Some(op) = act.resolve(driver.now(), 1)
                && possible(act, driver.now()).is_none()
            {
                driver.step(&op)?;
                count += 1;
            }
        }
        driver.compare()
    };
    all().map_err(|text| Failure { text: format!("operations that must fail: {text}") })?;
    Ok(count)
}

/// The moment before a step.
struct Mark {
    event: usize,
    states: usize,
    floor: usize,
    durable: BTreeMap<u64, usize>,
}

impl Mark {
    fn now(driver: &Driver, tape: &Tape) -> Mark {
        Mark {
            event: tape.lock().len(),
            states: driver.states.len(),
            floor: driver.floor,
            durable: driver.durable.clone(),
        }
    }
}

/// A sequence that was run to its end.
struct Run {
    events: Events,
    /// Before each step, and at the end.
    marks: Vec<Mark>,
    states: Vec<State>,
    /// From which mark on the power is cut.
    from: usize,
    /// For reports.
    log: Vec<Op>,
    /// Both disks when the operations began.
    start: Vec<Image>,
}

impl Run {
    fn new(sequence: &Sequence) -> Result<Run, String> {
        let acts = acts::all();
        let mut ground = Ground::new(&prepared().images, RUNS);
        let tape = tape::record(&ground.power);
        let opened = ground.open(&[0, 1], false);
        let (store, _) = opened.map_err(|error| format!("opening: {error}"))?;
        let mut driver = Driver::new(store, &ground.power)?;
        let start = ground.disks.iter().map(|disk| disk.snapshot()).collect();
        let mut marks = Vec::new();
        for (i, (act, persist)) in sequence.0.iter().enumerate() {
            let before = driver.now().clone();
            let op = acts[*act].resolve(&before, 100 + i as u64).ok_or("no such operand")?;
            marks.push(Mark::now(&driver, &tape));
            driver.step(&op)?;
            let persist = match persist {
                Persist::None => continue,
                Persist::Fsync(index) => Op::Fsync { ino: touched(&before, driver.now())[*index] },
                Persist::Sync => Op::Sync,
            };
            marks.push(Mark::now(&driver, &tape));
            driver.step(&persist)?;
        }
        marks.push(Mark::now(&driver, &tape));
        driver.compare()?;
        let (last, all) = (sequence.0.last().expect("not empty"), marks.len());
        let from = all - 1 - (1 + usize::from(last.1 != Persist::None));
        let events = tape.lock().clone();
        Ok(Run { events, marks, states: driver.states, from, log: driver.log, start })
    }

    /// What is known if the power fails at event `index`.
    fn known(&self, index: usize) -> Known {
        let at = self.marks.iter().rposition(|mark| mark.event <= index).expect("cuts come after the first mark");
        let mark = &self.marks[at];
        Known::at(&self.states[..mark.states], mark.floor, &mark.durable)
    }
}

/// What recovery found for each twin, to be judged again when another cut leaves the same disks.
type Found = Vec<(Twin, State)>;

/// Run `sequence`, cut it everywhere, recover with each of `twins` (both good is always one). `only`: this case alone.
///
/// # Errors
/// A promise was broken.
pub fn run(sequence: &Sequence, twins: &[Twin], only: Option<&str>) -> Result<Covered, Failure> {
    let mut covered = Covered { sequences: 1, ..Covered::default() };
    let run = Run::new(sequence).map_err(|text| Failure { text: format!("STABLEFS_CASE={sequence}: {text}") })?;
    let fail = |case: &str, text: String| {
        let mut all = format!("STABLEFS_CASE={case}: {text}");
        run.log.iter().for_each(|op| all += &format!("\n  {op:?}"));
        Failure { text: all }
    };
    let mut crashes = Crashes::new(&prepared().images, setup().blocks, &run.events);
    let mut seen: HashMap<u64, (Vec<Image>, Found)> = HashMap::new();
    for index in run.marks[run.from].event..=run.events.len() {
        if matches!(run.events.get(index), Some((_, crate::disk::backing::Op::Punch { .. }))) {
            continue;
        }
        crashes.go_to(index);
        covered.cuts += 1;
        let known = run.known(index);
        for outcome in Outcome::ALL {
            let case = format!("{sequence}@{index}:{outcome}");
            if only.is_some_and(|only| only.contains('@') && !only.starts_with(&case)) {
                continue;
            }
            covered.crashes += 1;
            let seed = seed_of(&case);
            let images = crashes.images(outcome, seed);
            let print = tape::fingerprint(&images);
            let found = match seen.entry(print) {
                Entry::Occupied(known) => &known.into_mut().1,
                Entry::Vacant(new) => {
                    covered.images += 1;
                    let found = recover_all(&images, &run, twins, seed, &mut covered);
                    let found = found.map_err(|(twin, text)| fail(&format!("{case}:{twin}"), text))?;
                    &new.insert((images, found)).1
                }
            };
            for (twin, state) in found {
                judge(&known, state).map_err(|text| fail(&format!("{case}:{twin}"), text))?;
            }
        }
    }
    Ok(covered)
}

fn recover_all(
    images: &[Image],
    run: &Run,
    twins: &[Twin],
    seed: u64,
    covered: &mut Covered,
) -> Result<Found, (Twin, String)> {
    let mut found: Found = Vec::new();
    for twin in [Twin::Good].iter().chain(twins) {
        let good = found.first().map(|(_, state)| state);
        let past = [&prepared().images[..], &run.start[..]];
        let state = twin.recover(images, past, good, seed, covered).map_err(|text| (*twin, text))?;
        found.push((*twin, state));
    }
    Ok(found)
}

/// FNV-1a.
pub(crate) fn seed_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// One more operation, drawn by `seed` from those that are possible; then everything settled, durable and clean.
pub(crate) fn live_on(driver: &mut Driver, seed: u64) -> Result<(), String> {
    let acts = acts::all();
    let from = (seed % acts.len() as u64) as usize;
    let possible = acts.iter().cycle().skip(from).take(acts.len()).find(|act| possible(**act, driver.now()).is_some());
    let op = possible.and_then(|act| act.resolve(driver.now(), seed | 1)).ok_or("nothing is possible any more")?;
    let outcome = driver.step(&op).and_then(|()| driver.finish());
    outcome.map_err(|text| format!("afterwards, with {op:?}: {text}"))
}
