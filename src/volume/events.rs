//! The volume's memory of what happened to it: read from the replicas, kept in memory, written to the replicas.
//!
//! *Guarantees*: the newest [`EVENTS_MAX`] are kept; the oldest are deleted by the change that adds new ones. Recording
//! hurts nobody: it happens on a thread of its own, uses no reserve, and what finds no room is dropped and counted. A
//! volume where nothing happens is not written to, and one that is found damaged is not for that alone: such events wait
//! for the next change of anything, [`LAZY_MAX`] or [`BATCH_MAX`] of them at most. Asking touches no backing.
//! *Assumes*: one recorder for a volume. *Fails when*: events cannot be read (damage, hostile bytes): what can be is; or not
//! be written: they are kept in memory until the end of the mount, as all are where it is read-only.
//! *Order*: the recovery, the mount, states that differ from the last ones on record, then what the mirror tells; the unmount
//! is in the last commit. An event is remembered, told to the daemon, then written. The ring's lock is a leaf.
//! *Not here*: what the figures are ([`super::availability`]), running programs (`daemon::hook`).

use super::Volume;
use super::availability::{self, Availability, Now};
use super::scrub::ScrubReport;
use crate::disk::{Happened, Mirror, ReplicaHealth, ReplicaState, What};
use crate::format::event::{EVENT_SEQUENCE_END, EVENTS_MAX, Event, EventKind, EventState, decode, event_key};
use crate::format::{ItemKind, Key, ORPHANS, Role, Uuid};
use crate::store::{Need, Store, StoreError, check};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Instant, Mutex, thread};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long the recorder sleeps if nothing wakes it.
const SLEEP: Duration = Duration::from_secs(3600);
/// How often it looks for a change of something else while an event waits for one.
const LOOK: Duration = Duration::from_secs(5);
/// How long an event waits for one.
pub const LAZY_MAX: Duration = Duration::from_secs(600);
/// Events that one change adds.
const BATCH_MAX: usize = 64;
/// Old events that one change deletes, beside those that it adds.
const TRIM_MAX: usize = 256;
/// How long a mount waits for the events on the replicas to be read.
const LOAD_WAIT: Duration = Duration::from_secs(2);
/// Events read at once.
const PAGE: usize = 256;
/// Events on the replicas beyond which nothing of ours wrote them.
const KEPT_MAX: usize = 64 * EVENTS_MAX as usize;

/// Told of each event as it happens, on the recorder's thread; must not wait.
pub type Listener = Box<dyn Fn(&EventReport) + Send>;

/// A replica in an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReplica {
    /// Slot, 0 to 3; one more while another is being replaced.
    pub slot: u8,
    /// Identity.
    pub uuid: String,
    /// Where it stands.
    pub path: String,
}

/// An event as it is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventReport {
    /// Number; rises, with gaps where events were dropped.
    pub sequence: u64,
    /// When, ns since 1970.
    pub time_ns: u64,
    /// `state`, `mounted`, `unmounted`, `recovered`, `scrubbed`, `omission`, `lost` or `failed`.
    pub event: String,
    /// The volume.
    pub volume: String,
    /// The replica, if it is about one.
    pub replica: Option<EventReplica>,
    /// State before; empty: it was not there.
    pub from: String,
    /// State after; empty: it is not there any more.
    pub to: String,
    /// Why.
    pub cause: String,
    /// The first file hurt, if one is known.
    pub path: String,
    /// Numbers by name, as the kind of event has them.
    pub detail: BTreeMap<String, u64>,
}

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventLog {
    /// Oldest first.
    pub events: Vec<EventReport>,
    /// Dropped since the mount, because too much happened at once.
    pub dropped: u64,
    /// Not on the replicas, because there was no room or no replica took them.
    pub unwritten: u64,
    /// Found on the replicas, and not understood.
    pub unreadable: u64,
}

/// How the volume was found when it was opened.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FoundAs {
    /// It had been closed in order.
    pub clean: bool,
    /// When its newest root was written, ns since 1970.
    pub last_root_ns: u64,
}

