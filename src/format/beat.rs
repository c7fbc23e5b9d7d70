//! The heartbeat: who uses the replica now, at one fixed block of each.
//!
//! *Guarantees*: what it says stands in its first 512 bytes, and all behind them is zero; so a write that was torn between
//! sectors leaves the old heartbeat or the new one. *Assumes*: nothing. *Fails when*: bytes break a rule: [`Corrupt`].
//! *Order*: none; no other structure refers to it, and none of its own is ever needed to read the volume.
//! *Not here*: who may write it, and what another one's means (`volume::beat`).
//!
//! Volumes that were made before there were heartbeats have zeros there. Payload, after the 64-byte header (self-proving):
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 64 | 16 | owner: random, new for each mount |
//! | 80 | 16 | host: a keyed hash of what identifies the machine; zero if nothing does |
//! | 96 | 16 | boot of that host |
//! | 112 | 8 | sequence: grows with each heartbeat of an owner |
//! | 120 | 8 | time, ns since 1970, by that host's clock |
//! | 128 | 8 | start of the owner's process, clock ticks since that boot |
//! | 136 | 4 | the owner's process on that host |
//! | 140 | 4 | lease, ms: the owner begins no write so long after its last heartbeat |
//! | 144 | 1 | state: 1 running, 2 released |
//! | 145 | 7 | reserved, zero |
//! | 152 | 64 | name of the host, UTF-8, padded with zeros |
//! | 216 | 3880 | reserved, zero |

use super::block::{self, HEADER, Header, Kind};
use super::geometry::BEAT_AT;
use super::{BLOCK, Corrupt, Uuid, all_zero, reject, require};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "heartbeat";
/// Bytes of a host's name in a heartbeat; a longer one is cut.
pub const HOST_NAME_MAX: usize = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBeat {
    owner: [u8; 16],
    host: [u8; 16],
    boot: [u8; 16],
    sequence: U64,
    time_ns: U64,
    started: U64,
    process: U32,
    lease_ms: U32,
    state: u8,
    reserved: [u8; 7],
    name: [u8; HOST_NAME_MAX],
}
const RAW: usize = size_of::<RawBeat>();
const _: () = assert!(HEADER + RAW == 216);

/// Whether an owner still uses the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeatState {
    /// It does, or died.
    Running,
    /// It has let go, after its last write.
    Released,
}

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The session.
    pub owner: Uuid,
    /// The machine; nil: it cannot be told from others.
    pub host: Uuid,
    /// Its boot.
    pub boot: Uuid,
    /// Grows with each heartbeat of this owner.
    pub sequence: u64,
    /// When it was written, by the clock of its host.
    pub time_ns: u64,
    /// When its process began, in clock ticks since the boot.
    pub started: u64,
    /// Its process.
    pub process: u32,
    /// Longest time between a heartbeat and the beginning of the last write that follows it.
    pub lease_ms: u32,
    /// Whether it uses the volume.
    pub state: BeatState,
    /// What people call the host.
    pub name: String,
}

/// The longest beginning of `name` that fits, without what would disturb whoever reads it.
fn fitting(name: &str) -> String {
    let fits = (0..=name.len().min(HOST_NAME_MAX)).rev().find(|end| name.is_char_boundary(*end));
    name[..fits.unwrap_or(0)].chars().filter(|c| !c.is_control()).collect()
}

impl Beat {
    /// Encode, for `volume`.
    pub fn encode(&self, volume: Uuid) -> Vec<u8> {
        let mut name = [0; HOST_NAME_MAX];
        let text = fitting(&self.name);
        name[..text.len()].copy_from_slice(text.as_bytes());
        let raw = RawBeat {
            owner: self.owner.0,
            host: self.host.0,
            boot: self.boot.0,
            sequence: U64::new(self.sequence),
            time_ns: U64::new(self.time_ns),
            started: U64::new(self.started),
            process: U32::new(self.process),
            lease_ms: U32::new(self.lease_ms),
            state: if self.state == BeatState::Running { 1 } else { 2 },
            reserved: [0; 7],
            name,
        };
        let mut out = vec![0; BLOCK];
        out[HEADER..HEADER + RAW].copy_from_slice(raw.as_bytes());
        let header = Header { kind: Kind::Beat, level: 0, count: 1, used: RAW as u32, volume, addr: BEAT_AT, birth: 0 };
        block::seal(&mut out, &header);
        out
    }

