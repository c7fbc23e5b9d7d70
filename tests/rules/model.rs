//! The world as a state machine for the checker: what may happen, how often, and what must hold.

use super::roots::{Refusal, Root, Rules, Slot};
use super::world::{Disk, Job, Mode, Phase, Seat, World, Write, Wrong};
use stateright::{Model, Property};
use std::sync::Arc;

/// How often things happen at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub replicas: usize,
    pub spares: usize,
    /// Root slots of a disk; the product has 16.
    pub slots: usize,
    pub operations: usize,
    pub mounts: u8,
    pub cuts: u8,
    pub faults: u8,
    pub replaces: u8,
    pub returns: u8,
    /// Which faults.
    pub kinds: &'static [Fault],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails or hangs at every request, until it comes back.
    Gone,
    /// Loses its next root write.
    Lies,
    /// Old content comes back.
    Stale,
    /// Its newest root rots.
    Damage,
    /// Not of a disk: the host's state directory is lost, or it is another host.
    Witness,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Step,
    /// An operation that waits for a record (true) or for a commit.
    Operation(bool),
    Unmount,
    Declare,
    Replace(usize, usize),
    Return(usize, usize),
    Resync,
    Gone(usize),
    Lies(usize),
    Damage(usize),
    /// Somebody keeps an image of this disk; somebody puts it back.
    Image(usize),
    Restore(usize),
    LoseWitness,
    /// The power fails: what becomes of each pending write, in base 3.
    Cut(u32),
    /// A disk that was gone comes back.
    Back(usize, u32),
    Mount(Vec<usize>, Mode),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scene {
    pub world: World,
    image: Option<(usize, Disk)>,
    mounts: u8,
    cuts: u8,
    faults: u8,
    replaces: u8,
    returns: u8,
}

pub struct Checked {
    pub rules: Rules,
    pub bounds: Bounds,
}

/// Ways in which the pending writes of a disk can end: kept, dropped, torn where that makes a difference.
fn fates(pending: &[Write]) -> u32 {
    pending.iter().map(ways).product()
}

fn ways(write: &Write) -> u32 {
    if matches!(write, Write::Root(..) | Write::Blank) { 3 } else { 2 }
}

fn settle(disk: &mut Disk, mut fate: u32) -> u32 {
    for write in std::mem::take(&mut disk.pending) {
        match fate % ways(&write) {
            0 => {}
            1 => disk.land(write.clone()),
            _ => disk.tear(&write),
        }
        fate /= ways(&write);
    }
    fate
}

impl Scene {
    pub fn start(world: World) -> Scene {
        Scene { world, image: None, mounts: 0, cuts: 0, faults: 0, replaces: 0, returns: 0 }
    }

    /// Disks that can be given to a mount.
    fn there(&self) -> Vec<usize> {
        (0..self.world.disks.len())
            .filter(|i| !self.world.disks[*i].gone && self.world.disks[*i].id.is_some())
            .collect()
    }

    fn faults_now(&self, kinds: &[Fault], actions: &mut Vec<Action>) {
        let world = &self.world;
        let down = world.daemon.is_none();
        for disk in 0..world.disks.len() {
            let used = world.disks[disk].id.is_some() && !world.disks[disk].gone;
            let seated =
                world.daemon.as_ref().is_some_and(|d| d.seats.iter().any(|s| s.1 == Some(disk) && s.2 != Seat::Out));
            if seated && !world.disks[disk].gone && kinds.contains(&Fault::Gone) {
                actions.push(Action::Gone(disk));
            }
            let writes_root = world.daemon.as_ref().is_some_and(|d| matches!(d.phase, Phase::Data(_)));
            if seated && writes_root && !world.disks[disk].lying && kinds.contains(&Fault::Lies) {
                actions.push(Action::Lies(disk));
            }
            if used && down && kinds.contains(&Fault::Damage) && world.disks[disk].newest().is_some() {
                actions.push(Action::Damage(disk));
            }
            let changed = |image: &Disk| image.slots != world.disks[disk].slots || image.data != world.disks[disk].data;
            if used && down && self.image.as_ref().is_some_and(|(of, image)| *of == disk && changed(image)) {
                actions.push(Action::Restore(disk));
            }
        }
        if down && world.witness.is_some() && kinds.contains(&Fault::Witness) {
            actions.push(Action::LoseWitness);
        }
    }

