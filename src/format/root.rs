//! The root: one committed state of the volume, its members and its history. All that changes starts here.
//!
//! *Guarantees*: roots are identical on all replicas; a decoded root's parts fit the geometry.
//! *Assumes*: nothing; a root proves itself. *Fails when*: [`Corrupt`].
//! *Order*: a root is written only after everything that it reaches is durable (invariant 3), into a slot that no
//! retained root uses. *Not here*: which root to trust (`store::recover`), what its chain tells (`chain`).
//!
//! Payload, after the 64-byte header (birth = version):
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 64 | 8 | version: rises with every root, never used twice |
//! | 72 | 8 | transaction group: the last one that this state contains |
//! | 80 | 8 | mount count |
//! | 88 | 8 | written at, ns since 1970 |
//! | 96 | 8 | flags: bit 0 clean (no log to replay), bit 1 full resync pending |
//! | 104 | 8 | next inode number: none at or above was ever handed out |
//! | 112 | 8 | inodes in use |
//! | 120 | 8 | log: random id of the ring's present life |
//! | 128 | 8 | log: sequence of the first record to replay |
//! | 136 | 4 | log: block in the ring where it stands |
//! | 140 | 4 | tree: level of the top node |
//! | 144 | 32 | tree: pointer to the top node (zeros: no item) |
//! | 176 | 32 | space: entry of the top space node |
//! | 208 | 4 | epochs in the chain (1 to 64) |
//! | 212 | 4 | dead lists (0 to 32) |
//! | 216 | 8 | space: blocks of zones that have space below on every replica |
//! | 224 | 8 | space: no zone below this one lacks space below |
//! | 232 | 8 | since when not every hot member is in sync, ns since 1970; 0: all are, or not known |
//! | 240 | 16 | reserved, zero |
//! | 256 | 4 × 64 | members: replica 16, state 1, role 1 (1 hot, 2 warm, 3 cold, 4 slowed), flags 1, reserved 5, since version 8, since ns 8, synced group 8, synced version 8, missed 8 |
//! | 512 | 64 × 24 | chain of epochs, oldest first: id 16 (all ones: forgotten epochs), first version 8 |
//! | 2048 | 32 × 64 | dead lists, oldest first: first group 8, last group 8, pointer 32, blocks 8, reserved 8 |

use super::block::{self, BlockPtr, HEADER, Header, Kind, PTR};
use super::item::{le32, le64};
use super::node::LEVEL_MAX;
use super::space::{ENTRY, SpaceEntry};
use super::{Addr, BLOCK, Corrupt, Geometry, INO_MAX, REPLICAS_MAX, Txg, Uuid, all_zero, reject, require};

const WHAT: &str = "root";
/// Epochs that a root remembers; of others, see `chain`.
pub const CHAIN_MAX: usize = 64;
/// Dead lists that a root names; beyond that, neighbours are merged.
pub const DEAD_LISTS_MAX: usize = 32;
const MEMBERS_AT: usize = 256;
const MEMBER: usize = 64;
const CHAIN_AT: usize = 512;
const EPOCH: usize = 24;
const DEAD_AT: usize = 2048;
const DEAD: usize = 64;
const _: () = assert!(MEMBERS_AT + REPLICAS_MAX * MEMBER == CHAIN_AT);
const _: () = assert!(CHAIN_AT + CHAIN_MAX * EPOCH == DEAD_AT);
const _: () = assert!(DEAD_AT + DEAD_LISTS_MAX * DEAD == BLOCK);
const _: () = assert!(HEADER == 64 && PTR == 32 && ENTRY == 32);

/// What a root says of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberState {
    /// Holds everything that this root reaches.
    InSync = 1,
    /// Missed something: failed, missing or left behind.
    Out = 2,
    /// Is being brought up to date; serves nothing unproven.
    Returning = 3,
    /// Was a member, and never is again; its place among the members is free for another replica.
    Detached = 4,
}

/// How a replica is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Written before anything is acknowledged.
    Hot = 1,
    /// Follows within a bounded time; nothing waits for it.
    Warm = 2,
    /// Follows when it is attached.
    Cold = 3,
    /// Was hot and too slow: kept as a warm one until it is tried again.
    Slowed = 4,
}

