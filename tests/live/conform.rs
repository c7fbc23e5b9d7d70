//! The scenarios of `tests/conformance` on a mount.

use super::bed::{Bed, Scale, can_mount, is_root, scale};
use super::tally::Tally;
use place::Kind;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

#[path = "../conformance/bytes.rs"]
mod bytes;
#[path = "../conformance/errors.rs"]
mod errors;
#[path = "../conformance/kernel.rs"]
mod kernel;
#[path = "../conformance/names.rs"]
mod names;
#[path = "../conformance/place.rs"]
mod place;
#[path = "../conformance/real.rs"]
mod real;
#[path = "../conformance/rights.rs"]
mod rights;
#[path = "../conformance/suite.rs"]
mod suite;
#[path = "../conformance/times.rs"]
mod times;

fn run(order: u32, suite: &str, kind: Kind) {
    if !can_mount() {
        return;
    }
    let options = if kind == Kind::Writeback { "writeback" } else { "" };
    let tally = Tally::begin(order, suite);
    let bed = Bed::formatted("512M");
    bed.mount(options).ok();
    for folder in [bed.path(), &bed.mnt] {
        std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    let mut report = suite::run_real(&bed.mnt, kind, scale() == Scale::All);
    bed.umount_and_check();
    let small = Bed::formatted("64M");
    small.mount(options).ok();
    report.run("bytes::filled_and_emptied", || {
        bytes::filled_and_emptied(&real::Real::new(&small.mnt, kind));
    });
    small.umount_and_check();
    let read = Bed::formatted("64M");
    read.mount(options).ok();
    kernel::to_be_read(&real::Real::new(&read.mnt, kind));
    read.umount().ok();
    read.mount(if options.is_empty() { "ro" } else { "ro,writeback" }).ok();
    report.run("kernel::read_only", || kernel::read_only(&real::Real::new(&read.mnt, kind)));
    read.umount_and_check();
    let why = match (is_root(), report.skipped) {
        (_, 0) => "nothing is skipped".to_owned(),
        (true, _) => "65,000 links are made in the long run".to_owned(),
        (false, _) => "only root can act as others".to_owned(),
    };
    let note = format!("the scenarios of tests/conformance, which ext4 and the core alone pass, too; {why}");
    let note = if report.failed.is_empty() { note } else { report.failed.join(", ") };
    tally.end(report.passed, report.failed.len() as u64, report.skipped, &note);
}

/// Goal: no scenario can tell the mount from ext4, but for what SEMANTICS names.
#[test]
fn suite_conformance_of_the_mount() {
    run(100, "conformance scenarios", Kind::Mount);
}

/// Goal: the same with the kernel's writeback cache.
#[test]
fn suite_conformance_with_the_writeback_cache() {
    run(101, "conformance scenarios, -o writeback", Kind::Writeback);
}
