//! What a replica that is not in sync misses, counted as groups commit.
//!
//! *Guarantees*: of a member whose synced group is known, `missed` is the number of blocks that the state of its root names and
//! that were born after that group, if that was so in the root before. What a commit adds costs time by what the commit changes, and
//! nothing by the size of the volume; a mount reads it from the root.
//! *Assumes*: a block that stays in use keeps its birth; what a group made and what it freed is exact (`convert`).
//! *Fails when*: never; a number that cannot be is cut at what there is.
//! *Order*: under the root lock, before the root is written.
//! *Not here*: deciding anything by it; what is shown of it (`volume::risk`); what a return sends (`walk`, which counts itself).
//!
//! | a member | its `missed` |
//! |---|---|
//! | is in sync | not known |
//! | goes out while group g is committed | what g made and kept, for its synced group is g − 1 |
//! | goes out between groups | 0 |
//! | is away, or returning | grows by what each group made, less what it freed of that |
//! | turns out to hold less than was thought | not known: everything is |
//! | is warm or cold, and follows | at most what the groups since then made, or what it missed before |

use super::commit::RootState;
use super::space::Span;
use crate::format::dead::Run;
use crate::format::{Member, MemberState, Role, Root, Txg};
use std::collections::VecDeque;

/// Groups whose growth is remembered.
const GROUPS_MAX: usize = 64;

/// How a group changes what is in use.
pub(super) struct Grown {
    made: u64,
    freed: Vec<Run>,
}

impl Grown {
    /// A group that made `claims` and freed `freed`.
    pub fn new(claims: &[Span], freed: Vec<Run>) -> Grown {
        Grown { made: claims.iter().map(|span| u64::from(span.blocks)).sum(), freed }
    }

    /// Blocks more in use that were born after `synced`.
    fn since(&self, synced: Txg) -> i64 {
        let lost = self.freed.iter().filter(|run| run.birth > synced).map(|run| u64::from(run.blocks)).sum::<u64>();
        self.made as i64 - lost as i64
    }

    /// Count in `root` what its members that are away miss. Gives the same of one that held everything up to `newest`.
    pub fn count(&self, root: &mut Root, newest: Txg, blocks: u64) -> u64 {
        let after = |before: u64, synced| before.saturating_add_signed(self.since(synced)).min(blocks);
        for member in root.members.iter_mut().filter(|member| member.state != MemberState::InSync) {
            member.missed = member.missed.map(|before| after(before, member.synced_txg));
        }
        after(0, newest)
    }
}

/// Note what the group `txg`, which is about to be published, made.
pub(super) fn remember(state: &mut RootState, txg: Txg) {
    if state.made.len() == GROUPS_MAX {
        state.made.pop_front();
    }
    state.made.push_back((txg, state.grown));
}

/// `member`, which is not in sync, holds everything up to group `synced`. Of what the groups `made` since it may miss all; where it holds
/// more than before, it misses no more than before.
pub(super) fn holds(member: &mut Member, synced: Txg, made: &VecDeque<(Txg, u64)>) {
    let since: u64 = made.iter().filter(|(txg, _)| *txg > synced).map(|(_, blocks)| blocks).sum();
    let counted = made.front().filter(|(first, _)| *first <= synced + 1).map(|_| since);
    let before = member.missed.filter(|_| synced >= member.synced_txg && member.synced_txg > 0);
    member.missed = [counted, before].into_iter().flatten().min();
    member.synced_txg = synced;
}

/// Note since when not all hot members are in sync.
pub(super) fn note_since(root: &mut Root) {
    // Warm and cold ones are behind because somebody wants it.
    let is_away = |member: &&Member| matches!(member.state, MemberState::Out | MemberState::Returning);
    let away = root.members.iter().filter(is_away).filter(|member| member.role == Role::Hot);
    root.at_risk_since_ns = match (away.map(|member| member.since_ns).min(), root.at_risk_since_ns) {
        (None, _) => 0,
        // A volume that was degraded before this was noted.
        (Some(since_ns), 0) => since_ns,
        (Some(_), since_ns) => since_ns,
    };
}

#[cfg(test)]
mod tests;
