//! A tap on the disks of a world: somebody sees each request and what became of it.
//!
//! *Guarantees*: each request that a living disk was asked is told once, in order, after it was executed; one that hung
//! is told again when it lands. *Assumes*: the listener asks no disk of this world. *Fails when*: never.
//! *Order*: called with no lock held. *Not here*: what requests mean.

use super::Shared;
use crate::disk::backing::Op;
use std::sync::Arc;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Done, and what was written is there.
    Done,
    /// The disk said that it was done; something else is there.
    Lied,
    /// Refused, or half done.
    Failed,
    /// No answer yet.
    Hung,
    /// It hung, and landed now.
    Late,
    /// The power failed here: what was written may or may not survive.
    Cut,
}

/// A request and its fate.
pub struct Asked<'a> {
    /// Number of the disk in its world.
    pub disk: usize,
    /// What it was asked.
    pub op: &'a Op,
    /// What became of that, as the disk said; [`Asked::fate`] knows better.
    pub said: Fate,
    pub(super) shared: &'a Shared,
}

impl Asked<'_> {
    /// What became of it: compares what is on the disk.
    pub fn fate(&self) -> Fate {
        let lies = matches!(self.said, Fate::Done | Fate::Late) && !self.shared.holds(self.op);
        if lies { Fate::Lied } else { self.said }
    }
}

/// Who listens.
pub type Tap = Arc<dyn Fn(&Asked<'_>) + Send + Sync>;
