//! One owner: a heartbeat on each replica, so that two hosts that share a disk cannot both write.
//!
//! *Guarantees*: no write begins later than [`Heart::lease`] after the last time when every replica that takes writes was
//! seen to bear nobody else's heartbeat, and got ours; whoever takes over waits longer than that for one that it does not
//! know to be dead (`watch`). Who finds another one's heartbeat writes nothing from then on: the mirror is stopped,
//! the store latched. A machine that was paused looks before it writes. Warm and cold replicas bear none of ours: they are looked at before each time they follow. *Assumes*: what one host writes, the other reads
//! within a few seconds (`O_DIRECT` on a SAN or an NFS export does; clocks need not agree); writes that were submitted land
//! within an interval.
//! *Fails when*: another owner is seen, or a write fails as any write can. A block that cannot be read or proves nothing is
//! no other owner: it is counted as an omission and written anew.
//! *Order*: look (`watch`) → open, nothing written → [`Heart::claim`] → recovery → [`Beating`], every [`INTERVAL`] → commit, clean
//! root → [`Heart::release`]. The heart's lock is held during I/O on the mirror's lanes, which have their deadlines; no other lock is
//! taken under it. *Not here*: locks on this host (`disk::file`), what stands in a heartbeat (`format::beat`).
//!
//! **Two hosts that look at the same moment.** Both find nobody, both claim. Each reads back what stands there after its own
//! claim; the one that was faster finds the other's at its first heartbeat, [`SETTLE`]/2 later. One that takes over from
//! another host waits [`SETTLE`] after its claim before it writes anything else, and looks again. So of two such at least one goes away.
//!
//! **A stale one.** A disk can lose a write, also this one. What stood on a replica before our first heartbeat is remembered; to
//! find just that, or an older one of ours, is an omission, and no other owner.

pub mod host;
pub mod opening;
pub mod watch;

use crate::disk::buffer::{Buf, Slice};
use crate::disk::{DiskError, Guard, Mirror};
use crate::format::geometry::BEAT_AT;
use crate::format::{Beat, BeatState, Uuid};
use crate::store::StoreError;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::JoinHandle;
use crate::sync::{Condvar, Mutex};
use crate::world::World;
use host::Session;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use watch::{Patience, Seen, Spot, host_of};

/// Time between two heartbeats.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Heartbeats that may fail to come before others take the owner for dead, beside two deadlines.
const MISSED: u32 = 3;
/// Lease with the default deadline; also of one that cannot be read.
const LEASE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest lease, whatever the deadline is.
const LEASE_MAX: Duration = Duration::from_secs(60);
/// After a claim on replicas that another host had, before anything else is written.
const SETTLE: Duration = Duration::from_secs(1);
/// A host without a name.
const NOBODY: &str = "(without a name)";

/// Time since some moment that goes on while the machine sleeps.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's clock.
pub fn machine_clock() -> Clock {
    Arc::new(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u32)
    })
}

/// Whether a session writes to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It owns the volume.
    Write,
    /// It only looks whether somebody begins to write.
    Read,
}

#[derive(Default)]
struct Pulse {
    /// Of the last heartbeat that was begun.
    sequence: u64,
    /// Of the last one that is on every replica that takes writes.
    written: u64,
    /// Heartbeats of others that stood on replicas before the first of ours did: none of them is new.
    before: Vec<Beat>,
    /// Replicas that have got one.
    held: BTreeSet<Uuid>,
}

/// The heartbeat of one session.
pub struct Heart {
    session: Session,
    volume: Uuid,
    usage: Use,
    world: Arc<dyn World>,
    clock: Clock,
    lease: Duration,
    pulse: Mutex<Pulse>,
    /// When the last heartbeat was begun that came to its end, by the clock, ms.
    last_ms: AtomicU64,
    taken: Mutex<Option<String>>,
    is_taken: AtomicBool,
}

impl Heart {
    /// Of `session` on `volume`. `deadline` is that of one request to a replica.
    pub fn new(
        session: Session,
        volume: Uuid,
        usage: Use,
        deadline: Duration,
        world: Arc<dyn World>,
        clock: Clock,
    ) -> Heart {
        let last_ms = AtomicU64::new(millis(clock()));
        Heart {
            session,
            volume,
            usage,
            world,
            clock,
            lease: (MISSED * INTERVAL + 2 * deadline).min(LEASE_MAX),
            pulse: Mutex::default(),
            last_ms,
            taken: Mutex::new(None),
            is_taken: AtomicBool::new(false),
        }
    }

