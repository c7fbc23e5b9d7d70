//! Events: what the volume remembers of its replicas and of itself.
//!
//! *Guarantees*: [`decode`] takes what [`Event::encode`] makes, and the same with a kind or a state that a later release
//! may add. Texts are cut, so that an event always fits in one item.
//! *Assumes*: nothing of the bytes. *Fails when*: a rule is broken: [`Corrupt`]. *Order*: by sequence number; the times
//! are the wall clock's, which may step.
//! *Not here*: which events there are, and when they are written (`volume::events`).
//!
//! An event is an extended attribute of the pseudo inode 2: an item of kind 3 with the key offset sequence × 2^16, below
//! 2^55. Its name is the sequence number, 8 bytes; its value is at most 1600 bytes long, so that it is one item:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | layout: 1 |
//! | 1 | 1 | kind of event: 1 state, 2 mounted, 3 unmounted, 4 recovered, 5 scrubbed, 6 omission, 7 lost, 8 failed |
//! | 2 | 1 | slot of the replica; 255: it is about none |
//! | 3 | 1 | state before: 0 not there, 1 in sync, 2 out, 3 missing, 4 returning, 5 slow, 6 full |
//! | 4 | 1 | state after |
//! | 5 | 3 | reserved, zero |
//! | 8 | 8 | time, ns since 1970 |
//! | 16 | 16 | replica; zeros: it is about none |
//! | 32 | 24 | three numbers of 8 bytes, which mean what the kind of event says |
//! | 56 | 2 | bytes of the replica's path, at most 400 |
//! | 58 | 2 | bytes of the cause, at most 400 |
//! | 60 | 2 | bytes of the path of the first file hurt, at most 600 |
//! | 62 | 2 | reserved, zero |
//! | 64 | | the three texts, UTF-8 |

use super::item::{XATTR_CHUNK, decode_xattr_head, encode_xattr};
use super::{Corrupt, ItemKind, Key, ORPHANS, Uuid, all_zero, reject, require};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "event";
/// Events that are kept; who writes one more deletes the oldest.
pub const EVENTS_MAX: u64 = 1024;
/// Sequence numbers of events stay below it.
pub const EVENT_SEQUENCE_END: u64 = 1 << 39;
/// Bytes of an event before its texts.
pub const EVENT_HEAD: usize = 64;
const LAYOUT: u8 = 1;
const NO_SLOT: u8 = 255;
/// Bytes of the three texts.
const TEXT_MAX: [usize; 3] = [400, 400, 600];
const _: () = assert!(EVENT_HEAD + TEXT_MAX[0] + TEXT_MAX[1] + TEXT_MAX[2] <= XATTR_CHUNK);

/// What an event is about; stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A replica has another state now.
    State,
    /// The volume was mounted: read-only (1 or 0), number of the mount.
    Mounted,
    /// It was unmounted in order.
    Unmounted,
    /// It was not unmounted in order before: log records replayed, healed, and the time of the last root before, ns.
    Recovered,
    /// A scrub came to its end: copies found damaged, healed, and blocks lost.
    Scrubbed,
    /// The first omission on a replica since the mount: block.
    Omission,
    /// No replica has this block: block.
    Lost,
    /// No replica takes writes any more.
    Failed,
    /// Something that a later release knows.
    Other,
}

impl EventKind {
    const NAMED: [(EventKind, u8, &'static str); 8] = [
        (EventKind::State, 1, "state"),
        (EventKind::Mounted, 2, "mounted"),
        (EventKind::Unmounted, 3, "unmounted"),
        (EventKind::Recovered, 4, "recovered"),
        (EventKind::Scrubbed, 5, "scrubbed"),
        (EventKind::Omission, 6, "omission"),
        (EventKind::Lost, 7, "lost"),
        (EventKind::Failed, 8, "failed"),
    ];
    /// One word.
    pub fn name(self) -> &'static str {
        EventKind::NAMED.iter().find(|(kind, _, _)| *kind == self).map_or("other", |(_, _, name)| *name)
    }
    fn tag(self) -> u8 {
        EventKind::NAMED.iter().find(|(kind, _, _)| *kind == self).map_or(u8::MAX, |(_, tag, _)| *tag)
    }
    fn from_tag(tag: u8) -> EventKind {
        EventKind::NAMED.iter().find(|(_, known, _)| *known == tag).map_or(EventKind::Other, |(kind, _, _)| *kind)
    }
}