/// Names of the numbers of an event.
fn names(kind: EventKind) -> [&'static str; 3] {
    match kind {
        EventKind::Mounted => ["read_only", "mount_count", ""],
        EventKind::Recovered => ["replayed", "healed", "last_root_ns"],
        EventKind::Scrubbed => ["found", "healed", "lost"],
        EventKind::Omission | EventKind::Lost => ["block", "", ""],
        EventKind::State | EventKind::Unmounted | EventKind::Failed | EventKind::Other => [""; 3],
    }
}

fn report(sequence: u64, event: &Event, volume: Uuid) -> EventReport {
    let numbers = names(event.kind).into_iter().zip(event.numbers).filter(|(name, _)| !name.is_empty());
    EventReport {
        sequence,
        time_ns: event.time_ns,
        event: event.kind.name().into(),
        volume: volume.to_string(),
        replica: event.slot.map(|slot| EventReplica {
            slot,
            uuid: event.replica.to_string(),
            path: event.place.clone(),
        }),
        from: event.from.name().into(),
        to: event.to.name().into(),
        cause: event.cause.clone(),
        path: event.file.clone(),
        detail: numbers.map(|(name, number)| (name.to_owned(), number)).collect(),
    }
}

fn state_of(state: ReplicaState) -> EventState {
    match state {
        ReplicaState::InSync => EventState::InSync,
        ReplicaState::Out => EventState::Out,
        ReplicaState::Missing => EventState::Missing,
        ReplicaState::Returning => EventState::Returning,
        ReplicaState::Detached => EventState::Absent,
    }
}

#[derive(Default)]
struct Ring {
    events: VecDeque<(u64, Event)>,
    dropped: u64,
    unwritten: u64,
    unreadable: u64,
}

struct Shared {
    ring: Mutex<Ring>,
    /// Told by the volume itself.
    own: Mutex<VecDeque<Event>>,
    ending: AtomicBool,
    /// What stands on the replicas has been read.
    loaded: AtomicBool,
}

/// The recorder of a volume.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    mirror: Arc<Mirror>,
    thread: thread::JoinHandle<()>,
}

/// What the thread works with.
struct Work {
    store: Arc<Store>,
    shared: Arc<Shared>,
    listener: Option<Listener>,
    /// Number of the next event.
    next: u64,
    /// Numbers on the replicas, oldest first.
    kept: VecDeque<u64>,
    /// Remembered and told, to be written.
    unwritten: VecDeque<(u64, Event)>,
    /// Since when the oldest of them waits.
    waits_since: Option<Instant>,
    is_told: bool,
}

impl Recorder {
    /// Begin to record.
    fn start(store: &Arc<Store>, begin: Vec<Event>, listener: Option<Listener>) -> std::io::Result<Recorder> {
        let shared = Arc::new(Shared {
            ring: Mutex::default(),
            own: Mutex::default(),
            ending: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
        });
        let work = Work {
            store: store.clone(),
            shared: shared.clone(),
            listener,
            next: 1,
            kept: VecDeque::new(),
            unwritten: VecDeque::new(),
            waits_since: None,
            is_told: false,
        };
        let thread = thread::Builder::new().name("events".into()).spawn(move || work.run(begin))?;
        Ok(Recorder { shared, mirror: store.mirror().clone(), thread })
    }