    /// How long others wait before they take us for dead.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Who took the volume from us, if somebody did.
    pub fn taken(&self) -> Option<String> {
        self.taken.lock().clone()
    }

    /// From `seen` on the volume is ours: our heartbeat is durable on every replica that takes writes, and the mirror asks us
    /// before each further write.
    ///
    /// # Errors
    /// Somebody else was faster, or the replicas take no writes.
    pub fn claim(self: &Arc<Heart>, mirror: &Mirror, seen: &Seen) -> Result<(), StoreError> {
        self.pulse.lock().before.clone_from(&seen.beats);
        if self.usage == Use::Read {
            return Ok(());
        }
        self.beat(mirror).map_err(as_refusal)?;
        mirror.set_guard(Some(self.clone()));
        mirror.flush()?;
        self.beat(mirror).map_err(as_refusal)?;
        if seen.elsewhere {
            crate::sync::thread::sleep(SETTLE);
            self.beat(mirror).map_err(as_refusal)?;
        }
        Ok(())
    }

    /// Look, and write the next heartbeat.
    ///
    /// # Errors
    /// [`DiskError::NoReplica`]: somebody else has the volume, or no replica takes writes. Otherwise it is tried again.
    pub fn beat(&self, mirror: &Mirror) -> Result<(), DiskError> {
        self.beat_as(mirror, &mut self.pulse.lock(), BeatState::Running)
    }

    /// Everything is durable: say so on each replica, and write no more.
    ///
    /// # Errors
    /// Somebody else has the volume, or no replica takes writes.
    pub fn release(&self, mirror: &Mirror) -> Result<(), DiskError> {
        if self.usage == Use::Read {
            return Ok(());
        }
        self.beat_as(mirror, &mut self.pulse.lock(), BeatState::Released)?;
        mirror.flush()
    }

    /// A replica is to be taken back, or written anew, from `spot`: who uses it? What it said then is not taken for another
    /// owner later. True: it was waited, and what was read of it before may be old.
    ///
    /// # Errors
    /// Another host uses it.
    pub fn admit(&self, spot: Spot) -> Result<bool, StoreError> {
        let seen = watch::watch(&self.session, &[spot], Patience::Wait)?;
        let mut pulse = self.pulse.lock();
        for beat in seen.beats.into_iter().filter(|beat| beat.owner != self.session.owner) {
            if !pulse.before.contains(&beat) {
                pulse.before.push(beat);
            }
        }
        Ok(seen.waited)
    }

    fn beat_as(&self, mirror: &Mirror, pulse: &mut Pulse, state: BeatState) -> Result<(), DiskError> {
        self.check_taken()?;
        let began = (self.clock)();
        let (looked_at, omitted) = self.look(mirror, pulse)?;
        if self.usage == Use::Read {
            return Ok(());
        }
        pulse.sequence += 1;
        let beat = Beat {
            owner: self.session.owner,
            host: self.session.host,
            boot: self.session.boot,
            sequence: pulse.sequence,
            time_ns: self.world.now_ns().max(0) as u64,
            started: self.session.started,
            process: self.session.process,
            lease_ms: self.lease.as_millis() as u32,
            state,
            name: self.session.name.clone(),
        };
        mirror.write_guards(BEAT_AT, &Slice::whole(Buf::from_slice(&beat.encode(self.volume))))?;
        pulse.written = pulse.sequence;
        pulse.held = looked_at;
        omitted.into_iter().for_each(|slot| mirror.count_healed(slot));
        self.last_ms.store(millis(began), Ordering::Release);
        Ok(())
    }

