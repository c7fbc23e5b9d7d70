//! The scenarios, and how they are run at a place.

use super::place::{Kind, Place};
use super::real::Real;
use super::{bytes, errors, kernel, names, rights, times};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Where a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// At every place.
    All,
    /// At every place; a real one needs root, to act as others or make nodes.
    Root,
    /// Where the kernel is: it decides this.
    Kernel,
    /// The same, as root.
    KernelRoot,
    /// Takes long: on a mount only in the long run.
    Long,
}

/// What runs.
#[derive(Clone, Copy)]
pub enum Run {
    Any(fn(&dyn Place)),
    Real(fn(&Real)),
}

pub type Scenario = (&'static str, On, Run);

macro_rules! table {
    ($($on:ident: $kind:ident $module:ident::{$($name:ident),* $(,)?})*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), On::$on, Run::$kind($module::$name)),)*)*]
    };
}

pub const SCENARIOS: &[Scenario] = table! {
    All: Any errors::{
        names_that_are_not_there, names_that_are_taken, files_are_no_directories, directories_are_no_files,
        directories_with_entries_stay, names_and_targets_that_are_too_long, renames_that_make_no_sense,
        files_that_would_be_too_large, offsets_without_data_or_hole, modes_of_allocation, attributes_and_their_flags,
        attributes_until_there_is_no_room, the_largest_attribute,
    }
    Long: Any errors::{as_many_links_as_ext4_has}
    All: Any bytes::{
        cut_and_made_longer, written_past_the_end, punched_zeroed_and_allocated, room_that_is_taken, holes_are_found,
        allocated_is_no_data, copied_ranges,
    }
    All: Any times::{times_are_kept_to_the_nanosecond, special_times, looks_renew_access_times}
    Root: Any times::{which_call_changes_which_time}
    All: Any rights::{modes_are_kept}
    Root: Any rights::{
        device_nodes, umask_takes_bits, setgid_directories_give_their_group, masks_follow_the_mode, defaults_are_inherited,
        lists_that_make_no_sense, a_list_set_by_a_stranger_to_the_group_takes_setgid,
    }
    KernelRoot: Any rights::{
        setgid_goes_where_its_owner_is_no_member, sticky_directories_keep_what_is_others,
        owners_are_changed_by_root_alone, lists_are_obeyed, namespaces_of_attributes,
    }
    All: Any names::{
        an_open_file_without_a_name, an_open_file_that_is_replaced, an_open_directory_that_is_removed,
        an_open_directory_that_is_replaced, exchanges, hard_links, links_of_directories, listed_while_names_come_and_go,
        many_names,
    }
    Root: Any names::{whiteouts}
    Kernel: Real kernel::{
        paths_that_are_too_long, loops_of_links, places_that_are_busy_or_elsewhere, handles_that_cannot,
        programs_that_run, whole_file_locks, locks_of_processes, locks_of_open_files, shared_mappings_are_the_file,
        what_the_kernel_still_holds_is_no_hole,
        stores_behind_the_end, private_mappings_are_not, mappings_beyond_the_end, direct_beside_buffered_and_mapped,
        writes_that_wait_for_the_disk, two_processes_append, pipes_and_sockets, what_is_not_promised,
    }
    KernelRoot: Real kernel::{handles_that_are_stale}
};

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: u64,
    pub skipped: u64,
    pub failed: Vec<String>,
}

impl Report {
    /// Do one scenario and note what came of it.
    pub fn run(&mut self, name: &str, scenario: impl FnOnce()) {
        let began = std::time::Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(scenario));
        println!("{name}: {} ms", began.elapsed().as_millis());
        match outcome {
            Ok(()) => self.passed += 1,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                println!("FAILED {name}: {}", text.as_deref().unwrap_or("a panic"));
                self.failed.push(name.to_owned());
            }
        }
    }
}

/// Whether a scenario is asked for: `STABLEFS_SCENARIO` may name a part of its name.
fn is_wanted(name: &str) -> bool {
    std::env::var("STABLEFS_SCENARIO").map_or(true, |part| name.contains(&part))
}

/// Run all that can be run in `folder`, each in a folder of its own.
pub fn run_real(folder: &Path, kind: Kind, long: bool) -> Report {
    let is_root = rustix::process::geteuid().is_root();
    let mut report = Report::default();
    for (name, on, run) in SCENARIOS.iter().filter(|(name, ..)| is_wanted(name)) {
        let needs_root = matches!(on, On::Root | On::KernelRoot);
        if (needs_root && !is_root) || (*on == On::Long && kind != Kind::Ext4 && !long) {
            report.skipped += 1;
            continue;
        }
        let own = folder.join(name.replace("::", "."));
        std::fs::create_dir(&own).unwrap();
        report.run(name, || {
            let place = Real::new(&own, kind);
            match run {
                Run::Any(scenario) => scenario(&place),
                Run::Real(scenario) => scenario(&place),
            }
        });
        std::fs::remove_dir_all(&own).unwrap();
    }
    report
}

/// Run `one` with each scenario that needs no kernel.
#[allow(dead_code)] // not where there is one
pub fn run_core(report: &mut Report, mut one: impl FnMut(fn(&dyn Place))) {
    for (name, on, run) in SCENARIOS.iter().filter(|(name, ..)| is_wanted(name)) {
        match run {
            Run::Any(scenario) if !matches!(on, On::Kernel | On::KernelRoot) => report.run(name, || one(*scenario)),
            _ => {}
        }
    }
}
