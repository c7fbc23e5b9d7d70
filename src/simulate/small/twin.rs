//! Recovery from a crash, with the twin disk good, corrupt, stale or absent.
//!
//! *Guarantees*: [`Twin::recover`] mounts, finds exactly what both good disks give wherever the other disk holds all of
//! it, heals what can be healed, brings back a disk that is behind, and goes on with one more operation; the checker
//! finds nothing at the end. *Assumes*: the images are what a power cut left. *Fails when*: any of this is not so.
//! *Order*: mount → compare → heal and live on, in either order. *Not here*: whether what was found may be found (`judge`).

use super::{Covered, Ground, RECOVERS, live_on};
use crate::disk::ReplicaName;
use crate::disk::sim::{Image, Random};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{Addr, Geometry, Root, Uuid};
use crate::simulate::copies::Copies;
use crate::simulate::driver::Driver;
use crate::simulate::judge::same;
use crate::simulate::model::State;
use crate::simulate::{clean, disk_path, heal_only};
use crate::store::StoreError;
use crate::store::recover::Report;
use crate::volume::replace::{Place, resync};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is wrong with one of the two disks at the recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin {
    /// Nothing.
    Good,
    /// Every block that is reachable on this disk is damaged, and all roots and log records; one label is left.
    Corrupt(usize),
    /// As before, but a random half of them.
    Half(usize),
    /// It holds what it held when the operations began.
    Stale(usize),
    /// It holds what it held before it was mounted for them.
    Older(usize),
    /// It is not there.
    Absent(usize),
}

impl Twin {
    /// Everything that can be wrong with either disk.
    pub const WRONG: [Twin; 10] = [
        Twin::Corrupt(0),
        Twin::Corrupt(1),
        Twin::Half(0),
        Twin::Half(1),
        Twin::Stale(0),
        Twin::Stale(1),
        Twin::Older(0),
        Twin::Older(1),
        Twin::Absent(0),
        Twin::Absent(1),
    ];

    /// The disk with which something is wrong.
    fn disk(self) -> Option<usize> {
        match self {
            Twin::Good => None,
            Twin::Corrupt(disk) | Twin::Half(disk) | Twin::Stale(disk) | Twin::Older(disk) | Twin::Absent(disk) => {
                Some(disk)
            }
        }
    }
}

impl std::fmt::Display for Twin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Twin::Good => f.write_str("good"),
            Twin::Corrupt(disk) => write!(f, "corrupt{disk}"),
            Twin::Half(disk) => write!(f, "half{disk}"),
            Twin::Stale(disk) => write!(f, "stale{disk}"),
            Twin::Older(disk) => write!(f, "older{disk}"),
            Twin::Absent(disk) => write!(f, "absent{disk}"),
        }
    }
}

/// Damage each of `addrs` on `image` that holds anything, with a chance of `per_million`.
pub(crate) fn damage(image: &mut Image, addrs: &BTreeSet<Addr>, per_million: u32, random: &mut Random) -> u64 {
    let blocks = Arc::make_mut(image);
    let mut count = 0;
    for addr in addrs {
        let Some(block) = blocks.get_mut(addr) else { continue };
        if !random.chance(per_million) {
            continue;
        }
        let mut rotten = **block;
        if random.below(2) == 0 {
            let bit = random.below(rotten.len() as u64 * 8) as usize;
            rotten[bit / 8] ^= 1 << (bit % 8);
        } else {
            random.fill(&mut rotten);
        }
        *block = Arc::new(rotten);
        count += 1;
    }
    count
}

/// Everything on the disks that recovery can want: reachable blocks, labels but one, root slots, log records.
pub(crate) fn wanted(copies: &Copies) -> BTreeSet<Addr> {
    let mut addrs: BTreeSet<Addr> = copies.blocks.keys().map(|(addr, _)| *addr).collect();
    addrs.extend((0..ROOT_SLOTS).map(Root::addr));
    addrs.remove(&Geometry::label_copies()[1]);
    addrs
}

