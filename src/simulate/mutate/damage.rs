//! Structure-aware damage: any field of any structure to any extreme, pointers to anywhere, blocks swapped, bytes.
//!
//! *Guarantees*: equal randomness gives equal damage; each [`Damage`] says in a line what was done. *Assumes*: the
//! canvas was surveyed. *Fails when*: never. *Order*: none. *Not here*: damage that changes how long things are
//! (`rewrite`).

use super::canvas::{Canvas, get, put};
use super::rewrite;
use super::survey::{LinkKind, Survey};
use crate::disk::sim::{Block, Random};
use crate::format::block::HEADER;
use crate::format::node::INNER_ENTRY;
use crate::format::space::ENTRY;
use crate::format::{BLOCK, ItemKind};
use crate::store::walk::Part;

/// What was done to a disk.
#[derive(Debug, Clone)]
pub struct Damage {
    /// In a line.
    pub what: String,
    /// Place that was changed.
    pub place: usize,
    /// Levels that were sealed again.
    pub depth: usize,
    /// Other blocks than that place and those above it changed, too.
    pub spreads: bool,
}

/// Offset and width of a field.
pub type Field = (usize, usize);

const HEADER_FIELDS: [Field; 11] =
    [(0, 4), (4, 1), (5, 1), (6, 2), (8, 4), (12, 4), (16, 8), (32, 8), (40, 8), (48, 4), (52, 1)];
const LABEL_FIELDS: [Field; 17] = [
    (64, 8),
    (72, 4),
    (76, 4),
    (80, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
    (120, 8),
    (128, 8),
    (136, 4),
    (140, 4),
    (144, 8),
    (152, 8),
    (160, 8),
    (216, 8),
    (224, 1),
];
const POINTER_FIELDS: [Field; 6] = [(0, 8), (8, 8), (16, 8), (24, 1), (25, 1), (26, 1)];
const ENTRY_FIELDS: [Field; 5] = [(0, 8), (8, 8), (16, 8), (24, 1), (25, 1)];
const KEY_FIELDS: [Field; 5] = [(0, 8), (8, 8), (16, 1), (17, 1), (20, 4)];

fn shifted(fields: &[Field], by: usize) -> impl Iterator<Item = Field> + '_ {
    fields.iter().map(move |(at, width)| (at + by, *width))
}

/// Fields of the value of an item.
pub fn value_fields(kind: ItemKind, length: usize) -> Vec<Field> {
    let mut fields: Vec<Field> = match kind {
        ItemKind::Inode => vec![
            (0, 4),
            (0, 2),
            (4, 4),
            (8, 4),
            (12, 4),
            (16, 8),
            (24, 8),
            (32, 4),
            (36, 8),
            (44, 4),
            (48, 8),
            (56, 4),
            (60, 8),
            (68, 4),
            (72, 4),
            (76, 4),
            (80, 8),
            (88, 8),
            (96, 4),
            (100, 1),
        ],
        ItemKind::FileMap | ItemKind::Orphan => vec![(0, 8)],
        ItemKind::Dirent => vec![(0, 8), (8, 1), (9, 1), (10, 1)],
        ItemKind::Xattr => vec![(0, 4), (4, 1), (5, 1)],
        ItemKind::Extent => {
            vec![(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 8), (24, 1), (25, 1), (32, 4), (36, 4)]
        }
    };
    fields.retain(|(at, width)| at + width <= length);
    fields
}

/// All fields of a block that is `part`.
pub fn fields(part: Part, bytes: &Block) -> Vec<Field> {
    let mut out: Vec<Field> = HEADER_FIELDS.to_vec();
    let count = get(bytes, 8, 4) as usize;
    match part {
        Part::Label => out.extend(LABEL_FIELDS),
        Part::Root => {
            out.extend((0..9).map(|i| (HEADER + 8 * i, 8)));
            out.extend([(136, 4), (140, 4), (208, 4), (212, 4), (216, 8), (224, 8), (232, 1)]);
            out.extend(shifted(&POINTER_FIELDS, 144).chain(shifted(&ENTRY_FIELDS, 176)));
            let member = [(0, 8), (8, 8), (16, 1), (17, 1), (18, 1), (24, 8), (32, 8), (40, 1)];
            (0..count.min(4)).for_each(|i| out.extend(shifted(&member, 256 + 64 * i)));
            let epochs = (get(bytes, 208, 4) as usize).min(64);
            (0..epochs).for_each(|i| out.extend(shifted(&[(0, 8), (8, 8), (16, 8)], 512 + 24 * i)));
            for i in 0..(get(bytes, 212, 4) as usize).min(32) {
                let at = 2048 + 64 * i;
                out.extend([(at, 8), (at + 8, 8), (at + 48, 8), (at + 56, 1)]);
                out.extend(shifted(&POINTER_FIELDS, at + 16));
            }
        }
        Part::LogRecord => {
            out.extend((0..5).map(|i| (HEADER + 8 * i, 8)));
            out.extend([(104, 8), (112, 8), (120, 4), (124, 4), (128, 4), (132, 1)]);
            out.extend(rewrite::log_fields(bytes));
        }
        Part::SpaceNode => {
            (0..count.min(125)).for_each(|i| out.extend(shifted(&ENTRY_FIELDS, HEADER + ENTRY * i)));
            out.push((4064, 1));
        }
        Part::Bitmap => {
            out.extend([(64, 8), (72, 8), (80, 1)]);
            out.extend((0..60).map(|i| (96 + 8 * i, 8)));
            out.push((4088, 8));
        }
        Part::DeadList => {
            out.extend(shifted(&POINTER_FIELDS, HEADER));
            let run = [(0, 8), (8, 4), (12, 1), (16, 8)];
            (0..count.min(166)).for_each(|i| out.extend(shifted(&run, HEADER + 32 + 24 * i)));
        }
        Part::InnerNode => {
            for i in 0..count.min(72) {
                let at = HEADER + INNER_ENTRY * i;
                out.extend(shifted(&KEY_FIELDS, at).chain(shifted(&POINTER_FIELDS, at + 24)));
            }
        }
        Part::Leaf => {
            for (at, key, value) in Survey::items(bytes) {
                out.extend(shifted(&KEY_FIELDS, at));
                out.push((at + 24, 2));
                out.extend(shifted(&value_fields(key.kind, value.len()), value.start));
            }
        }
        Part::Data => out = vec![(0, 8), (4088, 8)],
    }
    out
}