    /// Whoever asks after the mount sees what was before it, unless the disks are slow.
    fn wait_until_loaded(&self) {
        let until = Instant::now() + LOAD_WAIT;
        while !self.shared.loaded.load(Ordering::Acquire) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Record something of the volume itself.
    fn tell(&self, event: Event) {
        let mut own = self.shared.own.lock();
        if own.len() == BATCH_MAX {
            own.pop_front();
            self.shared.ring.lock().dropped += 1;
        }
        own.push_back(event);
        drop(own);
        self.mirror.wake_listener();
    }

    /// Record what is left and that the volume is closed; the next commit has it.
    pub(super) fn end(self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.mirror.wake_listener();
        let _ = self.thread.join(); // a bug there was logged, and costs events only
    }

    fn log(&self, volume: Uuid, after: u64) -> EventLog {
        let ring = self.shared.ring.lock();
        let later = ring.events.iter().filter(|(sequence, _)| *sequence > after);
        EventLog {
            events: later.map(|(sequence, event)| report(*sequence, event, volume)).collect(),
            dropped: ring.dropped,
            unwritten: ring.unwritten,
            unreadable: ring.unreadable,
        }
    }
}

impl Work {
    fn run(mut self, begin: Vec<Event>) {
        // Before the queue is drained: what has moved since then is in it.
        let health = self.store.mirror().health();
        self.load();
        let (happened, dropped) = self.store.mirror().listen(Duration::ZERO);
        let began_ns = begin.first().map_or(0, |event| event.time_ns);
        let mut states = Vec::new();
        let recorded = self.last_states();
        let is_cut = self.is_cut();
        for one in health.iter().filter(|one| one.is_member()) {
            let moved = happened.iter().find(|h| {
                h.what == What::State && h.replica.as_ref().is_some_and(|(_, name)| name.uuid == one.name.uuid)
            });
            let state = moved.map_or(Some(one.state), |moved| moved.from).map_or(EventState::Absent, state_of);
            let was = recorded.get(&one.name.uuid).copied();
            if was != Some(state) {
                // Where its last event is not kept any more, nothing says that it was not so before.
                let was = was.unwrap_or(if is_cut { state } else { EventState::Absent });
                states.push(Event {
                    slot: u8::try_from(one.slot).ok(),
                    replica: one.name.uuid,
                    place: one.name.path.clone(),
                    from: was,
                    to: state,
                    cause: if moved.is_none() { one.cause.clone() } else { String::new() },
                    ..Event::new(EventKind::State, began_ns)
                });
            }
        }
        self.record(begin.into_iter().chain(states).collect(), 0);
        self.shared.loaded.store(true, Ordering::Release);
        let events = self.events_of(happened);
        self.record(events, dropped);
        loop {
            // Asked before the queues are: what was told before the end is in them.
            let is_ending = self.shared.ending.load(Ordering::Relaxed);
            let patience = match (is_ending, self.waits_since) {
                (true, _) => Duration::ZERO,
                (false, Some(_)) => LOOK,
                (false, None) => SLEEP,
            };
            let (happened, dropped) = self.store.mirror().listen(patience);
            let mut events = self.events_of(happened);
            events.extend(self.shared.own.lock().drain(..));
            if is_ending {
                events.push(Event::new(EventKind::Unmounted, now_ns(&self.store)));
            }
            self.record(events, dropped);
            if is_ending {
                return;
            }
            let is_due = |since: Instant| since.elapsed() >= LAZY_MAX || !self.store.view().current.is_empty();
            if self.waits_since.is_some_and(is_due) {
                self.flush();
            }
        }
    }

    /// Read what stands on the replicas.
    fn load(&mut self) {
        let mut from = event_key(0);
        let end = Key::new(ORPHANS, ItemKind::Xattr, u64::MAX);
        loop {
            let page = match self.store.scan(from, end, PAGE) {
                Ok(page) => page,
                Err(error) => {
                    log::warn!("events: not all of them can be read: {error}");
                    self.shared.ring.lock().unreadable += 1;
                    // Nothing is known of numbers: none that may stand there is used.
                    self.next = EVENT_SEQUENCE_END;
                    return;
                }
            };
            let Some((last, _)) = page.last() else { return };
            if self.kept.len() > KEPT_MAX {
                log::warn!("events: there are more than anybody wrote; fsck looks at them");
                self.next = EVENT_SEQUENCE_END;
                return;
            }
            from = last.next();
            let mut ring = self.shared.ring.lock();
            for (key, value) in page {
                match decode(key, &value) {
                    Ok((sequence, event)) => {
                        self.kept.push_back(sequence);
                        self.next = sequence + 1;
                        ring.push(sequence, event);
                    }
                    Err(_) => ring.unreadable += 1, // fsck names it, and takes it away
                }
            }
        }
    }

