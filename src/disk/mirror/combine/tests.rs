//! Which combinations of damaged copies are found.
//!
//! Goal: what the copies have left is found and nothing else, in a bounded number of tries. Method: copies of a block are
//! harmed by hand and by chance; the checksum of the product decides.

use super::*;
use crate::disk::sim::Random;
use crate::format::{Uuid, VolumeSeed};
use std::cell::Cell;

const AT: Addr = 77;

fn truth() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    Random::new(5).fill(&mut block);
    block
}

fn sum(block: &[u8]) -> u64 {
    VolumeSeed::new(Uuid([3; 16])).checksum(AT, block)
}

/// Search `copies`, of replicas 0, 1, …, for `truth`; gives what was found, and how many candidates were looked at.
fn find(truth: &[u8], copies: &[Vec<u8>]) -> (Combination, usize) {
    let looked = Cell::new(0);
    let copies: Vec<(u8, &[u8])> = (0..).zip(copies.iter().map(|copy| &copy[..])).collect();
    let found = search(&copies, |block| {
        looked.set(looked.get() + 1);
        sum(block) == sum(truth)
    });
    (found, looked.get())
}

/// `truth` with other bytes in these sectors.
fn harmed(truth: &[u8], sectors: &[usize], by: u8) -> Vec<u8> {
    let mut block = truth.to_vec();
    for sector in sectors {
        block[sector * SECTOR..(sector + 1) * SECTOR].iter_mut().for_each(|byte| *byte ^= by);
    }
    block
}