/// A hostile value for a field of `width` bytes that holds `old`, in the block at `addr`.
pub fn hostile(random: &mut Random, survey: &Survey, old: u64, width: usize, addr: u64) -> u64 {
    let max = if width == 8 { u64::MAX } else { (1 << (8 * width)) - 1 };
    let sign = 1_u64 << (8 * width - 1);
    let geometry = &survey.label.geometry;
    let value = match random.below(12) {
        0 => 0,
        1 => 1,
        2 => max,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 => sign,
        6 => sign - 1,
        7 => *random.pick(&[
            1 << 48,
            1 << 51,
            (1 << 51) - 1,
            1 << 56,
            (1 << 56) - 1,
            1 << 60,
            1 << 63,
            (1 << 63) - 4096,
            u64::MAX - 1,
            u64::MAX / 2 - 1,
            u64::MAX / 4,
            u64::MAX / 4 + (1 << 32) - 1,
            u64::from(u32::MAX),
        ]),
        8 => *random.pick(&[
            addr,
            16,
            32,
            48,
            288,
            289,
            geometry.log_at,
            geometry.zones_at,
            geometry.zones_at + 1,
            geometry.zones_at + 2,
            geometry.blocks - 1,
            geometry.blocks,
            geometry.blocks + 1,
            geometry.zones_at + u64::from(geometry.zone_blocks) - 1,
        ]),
        9 => survey.places[random.below(survey.places.len() as u64) as usize].addr,
        10 => *random.pick(&[2, 3, 16, 17, 64, 65, 255, 256, 4096, 65_536, survey.root.txg, survey.root.txg + 1]),
        _ => random.bits(),
    };
    value & max
}

/// A place, any part as likely as any other.
pub fn pick_place(random: &mut Random, survey: &Survey) -> usize {
    let mut parts: Vec<Part> = survey.places.iter().map(|place| place.part).collect();
    parts.sort_unstable();
    parts.dedup();
    let part = *random.pick(&parts);
    pick_part(random, survey, part).unwrap_or(0)
}

/// A place that is `part`; of roots mostly the newest.
pub fn pick_part(random: &mut Random, survey: &Survey, part: Part) -> Option<usize> {
    let of: Vec<usize> = (0..survey.places.len()).filter(|i| survey.places[*i].part == part).collect();
    if part == Part::Root && random.below(8) > 0 {
        return of.first().copied();
    }
    (!of.is_empty()).then(|| *random.pick(&of))
}

/// Damage `canvas` once.
pub fn damage(canvas: &mut Canvas<'_>, random: &mut Random, depth: usize) -> Damage {
    let index = pick_place(random, canvas.survey);
    let choice = random.below(100);
    let (what, place) = match choice {
        0..36 => field(canvas, random, index),
        36..50 => redirect(canvas, random),
        50..74 => rewrite::items(canvas, random),
        74..79 => swap(canvas, random, index),
        79..86 => bytes(canvas, random, index),
        86..89 => ring(canvas, random),
        89..95 => rewrite::log(canvas, random),
        _ => rewrite::root(canvas, random),
    };
    canvas.reseal(place, depth);
    let spreads = matches!(choice, 36..50 | 74..79 | 86..95);
    Damage { what, place, depth, spreads }
}

fn name(canvas: &Canvas<'_>, index: usize) -> String {
    let place = &canvas.survey.places[index];
    format!("{} at {}", place.part.name(), place.addr)
}