    /// Whose heartbeat stands there now? Gives the replicas that were looked at, and the slots of those that have lost ours.
    fn look(&self, mirror: &Mirror, pulse: &Pulse) -> Result<(BTreeSet<Uuid>, Vec<usize>), DiskError> {
        let (mut looked_at, mut omitted) = (BTreeSet::new(), Vec::new());
        for one in mirror.read_each(BEAT_AT) {
            let uuid = one.name.uuid;
            looked_at.insert(uuid);
            let held = pulse.held.contains(&uuid);
            let found = one.answer.ok().and_then(|block| Beat::decode(&block, self.volume).ok());
            let is_lost = match &found {
                Some(beat) if beat.owner == self.session.owner && beat.sequence <= pulse.sequence => {
                    beat.sequence < pulse.written
                }
                Some(beat) if !pulse.before.contains(beat) => {
                    return Err(self.give_way(mirror, &one.name.path, beat));
                }
                _ => self.usage == Use::Write,
            };
            if is_lost && held {
                omitted.push(one.slot);
            }
        }
        Ok((looked_at, omitted))
    }

    fn give_way(&self, mirror: &Mirror, path: &str, beat: &Beat) -> DiskError {
        let who = if beat.owner == self.session.owner { "a copy of this machine".to_owned() } else { host_of(beat) };
        let when = crate::world::utc(beat.time_ns);
        let text =
            format!("{path}: {who} has taken this volume (heartbeat of {when}); this host writes nothing any more");
        let mut taken = self.taken.lock();
        let text = taken.get_or_insert(text).clone();
        drop(taken);
        self.is_taken.store(true, Ordering::Release);
        mirror.stop(&text)
    }

    fn check_taken(&self) -> Result<(), DiskError> {
        if !self.is_taken.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(DiskError::NoReplica(self.taken().unwrap_or_default()))
    }

    /// Whether others may soon take us for dead.
    fn is_overdue(&self) -> bool {
        let since = millis((self.clock)()).saturating_sub(self.last_ms.load(Ordering::Acquire));
        Duration::from_millis(since) + INTERVAL >= self.lease
    }
}

impl Guard for Heart {
    fn may_write(&self, mirror: &Mirror) -> Result<(), DiskError> {
        self.check_taken()?;
        if !self.is_overdue() {
            return Ok(());
        }
        let mut pulse = self.pulse.lock();
        if !self.is_overdue() {
            return self.check_taken();
        }
        self.beat_as(mirror, &mut pulse, BeatState::Running)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn as_refusal(error: DiskError) -> StoreError {
    match error {
        DiskError::NoReplica(text) => StoreError::Refused(text),
        other => other.into(),
    }
}

struct Stop {
    wanted: Mutex<bool>,
    changed: Condvar,
}

/// A heart that beats, on a thread of its own, until this is dropped.
pub struct Beating {
    stop: Arc<Stop>,
    usage: Use,
    thread: Option<JoinHandle<()>>,
}

impl Beating {
    /// Begin. `on_taken` is told when somebody else has the volume.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(
        heart: Arc<Heart>,
        mirror: Arc<Mirror>,
        on_taken: impl Fn(&StoreError) + Send + 'static,
    ) -> Result<Beating, StoreError> {
        let stop = Arc::new(Stop { wanted: Mutex::new(false), changed: Condvar::new() });
        let (stopped, usage) = (stop.clone(), heart.usage);
        let work = move || {
            let (mut pause, mut told) = (SETTLE / 2, String::new());
            while !stopped.is_wanted(pause) {
                pause = INTERVAL;
                match heart.beat(&mirror) {
                    Ok(()) => told.clear(),
                    Err(error) if heart.taken().is_some() => return on_taken(&error.into()),
                    // Latched for another reason.
                    Err(DiskError::NoReplica(_)) => return,
                    Err(error) => {
                        let text = error.to_string();
                        if text != told {
                            ::log::warn!("no heartbeat: {text}");
                            told = text;
                        }
                    }
                }
            }
        };
        let thread = crate::sync::thread::Builder::new().name("stablefs-beat".into()).spawn(work);
        let thread = thread.map_err(|error| StoreError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Beating { stop, usage, thread: Some(thread) })
    }
}

impl Stop {
    /// Wait for it, `pause` at most.
    fn is_wanted(&self, pause: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            self.changed.wait_for(&mut wanted, pause);
        }
        *wanted
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        *self.stop.wanted.lock() = true;
        self.stop.changed.notify_all();
        // One that only reads may hang with the last disk, and nothing has to wait for it.
        if let Some(thread) = self.thread.take().filter(|_| self.usage == Use::Write) {
            let _ = thread.join(); // it has ended in any case
        }
    }
}

#[cfg(test)]
mod tests;
