//! Bytes that follow from seed, file, block and version, so that every byte read can be judged.
//!
//! *Guarantees*: [`check`] accepts a block only if every byte is that of one of the versions allowed there; what it
//! refuses it names (stale, from elsewhere, zeroes, junk). *Assumes*: nothing. *Fails when*: other bytes are found: [`Wrong`].
//! *Order*: none. *Not here*: which versions are allowed (`known`).

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Begins every block.
const MAGIC: [u8; 8] = *b"drill\x01\x02\x03";
/// Bytes of magic, file, block, version.
const HEADER: usize = 32;
/// The version of a block that was never written: zeroes.
pub const HOLE: u64 = 0;

/// Which block of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Of the run.
    pub seed: u64,
    /// Number of the file.
    pub file: u64,
    /// Number of the block in the file.
    pub block: u64,
}

/// Other bytes than were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("block {block}, byte {byte}: {found}; written was version {wanted:?}")]
pub struct Wrong {
    /// Number of the block in the file.
    pub block: u64,
    /// First byte of the block that is wrong.
    pub byte: usize,
    /// What stands there instead.
    pub found: String,
    /// What may stand there.
    pub wanted: Vec<u64>,
}

/// A generator of random words (splitmix64); equal seeds give equal words.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Words that follow from several numbers.
    pub fn new(parts: &[u64]) -> Random {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for part in parts {
            random.0 ^= *part;
            random.0 = random.word();
        }
        random
    }
    /// The next word.
    pub fn word(&mut self) -> u64 {
        crate::world::splitmix(&mut self.0)
    }
    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }
}

/// The bytes of one version of a block; `out` may be shorter than a block (the last one of a file).
pub fn fill(name: Name, version: u64, out: &mut [u8]) {
    if version == HOLE {
        out.fill(0);
        return;
    }
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    for (at, number) in [(8, name.file), (16, name.block), (24, version)] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let head = out.len().min(HEADER);
    out[..head].copy_from_slice(&header[..head]);
    let mut random = Random::new(&[name.seed, name.file, name.block, version]);
    for chunk in out[head..].chunks_mut(8) {
        let word = random.word().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Which of the `allowed` versions `found` is.
///
/// # Errors
/// None of them.
pub fn check(name: Name, allowed: &[u64], found: &[u8]) -> Result<u64, Wrong> {
    let mut wanted = vec![0; found.len()];
    let mut byte = 0;
    for version in allowed.iter().rev() {
        fill(name, *version, &mut wanted);
        match wanted.iter().zip(found).position(|(wanted, found)| wanted != found) {
            None => return Ok(*version),
            Some(at) => byte = byte.max(at),
        }
    }
    Err(Wrong { block: name.block, byte, found: describe(name, found), wanted: allowed.to_vec() })
}

/// What a block is that should not be there.
fn describe(name: Name, found: &[u8]) -> String {
    if found.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    if found.len() < HEADER || found[..8] != MAGIC {
        return "bytes that nobody wrote".into();
    }
    let number = |at: usize| found[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let (file, block, version) = (number(8), number(16), number(24));
    let other = Name { file, block, ..name };
    let mut whole = vec![0; found.len()];
    fill(other, version, &mut whole);
    let state = if whole == found { "" } else { " with other bytes in it" };
    match (file == name.file, block == name.block) {
        (true, true) => format!("version {version}{state}"),
        (true, false) => format!("block {block}, version {version} of the same file{state}"),
        _ => format!("block {block}, version {version} of file {file}{state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { seed: 7, file: 3, block: 5 };

    fn block(version: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        fill(NAME, version, &mut bytes);
        bytes
    }

    #[test]
    fn a_block_is_told_from_every_other_one() {
        assert_eq!(check(NAME, &[1, 2], &block(2)), Ok(2));
        assert_eq!(check(NAME, &[1, 2], &block(1)), Ok(1));
        assert_eq!(check(NAME, &[HOLE], &[0; BLOCK]), Ok(HOLE));
        assert!(check(NAME, &[2], &block(1)).unwrap_err().found.contains("version 1"));
        assert!(check(NAME, &[2], &[0; BLOCK]).unwrap_err().found.contains("zeroes"));
        assert!(check(NAME, &[2], &[9; BLOCK]).unwrap_err().found.contains("nobody wrote"));
        assert!(check(Name { block: 6, ..NAME }, &[2], &block(2)).unwrap_err().found.contains("block 5"));
        assert!(check(Name { file: 4, ..NAME }, &[2], &block(2)).unwrap_err().found.contains("file 3"));
        assert_ne!(block(1)[HEADER..], block(2)[HEADER..]);
    }

    #[test]
    fn every_single_byte_counts() {
        for at in 0..700 {
            let mut found = block(2)[..700].to_vec();
            found[at] ^= 1;
            let wrong = check(NAME, &[2], &found).unwrap_err();
            assert_eq!(wrong.byte, at);
        }
    }
}
