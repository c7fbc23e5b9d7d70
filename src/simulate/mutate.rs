//! Hostile volumes: samples with a part of them replaced by what no product would write, with checksums made good
//! again, and the whole way from `examine` to `fsck` walked over them.
//!
//! *Guarantees*: [`walk_case`] fails if a volume makes the product panic, ask its disks without end, write outside of all
//! structures, lose what the undamaged replica proves, fail beside the damaged part, stop work or leave something unhealed
//! although one replica is whole and the other proves no damage, or write a root that it does not read back.
//! *Assumes*: one thread; samples are whole. Loops without I/O and memory are watched by the
//! caller (`tests/hostile.rs`). *Fails when*: any of that is found: the text names seed, sample and damage.
//! *Order*: sample, damage, reseal, then each way of looking at it on fresh disks. *Not here*: faults of disks (`fault`).
//!
//! | file | part |
//! |---|---|
//! | `sample` | whole volumes with one of everything |
//! | `survey` | where their structures stand, and what proves each |
//! | `canvas` | bytes that change, checksums that follow |
//! | `damage` `rewrite` | what is changed |
//! | `watched` | disks that count |
//! | `tour` | looking at and working in what was mounted |

pub mod canvas;
pub mod damage;
pub mod rewrite;
pub mod sample;
pub mod survey;
pub mod tour;
pub mod watched;

use super::crew::caught;
use super::{Failure, clean};
use crate::disk::sim::{Image, Random, SimDisk};
use crate::format::item::Dirent;
use crate::format::{ItemKind, Key, Label, Root};
use crate::store::check::{CheckOptions, StoreSource, check};
use crate::store::commit::Force;
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Store, StoreError};
use crate::volume::fsck::{self, FsckOptions, Host};
use canvas::Canvas;
use damage::Damage;
use sample::{DEADLINE, Sample, disks_of, open_on, present, samples};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use survey::Survey;
use watched::Watch;

/// Levels of sealing that always reach the root.
const ALL: usize = 64;

/// What became of hostile volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Volumes.
    pub cases: u64,
    /// Damaged on one replica only.
    pub one_sided: u64,
    /// Refused when they were to be opened for writing.
    pub refused: u64,
    /// Opened, and shown to serve what is not damaged.
    pub compared: u64,
    /// Took changes until one met the damage.
    pub latched: u64,
    /// Damaged on one replica, in nothing that proves itself: took all changes, and were healed.
    pub healed: u64,
    /// Requests to disks.
    pub requests: u64,
}

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Tally) {
        self.cases += other.cases;
        self.one_sided += other.one_sided;
        self.refused += other.refused;
        self.compared += other.compared;
        self.latched += other.latched;
        self.healed += other.healed;
        self.requests += other.requests;
    }
}

/// A damaged volume.
pub struct Case<'a> {
    /// What it was.
    pub sample: &'a Sample,
    /// What its disks hold now.
    pub images: Vec<Image>,
    /// What was done, the same on each damaged disk.
    pub damages: Vec<Damage>,
    /// Disks that are damaged, as bits.
    pub sides: u32,
}

impl<'a> Case<'a> {
    /// The volume of `seed`, made of `sample`, or of one of ours.
    pub fn draw(seed: u64, sample: Option<&'a Sample>) -> Case<'a>
    where
        'static: 'a,
    {
        let mut random = Random::new(seed);
        let all = samples();
        let own = if random.below(6) == 0 { &all[2] } else { random.pick(all) };
        let sample = sample.unwrap_or(own);
        let every = (1 << sample.images.len()) - 1;
        let one = 1 << random.below(sample.images.len() as u64);
        let sides = if !sample.degraded && random.below(3) == 0 { one } else { every };
        // Damage of one replica that is not sealed to the top is a single fault: half of those are.
        let depths: &[usize] =
            if sides == every { &[ALL, ALL, ALL, ALL, ALL, ALL, 0, 1, 2] } else { &[ALL, ALL, 0, 0, 1] };
        let depth = *random.pick(depths);
        let count = *random.pick(&[1, 1, 1, 1, 2, 3]);
        let damage_seed = random.bits();
        let act = |canvas: &mut Canvas<'_>| {
            let mut random = Random::new(damage_seed);
            (0..count).map(|_| damage::damage(canvas, &mut random, depth)).collect()
        };
        Case::made(sample, sides, &act)
    }