impl Twin {
    /// Recover from `images`; `past`: what the disks held before, oldest first; `good`: what both good disks gave.
    /// Gives what was found.
    ///
    /// # Errors
    /// Something is wrong: what.
    pub fn recover(
        self,
        images: &[Image],
        past: [&[Image]; 2],
        good: Option<&State>,
        seed: u64,
        covered: &mut Covered,
    ) -> Result<State, String> {
        let mut images = images.to_vec();
        let copies = self.disk().and_then(|_| Copies::of_images(&images));
        let mut random = Random::new(seed ^ 0xbad);
        match self {
            Twin::Good | Twin::Absent(_) => {}
            Twin::Stale(disk) => images[disk] = past[1][disk].clone(),
            Twin::Older(disk) => images[disk] = past[0][disk].clone(),
            Twin::Corrupt(disk) | Twin::Half(disk) => {
                let per_million = if let Twin::Half(_) = self { 500_000 } else { 1_000_000 };
                let copies = copies.as_ref().ok_or("no root is left on either disk")?;
                covered.faults += damage(&mut images[disk], &wanted(copies), per_million, &mut random);
            }
        }
        covered.faults += u64::from(!matches!(self, Twin::Good | Twin::Corrupt(_) | Twin::Half(_)));
        covered.recoveries += 1;
        let mut ground = Ground::new(&images, RECOVERS);
        let (mut driver, report) = self.mount(&mut ground)?;
        covered.replayed += report.replayed;
        let found = driver.now().clone();
        if let (Some(disk), Some(good), Some(copies)) = (self.disk(), good, copies)
            && copies.is_whole_on(1 - disk)
        {
            same(good, &found).map_err(|text| format!("the other disk has it all, but: {text}"))?;
        }
        self.go_on(&ground, &mut driver, &report, seed)?;
        covered.healed += driver.store.mirror().health().iter().map(|health| health.counters.healed).sum::<u64>();
        Ok(found)
    }

    fn mount(self, ground: &mut Ground) -> Result<(Driver, Report), String> {
        let opened = match self {
            Twin::Absent(disk) => ground.open(&[1 - disk], true),
            Twin::Stale(_) | Twin::Older(_) => match ground.open(&[0, 1], false) {
                Err(StoreError::Refused(_)) => ground.open(&[0, 1], true),
                opened => opened,
            },
            _ => ground.open(&[0, 1], false),
        };
        let (store, report) = opened.map_err(|error| format!("opening: {error}"))?;
        let count = store.mirror().members().count();
        match self {
            Twin::Good | Twin::Corrupt(_) | Twin::Half(_) if count != 2 => {
                return Err(format!("{count} replicas are in sync after recovery: {report:?}"));
            }
            Twin::Stale(disk) | Twin::Older(disk) if !store.mirror().members().contains(1 - disk) => {
                return Err(format!("the stale replica was taken for the newest one: {report:?}"));
            }
            _ => {}
        }
        Ok((Driver::new(store, &ground.power)?, report))
    }

    /// Heal, bring back, live on.
    fn go_on(self, ground: &Ground, driver: &mut Driver, report: &Report, seed: u64) -> Result<(), String> {
        let Some(bad) = self.disk() else {
            let healed: u64 = driver.store.mirror().health().iter().map(|health| health.counters.healed).sum();
            if healed > 0 {
                return Err(format!("{healed} blocks had to be healed though nothing was damaged"));
            }
            return live_on(driver, seed);
        };
        if let Twin::Absent(_) = self {
            clean(&driver.store)?;
            return live_on(driver, seed);
        }
        if !report.behind.is_empty() {
            clean(&driver.store)?;
            driver.store.mirror().release(bad);
            let name = ReplicaName { uuid: Uuid([7; 16]), path: disk_path(bad) };
            let back = resync(&driver.store, Place::Free(bad), name, ground.disks[bad].reopen(), &mut |_| true);
            back.map_err(|error| format!("bringing the stale replica back: {error}"))?;
            return live_on(driver, seed);
        }
        // Damage is met by the next operation, or by a scrub.
        if seed.is_multiple_of(2) {
            heal_only(&driver.store, |replica| replica == bad)?;
        }
        let lived = live_on_damaged(driver, seed);
        heal_only(&driver.store, |replica| replica == bad)?;
        lived?;
        live_on(driver, seed / 7)
    }
}

/// One more operation, while the damage is there.
fn live_on_damaged(driver: &mut Driver, seed: u64) -> Result<(), String> {
    let name = format!("new{}", seed % 3);
    let op = crate::simulate::model::Op::Create { dir: crate::format::ROOT_INO, name, mode: 0o600 };
    driver.step(&op)?;
    driver.step(&crate::simulate::model::Op::Sync)?;
    driver.compare()
}