    fn mounted(&self, rules: &Rules, bounds: &Bounds, actions: &mut Vec<Action>) {
        let daemon = self.world.daemon.as_ref().expect("mounted");
        if self.cuts < bounds.cuts {
            let ends: u32 = self.world.disks.iter().map(|d| fates(&d.pending)).product();
            actions.extend((0..ends).map(Action::Cut));
        }
        if daemon.phase != Phase::Idle {
            return actions.push(Action::Step);
        }
        if self.world.ghost.bases.len() < bounds.operations {
            actions.extend([Action::Operation(true), Action::Operation(false)]);
        }
        if daemon.changed {
            actions.push(Action::Declare);
        }
        match daemon.resync {
            Some(_) => actions.push(Action::Resync),
            None if self.replaces < bounds.replaces => self.replaces_now(actions),
            None => {}
        }
        if self.returns < bounds.returns && daemon.resync.is_none() {
            self.returns_now(rules, actions);
        }
        if daemon.resync.is_none() {
            actions.push(Action::Unmount);
        }
    }

    /// In the place of one that is out: the same disk, or one that is nobody; in that of one in sync: such a one.
    fn replaces_now(&self, actions: &mut Vec<Action>) {
        let daemon = self.world.daemon.as_ref().expect("mounted");
        for (seat, (_, own, state)) in daemon.seats.iter().enumerate() {
            for disk in 0..self.world.disks.len() {
                let seated = daemon.seats.iter().any(|s| s.1 == Some(disk));
                let same = *own == Some(disk) && *state == Seat::Out;
                let root = &daemon.root;
                // As `not_mounted_elsewhere`: what was written apart is not taken.
                let apart = self.world.disks[disk].newest().is_some_and(|r| !root.follows(r.epoch(), r.version));
                if (!seated || same) && (!apart || self.world.disks[disk].gone) {
                    actions.push(Action::Replace(seat, disk));
                }
            }
        }
    }

    /// A disk that was gone and is nobody's any more answers again; one that is out comes back.
    fn returns_now(&self, rules: &Rules, actions: &mut Vec<Action>) {
        let daemon = self.world.daemon.as_ref().expect("mounted");
        for (i, disk) in self.world.disks.iter().enumerate().filter(|(_, disk)| disk.gone) {
            if daemon.seats.iter().all(|seat| seat.1 != Some(i) || seat.2 == Seat::Out) && !daemon.changed {
                actions.extend((0..fates(&disk.pending)).map(|fate| Action::Back(i, fate)));
            }
        }
        for seat in 0..daemon.seats.len() {
            let disks = 0..self.world.disks.len();
            let may = disks.filter(|disk| self.world.may_return(rules, seat, *disk).is_some());
            actions.extend(may.map(|disk| Action::Return(seat, disk)));
        }
    }

    fn unmounted(&self, rules: &Rules, bounds: &Bounds, actions: &mut Vec<Action>) {
        for (i, disk) in self.world.disks.iter().enumerate().filter(|(_, disk)| disk.gone) {
            actions.extend((0..fates(&disk.pending)).map(|fate| Action::Back(i, fate)));
        }
        if self.mounts >= bounds.mounts {
            return;
        }
        let there = self.there();
        for mask in 1..1_u32 << there.len() {
            let present: Vec<usize> = (0..there.len()).filter(|i| mask >> i & 1 == 1).map(|i| there[i]).collect();
            // The least that a person must say.
            let modes = [Mode::Normal, Mode::Degraded, Mode::AcceptStale];
            let granted = modes.into_iter().find(|mode| self.world.judge(rules, &present, *mode).is_ok());
            actions.extend(granted.map(|mode| Action::Mount(present, mode)));
        }
    }

