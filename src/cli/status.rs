//! `status`: a report as a person reads it.
//!
//! *Guarantees*: exit code 0 only if every mount that was asked is healthy. *Assumes*: nothing.
//! *Fails when*: a daemon cannot be asked (2). *Order*: none. *Not here*: what the states mean (`volume::status`).

use super::{FAILED, StatusArgs, USAGE, complain, talk};
use crate::control::{Request, place};
use crate::daemon::report::Report;
use crate::daemon::task::TaskReport;
use crate::mount::table::{self, Entry};
use crate::volume::availability::{Availability, Figures};
use crate::volume::risk::Risk;
use crate::volume::status::ReplicaStatus;
use crate::world::{Machine, World};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;
use std::fmt::Write;

/// Tell how one mount is, or all of them.
pub(super) fn status(args: &StatusArgs) -> u8 {
    let entries = match &args.mountpoint {
        Some(path) => talk::find(path).map(|entry| vec![entry]),
        None => all(),
    };
    let entries = match entries {
        Ok(entries) => entries,
        Err(text) => {
            complain(&text);
            return USAGE;
        }
    };
    if entries.is_empty() && !args.json {
        println!("no stablefs is mounted");
    }
    let mut worst = 0;
    let mut values = Vec::new();
    for (count, entry) in entries.iter().enumerate() {
        let answer = ask(entry);
        let code = match &answer {
            Err(text) => {
                complain(text);
                USAGE
            }
            Ok((_, report)) => {
                if !args.json {
                    print!("{}{}", if count > 0 { "\n" } else { "" }, render(report, Machine.now_ns()));
                }
                if report.status.state == "healthy" { 0 } else { FAILED }
            }
        };
        values.extend(answer.ok().map(|(value, _)| value));
        worst = worst.max(code);
    }
    if args.json {
        let whole = if args.mountpoint.is_some() { values.pop() } else { Some(Value::Array(values)) };
        if let Some(Err(text)) = whole.map(|whole| super::task::print_json(&whole)) {
            complain(&text);
        }
    }
    worst
}

fn all() -> Result<Vec<Entry>, String> {
    let entries = table::read().map_err(|error| format!("cannot read the table of mounts: {error}"))?;
    Ok(entries.into_iter().filter(place::is_ours).collect())
}

fn ask(entry: &Entry) -> Result<(Value, Report), String> {
    let mut client = talk::connect(entry)?;
    let value = client.call(&Request::Status {}, &mut |_| {}).map_err(|error| talk::explain(entry, error))?;
    let report = serde_json::from_value(value.clone())
        .map_err(|error| format!("the daemon is of another version ({error}); use its own stablefs"))?;
    Ok((value, report))
}

/// A report in words.
fn render(report: &Report, now_ns: i64) -> String {
    let status = &report.status;
    let mut lines: Vec<(&str, String)> = Vec::new();
    let name = if status.label.is_empty() { String::new() } else { format!("{} ", status.label) };
    lines.push(("volume", format!("{name}{}", status.volume)));
    let how = if status.read_only { "read-only" } else { "writable" };
    lines.push(("mount", format!("{}, {how}, since {}", report.mount.path, moment(report.mount.since_ns, now_ns))));
    lines.push(("state", status.state.to_uppercase()));
    lines.push(("meaning", status.meaning.clone()));
    if let Some(action) = &status.action {
        lines.push(("action", action.clone()));
    }
    lines.extend(status.notes.iter().map(|note| ("note", note.clone())));
    let used = format!("{} used of {}", size(status.used_bytes), size(status.size_bytes));
    lines.push(("space", format!("{used}, {} free, {} files", size(status.free_bytes), status.inodes)));
    lines.extend(risk(&status.risk, &status.availability, now_ns).map(|text| ("risk", text)));
    lines.extend(service(&status.availability).map(|text| ("service", text)));
    if let Some(task) = &report.task {
        lines.push(("work", task_line(task)));
    }
    lines.push(("log", report.mount.log.clone()));
    let mut out = String::new();
    for (name, text) in lines {
        let _ = writeln!(out, "{name:>8}: {text}"); // a String takes everything
    }
    let _ = writeln!(out, "\n{}\n\n{}", replicas(report, now_ns), counters(report));
    out
}

/// What is at risk in one line.
fn risk(risk: &Risk, all: &Availability, now_ns: i64) -> Option<String> {
    if risk.since_ns == 0 {
        return None;
    }
    let since = moment(i64::try_from(risk.since_ns).unwrap_or(i64::MAX), now_ns);
    let mut text = match risk.held_once_if_lost_bytes {
        0 => format!("{} not on every replica", size(risk.held_by_fewer_bytes)),
        lost => format!("{} held once; {} if what is away does not come back", size(risk.held_once_bytes), size(lost)),
    };
    let _ = write!(text, "; at risk since {since}, {} in all", span(all.at_risk_ms));
    Some(text)
}

/// Availability in one line.
fn service(all: &Availability) -> Option<String> {
    let share = |figures: &Figures| {
        let share = figures.availability?;
        Some(match figures.nines {
            None => "100 %".to_owned(),
            // Cut, not rounded: what was not always there is not 100 %.
            Some(nines) => format!("{} % ({nines} nines)", (share * 1e7).floor() / 1e5),
        })
    };
    let mut text = format!("reads {}", share(&all.reads)?);
    if let Some(writes) = share(&all.writes) {
        let _ = write!(text, ", writes {writes}");
    }
    let _ = write!(text, " of {}", span(all.reads.up_ms + all.reads.down_ms));
    let outages = all.reads.outages.max(all.writes.outages);
    let word = if outages == 1 { "outage" } else { "outages" };
    let _ = write!(text, ", {outages} {word}");
    if all.held_once_ms > 0 {
        let _ = write!(text, "; held once for {}", span(all.held_once_ms));
    }
    Some(text)
}