/// State of a replica in an event; stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EventState {
    /// No such replica.
    #[default]
    Absent,
    /// Holds everything.
    InSync,
    /// Failed, or left behind.
    Out,
    /// Has no backing.
    Missing,
    /// Is being brought up to date.
    Returning,
    /// In sync, and slow.
    Slow,
    /// In sync, and without room for new data.
    Full,
    /// Something that a later release knows.
    Other,
}

impl EventState {
    const ALL: [EventState; 7] = [
        EventState::Absent,
        EventState::InSync,
        EventState::Out,
        EventState::Missing,
        EventState::Returning,
        EventState::Slow,
        EventState::Full,
    ];
    /// As reports have it; empty for no such replica.
    pub fn name(self) -> &'static str {
        match self {
            EventState::Absent => "",
            EventState::InSync => "in sync",
            EventState::Out => "out",
            EventState::Missing => "missing",
            EventState::Returning => "returning",
            EventState::Slow => "slow",
            EventState::Full => "full",
            EventState::Other => "other",
        }
    }
    /// Whether it holds everything, and serves.
    pub fn is_in_sync(self) -> bool {
        matches!(self, EventState::InSync | EventState::Slow | EventState::Full)
    }
    fn tag(self) -> u8 {
        EventState::ALL.iter().position(|state| *state == self).map_or(u8::MAX, |at| at as u8)
    }
    fn from_tag(tag: u8) -> EventState {
        EventState::ALL.get(usize::from(tag)).copied().unwrap_or(EventState::Other)
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub kind: EventKind,
    /// When, ns since 1970.
    pub time_ns: u64,
    /// Slot of the replica, if it is about one.
    pub slot: Option<u8>,
    /// The replica; nil if it is about none.
    pub replica: Uuid,
    /// Where the replica stands.
    pub place: String,
    /// State before.
    pub from: EventState,
    /// State after.
    pub to: EventState,
    /// Why.
    pub cause: String,
    /// The first file hurt, if one is known.
    pub file: String,
    /// What they mean stands at [`EventKind`].
    pub numbers: [u64; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEvent {
    layout: u8,
    kind: u8,
    slot: u8,
    from: u8,
    to: u8,
    reserved: [u8; 3],
    time_ns: U64,
    replica: [u8; 16],
    numbers: [U64; 3],
    lengths: [U16; 3],
    reserved_end: [u8; 2],
}
const _: () = assert!(size_of::<RawEvent>() == EVENT_HEAD);

/// The longest beginning of `text` with whole characters in `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=text.len().min(max)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// Key of the event with this number.
pub fn event_key(sequence: u64) -> Key {
    assert!(sequence < EVENT_SEQUENCE_END, "as many events do not happen");
    Key::new(ORPHANS, ItemKind::Xattr, sequence << 16)
}

impl Event {
    /// An event about no replica.
    pub fn new(kind: EventKind, time_ns: u64) -> Event {
        Event {
            kind,
            time_ns,
            slot: None,
            replica: Uuid::NIL,
            place: String::new(),
            from: EventState::Absent,
            to: EventState::Absent,
            cause: String::new(),
            file: String::new(),
            numbers: [0; 3],
        }
    }

    /// Value of the item under [`event_key`].
    pub fn encode(&self, sequence: u64) -> Vec<u8> {
        let texts = [cut(&self.place, TEXT_MAX[0]), cut(&self.cause, TEXT_MAX[1]), cut(&self.file, TEXT_MAX[2])];
        let raw = RawEvent {
            layout: LAYOUT,
            kind: self.kind.tag(),
            slot: self.slot.unwrap_or(NO_SLOT),
            from: self.from.tag(),
            to: self.to.tag(),
            reserved: [0; 3],
            time_ns: U64::new(self.time_ns),
            replica: self.replica.0,
            numbers: self.numbers.map(U64::new),
            lengths: texts.map(|text| U16::new(text.len() as u16)),
            reserved_end: [0; 2],
        };
        let mut out = raw.as_bytes().to_vec();
        texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
        let mut parts = encode_xattr(&sequence.to_le_bytes(), &out);
        assert!(parts.len() == 1, "an event is one item");
        parts.remove(0)
    }
}

/// Decode an item of kind 3 of the pseudo inode 2: the event and its number.
pub fn decode(key: Key, value: &[u8]) -> Result<(u64, Event), Corrupt> {
    require(key.ino == ORPHANS && key.kind == ItemKind::Xattr, WHAT, "belongs to the pseudo inode 2")?;
    let sequence = key.off >> 16;
    require(key.off & 0xffff == 0 && sequence < EVENT_SEQUENCE_END, WHAT, "stands under its sequence number")?;
    let (name, total, bytes) = decode_xattr_head(value)?;
    require(name == sequence.to_le_bytes(), WHAT, "is named as its key")?;
    require(total == bytes.len(), WHAT, "is one item")?;
    let Ok((raw, mut rest)) = RawEvent::read_from_prefix(bytes) else {
        return reject(WHAT, "has a head of 64 bytes");
    };
    require(raw.layout == LAYOUT, WHAT, "has a known layout")?;
    require(raw.kind != 0 && all_zero(&raw.reserved) && all_zero(&raw.reserved_end), WHAT, "has zero where it must")?;
    let lengths = raw.lengths.map(|length| usize::from(length.get()));
    let fits = lengths.iter().zip(TEXT_MAX).all(|(length, max)| *length <= max);
    require(fits && lengths.iter().sum::<usize>() == rest.len(), WHAT, "has texts as long as it says")?;
    let mut texts = [const { String::new() }; 3];
    for (text, length) in texts.iter_mut().zip(lengths) {
        let (bytes, more) = rest.split_at(length);
        rest = more;
        let Ok(found) = std::str::from_utf8(bytes) else { return reject(WHAT, "has texts in UTF-8") };
        found.clone_into(text);
    }
    let [place, cause, file] = texts;
    let event = Event {
        kind: EventKind::from_tag(raw.kind),
        time_ns: raw.time_ns.get(),
        slot: (raw.slot != NO_SLOT).then_some(raw.slot),
        replica: Uuid(raw.replica),
        place,
        from: EventState::from_tag(raw.from),
        to: EventState::from_tag(raw.to),
        cause,
        file,
        numbers: raw.numbers.map(|number| number.get()),
    };
    Ok((sequence, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            slot: Some(1),
            replica: Uuid([7; 16]),
            place: "/disk/b".into(),
            from: EventState::InSync,
            to: EventState::Out,
            cause: "a write failed: I/O error".into(),
            file: "/photos/1.jpg".into(),
            numbers: [1, 2, 3],
            ..Event::new(EventKind::State, 1_700_000_000_000_000_000)
        }
    }

    #[test]
    fn events_round_trip_and_stand_in_their_place() {
        let (key, value) = (event_key(77), event().encode(77));
        assert_eq!(decode(key, &value), Ok((77, event())));
        assert!(decode(event_key(78), &value).is_err(), "under another number");
        assert!(decode(Key { off: key.off | 1, ..key }, &value).is_err(), "as a later part");
        assert!(decode(Key { ino: 17, ..key }, &value).is_err(), "in another inode");
        for length in 0..value.len() {
            assert!(decode(key, &value[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn the_longest_event_is_one_item_with_whole_characters() {
        let long = "ü".repeat(4000) + "x";
        let event = Event { place: long.clone(), cause: format!("x{long}"), file: long, ..event() };
        let value = event.encode(EVENT_SEQUENCE_END - 1);
        let (_, found) = decode(event_key(EVENT_SEQUENCE_END - 1), &value).unwrap();
        assert_eq!(found.place, "ü".repeat(200));
        assert_eq!((found.cause.len(), found.file.len()), (399, 600));
    }

    /// Any byte of an event may be anything: an error or another event, never a panic; reserved bytes are refused.
    #[test]
    fn hostile_bytes_are_refused_or_another_event() {
        let (key, value) = (event_key(3), event().encode(3));
        for at in 0..value.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = value.clone();
                bad[at] = byte;
                let _ = decode(key, &bad);
            }
        }
        let head = value.len() - event().place.len() - event().cause.len() - event().file.len() - EVENT_HEAD;
        for (at, byte) in [(0, 2), (1, 0), (5, 1), (7, 1), (57, 1), (62, 1), (64, 0xff)] {
            let mut bad = value.clone();
            bad[head + at] = byte;
            assert!(decode(key, &bad).is_err(), "byte {at} as {byte}");
        }
        let mut later = value;
        (later[head + 1], later[head + 4]) = (99, 99);
        let (_, found) = decode(key, &later).unwrap();
        assert_eq!((found.kind, found.to), (EventKind::Other, EventState::Other), "a later release's event stays");
    }
}
