//! The same block on both replicas, damaged in different sectors: scrub and fsck put it together, whatever it is.
//!
//! Each structure that a pointer names is hurt in its first sectors on one disk and in the others on the other one. Then
//! (1) the volume is checked and repaired offline; (2) it is mounted, read, scrubbed and checked. Both must end with the
//! newest state whole and nothing left to say. Only where the mount had to leave out what the log said of that block, (2) ends
//! with an older state, in which fsck puts right what is half done.

use super::cell::{find_state, fsck_reports, mount};
use super::scene::{self, Hit, Row, Scene};
use stablefs::format::BLOCK;
use stablefs::simulate::{Bench, clean};
use stablefs::store::commit::Force;
use stablefs::volume::scrub;

const SECTOR: usize = 512;
const NEWEST: &str = "the last record of the log";

/// What came of a structure.
pub struct Halves {
    pub name: &'static str,
    /// What using the volume says of it before it is put together.
    pub before: &'static str,
    /// What scrub did; `None`: it cannot be mounted.
    pub scrub: Option<&'static str>,
    /// Exit codes of fsck without and with `-y`, on the volume as it is after the power cut.
    pub fsck: [u8; 2],
}

/// Whether something names the block by its checksum: roots, labels and records prove themselves.
fn is_named(row: &Row) -> bool {
    let other = ["label", "root, ", "log record"].iter().any(|kind| row.name.starts_with(kind));
    let idle = row.name.ends_with("other slot") || row.name.ends_with("never written");
    !other && !idle
}

/// The volume with `row` hurt, cut before sector `cut`.
fn hurt(scene: &Scene, row: &Row, cut: usize) -> Bench {
    let bench = scene::bench(&scene.setup, &scene.images);
    for (disk, part) in bench.disks.iter().zip([0..cut * SECTOR, cut * SECTOR..BLOCK]) {
        let mut block = disk.peek(row.addr);
        block[part].iter_mut().for_each(|byte| *byte ^= 0x55);
        disk.poke(row.addr, block);
    }
    bench
}

fn check(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// Nothing is lost: the newest state is there, no call fails, every copy is correct.
fn whole(bench: &mut Bench, scene: &Scene) -> Result<(), String> {
    let hit = Hit::default();
    let mut bed = mount(bench, &hit)?;
    let (state, _) = find_state(&mut bed, scene)?;
    check(state == NEWEST, state)?;
    clean(&bed.store)
}

fn by_fsck(scene: &Scene, row: &Row, cut: usize) -> Result<[u8; 2], String> {
    let mut bench = hurt(scene, row, cut);
    let reports = fsck_reports(&mut bench);
    for report in &reports {
        let report = report.as_ref().map_err(Clone::clone)?;
        let line = report.combined_from.first().ok_or(format!("nothing put together: {report:?}"))?;
        let both = line.contains("from replica 0") && line.contains("from replica 1");
        check((report.combined, report.lost) == (1, 0) && both, &format!("{report:?}"))?;
    }
    let codes = reports.map(|report| report.map_or(8, |report| report.exit_code));
    whole(&mut bench, scene).map_err(|text| format!("after fsck -y: {text}"))?;
    Ok(codes)
}

/// What using it says, and what scrub does.
fn by_scrub(scene: &Scene, row: &Row, cut: usize) -> Result<(&'static str, Option<&'static str>), String> {
    let mut bench = hurt(scene, row, cut);
    let Ok(mut bed) = mount(&mut bench, &row.hit) else { return Ok(("refused", None)) };
    find_state(&mut bed, scene)?;
    let before = if bed.calls.is_empty() { "no call fails" } else { "error" };
    let report = scrub::run(&bed.store, &mut |_| true);
    check((report.lost, report.failed, report.unreached) == (0, 0, 0), &format!("{report:?}"))?;
    let done = match report.combined {
        0 => "not needed",
        1 => "put together",
        _ => return Err(format!("{report:?}")),
    };
    let hit = Hit::default();
    (bed.hit, bed.calls) = (&hit, Default::default());
    let (state, _) = find_state(&mut bed, scene).map_err(|text| format!("after scrub: {text}"))?;
    bed.store.commit(Force::Clean).map_err(|error| error.to_string())?;
    drop(bed);
    if done == "not needed" {
        // Mounting made it anew, and could not tell any more what it had said.
        fsck_reports(&mut bench)[1].as_ref().map_err(Clone::clone)?;
    }
    if state != NEWEST {
        let report = bench.fsck(true).map_err(|error| error.to_string())?;
        check(report.exit_code == 1, &format!("half done: {report:?}"))?;
        clean(&mount(&mut bench, &hit)?.store)?;
        return Ok((before, Some("put together, as before the log [g]")));
    }
    whole(&mut bench, scene).map_err(|text| format!("after scrub: {text}"))?;
    Ok((before, Some(done)))
}

fn one(scene: &Scene, row: &Row) -> Result<Halves, String> {
    let mut all = Vec::new();
    for cut in [1, 4, 7] {
        all.push((by_scrub(scene, row, cut)?, by_fsck(scene, row, cut)?));
    }
    check(all.iter().all(|one| *one == all[0]), &format!("it depends on the cut: {all:?}"))?;
    let ((before, scrub), fsck) = all[0];
    Ok(Halves { name: row.name, before, scrub, fsck })
}

/// All structures.
///
/// # Panics
/// Something was lost.
pub fn run(scene: &Scene, rows: &[&Row]) -> Vec<Halves> {
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for row in rows.iter().filter(|row| is_named(row)) {
        match one(scene, row) {
            Ok(halves) => done.push(halves),
            Err(why) => failures.push(format!("{}, in different sectors: {why}", row.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    done
}
