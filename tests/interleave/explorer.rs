//! The scheduler: from a seed, which thread goes on at each step.
//!
//! Goal: many different interleavings, each one given by one number. Method: by seed, a uniform choice at each step, a
//! choice that stays with one thread for a while, or priorities that change at a few random steps (PCT: Burckhardt et al.,
//! "A randomized scheduler with probabilistic guarantees of finding bugs"). A thread that waits with a deadline runs, and
//! so times out, when nobody else can; by seed also earlier.

use crate::common;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use stablefs::disk::sim::Random;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

/// Steps after which an execution counts as endless.
const STEPS_MAX: usize = 3_000_000;

thread_local! {
    /// Seed, schedules so far, fingerprint of the choices made.
    static NOW: Cell<(u64, u64, u64)> = const { Cell::new((0, 0, 0)) };
    /// How often what happened.
    static HAPPENED: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Count something that a scenario is about: [`explore`] wants all of it to happen.
pub fn happened(what: &'static str) {
    HAPPENED.with_borrow_mut(|counts| *counts.entry(what).or_default() += 1);
}

/// Seed of the execution under way.
pub fn seed() -> u64 {
    NOW.get().0
}

enum Way {
    Uniform,
    /// Go on with the same thread but once in so many steps.
    Sticky(u64),
    /// Highest priority first; lowered at these steps.
    Priorities {
        of: HashMap<usize, u64>,
        lowered: u64,
        at: Vec<u64>,
    },
}

/// Where it stands in one execution.
struct Explorer {
    seeds: Range<u64>,
    random: Random,
    way: Way,
    /// A sleeper's time passes early in so many of a million steps.
    early: u32,
    choices: u64,
}

impl Explorer {
    fn new(seeds: Range<u64>) -> Explorer {
        Explorer { seeds, random: Random::new(0), way: Way::Uniform, early: 0, choices: 0 }
    }

    fn choose(&mut self, awake: &[usize], current: Option<usize>, yields: bool) -> usize {
        if let [only] = awake {
            return *only;
        }
        self.choices += 1;
        let random = &mut self.random;
        match &mut self.way {
            Way::Uniform => *random.pick(awake),
            Way::Sticky(steps) => match current.filter(|task| awake.contains(task)) {
                Some(task) if !yields && random.below(*steps) != 0 => task,
                _ => *random.pick(awake),
            },
            Way::Priorities { of, lowered, at } => {
                for task in awake {
                    of.entry(*task).or_insert_with(|| (1 << 32) + random.below(1 << 32));
                }
                if let Some(task) = current.filter(|_| yields || at.contains(&self.choices)) {
                    *lowered += 1;
                    of.insert(task, (1 << 32) - *lowered);
                }
                *awake.iter().max_by_key(|task| of[*task]).expect("somebody is awake")
            }
        }
    }
}

impl Scheduler for Explorer {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.seeds.next()?;
        stablefs::sync::restart();
        NOW.set((seed, NOW.get().1 + 1, NOW.get().2));
        let mut random = Random::new(seed);
        self.early = *random.pick(&[0, 0, 500, 20_000]);
        self.way = match random.below(4) {
            0 => Way::Uniform,
            1 => Way::Sticky(1 << random.range(2, 8)),
            _ => {
                let length = 1 << random.range(5, 14);
                let at = (0..random.range(1, 5)).map(|_| random.range(1, length)).collect();
                Way::Priorities { of: HashMap::new(), lowered: 0, at }
            }
        };
        self.random = random;
        self.choices = 0;
        Some(Schedule::new(seed))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let asleep = stablefs::sync::asleep();
        let is_asleep = |task: usize| asleep.iter().any(|(sleeper, _)| *sleeper == task);
        let awake: Vec<usize> = runnable.iter().map(|task| task.id().into()).filter(|task| !is_asleep(*task)).collect();
        let early = !asleep.is_empty() && self.early > 0 && self.random.chance(self.early);
        let next = if awake.is_empty() || early {
            asleep.iter().min_by_key(|(_, deadline)| *deadline).expect("somebody can run").0
        } else {
            self.choose(&awake, current.map(usize::from), yields)
        };
        let (seed, count, print) = NOW.get();
        NOW.set((seed, count, (print ^ next as u64).wrapping_mul(0x0100_0000_01b3).rotate_left(5)));
        Some(TaskId::from(next))
    }

    fn next_u64(&mut self) -> u64 {
        self.random.bits()
    }
}

/// What an exploration did.
pub struct Explored {
    /// Interleavings.
    pub schedules: u64,
    /// Of all choices made.
    pub fingerprint: u64,
}

/// Run `scenario` with each of `seeds`; a failure names the one that repeats it.
pub fn run(name: &str, seeds: Range<u64>, scenario: impl Fn() + Send + Sync + 'static) -> Explored {
    NOW.set((seeds.start, 0, 0));
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    let runner = Runner::new(Explorer::new(seeds), config);
    let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(scenario)));
    let (seed, schedules, fingerprint) = NOW.get();
    if let Err(panic) = outcome {
        eprintln!(
            "interleave {name}: seed {seed} failed, after {schedules} schedules. To repeat it alone:\n  \
             STABLEFS_INTERLEAVE={name}:{seed} cargo test --release --features shuttle --test interleave -- --nocapture"
        );
        resume_unwind(panic);
    }
    Explored { schedules, fingerprint }
}

/// `STABLEFS_INTERLEAVE=name:seed`: only that; `STABLEFS_SEEDS=a..b`: these; else `0..count`, tenfold if all is asked for.
fn seeds(name: &str, count: u64) -> Range<u64> {
    if let Ok(one) = std::env::var("STABLEFS_INTERLEAVE") {
        let (wanted, seed) = one.split_once(':').expect("STABLEFS_INTERLEAVE=name:seed");
        let seed: u64 = seed.parse().expect("a seed is a number");
        return if wanted == name { seed..seed + 1 } else { 0..0 };
    }
    common::seeds(0..if common::is_long() { 10 * count } else { count })
}

/// What the tests explore.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Interleavings of it.
    pub count: u64,
    /// What must happen in them, or nothing was shown.
    pub happens: &'static [&'static str],
    /// One execution.
    pub run: fn(),
}

/// Explore the interleavings of `scenario` (or those that the environment asks for), and say how many there were.
pub fn explore(scenario: &Scenario) {
    let Scenario { name, count, happens, run: one } = *scenario;
    let seeds = seeds(name, count);
    let begun = Instant::now();
    HAPPENED.with_borrow_mut(BTreeMap::clear);
    let explored = run(name, seeds.clone(), one);
    let happened = HAPPENED.take();
    let spent = begun.elapsed();
    println!("interleave {name}: {} schedules, seeds {seeds:?}, {spent:.1?}: {happened:?}", explored.schedules);
    if seeds.end - seeds.start >= count {
        let never: Vec<_> = happens.iter().filter(|what| !happened.contains_key(*what)).collect();
        assert!(never.is_empty(), "interleave {name}: it never happened: {never:?}");
    }
}
