//! Split brain: replicas that were written apart are compared, and by a person's word one of them wins.
//!
//! *Guarantees*: without that word nothing is written. The one that wins is only added to, in a new epoch, with versions above every
//! root that stands on any of them (invariant 11). The others lose nothing before a root of the winner that calls them out is
//! durable on it, nor before what is to be saved is durable elsewhere; from then on none of them passes for the volume
//! (`replace::overrule`). It may be cut at any write and begun again with the same words (invariant 7).
//! *Assumes*: the paths are those of all replicas that are there. *Fails when*: [`StoreError::Refused`], with what was not done.
//! *Order*: open (locks) → sides → comparison → word → save → the winner's root → each of the others: overruled, or brought
//! back as usual if it is only behind. *Not here*: where histories parted (`recover::fork`), the question (`cli`).

mod changes;
mod look;
mod save;

pub use save::SaveReport;

use super::beat::Use;
use super::beat::opening::Opening;
use super::beat::watch::{Patience, spots_of};
use super::replace::back::{ReturnReport, bring_back, holds_until};
use super::replace::overrule::overrule;
use super::{EXAMINE_WAIT, close_all, open_paths, refused, sentence, witness};
use crate::control::Progress;
use crate::disk::backing::Backing;
use crate::disk::file::Mode;
use crate::format::geometry::ROOT_SLOTS;
use crate::format::item::Time;
use crate::format::{Member, MemberState, Role, Root, Txg};
use crate::store::commit::Force;
use crate::store::history::ShrinkHook;
use crate::store::recover::fork::{Side, parting, sides, speaker};
use crate::store::recover::{self, LogEnd, OpenStore, Present, Report};
use crate::store::{Store, StoreError, StoreOptions};
use crate::sync::Mutex;
use crate::world::{Machine, World, utc};
use changes::{Change, Since, Watcher, changes, names, shown};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Paths of one side that a comparison tells.
pub const PATHS_MAX: usize = 20;
/// Leaves of one side that a comparison looks at: 200 MiB.
const LEAVES_MAX: u64 = 50_000;
/// Longest wait for one request.
const DEADLINE: Duration = Duration::from_secs(30);

/// One history.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct SideReport {
    /// The replica that has its newest root.
    pub replica: String,
    /// Others on which nothing else stands.
    pub beside: Vec<String>,
    /// Version of that root.
    pub version: u64,
    /// When it was written.
    pub last_write: String,
    /// The same, ns since 1970.
    pub last_write_ns: u64,
    /// No root above this one is also in the history that it is compared with; `None`: it is too long ago.
    pub parted_after: Option<u64>,
    /// Groups committed since; `None`: not known.
    pub commits_since: Option<u64>,
    /// Paths changed since; at most 20.
    pub changed: Vec<String>,
    /// There are more, or more was written than is looked at (200 MiB of leaves).
    pub more: bool,
    /// What could not be read.
    pub unreadable: Vec<String>,
}

/// What `--keep` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct KeepReport {
    /// The replica that won.
    pub kept: String,
    /// Version of its newest root.
    pub version: u64,
    /// Each of the others that has everything now.
    pub brought: Vec<ReturnReport>,
    /// Those that have not, and why.
    pub left: Vec<String>,
}

/// Where it runs.
pub struct Host<'a> {
    /// Called with the winner's store before anything is written.
    pub claim: &'a dyn Fn(&Store) -> Result<(), StoreError>,
    /// Called with each of the others before anything is written to it.
    pub admit: &'a dyn Fn(&Present) -> Result<(), StoreError>,
    /// Time and randomness.
    pub world: Arc<dyn World>,
    /// Version of the newest state that this host has seen; 0: none.
    pub seen: u64,
    /// Told before the first root.
    pub on_shrink: Option<ShrinkHook>,
    /// How the winner's store behaves.
    pub store: StoreOptions,
}

