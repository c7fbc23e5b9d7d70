//! The program on real mounts: what `docs/SEMANTICS.md` promises, shown with the tools that people use.
//!
//! Goal: nothing between the kernel and the disks undoes what the tests on simulated disks have shown.
//! Method: each test makes a volume in a scratch directory, mounts it, and works on it with real programs. A guard
//! unmounts and removes everything, also when a test fails. `STABLEFS_TEST_SCALE` is `quick` (no mounts), `default` or
//! `all` (the long versions); without it the light tests run if the machine can mount.

mod anew;
mod beat;
mod bed;
mod conform;
mod crash;
mod degraded;
mod disks;
mod drill;
mod events;
mod everyday;
mod failures;
mod files;
mod heavy;
mod members;
mod postgresql;
mod privileges;
mod programs;
mod refuse;
mod resolve;
mod returns;
mod roles;
mod rot;
mod service;
mod sqlite;
mod stacked;
mod stress;
mod suites;
mod system;
mod tally;
mod trees;
