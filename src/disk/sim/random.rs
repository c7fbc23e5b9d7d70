//! Seeded randomness for simulated disks and tests: xoshiro256**, seeded through splitmix64.
//!
//! *Guarantees*: equal seeds give equal sequences on every machine and in every release.
//! *Assumes*: nothing. *Fails when*: never. *Order*: none.
//! *Not here*: identities and keys; those need the kernel's randomness.

/// A deterministic generator.
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// Generator of `seed`.
    pub fn new(seed: u64) -> Random {
        let mut mixer = seed;
        let mut next = || {
            mixer = mixer.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixer;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Random { state: [next(), next(), next(), next()] }
    }

    /// Next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `limit`; 0 if `limit` is 0. The bias is below 2^-32 for small limits.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// A number in `from..to`.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        assert!(from < to);
        from + self.below(to - from)
    }

    /// True in `per_million` of a million cases. Zero draws nothing from the sequence.
    pub fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Shuffle `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// Fill `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }

    /// An independent generator, drawn from this one.
    pub fn fork(&mut self) -> Random {
        Random::new(self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_agree_and_numbers_stay_below() {
        let (mut a, mut b) = (Random::new(5), Random::new(5));
        assert!((0..1000).all(|_| a.bits() == b.bits()));
        assert!((1..1000).all(|i| a.below(i) < i));
        assert_ne!(Random::new(1).bits(), Random::new(2).bits());
        let mut items: Vec<u32> = (0..50).collect();
        a.shuffle(&mut items);
        assert!(items.windows(2).any(|w| w[0] > w[1]));
    }
}
