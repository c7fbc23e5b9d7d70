//! Dead lists: the runs that a group freed and that older roots may still reach.
//!
//! *Guarantees*: a decoded block has at most 166 runs; the chain ends (each block is older than, or of the same
//! group as, the one before; the reader counts). *Assumes*: proven by its pointer. *Fails when*: [`Corrupt`].
//! *Order*: none. *Not here*: when runs may be reused (`store::space`).
//!
//! Payload: pointer 32 to the next block of the chain (zeros: none), then runs of address 8, blocks 4,
//! reserved 4, birth 8 (group that had written what stood there).

use super::block::{self, BlockPtr, HEADER, Header, Kind, PAYLOAD, PTR};
use super::item::{le32, le64};
use super::{ADDR_BITS, Addr, BLOCK, Corrupt, Txg, Uuid, all_zero, require};

/// Bytes of a run.
const RUN: usize = 24;
/// Runs in a block.
pub const DEAD_MAX: usize = (PAYLOAD - PTR) / RUN;
const _: () = assert!(DEAD_MAX == 166);

/// Consecutive blocks, and the group that wrote what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// First block.
    pub addr: Addr,
    /// How many.
    pub blocks: u32,
    /// Birth of the content.
    pub birth: Txg,
}

/// Finds out, in no memory, that a chain of blocks comes back to where it was (Brent's algorithm): a pointer can be
/// forged that names a block which holds it.
#[derive(Debug, Default)]
pub struct Ring {
    anchor: Option<Addr>,
    steps: u64,
}

impl Ring {
    /// The next block of the chain.
    ///
    /// # Errors
    /// The chain is a ring. Found after at most three times its length.
    pub fn step(&mut self, addr: Addr) -> Result<(), Corrupt> {
        require(self.anchor != Some(addr), "dead list", "ends")?;
        self.steps += 1;
        if self.steps.is_power_of_two() {
            self.anchor = Some(addr);
        }
        Ok(())
    }
}

/// Encode one block of a chain.
pub fn encode(volume: Uuid, addr: Addr, birth: Txg, next: Option<BlockPtr>, runs: &[Run]) -> Vec<u8> {
    assert!(runs.len() <= DEAD_MAX);
    let mut out = vec![0; BLOCK];
    if let Some(next) = next {
        out[HEADER..HEADER + PTR].copy_from_slice(&next.encode());
    }
    for (i, run) in runs.iter().enumerate() {
        let at = HEADER + PTR + i * RUN;
        out[at..at + 8].copy_from_slice(&run.addr.to_le_bytes());
        out[at + 8..at + 12].copy_from_slice(&run.blocks.to_le_bytes());
        out[at + 16..at + 24].copy_from_slice(&run.birth.to_le_bytes());
    }
    let count = runs.len();
    let used = (PTR + count * RUN) as u32;
    block::seal(&mut out, &Header { kind: Kind::DeadList, level: 0, count: count as u32, used, volume, addr, birth });
    out
}

/// Decode one block of a chain: (next, runs).
pub fn decode(bytes: &[u8], volume: Uuid, ptr: &BlockPtr) -> Result<(Option<BlockPtr>, Vec<Run>), Corrupt> {
    const WHAT: &str = "dead list";
    let header = block::open(bytes, Kind::DeadList, Some(volume), ptr.addr)?;
    require(header.birth == ptr.birth, WHAT, "has the birth that its pointer says")?;
    require(header.level == 0, WHAT, "has no level")?;
    let count = header.count as usize;
    require(
        (1..=DEAD_MAX).contains(&count) && header.used as usize == PTR + count * RUN,
        WHAT,
        "has runs inside the block",
    )?;
    require(all_zero(&bytes[HEADER + PTR + count * RUN..]), WHAT, "has zeros behind its runs")?;
    let next = BlockPtr::decode(&bytes[HEADER..HEADER + PTR], WHAT)?;
    require(next.is_none_or(|n| n.birth <= header.birth), WHAT, "is not older than what follows")?;
    let mut runs = Vec::with_capacity(count);
    for i in 0..count {
        let at = HEADER + PTR + i * RUN;
        let run = Run { addr: le64(bytes, at), blocks: le32(bytes, at + 8), birth: le64(bytes, at + 16) };
        require(all_zero(&bytes[at + 12..at + 16]), WHAT, "has zero in reserved bytes")?;
        require(run.addr >> ADDR_BITS == 0 && run.blocks >= 1, WHAT, "has possible runs")?;
        runs.push(run);
    }
    Ok((next, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_found_and_a_long_chain_is_none() {
        let mut ring = Ring::default();
        assert!((0..10_000).all(|addr| ring.step(addr).is_ok()));
        for length in 1..40 {
            let mut ring = Ring::default();
            let steps = (0..).take_while(|i| ring.step(500 + i % length).is_ok()).count() as u64;
            assert!(steps <= 3 * length + 1, "{steps} steps in a ring of {length}");
        }
    }

    #[test]
    fn round_trip() {
        let runs: Vec<Run> = (0..166).map(|i| Run { addr: 600 + i * 10, blocks: 3, birth: i }).collect();
        let next = Some(BlockPtr { addr: 9000, sum: 1, birth: 4 });
        let ptr = BlockPtr { addr: 800, sum: 0, birth: 4 };
        let bytes = encode(Uuid([1; 16]), 800, 4, next, &runs);
        assert_eq!(decode(&bytes, Uuid([1; 16]), &ptr), Ok((next, runs)));
    }
}