impl Role {
    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Role> {
        [Role::Hot, Role::Warm, Role::Cold].into_iter().find(|role| role.name() == name)
    }
    /// Name used in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Hot => "hot",
            Role::Warm | Role::Slowed => "warm",
            Role::Cold => "cold",
        }
    }
}

/// A replica of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its identity (from its label).
    pub replica: Uuid,
    /// Its state.
    pub state: MemberState,
    /// How it is kept. Only a hot one is ever in sync.
    pub role: Role,
    /// Version at which it came into that state.
    pub since_version: u64,
    /// When that was, ns since 1970.
    pub since_ns: u64,
    /// Flag, bit 0: a person sent it away, and will say when it may return.
    pub offline: bool,
    /// Of one that is not in sync: it holds every block that was born in this group or before, and is still in use; 0: not known.
    pub synced_txg: Txg,
    /// Version of the last root that called it in sync, or to which it has followed; 0: not known.
    pub synced_version: u64,
    /// Of one that is not in sync: blocks in use that were born after `synced_txg`; `None`: not known. Stored plus one, 0: not known.
    pub missed: Option<u64>,
}

impl Member {
    /// One that is new, and holds nothing yet.
    pub fn new(replica: Uuid, version: u64, now_ns: u64) -> Member {
        Member {
            replica,
            state: MemberState::Out,
            role: Role::Hot,
            since_version: version,
            since_ns: now_ns,
            offline: false,
            synced_txg: 0,
            synced_version: 0,
            missed: None,
        }
    }
}

/// A stretch of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Random identity.
    pub id: Uuid,
    /// Version of its first root.
    pub first_version: u64,
}

/// What groups `first..=last` freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadHead {
    /// First group.
    pub first: Txg,
    /// Last group.
    pub last: Txg,
    /// First block of the chain.
    pub ptr: BlockPtr,
    /// Blocks in its runs.
    pub blocks: u64,
}

/// A committed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Volume.
    pub volume: Uuid,
    /// Rises with every root.
    pub version: u64,
    /// Last group contained.
    pub txg: Txg,
    /// Mounts for writing so far.
    pub mount_count: u64,
    /// Written at, ns since 1970.
    pub time_ns: u64,
    /// Unmounted in order: no log to replay.
    pub clean: bool,
    /// Next inode number.
    pub next_ino: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Life of the log ring.
    pub log_id: u64,
    /// First record to replay.
    pub log_seq: u64,
    /// Where in the ring it stands, in blocks from its start.
    pub log_at: u32,
    /// Top of the tree: level and pointer.
    pub tree: Option<(u8, BlockPtr)>,
    /// Top space node.
    pub space: SpaceEntry,
    /// Blocks of zones that have space below on every replica.
    pub backed: u64,
    /// No zone below this one lacks space below.
    pub grow_zone: u64,
    /// Since when not every member is in sync, ns since 1970; 0: all are, or not known.
    pub at_risk_since_ns: u64,
    /// Replicas, 1 to 4, by slot; slots of those that were detached are kept, so that nobody's slot ever changes.
    pub members: Vec<Member>,
    /// Chain of epochs, oldest first; never empty.
    pub chain: Vec<Epoch>,
    /// Dead lists, oldest first.
    pub dead: Vec<DeadHead>,
}

impl Root {
    /// What this root says of `replica`, unless it is no member (any more).
    pub fn member(&self, replica: Uuid) -> Option<&Member> {
        self.members.iter().find(|member| member.replica == replica && member.state != MemberState::Detached)
    }
    /// Blocks in all dead lists, as their heads say.
    pub fn dead_blocks(&self) -> u64 {
        self.dead.iter().fold(0, |sum, head| sum.saturating_add(head.blocks))
    }
    /// The slot that this root is written to.
    pub fn addr(slot: usize) -> Addr {
        Geometry::root_slot(slot)
    }

    /// Every byte of a slot that recovery gave up: something stood there that proved nothing.
    pub const VOID: u8 = 0xff;