fn field(canvas: &mut Canvas<'_>, random: &mut Random, index: usize) -> (String, usize) {
    let place = canvas.survey.places[index].clone();
    let mut block = canvas.block(place.addr);
    let (at, width) = *random.pick(&fields(place.part, &block));
    let old = get(&block, at, width);
    let new = hostile(random, canvas.survey, old, width, place.addr);
    put(&mut block, at, width, new);
    canvas.set(place.addr, block);
    (format!("{}: {width} bytes at {at}: {old:#x} -> {new:#x}", name(canvas, index)), index)
}

/// Let a pointer name another block, whose checksum it gets.
fn redirect(canvas: &mut Canvas<'_>, random: &mut Random) -> (String, usize) {
    let survey = canvas.survey;
    let pointers: Vec<usize> = (0..survey.places.len())
        .filter(|i| survey.places[*i].link.is_some_and(|link| link.kind == LinkKind::Pointer))
        .collect();
    let from = *random.pick(&pointers);
    let link = survey.places[from].link.expect("chosen for it");
    let to = match random.below(3) {
        0 => survey.places[link.parent].addr,
        1 => survey.places[pick_place(random, survey)].addr,
        _ => survey.places[*random.pick(&pointers)].addr,
    };
    let parent = survey.places[link.parent].addr;
    canvas.put(parent, link.at - 8, 8, to);
    let follow = random.below(3) > 0;
    if follow {
        // The block says what its new pointer wants: birth and level.
        let (mut target, old) = (canvas.block(to), canvas.block(survey.places[from].addr));
        put(&mut target, 40, 8, get(&old, 40, 8));
        put(&mut target, 5, 1, get(&old, 5, 1));
        canvas.set(to, target);
    }
    let sum = survey.seed.checksum(to, &canvas.block(to));
    canvas.put(parent, link.at, 8, sum);
    (format!("the pointer to {} names block {to} (follows: {follow})", name(canvas, from)), link.parent)
}

fn swap(canvas: &mut Canvas<'_>, random: &mut Random, index: usize) -> (String, usize) {
    let other = pick_place(random, canvas.survey);
    let (a, b) = (canvas.survey.places[index].addr, canvas.survey.places[other].addr);
    let (mut at_a, mut at_b) = (canvas.block(b), canvas.block(a));
    if random.below(2) == 0 {
        put(&mut at_a, 32, 8, a);
        put(&mut at_b, 32, 8, b);
    }
    canvas.set(a, at_a);
    if random.below(2) == 0 {
        canvas.set(b, at_b);
        canvas.reseal(other, 32);
    }
    (format!("{} holds {}", name(canvas, index), name(canvas, other)), index)
}

fn bytes(canvas: &mut Canvas<'_>, random: &mut Random, index: usize) -> (String, usize) {
    let place = canvas.survey.places[index].clone();
    let addr = place.addr + random.below(u64::from(place.blocks));
    let mut block = canvas.block(addr);
    let from = if random.below(2) == 0 { 0 } else { HEADER };
    let at = random.range(from as u64, BLOCK as u64) as usize;
    let count = (*random.pick(&[1, 8, 64, 512, 4096])).min(BLOCK - at);
    let kind = random.below(5);
    match kind {
        0 => block[at] ^= 1 << random.below(8),
        1 => random.fill(&mut block[at..at + count]),
        2 => block[at..at + count].fill(0),
        3 => block[at..at + count].fill(0xff),
        _ => {
            let other = canvas.block(canvas.survey.places[pick_place(random, canvas.survey)].addr);
            let other_at = random.below((BLOCK - count) as u64 + 1) as usize;
            block[at..at + count].copy_from_slice(&other[other_at..other_at + count]);
        }
    }
    canvas.set(addr, block);
    let kinds = ["a bit flipped", "junk", "zeros", "ones", "another block's"];
    (format!("{}: {count} bytes at {at}: {}", name(canvas, index), kinds[kind as usize]), index)
}

/// A dead list without an end.
fn ring(canvas: &mut Canvas<'_>, random: &mut Random) -> (String, usize) {
    let Some(index) = pick_part(random, canvas.survey, Part::DeadList) else { return field(canvas, random, 0) };
    let made = canvas.make_ring(index);
    let newest = canvas.survey.places.iter().position(|place| place.part == Part::Root).unwrap_or(0);
    let (at, value) = (canvas.survey.places[newest].addr, *random.pick(&[u64::MAX, 1 << 40, 1 << 63, 1000]));
    if random.below(3) > 0 {
        (0..canvas.survey.root.dead.len()).for_each(|i| canvas.put(at, 2048 + 64 * i + 48, 8, value));
    }
    if random.below(3) == 0 {
        // As if the group to come had merged it.
        let birth = canvas.survey.root.txg + random.range(1, 3);
        canvas.put(canvas.survey.places[index].addr, 40, 8, birth);
        (0..canvas.survey.root.dead.len()).for_each(|i| canvas.put(at, 2048 + 64 * i + 32, 8, birth));
        canvas.make_ring(index);
    }
    (format!("{} goes on with itself ({made}), counts {value:#x}", name(canvas, index)), index)
}