/// Replicas of one volume, opened and locked.
pub struct Resolve {
    present: Vec<Present>,
    sides: Vec<Side>,
}

impl Drop for Resolve {
    fn drop(&mut self) {
        let backings: Vec<Arc<dyn Backing>> = self.present.iter().map(|p| p.backing.clone()).collect();
        close_all(&backings);
    }
}

impl Resolve {
    /// Open what is on `paths`; for reading only, if nothing `may_change`.
    ///
    /// # Errors
    /// One of them is no replica, or they do not belong together.
    pub fn open(paths: &[PathBuf], may_change: bool) -> Result<Resolve, StoreError> {
        let (present, absent) = open_paths(paths, if may_change { Mode::Write } else { Mode::ReadOnly })?;
        let resolve = Resolve { present, sides: Vec::new() };
        if let Some((path, why)) = absent.first() {
            return refused(format!("{}; give the replicas that are there", sentence(path, why)));
        }
        let mut resolve = resolve.look()?;
        // Another host may use one of them.
        let world: Arc<dyn World> = Arc::new(Machine);
        Opening::look(&mut resolve.present, Use::Read, Patience::Wait, DEADLINE, &world)?;
        resolve.look()
    }

    /// Of replicas that are open.
    ///
    /// # Errors
    /// They do not belong together.
    pub fn new(present: Vec<Present>) -> Result<Resolve, StoreError> {
        Resolve { present, sides: Vec::new() }.look()
    }

    fn look(mut self) -> Result<Resolve, StoreError> {
        recover::check_one_volume(&self.present)?;
        self.sides = sides(&self.present);
        self.part_lost();
        match self.sides.is_empty() {
            true => refused("no root proves itself: nothing is left of the volume there".into()),
            false => Ok(self),
        }
    }

    /// A replica that has a root which the others had lost when they went on is past by its chain; what it alone has is a
    /// history, too.
    fn part_lost(&mut self) {
        for at in 0..self.present.len() {
            let found = &self.present[at].found;
            let Some((slot, root)) = found.roots.first() else { continue };
            let refuses = |side: &Side| {
                let is_member = side.root.members.iter().any(|member| member.replica == found.label.replica);
                let is_past = side.replicas.contains(&at) && side.root != *root;
                is_past && is_member && holds_until(&side.root, found.label.replica, &found.roots).is_err()
            };
            if self.sides.iter().any(|side| side.tip == at) || !self.sides.iter().any(refuses) {
                continue;
            }
            let side = Side { root: root.clone(), slot: *slot, tip: at, replicas: vec![at] };
            self.sides.iter_mut().filter(|side| refuses(side)).for_each(|side| side.replicas.retain(|r| *r != at));
            self.sides.push(side);
        }
    }

    /// Paths of the replicas.
    pub fn paths(&self) -> Vec<String> {
        self.present.iter().map(|p| p.path.clone()).collect()
    }

    /// How many histories there are.
    pub fn histories(&self) -> usize {
        self.sides.len()
    }

    /// Replicas that nothing has to be decided for, but which lack something.
    pub fn behind(&self) -> Vec<String> {
        let [side] = &self.sides[..] else { return Vec::new() };
        let in_sync = self.in_sync(side);
        let without = |at: &usize| !in_sync.contains(at) && !self.is_left_to_itself(side, &self.present[*at]);
        (0..self.present.len()).filter(without).map(|at| self.present[at].path.clone()).collect()
    }

    /// Indices of the replicas that are in sync in this history.
    fn in_sync(&self, side: &Side) -> Vec<usize> {
        let some: Vec<Present> = side.replicas.iter().map(|at| again(&self.present[*at])).collect();
        let members = recover::choose(&some).map(|choice| choice.members).unwrap_or_default();
        let at = |(index, in_sync): (Option<usize>, bool)| index.filter(|_| in_sync).map(|index| side.replicas[index]);
        members.into_iter().filter_map(at).collect()
    }