    /// Encode for `slot`.
    pub fn encode(&self, slot: usize) -> Vec<u8> {
        assert!(!self.chain.is_empty() && self.chain.len() <= CHAIN_MAX);
        assert!(self.dead.len() <= DEAD_LISTS_MAX);
        assert!(!self.members.is_empty() && self.members.len() <= REPLICAS_MAX);
        let mut out = vec![0; BLOCK];
        let words = [
            self.version,
            self.txg,
            self.mount_count,
            self.time_ns,
            u64::from(self.clean),
            self.next_ino,
            self.inodes,
            self.log_id,
            self.log_seq,
        ];
        for (i, word) in words.iter().enumerate() {
            out[HEADER + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
        }
        out[136..140].copy_from_slice(&self.log_at.to_le_bytes());
        if let Some((level, ptr)) = self.tree {
            out[140..144].copy_from_slice(&u32::from(level).to_le_bytes());
            out[144..176].copy_from_slice(&ptr.encode());
        }
        out[176..208].copy_from_slice(&self.space.encode());
        out[208..212].copy_from_slice(&(self.chain.len() as u32).to_le_bytes());
        out[212..216].copy_from_slice(&(self.dead.len() as u32).to_le_bytes());
        out[216..224].copy_from_slice(&self.backed.to_le_bytes());
        out[224..232].copy_from_slice(&self.grow_zone.to_le_bytes());
        out[232..240].copy_from_slice(&self.at_risk_since_ns.to_le_bytes());
        for (i, member) in self.members.iter().enumerate() {
            let at = MEMBERS_AT + i * MEMBER;
            out[at..at + 16].copy_from_slice(&member.replica.0);
            out[at + 16] = member.state as u8;
            out[at + 17] = member.role as u8;
            out[at + 18] = u8::from(member.offline);
            out[at + 24..at + 32].copy_from_slice(&member.since_version.to_le_bytes());
            out[at + 32..at + 40].copy_from_slice(&member.since_ns.to_le_bytes());
            out[at + 40..at + 48].copy_from_slice(&member.synced_txg.to_le_bytes());
            out[at + 48..at + 56].copy_from_slice(&member.synced_version.to_le_bytes());
            let missed = member.missed.map_or(0, |blocks| blocks.saturating_add(1));
            out[at + 56..at + 64].copy_from_slice(&missed.to_le_bytes());
        }
        for (i, epoch) in self.chain.iter().enumerate() {
            let at = CHAIN_AT + i * EPOCH;
            out[at..at + 16].copy_from_slice(&epoch.id.0);
            out[at + 16..at + 24].copy_from_slice(&epoch.first_version.to_le_bytes());
        }
        for (i, dead) in self.dead.iter().enumerate() {
            let at = DEAD_AT + i * DEAD;
            out[at..at + 8].copy_from_slice(&dead.first.to_le_bytes());
            out[at + 8..at + 16].copy_from_slice(&dead.last.to_le_bytes());
            out[at + 16..at + 48].copy_from_slice(&dead.ptr.encode());
            out[at + 48..at + 56].copy_from_slice(&dead.blocks.to_le_bytes());
        }
        let header = Header {
            kind: Kind::Root,
            level: 0,
            count: self.members.len() as u32,
            used: block::PAYLOAD as u32,
            volume: self.volume,
            addr: Root::addr(slot),
            birth: self.version,
        };
        block::seal(&mut out, &header);
        out
    }

    /// Decode what stands in `slot`.
    pub fn decode(bytes: &[u8], slot: usize, volume: Uuid, geometry: &Geometry) -> Result<Root, Corrupt> {
        let header = block::open(bytes, Kind::Root, Some(volume), Root::addr(slot))?;
        let word = |i: usize| le64(bytes, HEADER + 8 * i);
        require(header.level == 0 && header.used as usize == block::PAYLOAD, WHAT, "has its own length")?;
        require(word(4) <= 1, WHAT, "has no unknown flag")?;
        require(header.birth == word(0), WHAT, "has the version that its header says")?;
        require(all_zero(&bytes[240..MEMBERS_AT]), WHAT, "has zero in reserved bytes")?;
        let log_at = le32(bytes, 136);
        require(log_at < geometry.log_blocks, WHAT, "has a log position inside the ring")?;
        let level = le32(bytes, 140);
        require(level < u32::from(LEVEL_MAX), WHAT, "has a tree of possible height")?;
        let tree = BlockPtr::decode(&bytes[144..176], WHAT)?;
        require(tree.is_none_or(|t| geometry.holds_data(t.addr, 1)), WHAT, "has its tree inside a zone")?;
        require(tree.is_some() || level == 0, WHAT, "has a height only where it has a tree")?;
        let root = Root {
            volume,
            version: word(0),
            txg: word(1),
            mount_count: word(2),
            time_ns: word(3),
            clean: word(4) & 1 == 1,
            next_ino: word(5),
            inodes: word(6),
            log_id: word(7),
            log_seq: word(8),
            log_at,
            tree: tree.map(|ptr| (level as u8, ptr)),
            space: SpaceEntry::decode(&bytes[176..208])?,
            backed: le64(bytes, 216),
            grow_zone: le64(bytes, 224),
            at_risk_since_ns: le64(bytes, 232),
            members: decode_members(bytes, header.count as usize)?,
            chain: decode_chain(bytes, le32(bytes, 208) as usize)?,
            dead: decode_dead(bytes, le32(bytes, 212) as usize)?,
        };
        require(root.version >= 1 && root.version < u64::MAX / 2, WHAT, "has a possible version")?;
        require(root.txg < u64::MAX / 2 && root.next_ino < INO_MAX + (1 << 32), WHAT, "has possible counters")?;
        require(root.epoch().first_version <= root.version, WHAT, "is not older than its epoch")?;
        require(
            root.backed <= geometry.blocks && root.grow_zone <= geometry.zones,
            WHAT,
            "has space inside the volume",
        )?;
        require(root.tree.is_none_or(|(_, p)| p.birth <= root.txg), WHAT, "is not older than its tree")?;
        require(
            root.members.iter().all(|m| m.synced_txg <= root.txg),
            WHAT,
            "is not older than what its members hold",
        )?;
        require(
            root.members.iter().all(|m| m.missed.is_none_or(|blocks| blocks <= geometry.blocks)),
            WHAT,
            "has members that missed no more than there is",
        )?;
        let past = |head: &DeadHead| head.last <= root.txg && head.ptr.birth <= root.txg;
        require(root.dead.iter().all(past), WHAT, "is not older than its dead lists")?;
        Ok(root)
    }
}

fn decode_members(bytes: &[u8], count: usize) -> Result<Vec<Member>, Corrupt> {
    require((1..=REPLICAS_MAX).contains(&count), WHAT, "has 1 to 4 members")?;
    require(all_zero(&bytes[MEMBERS_AT + count * MEMBER..CHAIN_AT]), WHAT, "has zeros behind its members")?;
    let mut members: Vec<Member> = Vec::with_capacity(count);
    for i in 0..count {
        let at = MEMBERS_AT + i * MEMBER;
        let state = match bytes[at + 16] {
            1 => MemberState::InSync,
            2 => MemberState::Out,
            3 => MemberState::Returning,
            4 => MemberState::Detached,
            _ => return reject(WHAT, "has members in known states"),
        };
        let role = match bytes[at + 17] {
            1 => Role::Hot,
            2 => Role::Warm,
            3 => Role::Cold,
            4 => Role::Slowed,
            _ => return reject(WHAT, "has members in known roles"),
        };
        require(bytes[at + 18] <= 1, WHAT, "has members with no unknown flag")?;
        let reserved = all_zero(&bytes[at + 19..at + 24]);
        require(reserved, WHAT, "has zero in reserved bytes of members")?;
        let replica = Uuid(bytes[at..at + 16].try_into().expect("16 bytes"));
        require(members.iter().all(|m| m.replica != replica), WHAT, "names each member once")?;
        members.push(Member {
            replica,
            state,
            role,
            offline: bytes[at + 18] == 1,
            since_version: le64(bytes, at + 24),
            since_ns: le64(bytes, at + 32),
            synced_txg: le64(bytes, at + 40),
            synced_version: le64(bytes, at + 48),
            missed: le64(bytes, at + 56).checked_sub(1),
        });
    }
    require(members.iter().any(|m| m.state != MemberState::Detached), WHAT, "has a member that is not detached")?;
    Ok(members)
}

fn decode_chain(bytes: &[u8], count: usize) -> Result<Vec<Epoch>, Corrupt> {
    require((1..=CHAIN_MAX).contains(&count), WHAT, "has 1 to 64 epochs")?;
    require(all_zero(&bytes[CHAIN_AT + count * EPOCH..DEAD_AT]), WHAT, "has zeros behind its chain")?;
    let mut chain: Vec<Epoch> = Vec::with_capacity(count);
    for i in 0..count {
        let at = CHAIN_AT + i * EPOCH;
        let epoch =
            Epoch { id: Uuid(bytes[at..at + 16].try_into().expect("16 bytes")), first_version: le64(bytes, at + 16) };
        require(!epoch.id.is_nil(), WHAT, "has epochs with an identity")?;
        require(chain.last().is_none_or(|l| l.first_version <= epoch.first_version), WHAT, "has rising epochs")?;
        chain.push(epoch);
    }
    Ok(chain)
}

fn decode_dead(bytes: &[u8], count: usize) -> Result<Vec<DeadHead>, Corrupt> {
    require(count <= DEAD_LISTS_MAX, WHAT, "has at most 32 dead lists")?;
    require(all_zero(&bytes[DEAD_AT + count * DEAD..]), WHAT, "has zeros behind its dead lists")?;
    let mut dead: Vec<DeadHead> = Vec::with_capacity(count);
    for i in 0..count {
        let at = DEAD_AT + i * DEAD;
        let Some(ptr) = BlockPtr::decode(&bytes[at + 16..at + 48], WHAT)? else {
            return reject(WHAT, "has no empty dead list");
        };
        let head = DeadHead { first: le64(bytes, at), last: le64(bytes, at + 8), ptr, blocks: le64(bytes, at + 48) };
        require(head.first <= head.last, WHAT, "has dead lists of possible groups")?;
        require(all_zero(&bytes[at + 56..at + DEAD]), WHAT, "has zero in reserved bytes of dead lists")?;
        require(dead.last().is_none_or(|l| l.last < head.first), WHAT, "has rising dead lists")?;
        dead.push(head);
    }
    Ok(dead)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn sample() -> Root {
        let ptr = BlockPtr { addr: 900, sum: 5, birth: 3 };
        Root {
            volume: Uuid([1; 16]),
            version: 9,
            txg: 7,
            mount_count: 2,
            time_ns: 5,
            clean: true,
            next_ino: 20,
            inodes: 4,
            log_id: 77,
            log_seq: 3,
            log_at: 12,
            tree: Some((2, ptr)),
            space: SpaceEntry { birth: 7, sum: 4, free: 100, slot: 1 },
            backed: 1000,
            grow_zone: 1,
            at_risk_since_ns: 0,
            members: (1..=2)
                .map(|i| Member {
                    replica: Uuid([i; 16]),
                    state: MemberState::InSync,
                    role: Role::Hot,
                    offline: false,
                    since_version: 1,
                    since_ns: 4,
                    synced_txg: 0,
                    synced_version: 0,
                    missed: None,
                })
                .collect(),
            chain: vec![Epoch { id: Uuid([5; 16]), first_version: 1 }, Epoch { id: Uuid([6; 16]), first_version: 6 }],
            dead: vec![DeadHead { first: 5, last: 5, ptr, blocks: 3 }, DeadHead { first: 6, last: 7, ptr, blocks: 3 }],
        }
    }

    #[test]
    fn round_trip_in_its_own_slot_only() {
        let geometry = Geometry::new(16384, 32000, 256).unwrap();
        let root = sample();
        let bytes = root.encode(3);
        assert_eq!(Root::decode(&bytes, 3, root.volume, &geometry), Ok(root.clone()));
        assert!(Root::decode(&bytes, 4, root.volume, &geometry).is_err());
        assert!(Root::decode(&bytes, 3, Uuid([2; 16]), &geometry).is_err());
    }
}
