//! Histories that forked: which there are among replicas, where they parted, what to say.
//!
//! *Guarantees*: the order in which replicas are given changes nothing but the order of words; each newest root that is
//! nobody's past is a side of its own, so that no history passes unseen. *Assumes*: the replicas are of one volume.
//! *Fails when*: never. *Order*: sides come newest version first. *Not here*: the choice of a root (`recover`), what was
//! changed on each side and who is to win (`volume::resolve`).
//!
//! **The last group that both have.** Each side's root says of the other's replica with which root, of which group, it was
//! last in sync. Where both say it, the less counts: one of the two may have begun a group more, which the power cut kept
//! from the other, and which it counts as the other's (decision 0007). Where a side calls the other one in sync, it has not
//! looked since: the word of the other one is taken. Where somebody should know and does not, or names a root that the other
//! history does not have, nothing is known (0).

use super::{Present, when};
use crate::format::{MemberState, Root, Txg, Uuid};

/// A history, as its newest root tells it.
#[derive(Debug, Clone)]
pub struct Side {
    /// The newest root.
    pub root: Root,
    /// Its slot.
    pub slot: usize,
    /// Index of a replica that has it.
    pub tip: usize,
    /// Indices of all replicas whose newest root is this one or lies in its past. One that is older than the fork is of
    /// several sides.
    pub replicas: Vec<usize>,
}

/// Where two histories parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parting {
    /// No root above this version is in both; `None`: their chains do not go back so far.
    pub version: Option<u64>,
    /// A group that both have, the last one as far as is known; 0: none is known.
    pub group: Txg,
}

fn is_past(of: &Root, other: &Root) -> bool {
    of.follows(other.epoch().id, other.version)
}

/// The histories among `present`. One: nothing has forked.
pub fn sides(present: &[Present]) -> Vec<Side> {
    let newest: Vec<Option<&(usize, Root)>> = present.iter().map(|p| p.found.roots.first()).collect();
    let mut sides: Vec<Side> = Vec::new();
    for (tip, found) in newest.iter().enumerate() {
        let Some((slot, root)) = found else { continue };
        // Two forged roots of one version are each other's past: neither yields.
        let mut others = newest.iter().flatten();
        let yields = others.any(|(_, other)| is_past(other, root) && !is_past(root, other));
        if yields || sides.iter().any(|side| side.root == *root) {
            continue;
        }
        let same_or_older = |other: &Root| other == root || other.version < root.version;
        let behind = |at: &usize| newest[*at].is_some_and(|(_, other)| is_past(root, other) && same_or_older(other));
        let replicas = (0..present.len()).filter(behind).collect();
        sides.push(Side { root: root.clone(), slot: *slot, tip, replicas });
    }
    sides.sort_by_key(|side| std::cmp::Reverse(side.root.version));
    sides
}

/// Where the history of `a`, on replica `ours`, and that of `b`, on `theirs`, parted.
pub fn parting(a: &Root, ours: Uuid, b: &Root, theirs: Uuid) -> Parting {
    let end = |root: &Root, at: usize| root.chain.get(at + 1).map_or(root.version + 1, |next| next.first_version);
    let shared = a.chain.iter().enumerate().rev().find_map(|(i, epoch)| {
        let j = b.chain.iter().position(|other| other.id == epoch.id && !epoch.is_gap())?;
        Some(end(a, i).min(end(b, j)).saturating_sub(1))
    });
    // A replica can have been of the other history meanwhile: what is said counts if its root is in both.
    let says = |root: &Root, of: Uuid| {
        let member = root.members.iter().find(|member| member.replica == of)?;
        let is_shared = member.synced_version > 0 && shared.is_some_and(|shared| member.synced_version <= shared);
        Some(match member.state {
            MemberState::InSync => Said::Nothing,
            _ if is_shared => Said::Last(member.synced_version, member.synced_txg),
            _ => Said::Unknown,
        })
    };
    let (version, group) = match (says(a, theirs), says(b, ours)) {
        (Some(Said::Last(v, mine)), Some(Said::Last(w, yours))) => (Some(v.min(w)), mine.min(yours)),
        (Some(Said::Last(version, group)), Some(Said::Nothing))
        | (Some(Said::Nothing), Some(Said::Last(version, group))) => (Some(version), group),
        _ => (shared, 0),
    };
    Parting { version, group }
}

/// What a root says of when a replica was last in sync.
enum Said {
    /// It still calls it so.
    Nothing,
    /// With this root, of this group.
    Last(u64, Txg),
    /// It should know, and does not.
    Unknown,
}

/// The replica whose word counts for a side.
pub fn speaker(present: &[Present], side: &Side) -> Uuid {
    present[side.tip].found.label.replica
}

/// Why replicas of these `sides` are not mounted together: one line.
pub fn refusal(present: &[Present], sides: &[Side]) -> String {
    let path = |side: &Side| present[side.tip].path.as_str();
    let tells: Vec<String> = sides
        .iter()
        .map(|side| {
            let other = sides.iter().find(|other| other.tip != side.tip).unwrap_or(side);
            let parted = parting(&side.root, speaker(present, side), &other.root, speaker(present, other));
            let since = match parted.group {
                0 => String::new(),
                group => format!(", {} commits since", side.root.txg.saturating_sub(group)),
            };
            format!("{} has root {} of {}{since}", path(side), side.root.version, when(side.root.time_ns))
        })
        .collect();
    let paths: Vec<&str> = sides.iter().map(path).collect();
    let after = match sides {
        [a, b, ..] => parting(&a.root, speaker(present, a), &b.root, speaker(present, b)).version,
        _ => None,
    };
    let after = after.map(|version| format!(" after root {version}")).unwrap_or_default();
    format!(
        "{} were written apart{after} (split brain): {}; `stablefs resolve {}` shows what was changed on each, and with \
         --keep has one of them win",
        paths.join(" and "),
        tells.join("; "),
        paths.join(" ")
    )
}