    /// Decode what was read at [`BEAT_AT`] on a replica of `volume`.
    pub fn decode(bytes: &[u8], volume: Uuid) -> Result<Beat, Corrupt> {
        let header = block::open(bytes, Kind::Beat, Some(volume), BEAT_AT)?;
        let Ok((raw, _)) = RawBeat::read_from_prefix(&bytes[HEADER..]) else {
            return reject(WHAT, "is long enough");
        };
        require(header.count == 1 && header.used as usize == RAW, WHAT, "has its own length")?;
        require(header.level == 0 && header.birth == 0, WHAT, "has no level and no birth")?;
        require(all_zero(&raw.reserved) && all_zero(&bytes[HEADER + RAW..]), WHAT, "has zero in reserved bytes")?;
        let state = match raw.state {
            1 => BeatState::Running,
            2 => BeatState::Released,
            _ => return reject(WHAT, "has a known state"),
        };
        require(raw.owner != [0; 16], WHAT, "names an owner")?;
        let len = raw.name.iter().position(|b| *b == 0).unwrap_or(HOST_NAME_MAX);
        require(all_zero(&raw.name[len..]), WHAT, "has a name padded with zeros")?;
        let Ok(name) = std::str::from_utf8(&raw.name[..len]) else {
            return reject(WHAT, "has a name in UTF-8");
        };
        require(!name.chars().any(char::is_control), WHAT, "has a name that can be shown")?;
        Ok(Beat {
            owner: Uuid(raw.owner),
            host: Uuid(raw.host),
            boot: Uuid(raw.boot),
            sequence: raw.sequence.get(),
            time_ns: raw.time_ns.get(),
            started: raw.started.get(),
            process: raw.process.get(),
            lease_ms: raw.lease_ms.get(),
            state,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat() -> Beat {
        Beat {
            owner: Uuid([1; 16]),
            host: Uuid([2; 16]),
            boot: Uuid([3; 16]),
            sequence: 9,
            time_ns: 77,
            started: 5,
            process: 4,
            lease_ms: 10_000,
            state: BeatState::Running,
            name: "alpha".into(),
        }
    }

    #[test]
    fn round_trip_and_rejections() {
        let volume = Uuid([7; 16]);
        let bytes = beat().encode(volume);
        assert_eq!(Beat::decode(&bytes, volume), Ok(beat()));
        assert!(Beat::decode(&bytes, Uuid([8; 16])).is_err());
        assert!(Beat::decode(&[0; BLOCK], volume).is_err());
        let nobody = Beat { owner: Uuid::NIL, ..beat() };
        assert!(Beat::decode(&nobody.encode(volume), volume).is_err());
        let long = Beat { name: "ä".repeat(40), ..beat() };
        let found = Beat::decode(&long.encode(volume), volume).unwrap();
        assert_eq!(found.name, "ä".repeat(32), "a long name is cut between characters");
    }

    #[test]
    fn a_write_torn_between_sectors_leaves_one_of_the_two() {
        let volume = Uuid([7; 16]);
        let (old, new) = (beat().encode(volume), Beat { sequence: 10, ..beat() }.encode(volume));
        for sectors in 0..1_u32 << 8 {
            let mut torn = old.clone();
            for at in (0..8).filter(|at| sectors >> at & 1 == 1) {
                torn[at * 512..(at + 1) * 512].copy_from_slice(&new[at * 512..(at + 1) * 512]);
            }
            assert_eq!(Beat::decode(&torn, volume).unwrap().sequence, 9 + u64::from(sectors & 1));
        }
    }
}