/// A time as a person reads it.
fn span(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s}.{} s", ms % 1000 / 100),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// The state in a word; of one that follows, how far it is.
fn state(replica: &ReplicaStatus) -> String {
    match (replica.role.as_str(), replica.state.as_str(), replica.lag_ms) {
        ("hot", state, _) | (_, state @ "returning", _) => state.to_owned(),
        (role, _, Some(0)) => format!("{role}, not behind"),
        (role, _, Some(ms)) => format!("{role}, {} behind", span(ms)),
        (role, state, None) => format!("{role}, {state}"),
    }
}

fn replicas(report: &Report, now_ns: i64) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["#", "replica", "state", "since", "available", "waiting", "kind"]);
    for replica in &report.status.replicas {
        let kind = replica.kind.clone().unwrap_or_default();
        let io = if kind.is_empty() || replica.direct_io { "" } else { ", through the page cache" };
        table.add_row([
            replica.slot.to_string(),
            replica.path.clone(),
            std::iter::once(state(replica)).chain(replica.conditions.iter().cloned()).collect::<Vec<_>>().join(", "),
            moment(i64::try_from(replica.since_ns).unwrap_or(i64::MAX), now_ns),
            available(&report.status.availability, &replica.replica),
            replica.in_flight.to_string(),
            format!("{kind}{io}"),
        ]);
    }
    align(&mut table, &[4, 5]);
    table
}

/// How much of the time a replica was in sync.
fn available(all: &Availability, replica: &str) -> String {
    let found = all.replicas.iter().find(|one| one.replica == replica);
    let share = found.and_then(|one| one.figures.availability);
    share.map(|share| format!("{} %", (share * 1e5).floor() / 1e3)).unwrap_or_default()
}

/// What was counted since the mount.
fn counters(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "#",
        "unreadable",
        "checksum",
        "transient",
        "healed",
        "not healed",
        "write failed",
        "flush failed",
        "deadline missed",
    ]);
    for replica in &report.status.replicas {
        let counted = [
            replica.unreadable,
            replica.checksum,
            replica.transient,
            replica.healed,
            replica.heal_failed,
            replica.write_failed,
            replica.flush_failed,
            replica.deadline_missed,
        ];
        let counted = counted.iter().map(u64::to_string);
        table.add_row(std::iter::once(replica.slot.to_string()).chain(counted));
    }
    align(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8]);
    table
}

fn align(table: &mut Table, right: &[usize]) {
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// A task in one line.
pub(super) fn task_line(task: &TaskReport) -> String {
    let progress = &task.progress;
    let mut line = format!("{} {}", task.kind, task.state);
    if task.state == "running" && progress.total > 0 {
        let _ = write!(line, ", {} %", progress.done.min(progress.total) * 100 / progress.total);
    }
    if progress.damaged > 0 {
        let _ = write!(line, ", {} damaged, {} healed", progress.damaged, progress.healed);
    }
    if !task.error.is_empty() {
        let _ = write!(line, ": {}", task.error);
    }
    let (word, when) = if task.ended_ns == 0 { ("begun", task.began_ns) } else { ("ended", task.ended_ns) };
    let _ = write!(line, ", {word} {}", moment(when, Machine.now_ns()));
    line
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1023.95 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", units[unit])
}

/// `2026-11-23 08:15:02 UTC`.
pub(super) fn date(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `2026-11-23 08:15:02 UTC (3 min ago)`.
fn moment(ns: i64, now_ns: i64) -> String {
    let ago = now_ns.saturating_sub(ns) / 1_000_000_000;
    let ago = match ago {
        i64::MIN..0 => String::new(),
        0..120 => format!(" ({ago} s ago)"),
        120..7200 => format!(" ({} min ago)", ago / 60),
        7200..172_800 => format!(" ({} h ago)", ago / 3600),
        _ => format!(" ({} days ago)", ago / 86_400),
    };
    format!("{}{ago}", date(ns))
}

/// Year, month and day of a day counted from 1970 (Hinnant's algorithm).
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        let second = 1_000_000_000;
        assert_eq!(moment(0, 5 * second), "1970-01-01 00:00:00 UTC (5 s ago)");
        assert_eq!(
            moment(951_782_400 * second, 951_782_400 * second + 7200 * second),
            "2000-02-29 00:00:00 UTC (2 h ago)"
        );
        assert_eq!(moment(1_795_421_702 * second, 0), "2026-11-23 08:15:02 UTC");
        assert_eq!(civil(-1), (1969, 12, 31));
    }

    #[test]
    fn what_is_at_risk_is_one_line() {
        let second = 1_000_000_000;
        let all = Availability { at_risk_ms: 5000, ..Availability::default() };
        assert_eq!(risk(&Risk::default(), &all, 0), None);
        let mut now = Risk {
            since_ns: second as u64,
            held_once_bytes: 3 << 20,
            held_by_fewer_bytes: 3 << 20,
            held_once_if_lost_bytes: 7 << 30,
        };
        let text = risk(&now, &all, 6 * second).unwrap();
        assert_eq!(
            text,
            "3.0 MiB held once; 7.0 GiB if what is away does not come back; at risk since 1970-01-01 00:00:01 UTC (5 s ago), 5.0 s in all"
        );
        (now.held_once_bytes, now.held_once_if_lost_bytes) = (0, 0);
        assert!(risk(&now, &all, 6 * second).unwrap().starts_with("3.0 MiB not on every replica; "));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(10 << 30), "10.0 GiB");
        assert_eq!(size((1 << 30) - 1), "1.0 GiB");
        assert!(size(u64::MAX).ends_with("EiB"));
    }
}
