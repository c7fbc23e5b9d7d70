//! Programs cannot tell a stablefs from ext4: the same scenarios on our core, on our mount, and on ext4.
//!
//! Goal: every call that programs make of a filesystem does what it does on ext4, to the errno and to the time stamp;
//! what must be different is named in `docs/SEMANTICS.md`.
//! Method: a scenario is written once, against the calls of [`place::Place`]. Here it runs on the core, on simulated
//! disks, where nothing is mounted, and on a plain ext4 directory: one that does not hold there is itself wrong.
//! `tests/live/conform.rs` runs the same on a mount. `STABLEFS_SCENARIO` picks some by a part of their name.
//!
//! | file | part |
//! |---|---|
//! | `place` | the calls |
//! | `core` `real` | who does them |
//! | `errors` `bytes` `times` `rights` `names` | scenarios for every place |
//! | `kernel` | those that need the kernel |
//! | `suite` | the table of them |
//! | `collisions` `failing` | what only the core can be made to meet |

mod bytes;
mod collisions;
mod core;
mod errors;
mod failing;
mod kernel;
mod names;
mod place;
mod real;
mod rights;
mod suite;
mod times;

use place::{Kind, Usual};
use real::Real;
use std::path::Path;
use std::process::Command;

/// Blocks of each disk of the core.
const BLOCKS: u64 = 32_768;
/// What statfs(2) says of ext4.
const EXT4: i64 = 0xef53;

fn done(where_: &str, report: &suite::Report) {
    println!("{where_}: {} passed, {} skipped", report.passed, report.skipped);
    assert!(report.failed.is_empty(), "{where_}: {:#?}", report.failed);
    assert!(report.passed > 0 || std::env::var_os("STABLEFS_SCENARIO").is_some(), "nothing was run");
}

/// Goal: where /dev/fuse is absent, too, all that the core decides is as on ext4, and the checker finds nothing after.
#[test]
fn the_core_behaves_as_ext4_does() {
    let mut report = suite::Report::default();
    suite::run_core(&mut report, |scenario| {
        let core = core::Core::new(BLOCKS);
        scenario(&core);
        core.check();
    });
    report.run("bytes::filled_and_emptied", || {
        let core = core::Core::new(8192);
        bytes::filled_and_emptied(&core);
        core.check();
    });
    done("core", &report);
}

/// A new ext4 of 64 MiB, mounted in `folder` on a loop device; only root can.
fn loop_ext4(folder: &Path) -> bool {
    let script = "truncate -s 64M image && mkfs.ext4 -q -m 0 image && mkdir mnt && mount -o loop image mnt";
    let can = rustix::process::geteuid().is_root();
    can && Command::new("bash").args(["-ec", script]).current_dir(folder).status().is_ok_and(|status| status.success())
}

/// Ends the loop mount with the test.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.join("mnt")).status();
    }
}

/// Goal: the scenarios are right. The judge is ext4, in the scratch folder if it is there, else on a loop device.
#[test]
fn ext4_is_what_the_scenarios_say() {
    let folder = tempfile::tempdir().unwrap();
    let is_ext4 = rustix::fs::statfs(folder.path()).unwrap().f_type as i64 == EXT4;
    let mounted = loop_ext4(folder.path()).then(|| Mounted(folder.path()));
    let inside = folder.path().join("mnt");
    let place = match (is_ext4, &mounted) {
        (true, _) => folder.path(),
        (false, Some(_)) => &inside,
        (false, None) => {
            return println!("skipped: {} is not on ext4, and only root can mount one", folder.path().display());
        }
    };
    let mut report = suite::run_real(place, Kind::Ext4, true);
    if mounted.is_some() {
        report.run("bytes::filled_and_emptied", || bytes::filled_and_emptied(&Real::new(&inside, Kind::Ext4)));
        report.run("kernel::read_only", || {
            let place = Real::new(&inside, Kind::Ext4);
            place.names(".").iter().for_each(|name| drop(std::fs::remove_file(place.path(name))));
            let _ = std::fs::remove_dir(place.path("lost+found"));
            kernel::to_be_read(&place);
            let again = Command::new("mount").args(["-o", "remount,ro"]).arg(&inside).status().unwrap();
            assert!(again.success());
            kernel::read_only(&place);
        });
    }
    drop(mounted);
    done("ext4", &report);
}