    /// Whether there were events that are not known any more.
    fn is_cut(&self) -> bool {
        let ring = self.shared.ring.lock();
        ring.unreadable > 0 || ring.events.front().is_some_and(|(sequence, _)| *sequence > 1)
    }

    /// The last state of each replica on record.
    fn last_states(&self) -> HashMap<Uuid, EventState> {
        let ring = self.shared.ring.lock();
        let states = ring.events.iter().filter(|(_, event)| event.kind == EventKind::State);
        states.map(|(_, event)| (event.replica, event.to)).collect()
    }

    fn events_of(&self, happened: Vec<Happened>) -> Vec<Event> {
        let mut events = Vec::with_capacity(happened.len());
        for one in happened {
            let kind = match one.what {
                What::State | What::Slow | What::Quick | What::Full | What::Room => EventKind::State,
                What::Omission => EventKind::Omission,
                What::Lost => EventKind::Lost,
                What::Failed => EventKind::Failed,
            };
            let (from, to) = match one.what {
                What::Slow => (EventState::InSync, EventState::Slow),
                What::Quick => (EventState::Slow, EventState::InSync),
                What::Full => (EventState::InSync, EventState::Full),
                What::Room => (EventState::Full, EventState::InSync),
                _ => (one.from.map_or(EventState::Absent, state_of), one.to.map_or(EventState::Absent, state_of)),
            };
            // Reading, on this thread: where no disk answers, the events wait, and nobody else.
            let file = if one.owner == 0 { None } else { check::path_of(&self.store, one.owner) };
            let (slot, name) = one.replica.map_or((None, None), |(slot, name)| (u8::try_from(slot).ok(), Some(name)));
            events.push(Event {
                slot,
                replica: name.as_ref().map_or(Uuid::NIL, |name| name.uuid),
                place: name.map(|name| name.path).unwrap_or_default(),
                from,
                to,
                cause: one.cause,
                file: file.unwrap_or_default(),
                numbers: [one.addr, 0, 0],
                ..Event::new(kind, one.time_ns)
            });
        }
        events
    }

    /// Remember, tell, and write what is not to wait.
    fn record(&mut self, events: Vec<Event>, dropped: u64) {
        if dropped > 0 {
            log::warn!("events: {dropped} were dropped, too much happened at once");
            self.shared.ring.lock().dropped += dropped;
        }
        let volume = self.store.label().volume;
        let is_urgent = events.iter().any(|event| !is_lazy(event.kind));
        for event in events {
            let sequence = self.next;
            self.next += 1;
            self.shared.ring.lock().push(sequence, event.clone());
            if let Some(listener) = &self.listener {
                listener(&report(sequence, &event, volume));
            }
            if self.store.options().read_only {
                continue;
            }
            self.unwritten.push_back((sequence, event));
            self.waits_since.get_or_insert_with(Instant::now);
        }
        if is_urgent || self.unwritten.len() >= BATCH_MAX {
            self.flush();
        }
    }

    /// Write what is to be written; what cannot be is not tried again.
    fn flush(&mut self) {
        self.waits_since = None;
        let unwritten: Vec<(u64, Event)> = self.unwritten.drain(..).collect();
        for batch in unwritten.chunks(BATCH_MAX) {
            let is_numbered = batch.iter().all(|(sequence, _)| *sequence < EVENT_SEQUENCE_END);
            let written = if is_numbered { self.write(batch) } else { Err(StoreError::ReadOnly) };
            if let Err(error) = written {
                self.shared.ring.lock().unwritten += batch.len() as u64;
                if !std::mem::replace(&mut self.is_told, true) {
                    log::warn!("events are kept in memory only: {error}");
                }
            }
        }
    }