    /// The history that the replica at `path` would have win.
    ///
    /// # Errors
    /// It is none of them, or behind.
    fn side_of(&self, path: &Path) -> Result<usize, StoreError> {
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let named = |p: &Present| Path::new(&p.path) == whole || Path::new(&p.path) == path;
        let Some(at) = self.present.iter().position(named) else {
            return refused(format!("{}: is none of the replicas given ({})", path.display(), self.paths().join(", ")));
        };
        let of = |side: &Side| side.tip == at || self.in_sync(side).contains(&at);
        match self.sides.iter().position(of) {
            Some(side) => Ok(side),
            None => {
                let tips: Vec<&str> = self.sides.iter().map(|side| self.present[side.tip].path.as_str()).collect();
                refused(format!(
                    "{}: is behind, and has nothing of its own; one of {} can win",
                    path.display(),
                    tips.join(", ")
                ))
            }
        }
    }

    /// The fork, as `side` sees it that parted from `other`.
    fn since(&self, side: &Side, other: &Side) -> Since {
        let (ours, theirs) = (speaker(&self.present, side), speaker(&self.present, other));
        let group = parting(&side.root, ours, &other.root, theirs).group;
        let member = side.root.members.iter().find(|member| member.replica == theirs);
        let moment = member.filter(|_| group > 0).map(|member| time_of(member.since_ns));
        Since { group, moment }
    }

    /// The history that this one is compared with.
    fn against(&self, side: usize, keep: Option<usize>) -> usize {
        match keep {
            Some(keep) if keep != side => keep,
            _ => usize::from(side == 0),
        }
    }