fn recipe(truth: &[u8], copies: &[Vec<u8>]) -> String {
    match find(truth, copies).0 {
        Combination::Proven { block, recipe } => {
            assert!(block[..] == *truth, "other bytes");
            recipe.to_string()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn different_sectors_hurt_on_two_copies() {
    let truth = truth();
    let copies = [harmed(&truth, &[3], 9), harmed(&truth, &[0, 7], 5)];
    assert_eq!(recipe(&truth, &copies), "sectors 0-2,4-7 from replica 0, 3 from replica 1; 8 candidates");
    let halves = [harmed(&truth, &[0, 1, 2, 3], 9), harmed(&truth, &[4, 5, 6, 7], 5)];
    assert_eq!(recipe(&truth, &halves), "sectors 0-3 from replica 1, 4-7 from replica 0; 256 candidates");
}

#[test]
fn the_same_sector_hurt_on_both_is_not_put_together() {
    let truth = truth();
    let copies = [harmed(&truth, &[3], 9), harmed(&truth, &[3, 4], 5)];
    assert!(matches!(find(&truth, &copies), (Combination::Impossible, 4)));
    let same = harmed(&truth, &[3], 9);
    assert!(matches!(find(&truth, &[same.clone(), same]), (Combination::Impossible, 1)));
    assert!(matches!(find(&truth, &[]), (Combination::Impossible, 0)));
}

#[test]
fn zeros_and_what_is_left_beside_them() {
    let truth = truth();
    let (mut low, mut high) = (truth.clone(), truth.clone());
    low[..BLOCK / 2].fill(0);
    high[BLOCK / 2..].fill(0);
    assert!(recipe(&truth, &[low.clone(), high]).contains("0-3 from replica 1"));
    assert!(matches!(find(&truth, &[low, vec![0; BLOCK]]).0, Combination::Impossible));
    // Sectors that are zeros by right.
    let mut sparse = truth;
    sparse[2 * SECTOR..].fill(0);
    let copies = [harmed(&sparse, &[5], 1), harmed(&sparse, &[0, 5], 2), vec![0; BLOCK]];
    assert!(recipe(&sparse, &copies).contains("5 from replica 2"));
}

#[test]
fn a_bit_of_each_of_three_in_the_same_sector_is_outvoted() {
    let truth = truth();
    let flipped = |bit: usize| {
        let mut block = truth.clone();
        block[2 * SECTOR + bit / 8] ^= 1 << (bit % 8);
        block
    };
    let said = recipe(&truth, &[flipped(1), flipped(900), flipped(4000)]);
    let wanted = "sectors 0-1,3-7 from replica 0, 2 by the majority of replicas 0, 1 and 2; 5 candidates";
    assert_eq!(said, wanted);
    // Bits all over the block, too many for sectors: the majority of the whole block is still tried.
    let scattered = |salt: usize| {
        let mut block = truth.clone();
        (0..SECTORS).for_each(|sector| block[sector * SECTOR + salt] ^= 1);
        block
    };
    let said = recipe(&truth, &[scattered(1), scattered(2), scattered(3)]);
    assert_eq!(said, "sectors 0-7 by the majority of replicas 0, 1 and 2; 1 candidates");
    // Of four, any three may be the ones.
    let said = recipe(&truth, &[vec![7; BLOCK], scattered(1), scattered(2), scattered(3)]);
    assert_eq!(said, "sectors 0-7 by the majority of replicas 1, 2 and 3; 4 candidates");
}

#[test]
fn too_many_combinations_are_not_tried() {
    let truth = truth();
    let all: Vec<usize> = (0..SECTORS).collect();
    let copies: Vec<Vec<u8>> = [1, 2, 4].map(|by| harmed(&truth, &all, by)).to_vec();
    // 3 to the 8th; the majority of 1, 2 and 4 is 0, which is right.
    assert!(recipe(&truth, &copies).contains("0-7 by the majority"));
    let copies: Vec<Vec<u8>> = [9, 10, 12].map(|by| harmed(&truth, &all, by)).to_vec();
    assert!(matches!(find(&truth, &copies), (Combination::TooMany, 1)));
    // Four to the 6th are too many; without majorities there is room: 3 to the 6th, and one for the whole block.
    let copies: Vec<Vec<u8>> = [9, 10, 12].map(|by| harmed(&truth, &all[..6], by)).to_vec();
    assert!(matches!(find(&truth, &copies), (Combination::TooMany, 730)));
}

#[test]
fn of_two_that_prove_none_is_taken() {
    let truth = truth();
    let (a, b) = (harmed(&truth, &[1], 1), harmed(&truth, &[2], 1));
    let neither = harmed(&truth, &[1, 2], 1);
    let copies = [(0, &a[..]), (1, &b[..])];
    assert!(matches!(search(&copies, |block| *block == truth[..]), Combination::Proven { .. }));
    let both = |block: &[u8]| *block == truth[..] || *block == neither[..];
    assert!(matches!(search(&copies, both), Combination::Impossible));
}

/// Whatever is left of two to four copies: no more candidates than allowed, the same answer again, and right bytes wherever
/// each sector is whole in some copy and there is room to try.
#[test]
fn what_is_left_is_found_within_the_bound() {
    let truth = truth();
    let mut random = Random::new(11);
    let mut outcomes = [0; 3];
    for _ in 0..600 {
        let masks: Vec<u64> = (0..random.range(2, 4)).map(|_| random.bits() & random.bits() & 0xff).collect();
        let first = random.range(1, 200) as u8;
        let copies: Vec<Vec<u8>> = masks
            .iter()
            .zip(first..)
            .map(|(mask, by)| {
                let sectors: Vec<usize> = (0..SECTORS).filter(|sector| mask >> sector & 1 == 1).collect();
                harmed(&truth, &sectors, by)
            })
            .collect();
        let (found, looked) = find(&truth, &copies);
        assert!(looked <= CANDIDATES_MAX, "{masks:?}: {looked}");
        assert_eq!(format!("{found:?}"), format!("{:?}", find(&truth, &copies).0));
        let whole = masks.iter().fold(!0, |all, mask| all & mask) == 0;
        match found {
            Combination::Proven { block, recipe } => {
                assert!(block[..] == truth[..], "{masks:?}");
                assert_eq!(recipe.candidates, looked);
                outcomes[0] += 1;
            }
            Combination::Impossible => {
                assert!(!whole, "{masks:?}");
                outcomes[1] += 1;
            }
            Combination::TooMany => {
                assert!(masks.len() > 2, "{masks:?}");
                outcomes[2] += 1;
            }
            Combination::Needless => panic!("{masks:?}"),
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}