    fn perform(&mut self, rules: &Rules, action: &Action) -> Option<()> {
        let world = &mut self.world;
        match action {
            Action::Step => world.step(rules)?,
            Action::Operation(logged) => {
                let op = world.new_op();
                if *logged {
                    world.begin_record(op);
                } else {
                    world.begin_group(Job::Commit(Some(op)));
                }
            }
            Action::Unmount => world.begin_group(Job::Clean),
            Action::Declare => world.declare(rules, Job::Declare(None)),
            Action::Replace(seat, disk) => {
                self.replaces += 1;
                let daemon = world.daemon();
                // Who replaces the last one relies on two.
                let is_last = daemon.seats.iter().any(|s| s.2 == Seat::Out) && daemon.seats[*seat].2 == Seat::InSync;
                world.ghost.two |= is_last;
                world.replace(*seat, *disk);
            }
            Action::Return(seat, disk) => {
                self.returns += 1;
                world.begin_return(rules, *seat, *disk)?;
            }
            Action::Resync => world.resync_step(rules),
            Action::Gone(disk) => {
                self.faults += 1;
                world.disks[*disk].gone = true;
                world.strike(*disk, false);
            }
            Action::Lies(disk) => {
                self.faults += 1;
                world.disks[*disk].lying = true;
                world.strike(*disk, true);
                world.ghost.hidden |= 1 << disk;
            }
            Action::Damage(disk) => {
                self.faults += 1;
                let newest = world.disks[*disk].newest()?.clone();
                let slot = world.disks[*disk].slots.iter().position(|s| *s == Slot::Holds(newest.clone()))?;
                world.disks[*disk].slots[slot] = Slot::Damaged;
                world.strike(*disk, true);
            }
            Action::Image(disk) => {
                // What no flush covers is not in it.
                let image = Disk { pending: Vec::new(), ..world.disks[*disk].clone() };
                self.image = Some((*disk, image));
            }
            Action::Restore(disk) => {
                self.faults += 1;
                world.disks[*disk] = self.image.take()?.1;
                world.strike(*disk, true);
                world.ghost.hidden |= 1 << disk;
                world.ghost.restored |= 1 << disk;
            }
            Action::LoseWitness => {
                self.faults += 1;
                world.witness = None;
                world.ghost.blind = true;
            }
            Action::Cut(fate) => {
                self.cuts += 1;
                world.daemon = None;
                world.disks.iter_mut().fold(*fate, |fate, disk| settle(disk, fate));
                world.disks.iter_mut().for_each(|disk| disk.lying = false);
            }
            Action::Back(disk, fate) => {
                settle(&mut world.disks[*disk], *fate);
                world.disks[*disk].gone = false;
            }
            Action::Mount(present, mode) => {
                self.mounts += 1;
                world.mount(rules, present, *mode)?;
            }
        }
        self.world.mend();
        Some(())
    }
}

impl Model for Checked {
    type State = Scene;
    type Action = Action;

    fn init_states(&self) -> Vec<Scene> {
        vec![Scene::start(World::new(self.bounds.replicas, self.bounds.spares, self.bounds.slots))]
    }

    fn actions(&self, scene: &Scene, actions: &mut Vec<Action>) {
        let bounds = &self.bounds;
        if scene.world.daemon.is_some() {
            scene.mounted(&self.rules, bounds, actions);
        } else {
            scene.unmounted(&self.rules, bounds, actions);
        }
        if scene.faults < bounds.faults {
            scene.faults_now(bounds.kinds, actions);
            let idle = scene.world.daemon.as_ref().is_none_or(|d| d.phase == Phase::Idle);
            if scene.image.is_none() && idle && bounds.kinds.contains(&Fault::Stale) {
                actions.extend(scene.there().into_iter().map(Action::Image));
            }
        }
    }