    /// Compare the histories: each with that of the replica to `keep`, or with the newest other one.
    ///
    /// # Errors
    /// A path that is none of them.
    pub fn compare(&self, keep: Option<&Path>, world: &Arc<dyn World>) -> Result<Vec<SideReport>, StoreError> {
        let keep = keep.map(|path| self.side_of(path)).transpose()?;
        let looks: Vec<_> = self.sides.iter().map(|side| look::open(&self.present, side, DEADLINE, world)).collect();
        let mut reports = Vec::new();
        for (at, side) in self.sides.iter().enumerate() {
            let root = &side.root;
            let mut report = SideReport {
                replica: self.present[side.tip].path.clone(),
                version: root.version,
                last_write: utc(root.time_ns),
                last_write_ns: root.time_ns,
                ..SideReport::default()
            };
            let beside = self.in_sync(side).into_iter().filter(|beside| *beside != side.tip);
            report.beside = beside.map(|beside| self.present[beside].path.clone()).collect();
            let against = self.against(at, keep);
            if let Some(other) = self.sides.get(against) {
                let (ours, theirs) = (speaker(&self.present, side), speaker(&self.present, other));
                let parted = parting(root, ours, &other.root, theirs);
                report.parted_after = parted.version;
                report.commits_since = commits(root, parted.group);
                match (&looks[at], &looks[against]) {
                    (Ok((own, cut)), Ok((other_store, _))) => {
                        report.unreadable.extend(cut.clone());
                        list_changes(own, other_store, self.since(side, other), &mut report);
                    }
                    (Err(error), _) => report.unreadable.push(error.to_string()),
                    (_, Err(_)) => report.unreadable.push("the other history cannot be read: not compared".into()),
                }
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Save what was changed in every history but that of the replica to `keep` into `directory`, which must be empty or not be
    /// there; of several, each into a folder with its number.
    ///
    /// # Errors
    /// Something could not be saved. Nothing was written to a replica.
    pub fn save(
        &self,
        keep: &Path,
        directory: &Path,
        world: &Arc<dyn World>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<SaveReport>, StoreError> {
        let keep = self.side_of(keep)?;
        let top = save::prepare(directory, &self.paths())?;
        let (winner, _) = look::open(&self.present, &self.sides[keep], DEADLINE, world)?;
        let losers: Vec<usize> = (0..self.sides.len()).filter(|at| *at != keep).collect();
        let mut reports = Vec::new();
        for (number, at) in losers.iter().enumerate() {
            let side = &self.sides[*at];
            let target = match losers.len() {
                1 => top.clone(),
                _ => save::prepare(&top.join((number + 1).to_string()), &self.paths())?,
            };
            let (own, cut) = look::open(&self.present, side, DEADLINE, world)?;
            let mut report = save::save(&own, &winner, self.since(side, &self.sides[keep]), &target, progress)?;
            if let Some(cut) = cut {
                report.unreadable_count += 1;
                report.unreadable.insert(0, cut);
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Let the replica at `keep` win, and bring all others up to it. What is lost on them by that is for the caller to have asked.
    ///
    /// # Errors
    /// It cannot go on as the volume: nothing was written to the others. (What becomes of the others stands in the report.)
    pub fn keep(
        &self,
        keep: &Path,
        host: Host<'_>,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<KeepReport, StoreError> {
        let side = &self.sides[self.side_of(keep)?];
        let options =
            OpenStore { degraded: true, deadline: DEADLINE, store: host.store, on_shrink: host.on_shrink, hold: true };
        let own: Vec<Present> = side.replicas.iter().map(|at| again(&self.present[*at])).collect();
        recover::refuse_blind(&own, &recover::choose(&own)?)?;
        self.all_are_given(side)?;
        let (store, _) = recover::open(own, options, host.world)?;
        if self.sides.len() > 1 {
            store.begin_above(self.highest().max(host.seen));
        }
        (host.claim)(&store)?;
        store.resume(LogEnd::Proven, &mut Report::default())?;
        let mut report = KeepReport { kept: self.present[side.tip].path.clone(), ..KeepReport::default() };
        let in_sync = self.in_sync(side);
        for (at, other) in self.present.iter().enumerate().filter(|(at, _)| !in_sync.contains(at)) {
            let is_past = side.replicas.contains(&at);
            if is_past && self.is_left_to_itself(side, other) {
                continue;
            }
            let brought = (host.admit)(other).and_then(|()| self.bring_up(&store, other, is_past, progress));
            match brought {
                Ok(brought) => report.brought.push(brought),
                Err(StoreError::Refused(why)) => report.left.push(why),
                Err(error) => report.left.push(format!("{}: {error}", other.path)),
            }
        }
        store.commit(Force::Clean)?;
        report.version = store.durable_root().version;
        Ok(report)
    }

    /// As [`Resolve::keep`], on this machine: nothing is written while another host uses one of them.
    ///
    /// # Errors
    /// As [`Resolve::keep`]; another host uses them.
    pub fn keep_here(
        &self,
        keep: &Path,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<KeepReport, StoreError> {
        let side = &self.sides[self.side_of(keep)?];
        let world: Arc<dyn World> = Arc::new(Machine);
        let mut own: Vec<Present> = side.replicas.iter().map(|at| again(&self.present[*at])).collect();
        let opening = Opening::look(&mut own, Use::Write, Patience::Wait, DEADLINE, &world)?;
        if recover::choose(&own)?.root != side.root {
            return refused(
                "somebody has written to the volume meanwhile: see that it is not mounted, and begin again".into(),
            );
        }
        let beating = Mutex::new(None);
        let claim = |store: &Store| {
            opening.claim(store)?;
            *beating.lock() = Some(opening.beat_for(store.mirror())?);
            Ok(())
        };
        let admit = |other: &Present| spots_of(&[again(other)]).into_iter().try_for_each(|spot| opening.admit(spot));
        let volume = own[0].found.label.volume;
        let paths = self.paths();
        let host = Host {
            claim: &claim,
            admit: &admit,
            world,
            seen: witness::read(volume, EXAMINE_WAIT).map_or(0, |seen| seen.version()),
            on_shrink: Some(Box::new(move |root| witness::write(root, &paths, EXAMINE_WAIT))),
            store: StoreOptions::default(),
        };
        let result = self.keep(keep, host, progress);
        drop(beating.lock().take());
        opening.give_up();
        result
    }

    /// One that this history calls in sync, and that is not here, may have gone on alone.
    fn all_are_given(&self, side: &Side) -> Result<(), StoreError> {
        let is_here = |member: &&Member| self.present.iter().any(|p| p.found.label.replica == member.replica);
        let in_sync = side.root.members.iter().filter(|member| member.state == MemberState::InSync);
        match in_sync.filter(|member| !is_here(member)).count() {
            0 => Ok(()),
            _ => refused(format!(
                "a replica that was in sync with {path} is not given, nothing was changed: give it, too; or, if it is gone \
                 for good, mount {path} alone once with `-o degraded`",
                path = self.present[side.tip].path
            )),
        }
    }

    fn bring_up(
        &self,
        store: &Store,
        other: &Present,
        is_past: bool,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<ReturnReport, StoreError> {
        let label = &other.found.label;
        if !is_past {
            return overrule(store, &other.path, other.backing.clone(), label, progress);
        }
        let members = store.durable_root().members;
        let Some(slot) = members.iter().position(|member| member.replica == label.replica) else {
            return refused(format!("{}: is not a replica of this volume any more", other.path));
        };
        bring_back(store, slot, other.path.clone(), other.backing.clone(), &other.found, progress)
    }

    /// One that is warm or cold follows by itself; one that was replaced or detached is no replica any more.
    fn is_left_to_itself(&self, side: &Side, other: &Present) -> bool {
        let member = side.root.members.iter().find(|member| member.replica == other.found.label.replica);
        member.is_none_or(|member| member.role != Role::Hot || member.state == MemberState::Detached)
    }

    /// No root above this version stands on any replica.
    fn highest(&self) -> u64 {
        let version = |p: &Present| p.found.roots.iter().map(|(_, root)| root.version).max().unwrap_or(0);
        let highest = self.present.iter().map(version).max().unwrap_or(0);
        let is_damaged = self.present.iter().any(|p| !p.found.damaged.is_empty());
        // A damaged slot may have held one of the next.
        highest.saturating_add(if is_damaged { ROOT_SLOTS as u64 } else { 0 })
    }
}

/// The same replica, for another store.
fn again(present: &Present) -> Present {
    Present { path: present.path.clone(), backing: present.backing.clone(), found: present.found.clone() }
}

fn time_of(ns: u64) -> Time {
    Time { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
}

fn commits(root: &Root, group: Txg) -> Option<u64> {
    (group > 0).then(|| root.txg.saturating_sub(group))
}

struct List<'a> {
    store: &'a Store,
    report: &'a mut SideReport,
    leaves: u64,
}

impl Watcher for List<'_> {
    fn looked(&mut self) -> ControlFlow<()> {
        self.leaves += 1;
        if self.leaves <= LEAVES_MAX {
            return ControlFlow::Continue(());
        }
        self.report.more = true;
        ControlFlow::Break(())
    }

    fn changed(&mut self, change: &Change) -> ControlFlow<()> {
        if !change.is_certain {
            return ControlFlow::Continue(());
        }
        if self.report.changed.len() == PATHS_MAX {
            self.report.more = true;
            return ControlFlow::Break(());
        }
        let path = match names(self.store, change.ino) {
            Some(names) => shown(&names, change.inode.is_dir()),
            None => format!("inode {} (its name cannot be found)", change.ino),
        };
        self.report.changed.push(path);
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, what: String) {
        if self.report.unreadable.len() < PATHS_MAX {
            self.report.unreadable.push(what);
        }
    }
}

fn list_changes(own: &Store, other: &Store, since: Since, report: &mut SideReport) {
    let _more = changes(own, other, since, &mut List { store: own, report, leaves: 0 }).is_break();
}

#[cfg(test)]
mod tests;