    /// One change: new events in, old ones out.
    fn write(&mut self, batch: &[(u64, Event)]) -> Result<(), StoreError> {
        let surplus = (self.kept.len() + batch.len()).saturating_sub(EVENTS_MAX as usize);
        let surplus = surplus.min(batch.len() + TRIM_MAX);
        let need = Need { items: (batch.len() + surplus) as u32, ..Need::default() };
        let mut change = self.store.begin(need)?;
        for (sequence, event) in batch {
            change.put(event_key(*sequence), event.encode(*sequence));
        }
        for old in self.kept.range(..surplus) {
            change.delete(event_key(*old));
        }
        // Where a leaf that it needs is lost, nobody else is to miss anything for an event.
        change.prepare()?;
        change.commit();
        self.kept.drain(..surplus);
        self.kept.extend(batch.iter().map(|(sequence, _)| *sequence));
        Ok(())
    }
}

impl Ring {
    fn push(&mut self, sequence: u64, event: Event) {
        if self.events.len() == EVENTS_MAX as usize {
            self.events.pop_front();
        }
        self.events.push_back((sequence, event));
    }
}

/// Whether it is not worth a commit of its own: what is found damaged is best left alone until it is healed.
fn is_lazy(kind: EventKind) -> bool {
    matches!(kind, EventKind::Omission | EventKind::Lost | EventKind::Scrubbed)
}

fn now_ns(store: &Store) -> u64 {
    u64::try_from(store.world().now_ns()).unwrap_or(0)
}

impl Volume {
    /// Record events from now on, and what happened since the volume was opened; `listener` hears of each. Once.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn record(&self, listener: Option<Listener>) -> Result<(), StoreError> {
        let mut recorder = self.recorder.lock();
        if recorder.is_none() {
            let time_ns = now_ns(&self.store);
            let event = |kind, numbers| Event { numbers, ..Event::new(kind, time_ns) };
            let report = &self.report;
            let mut begin = Vec::new();
            if !self.found_as.clean {
                begin.push(Event {
                    cause: "it was not unmounted in order".into(),
                    ..event(EventKind::Recovered, [report.replayed, report.healed, self.found_as.last_root_ns])
                });
            }
            let read_only = u64::from(self.options.read_only);
            begin.push(event(EventKind::Mounted, [read_only, self.store.mount_count(), 0]));
            let started = Recorder::start(&self.store, begin, listener);
            let why = |error| StoreError::Refused(format!("no thread to record events: {error}"));
            let started = started.map_err(why)?;
            started.wait_until_loaded();
            *recorder = Some(started);
        }
        Ok(())
    }

    /// Events with a number above `after` that are remembered; touches no backing.
    pub fn events(&self, after: u64) -> EventLog {
        let recorder = self.recorder.lock();
        recorder.as_ref().map_or_else(EventLog::default, |recorder| recorder.log(self.label.volume, after))
    }

    /// Figures of the service and of each replica, from the events that are remembered.
    pub fn availability(&self) -> Availability {
        let recorder = self.recorder.lock();
        let Some(recorder) = recorder.as_ref() else { return Availability::default() };
        let health = self.mirror.health();
        let now: Vec<Now> = health
            .into_iter()
            .filter(ReplicaHealth::is_member)
            .map(|h| Now {
                replica: h.name.uuid,
                state: state_of(h.state),
                follows: self.role(h.name.uuid) != Role::Hot,
                path: h.name.path,
            })
            .collect();
        let ring = recorder.shared.ring.lock();
        availability::availability(ring.events.iter().map(|(_, event)| event), now_ns(&self.store), &now)
    }

    /// A scrub came to its end.
    pub(super) fn note_scrub(&self, scrub: &ScrubReport) {
        if let Some(recorder) = self.recorder.lock().as_ref() {
            let event = Event::new(EventKind::Scrubbed, now_ns(&self.store));
            recorder.tell(Event {
                cause: scrub.summary.clone(),
                file: scrub.lost_paths.first().cloned().unwrap_or_default(),
                numbers: [scrub.detected, scrub.healed, scrub.lost],
                ..event
            });
        }
    }
}

#[cfg(test)]
mod tests;