    fn next_state(&self, scene: &Scene, action: Action) -> Option<Scene> {
        let mut next = scene.clone();
        next.perform(&self.rules, &action)?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Checked>> {
        fn never(wrong: Wrong, scene: &Scene) -> bool {
            scene.world.ghost.wrong != Some(wrong)
        }
        vec![
            Property::always("one fault loses nothing", |_, s| never(Wrong::Lost, s)),
            Property::always("two faults lose nothing silently", |_, s| never(Wrong::SilentlyLost, s)),
            Property::always("one history", |_, s| never(Wrong::TwoHistories, s)),
            Property::always("forks are never merged", |_, s| never(Wrong::Merged, s)),
            Property::always("what is known to be old is not trusted", |_, s| never(Wrong::StaleTrusted, s)),
            Property::always("the newest root is not overwritten", |_, s| never(Wrong::Overwritten, s)),
            Property::always("who is missing is asked for", |_, s| never(Wrong::Unasked, s)),
            Property::always("a return throws nothing away", |_, s| never(Wrong::Thrown, s)),
            Property::always("versions are never used twice", |_, s: &Scene| s.world.ghost.duped || versions_once(s)),
            Property::always("in sync means whole", |_, s: &Scene| in_sync_is_whole(&s.world)),
            Property::always("one fault leaves a way to mount", |m: &Checked, s| mountable(&m.rules, s)),
            Property::sometimes("a fork is refused", |m: &Checked, s| refused(&m.rules, s, Refusal::Forked)),
            Property::sometimes("who was left behind is refused", |m: &Checked, s| {
                refused(&m.rules, s, Refusal::LeftBehind)
            }),
            Property::sometimes("a replica has returned", |_, s: &Scene| {
                s.replaces + s.returns > 0 && returned(&s.world)
            }),
            Property::sometimes("two replicas are lost, and a mount refused", |m: &Checked, s: &Scene| {
                s.world.ghost.two && refused(&m.rules, s, Refusal::Missing)
            }),
        ]
    }
}

/// Whether a mount of all that are there, or of one of them alone, is refused for this reason.
fn refused(rules: &Rules, scene: &Scene, why: Refusal) -> bool {
    let mode = if why == Refusal::Missing { Mode::Normal } else { Mode::Degraded };
    let there = scene.there();
    let refuses = |present: &[usize]| scene.world.judge(rules, present, mode).is_err_and(|refusal| refusal == why);
    scene.world.daemon.is_none() && (refuses(&there) || there.iter().any(|one| refuses(&[*one])))
}

fn returned(world: &World) -> bool {
    let Some(daemon) = &world.daemon else { return false };
    daemon.phase == Phase::Idle && daemon.resync.is_none() && daemon.seats.iter().all(|s| s.2 == Seat::InSync)
}

/// All roots that a mount could find, now or after the next flush; old content that came back said them before.
fn roots(scene: &Scene) -> Vec<&Arc<Root>> {
    let mut out = Vec::new();
    for (i, disk) in scene.world.disks.iter().enumerate() {
        let label = disk.id.is_some() || disk.pending.iter().any(|write| matches!(write, Write::Label(_)));
        if label && scene.world.ghost.restored >> i & 1 == 0 {
            out.extend(disk.slots.iter().filter_map(Slot::root));
            out.extend(
                disk.pending.iter().filter_map(|w| if let Write::Root(_, root) = w { Some(root) } else { None }),
            );
        }
    }
    out
}

fn versions_once(scene: &Scene) -> bool {
    let roots = roots(scene);
    let same = |a: &Root, b: &Root| a.version == b.version && a.epoch() == b.epoch();
    roots.iter().enumerate().all(|(i, a)| roots[..i].iter().all(|b| Arc::ptr_eq(a, b) || !same(a, b) || a == b))
}

/// Invariants 3 and 4. Old content that came back is nobody's word until it was proven; with two faults one of them may be
/// a root that named who is absent.
fn in_sync_is_whole(world: &World) -> bool {
    let excused = |i: usize| world.ghost.two || world.ghost.restored >> i & 1 == 1;
    world.disks.iter().enumerate().all(|(i, disk)| excused(i) || world.keeps_word(disk))
}

/// With no fault all that are there do, without an option; with one fault the others do, perhaps with `degraded`.
/// Only where the power failed between the witness and the root that it speaks of may a person have to say more.
fn mountable(rules: &Rules, scene: &Scene) -> bool {
    let (world, ghost) = (&scene.world, &scene.world.ghost);
    if world.daemon.is_some() || ghost.two || ghost.blind {
        return true;
    }
    let good: Vec<usize> = scene.there().into_iter().filter(|i| ghost.struck >> i & 1 == 0).collect();
    let mode = match (ghost.struck, ghost.window) {
        (0, _) => Mode::Normal,
        (_, false) => Mode::Degraded,
        (_, true) => Mode::AcceptStale,
    };
    let some = |mask: u32| -> Vec<usize> { (0..good.len()).filter(|i| mask >> i & 1 == 1).map(|i| good[i]).collect() };
    let all = (1 << good.len()) - 1;
    let mut sets = (1..=all).map(some);
    sets.any(|present| {
        let judged = world.judge(rules, &present, mode);
        judged.is_ok_and(|(choice, which)| ghost.acked & !world.shows(&choice, &which) == 0)
    })
}
