//! `scrub` and `replace`: long work in the daemon, watched from here.
//!
//! *Guarantees*: interrupting the command does not stop the work. *Assumes*: nothing. *Fails when*: one line.
//! *Order*: none. *Not here*: the work.

use super::{AttachArgs, DetachArgs, OfflineArgs, OnlineArgs, ReplaceArgs, RoleArgs, ScrubArgs, status, talk};
use crate::control::{Request, ScrubAction};
use crate::daemon::absolute;
use crate::daemon::report::shell_word;
use crate::daemon::task::TaskReport;
use crate::volume::scrub::ScrubReport;
use serde_json::Value;

/// Scrub, look or stop.
pub(super) fn scrub(args: &ScrubArgs) -> Result<(), String> {
    let action = match (args.status, args.stop) {
        (true, _) => ScrubAction::Status,
        (_, true) => ScrubAction::Stop,
        _ => ScrubAction::Start,
    };
    let result = talk::ask(&args.mountpoint, &Request::Scrub { action })?;
    match action {
        ScrubAction::Stop if args.json => print_json(&result),
        ScrubAction::Stop => Ok(()),
        ScrubAction::Start => {
            if args.json {
                print_json(&result)?;
            }
            tell_scrub(result, args.json)
        }
        ScrubAction::Status => {
            if args.json {
                print_json(&result)?;
            }
            let task: TaskReport = serde_json::from_value(result).map_err(|error| error.to_string())?;
            if !args.json {
                println!("{}", status::task_line(&task));
            }
            if task.result.is_null() { Ok(()) } else { tell_scrub(task.result, args.json) }
        }
    }
}

/// Tell what a scrub found, unless that `is_told`; damage that is left is a failure of the command.
fn tell_scrub(result: Value, is_told: bool) -> Result<(), String> {
    let report: ScrubReport = serde_json::from_value(result).map_err(|error| error.to_string())?;
    if !is_told {
        print_scrub(&report);
    }
    judge_scrub(&report)
}

fn print_scrub(report: &ScrubReport) {
    println!("{report}");
    for line in &report.lost_paths {
        println!("lost: {line}");
    }
    for line in &report.combined_from {
        println!("put together: {line}");
    }
    let more = report.combined.saturating_sub(report.combined_from.len() as u64);
    if more > 0 {
        println!("… and {more} more put together");
    }
    for line in &report.notes {
        println!("note: {line}");
    }
}

/// Whether all is well.
fn judge_scrub(report: &ScrubReport) -> Result<(), String> {
    match (report.lost, report.failed) {
        (0, 0) if report.unreached > 0 => {
            Err("a part of the volume breaks a rule of its format and was not reached; see the notes, and run fsck"
                .into())
        }
        (0, 0) if report.unproven > 0 => {
            Err(format!("{} copies could not be proven: a replica did not answer; see the state", report.unproven))
        }
        (0, 0) => Ok(()),
        (0, failed) => Err(format!("{failed} damaged copies could not be repaired; look at the disk that holds them")),
        (lost, _) => {
            Err(format!("{lost} blocks are damaged on every replica; restore what is named above from a backup"))
        }
    }
}

/// What names a replica, for the daemon, which has another current directory: a number stays one.
fn replica(name: &str) -> Result<String, String> {
    match name.parse::<usize>() {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Ok(absolute(std::path::Path::new(name))?.to_string_lossy().into_owned()),
    }
}

/// Let a replica return.
pub(super) fn online(args: &OnlineArgs) -> Result<(), String> {
    let result = talk::ask(&args.mountpoint, &Request::Online { replica: replica(&args.replica)? })?;
    if args.json {
        return print_json(&result);
    }
    print_result(&result);
    Ok(())
}

/// Send a replica away.
pub(super) fn offline(args: &OfflineArgs) -> Result<(), String> {
    let (replica, temporary) = (replica(&args.replica)?, args.temporary);
    talk::ask(&args.mountpoint, &Request::Offline { replica, temporary }).map(drop)
}

/// Keep a replica in another way.
pub(super) fn role(args: &RoleArgs) -> Result<(), String> {
    let request = Request::Role { replica: replica(&args.replica)?, role: args.role.clone() };
    let result = talk::ask(&args.mountpoint, &request)?;
    print_result(&result);
    Ok(())
}

/// Replace a replica.
pub(super) fn replace(args: &ReplaceArgs) -> Result<(), String> {
    let old = replica(&args.old)?;
    let new = absolute(&args.new)?;
    let new = new.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", new.display()))?.to_owned();
    let result = talk::ask(&args.mountpoint, &Request::Replace { old, new })?;
    tell_filled(&result, &args.mountpoint, args.json)
}

/// Attach one more replica.
pub(super) fn attach(args: &AttachArgs) -> Result<(), String> {
    let new = absolute(&args.new)?;
    let new = new.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", new.display()))?.to_owned();
    let place = shell_word(&new);
    let result = talk::ask(&args.mountpoint, &Request::Attach { new, force: args.force })?;
    tell_filled(&result, &args.mountpoint, args.json)?;
    if !args.json {
        println!("name it at the next mount, beside the others: {place}");
    }
    Ok(())
}

fn tell_filled(result: &Value, mountpoint: &std::path::Path, as_json: bool) -> Result<(), String> {
    if as_json {
        return print_json(result);
    }
    print_result(result);
    println!("see the state: stablefs status {}", shell_word(&mountpoint.to_string_lossy()));
    Ok(())
}

/// Detach a replica.
pub(super) fn detach(args: &DetachArgs) -> Result<(), String> {
    let result = talk::ask(&args.mountpoint, &Request::Detach { replica: replica(&args.replica)? })?;
    if args.json {
        return print_json(&result);
    }
    print_result(&result);
    Ok(())
}

pub(super) fn print_json(value: &Value) -> Result<(), String> {
    println!("{}", serde_json::to_string_pretty(value).map_err(|error| error.to_string())?);
    Ok(())
}

/// A flat result as `name: value` lines; lists with a line for each entry.
fn print_result(result: &Value) {
    let Value::Object(fields) = result else { return };
    for (name, value) in fields {
        let name = name.replace('_', " ");
        match value {
            Value::Array(lines) => lines.iter().for_each(|line| println!("{name}: {}", plain(line))),
            other => println!("{name}: {}", plain(other)),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
