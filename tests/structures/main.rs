//! Every structure, every fault: `docs/FAULTS.md` is what this test finds.
//!
//! Goal: no fault of one replica costs anything, whatever it strikes; a fault that strikes the same block on both costs
//! what lies in that block, and the calls that need it say so. Method: a small volume that has every structure of
//! docs/FORMAT.md is made once; for each structure and each fault it is damaged on one disk, on the other, on both, and
//! each time mounted, read, changed, scrubbed, checked and mounted again. The tables of the document must be what came
//! out; `STABLEFS_WRITE_DOCS=1` writes them. Where the two copies are damaged in different sectors nothing may be lost at all (`halves`). `STABLEFS_ROW=leaf` runs rows that hold the text, and prints them.

mod beside;
mod cell;
#[path = "../common/mod.rs"]
mod common;
mod halves;
mod scene;
mod table;

use cell::{Cell, Fault};
use scene::{Row, Scene};
use stablefs::simulate::Failure;
use stablefs::simulate::crew::caught;

/// Disks that are damaged.
const SIDES: [&[usize]; 3] = [&[0], &[1], &[0, 1]];

/// All cells of a row: by fault, then by side.
type Cells = Vec<[Cell; 3]>;

fn run_row(scene: &Scene, row: &Row) -> Result<Cells, String> {
    let mut cells = Vec::new();
    let mut failures = Vec::new();
    for fault in Fault::ALL {
        let run = |which: &[usize]| {
            let one = || cell::run(scene, row, fault, which).map_err(|text| Failure { text });
            caught("the cell", one).map_err(|why| format!("{}, {} on {which:?}: {why}", row.name, fault.name()))
        };
        match SIDES.map(run) {
            [Ok(one), Ok(other), Ok(both)] => cells.push([one, other, both]),
            all => failures.extend(all.into_iter().filter_map(Result::err)),
        }
    }
    if failures.is_empty() { Ok(cells) } else { Err(failures.join("\n")) }
}

#[test]
fn every_structure_every_fault() {
    // SEMANTICS: HEAL-5
    let scene = scene::make();
    let only = std::env::var("STABLEFS_ROW").ok();
    let rows: Vec<&Row> =
        scene.rows.iter().filter(|row| only.as_ref().is_none_or(|only| row.name.contains(only))).collect();
    let one = |index: &usize| Ok(run_row(&scene, rows[*index]));
    let (mut results, panics) = common::each(0..rows.len(), one);
    assert!(panics.is_empty(), "{panics:?}");
    results.sort_by_key(|(index, _)| *index);
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for (index, cells) in results {
        match cells {
            Ok(cells) => done.push((rows[index], cells)),
            Err(text) => failures.push(text),
        }
    }
    let halves = halves::run(&scene, &rows);
    if only.is_some() || !failures.is_empty() {
        println!("{}", table::tables(&done, &halves));
    }
    assert!(!done.is_empty() || !failures.is_empty(), "no row");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    table::check_single(&done);
    if only.is_none() {
        table::compare(&done, &halves);
    }
}