    /// `sample`, with `act` done to each of the disks in `sides`.
    pub fn made(sample: &'a Sample, sides: u32, act: &dyn Fn(&mut Canvas<'_>) -> Vec<Damage>) -> Case<'a> {
        let mut images = sample.images.clone();
        let mut damages = Vec::new();
        for (i, image) in images.iter_mut().enumerate().filter(|(i, _)| sides >> i & 1 == 1) {
            let mut canvas = Canvas { image: image.clone(), survey: &sample.survey, blocks: sample.blocks };
            let done = act(&mut canvas);
            *image = canvas.image;
            if damages.is_empty() || i == 0 {
                damages = done;
            }
        }
        Case { sample, images, damages, sides }
    }

    fn one_sided(&self) -> bool {
        self.sides != (1 << self.images.len()) - 1
    }

    /// Whether a block that nothing points at was damaged, or sealed again.
    fn reaches_top(&self) -> bool {
        let places = &self.sample.survey.places;
        self.damages.iter().any(|damage| {
            let (mut at, mut left) = (damage.place, damage.depth);
            while let (Some(link), true) = (places[at].link, left > 0) {
                (at, left) = (link.parent, left - 1);
            }
            places[at].link.is_none() || damage.spreads
        })
    }

    /// Whether one replica is whole and the damage of the other proves itself nowhere: it may cost nothing.
    fn is_single_fault(&self) -> bool {
        self.one_sided() && !self.reaches_top() && !forged_newer(self)
    }

    fn describe(&self) -> String {
        let what: Vec<&str> = self.damages.iter().map(|damage| damage.what.as_str()).collect();
        let depth = self.damages.first().map_or(0, |damage| damage.depth);
        format!("sample {}, disks {:b}, sealed {depth} levels: {}", self.sample.name, self.sides, what.join("; "))
    }
}

/// Walk over a damaged volume; `seed` says which work is tried in it.
///
/// # Errors
/// The product broke a promise.
pub fn walk_case(case: &Case<'_>, seed: u64) -> Result<Tally, Failure> {
    let text = |text| Failure { text };
    caught("the product", || all_ways(case, seed).map_err(text)).map_err(|failure| Failure {
        text: format!("hostile seed {seed} (STABLEFS_SEEDS={seed}), {}:\n  {failure}", case.describe()),
    })
}

fn all_ways(case: &Case<'_>, seed: u64) -> Result<Tally, String> {
    let mut tally = Tally { cases: 1, one_sided: u64::from(case.one_sided()), ..Tally::default() };
    for image in &case.images {
        account(image, case.sample.blocks);
    }
    read_only(case, &mut tally)?;
    read_write(case, seed, &mut tally)?;
    if case.one_sided() {
        good_alone(case)?;
    }
    if seed.is_multiple_of(2) {
        offline(case, seed.is_multiple_of(4), &mut tally)?;
    }
    Ok(tally)
}

