//! A block that is damaged on every replica in different places, put together again from what the copies have left.
//!
//! *Guarantees*: what is given back matches the checksum that names the block. Each sector of it is a sector of some
//! copy, or the bitwise majority of three; at most [`CANDIDATES_MAX`] combinations are tried for a block, always the same
//! ones in the same order. If two different combinations match, none is taken.
//! *Assumes*: a false combination matches a checksum of 32 bits with a chance of one in 2^32; a block that is put
//! together is wrong with a chance of the candidates in 2^32 at most.
//! *Fails when*: one sector is damaged in every copy, and no majority of three restores it; or there would be too many
//! candidates: then only the majorities of whole blocks are tried.
//! *Order*: one replica after the other is written, flushed and read back. Whatever part of such a write reaches the
//! medium replaces wrong bytes by right ones, so that a cut leaves what can be put together again.
//! *Not here*: ordinary reads, which never do this; which blocks to prove (scrub, fsck).

use super::{Copy, Lane, Mirror, REPAIR_TURNS};
use crate::disk::buffer::Buf;
use crate::disk::mirror::repair::Damage;
use crate::format::{Addr, BLOCK};
use std::fmt::{Display, Formatter};

/// Combinations that are tried for one block.
pub const CANDIDATES_MAX: usize = 1 << 10;
/// Bytes that disks write as one.
const SECTOR: usize = 512;
const SECTORS: usize = BLOCK / SECTOR;

/// Where a sector came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Origin {
    /// From the copy of this replica.
    Replica(u8),
    /// Each bit as two of these replicas have it.
    Majority([u8; 3]),
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Replica(replica) => write!(f, "from replica {replica}"),
            Origin::Majority([a, b, c]) => write!(f, "by the majority of replicas {a}, {b} and {c}"),
        }
    }
}

/// What a block was put together from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    sectors: [Origin; SECTORS],
    /// Combinations that were tried: so many in 2^32 is the chance that this one is wrong.
    pub candidates: usize,
}

impl Display for Recipe {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let mut said: Vec<Origin> = Vec::new();
        for origin in self.sectors {
            if said.contains(&origin) {
                continue;
            }
            let of_it: Vec<usize> = (0..SECTORS).filter(|sector| self.sectors[*sector] == origin).collect();
            let ranges: Vec<String> = of_it
                .chunk_by(|a, b| a + 1 == *b)
                .map(|run| match run {
                    [one] => one.to_string(),
                    [first, .., last] => format!("{first}-{last}"),
                    [] => String::new(),
                })
                .collect();
            let lead = if said.is_empty() { "sectors " } else { ", " };
            write!(f, "{lead}{} {origin}", ranges.join(","))?;
            said.push(origin);
        }
        write!(f, "; {} candidates", self.candidates)
    }
}

/// What came of trying to put a block together.
#[derive(Debug, Clone)]
pub enum Combination {
    /// The bytes match the checksum.
    Proven {
        /// The block.
        block: Buf,
        /// What it was made from.
        recipe: Recipe,
    },
    /// There was no need: a replica proves the block.
    Needless,
    /// No combination matches, or more than one.
    Impossible,
    /// There are too many combinations; they were not tried.
    TooMany,
}

/// All combinations of a block's copies, by sector: where each content came from.
struct Choices<'a> {
    sectors: Vec<Vec<(Origin, &'a [u8])>>,
}