/// What `debug blocks` does.
fn account(image: &Image, blocks: u64) {
    let read = |addr| {
        let inside = addr < blocks;
        if inside { Ok(survey::block(image, addr).to_vec()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    };
    drop(crate::cli::debug::account(&read, &mut |_| {}));
}

fn is_refusal(error: &StoreError) -> bool {
    !matches!(error, StoreError::Failed(text) if text.contains("asked too often"))
}

fn read_only(case: &Case<'_>, tally: &mut Tally) -> Result<(), String> {
    let watch = Watch::read_only(case.sample.blocks);
    let disks = disks_of(case.sample.blocks, &case.images);
    let opened = open_on(&disks, &watch, true, true);
    if let Ok((store, _)) = opened {
        let store = Arc::new(store);
        compare(case, &store, tally)?;
        drop(tour::tour(&store));
        look(&store, false);
    }
    tally.requests += watch.requests();
    watch.verdict()
}

/// Everything that is not damaged is as it was.
fn compare(case: &Case<'_>, store: &Arc<Store>, tally: &mut Tally) -> Result<(), String> {
    let whole = case.one_sided() && !forged_newer(case);
    let affected = if whole { Some(Affected::default()) } else { Affected::of(case) };
    let Some(affected) = affected else { return Ok(()) };
    let found = tour::revisit(store, &case.sample.expected).map_err(|error| format!("no root directory: {error}"));
    let found = match found {
        Ok(found) => found,
        Err(_) if affected.inos.contains(&crate::format::ROOT_INO) => return Ok(()),
        Err(text) => return Err(text),
    };
    tally.compared += 1;
    for (path, seen) in &case.sample.expected {
        if found[path] != seen.what && !affected.hits(seen) {
            let path = String::from_utf8_lossy(path);
            return Err(format!(
                "{path} is not damaged, and is not as it was:\n  was {}\n  is  {}",
                seen.what,
                found[&path.as_bytes().to_vec()]
            ));
        }
    }
    Ok(())
}

/// Whether a damaged disk proves a newer root than the others: nobody can tell that from a cut while it was written.
fn forged_newer(case: &Case<'_>) -> bool {
    case.images.iter().enumerate().any(|(i, image)| {
        case.sides >> i & 1 == 1
            && newest_root(image).is_some_and(|root| root.version > case.sample.survey.root.version)
    })
}

fn newest_root(image: &Image) -> Option<Root> {
    let label = crate::format::Geometry::label_copies()
        .into_iter()
        .find_map(|addr| Label::decode(&survey::block(image, addr), addr).ok())?;
    let decode = |slot| Root::decode(&survey::block(image, Root::addr(slot)), slot, label.volume, &label.geometry).ok();
    (0..16).filter_map(decode).max_by_key(|root| root.version)
}

/// What a single damage to one block may change.
#[derive(Default)]
struct Affected {
    inos: BTreeSet<u64>,
    names: BTreeSet<(u64, u64)>,
}

impl Affected {
    /// `None`: anything.
    fn of(case: &Case<'_>) -> Option<Affected> {
        let survey = &case.sample.survey;
        let [damage] = &case.damages[..] else { return None };
        let halfway = damage.depth > 0 && damage.depth < ALL;
        if damage.spreads || halfway || case.sample.degraded {
            return None;
        }
        let mut affected = Affected::default();
        let leaf = match survey.places[damage.place].part {
            Part::SpaceNode | Part::Bitmap | Part::DeadList => return Some(affected),
            Part::Leaf => damage.place,
            Part::Data => survey.places[damage.place].link?.parent,
            _ => return None,
        };
        let addr = survey.places[leaf].addr;
        let items = |image: &Image, addr: u64| -> Vec<(Key, Option<u64>)> {
            let block = survey::block(image, addr);
            let item = |(_, key, range): (usize, Key, std::ops::Range<usize>)| {
                (key, Dirent::decode(&block[range]).ok().map(|entry| entry.ino))
            };
            Survey::items(&block).into_iter().map(item).collect()
        };
        for image in case.images.iter().chain(&case.sample.images) {
            for (key, target) in items(image, addr) {
                if key.kind == ItemKind::Dirent {
                    affected.names.insert((key.ino, key.off));
                    affected.inos.extend(target);
                } else {
                    affected.inos.insert(key.ino);
                }
            }
        }
        // Whether a neighbour's items end where they seem to is for this leaf to say.
        let leaves: Vec<u64> =
            survey.places.iter().filter(|place| place.part == Part::Leaf).map(|place| place.addr).collect();
        let at = leaves.iter().position(|leaf| *leaf == addr)?;
        let near = [at.checked_sub(1).map(|i| (i, true)), Some((at + 1, false))].into_iter().flatten();
        for (i, last) in near.filter(|(i, _)| *i < leaves.len()) {
            let keys = items(&case.sample.images[0], leaves[i]);
            let key = if last { keys.last() } else { keys.first() };
            affected.inos.extend(key.map(|(key, _)| key.ino));
        }
        Some(affected)
    }

    fn hits(&self, seen: &tour::Seen) -> bool {
        self.inos.contains(&seen.ino)
            || seen.way.iter().any(|step| self.names.contains(step) || self.inos.contains(&step.0))
    }
}

/// Shows itself everything, and remembers nothing.
struct Glance;

impl Sink for Glance {
    fn pieces(&mut self, _: &[Piece]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn unreadable(&mut self, _: Part, _: u64, _: u64, _: &StoreError) {}
    fn pause(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Every way of looking at all blocks.
fn look(store: &Store, heal: bool) {
    let options = CheckOptions { data: true, heal, parallel: false, findings_max: 1000 };
    let report = check(&StoreSource::new(store), &options, &mut |_| ControlFlow::Continue(()));
    let _ = report.findings.iter().map(ToString::to_string).map(|text| text.len()).sum::<usize>();
    let _ = store.walk(&mut Glance);
    let replicas: Vec<usize> =
        (0..store.mirror().replicas()).filter(|r| store.mirror().members().contains(*r)).collect();
    drop((store.prove_labels(&replicas, heal), store.prove_roots(&replicas, heal), store.prove_log(&replicas, heal)));
}

fn read_write(case: &Case<'_>, seed: u64, tally: &mut Tally) -> Result<(), String> {
    let watch = Watch::new(case.sample.blocks);
    let disks = disks_of(case.sample.blocks, &case.images);
    let mut random = Random::new(seed ^ 0x5eed);
    let (store, _) = match open_on(&disks, &watch, case.sample.degraded, false) {
        Ok(opened) => opened,
        Err(error) => {
            tally.refused += 1;
            if case.is_single_fault() && is_refusal(&error) && !labels_gone(case) {
                return Err(format!("one replica is whole, the other does not prove itself, yet: {error}"));
            }
            return watch.verdict();
        }
    };
    let store = Arc::new(store);
    if case.one_sided() {
        compare(case, &store, tally)?;
    }
    look(&store, seed.is_multiple_of(3));
    let names = tour::tour(&store).unwrap_or_default();
    let worked = tour::work(&store, &names, &mut random);
    tally.latched += u64::from(worked.is_err());
    if worked.is_ok() {
        read_back(&disks, &store)?;
    }
    look(&store, true);
    if case.is_single_fault() {
        worked.clone().map_err(|error| format!("one replica is whole, yet its work ended: {error}"))?;
        clean(&store).map_err(|found| format!("one replica is whole, yet not all was healed: {found}"))?;
        tally.healed += 1;
    }
    drop(tour::tour(&store));
    drop(store.commit(Force::Clean));
    drop(store);
    watch.verdict()?;
    if worked.is_ok() {
        let watch = Watch::read_only(case.sample.blocks);
        let again = open_on(&disks, &watch, true, true);
        again.map_err(|error| format!("it was unmounted in order, and cannot be opened again: {error}"))?;
    }
    tally.requests += watch.requests();
    Ok(())
}

/// The root that the store says is durable is found.
fn read_back(disks: &[Arc<SimDisk>], store: &Store) -> Result<(), String> {
    let version = store.durable_root().version;
    let found = disks.iter().filter_map(|disk| newest_root(&disk.snapshot())).map(|root| root.version).max();
    if found != Some(version) {
        return Err(format!("root {version} is said to be durable, root {found:?} is found"));
    }
    Ok(())
}

/// Neither copy of the label of a damaged disk is left.
fn labels_gone(case: &Case<'_>) -> bool {
    case.images.iter().any(|image| newest_root(image).is_none())
}

/// The disks that are not damaged serve everything.
fn good_alone(case: &Case<'_>) -> Result<(), String> {
    let watch = Watch::read_only(case.sample.blocks);
    let good: Vec<Image> = case
        .images
        .iter()
        .enumerate()
        .filter(|(i, _)| case.sides >> i & 1 == 0)
        .map(|(_, image)| image.clone())
        .collect();
    let disks = disks_of(case.sample.blocks, &good);
    let (store, _) = open_on(&disks, &watch, true, true).map_err(|error| format!("the good replica alone: {error}"))?;
    let found = tour::revisit(&Arc::new(store), &case.sample.expected).map_err(|error| error.to_string())?;
    match case.sample.expected.iter().find(|(path, seen)| found[*path] != seen.what) {
        Some((path, _)) => Err(format!("the good replica alone: {} differs", String::from_utf8_lossy(path))),
        None => Ok(()),
    }
}

/// fsck, and opening what it leaves.
fn offline(case: &Case<'_>, repair: bool, tally: &mut Tally) -> Result<(), String> {
    let make = if repair { Watch::new } else { Watch::read_only };
    let watch = make(case.sample.blocks);
    let disks = disks_of(case.sample.blocks, &case.images);
    let options = FsckOptions { repair, quick: false };
    let host = Host {
        world: Arc::new(crate::world::Seeded::new(11)),
        deadline: DEADLINE,
        check: &|_, _| Ok(()),
        on_shrink: Box::new(|_| {}),
        claim: &|_| Ok(()),
    };
    let report = fsck::run(present(&disks, &watch), &[], &options, host, &mut |_, _, _| {});
    watch.verdict()?;
    tally.requests += watch.requests();
    if let (Ok((report, _)), true) = (&report, repair)
        && report.left.is_empty()
    {
        let watch = Watch::new(case.sample.blocks);
        let opened = open_on(&disks, &watch, true, false);
        let (store, _) = opened.map_err(|error| format!("fsck repaired it, yet: {error}"))?;
        drop(tour::tour(&Arc::new(store)));
        watch.verdict()?;
    }
    Ok(())
}