impl<'a> Choices<'a> {
    /// `sources`: whole blocks, those to be preferred first.
    fn new(sources: impl Iterator<Item = (Origin, &'a [u8])> + Clone) -> Choices<'a> {
        let of_sector = |sector: usize| {
            let mut distinct: Vec<(Origin, &[u8])> = Vec::new();
            for (origin, block) in sources.clone() {
                let bytes = &block[sector * SECTOR..(sector + 1) * SECTOR];
                if distinct.iter().all(|(_, known)| *known != bytes) {
                    distinct.push((origin, bytes));
                }
            }
            distinct
        };
        Choices { sectors: (0..SECTORS).map(of_sector).collect() }
    }

    fn count(&self) -> usize {
        self.sectors.iter().map(Vec::len).product()
    }

    /// Combination number `index`, put into `block`.
    fn make(&self, index: usize, block: &mut [u8]) -> [Origin; SECTORS] {
        let mut rest = index;
        let mut origins = [Origin::Replica(0); SECTORS];
        for (sector, choices) in self.sectors.iter().enumerate() {
            let (origin, bytes) = choices[rest % choices.len()];
            rest /= choices.len();
            block[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
            origins[sector] = origin;
        }
        origins
    }
}

/// Each bit as two of the three have it.
fn majority(a: &[u8], b: &[u8], c: &[u8]) -> Vec<u8> {
    a.iter().zip(b).zip(c).map(|((a, b), c)| a & b | a & c | b & c).collect()
}

/// Look for the one combination of `copies` (replica, its bytes) that `proves`.
fn search(copies: &[(u8, &[u8])], proves: impl Fn(&[u8]) -> bool) -> Combination {
    let mut majorities: Vec<(Origin, Vec<u8>)> = Vec::new();
    for (i, (a, first)) in copies.iter().enumerate() {
        for (j, (b, second)) in copies.iter().enumerate().skip(i + 1) {
            for (c, third) in copies.iter().skip(j + 1) {
                majorities.push((Origin::Majority([*a, *b, *c]), majority(first, second, third)));
            }
        }
    }
    let plain = copies.iter().map(|(replica, bytes)| (Origin::Replica(*replica), *bytes));
    let voted = majorities.iter().map(|(origin, bytes)| (*origin, &bytes[..]));
    let (all, plain) = (Choices::new(plain.clone().chain(voted.clone())), Choices::new(plain));
    let room = CANDIDATES_MAX - majorities.len();
    let fits = |choices: &&Choices<'_>| choices.count() <= room;
    let tried = [&all, &plain].into_iter().find(fits);
    let candidates = majorities.len() + tried.map_or(0, Choices::count);
    let mut found: Option<(Buf, [Origin; SECTORS])> = None;
    let mut block = Buf::zeroed(BLOCK);
    let whole = voted.map(|(origin, bytes)| ([origin; SECTORS], Some(bytes), 0));
    let mixed = (0..tried.map_or(0, Choices::count)).map(|index| ([Origin::Replica(0); SECTORS], None, index));
    for (mut origins, bytes, index) in whole.chain(mixed) {
        match (bytes, tried) {
            (Some(bytes), _) => block.copy_from_slice(bytes),
            (None, Some(choices)) => origins = choices.make(index, &mut block),
            (None, None) => break,
        }
        if !proves(&block) {
            continue;
        }
        match &found {
            Some((one, _)) if one[..] != block[..] => return Combination::Impossible,
            // Of two ways to say the same the later one names copies where it can.
            _ => found = Some((block.clone(), origins)),
        }
    }
    match found {
        Some((block, sectors)) => Combination::Proven { block, recipe: Recipe { sectors, candidates } },
        None if tried.is_some_and(|choices| choices.count() == all.count()) => Combination::Impossible,
        None => Combination::TooMany,
    }
}

impl Mirror {
    /// Put the block at `addr` together from the copies of all replicas that can be read, none of which proves it; with
    /// `heal`, write it over them: one after the other, each flushed and read back before the next one is touched.
    pub fn combine(&self, addr: Addr, sum: u64, heal: bool) -> Combination {
        if addr >= self.geometry.blocks {
            return Combination::Impossible;
        }
        let _turn = self.turns[addr as usize % REPAIR_TURNS].lock();
        let mut damaged: Vec<(Lane, Damage, Option<Buf>)> = Vec::new();
        for lane in self.lanes_by_trust() {
            match self.copy(&lane, addr, sum) {
                Copy::Correct(_) => return Combination::Needless,
                Copy::Damaged(damage, bytes) => damaged.push((lane, damage, bytes)),
                Copy::Unknown(_) => {}
            }
        }
        let readable: Vec<(u8, &[u8])> =
            damaged.iter().filter_map(|(lane, _, bytes)| Some((lane.slot as u8, &bytes.as_ref()?[..]))).collect();
        let found = search(&readable, |block| self.seed.checksum(addr, block) == sum);
        if let Combination::Proven { block, recipe } = &found
            && heal
        {
            log::warn!("block {addr} is damaged on every replica; it is put together again: {recipe}");
            for (lane, damage, _) in &damaged {
                if self.heal(lane, addr, sum, (block, 0), damage) {
                    // A failure puts it out, and is logged.
                    let _durable = self.flush_raw(lane.slot);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
