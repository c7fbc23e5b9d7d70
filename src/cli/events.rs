//! `events`: what happened to a volume and its replicas, as a person or a program reads it.
//!
//! *Guarantees*: the newest comes last; the daemon is asked, never the mount or a disk. *Assumes*: nothing.
//! *Fails when*: the daemon cannot be asked: one line. *Order*: by sequence number. *Not here*: which events there are
//! (`volume::events`).

use super::{EventsArgs, status, talk, task};
use crate::control::Request;
use crate::volume::events::{EventLog, EventReport};
use std::io::Write;
use std::time::Duration;

/// How often it is looked for more.
const LOOK: Duration = Duration::from_millis(500);

/// Show them.
pub(super) fn events(args: &EventsArgs) -> Result<(), String> {
    let mut after = 0;
    let mut is_first = true;
    loop {
        let answer = match talk::ask(&args.mountpoint, &Request::Events { after }) {
            Ok(answer) => answer,
            Err(text) if is_first => return Err(text),
            Err(_) => return Ok(()), // the mount has ended: so do we
        };
        if args.json && !args.follow {
            return task::print_json(&answer["events"]);
        }
        let log: EventLog = serde_json::from_value(answer)
            .map_err(|error| format!("the daemon is of another version ({error}); use its own stablefs"))?;
        let mut out = std::io::stdout().lock();
        for event in &log.events {
            let line =
                if args.json { serde_json::to_string(event).map_err(|error| error.to_string())? } else { line(event) };
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return Ok(()); // nobody reads any more
            }
        }
        if std::mem::take(&mut is_first) {
            notes(&log).iter().for_each(|note| eprintln!("stablefs: {note}"));
        }
        drop(out);
        if !args.follow {
            return Ok(());
        }
        after = log.events.last().map_or(after, |event| event.sequence);
        std::thread::sleep(LOOK);
    }
}

/// What is missing in it.
fn notes(log: &EventLog) -> Vec<String> {
    [
        (log.dropped, "events were dropped since the mount: too much happened at once"),
        (log.unwritten, "of these events are not on the replicas, and gone after the mount"),
        (log.unreadable, "events on the replicas are damaged; fsck tells more"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect()
}

/// An event in one line.
fn line(event: &EventReport) -> String {
    let mut parts = vec![status::date(i64::try_from(event.time_ns).unwrap_or(i64::MAX)), event.event.clone()];
    if let Some(replica) = &event.replica {
        parts.push(format!("replica {} {}", replica.slot, replica.path));
    }
    let word = |state: &str| if state.is_empty() { "none".to_owned() } else { state.to_owned() };
    if event.event == "state" {
        parts.push(format!("{} -> {}", word(&event.from), word(&event.to)));
    }
    let numbers = |names: &[&str]| {
        let told = names.iter().filter_map(|name| Some(format!("{name} {}", event.detail.get(*name)?)));
        told.collect::<Vec<_>>().join(", ")
    };
    match event.event.as_str() {
        "recovered" => parts.push(numbers(&["replayed", "healed"])),
        "scrubbed" => parts.push(numbers(&["found", "healed", "lost"])),
        "mounted" if event.detail.get("read_only") == Some(&1) => parts.push("read-only".into()),
        _ => {}
    }
    let mut text = parts.join("  ");
    for part in [&event.cause, &event.path].into_iter().filter(|part| !part.is_empty()) {
        text.push_str(": ");
        text.push_str(part);
    }
    // A name may hold anything: one event is one line.
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::events::EventReplica;

    #[test]
    fn an_event_is_one_line() {
        let event = EventReport {
            time_ns: 1_795_421_702_000_000_000,
            event: "state".into(),
            replica: Some(EventReplica { slot: 1, uuid: String::new(), path: "/b".into() }),
            from: "in sync".into(),
            to: "out".into(),
            cause: "a write failed\nbadly".into(),
            path: "/x\u{1b}y".into(),
            ..EventReport::default()
        };
        let told = "2026-11-23 08:15:02 UTC  state  replica 1 /b  in sync -> out: a write failed?badly: /x?y";
        assert_eq!(line(&event), told);
        let first = EventReport {
            from: String::new(),
            to: "in sync".into(),
            cause: String::new(),
            path: String::new(),
            ..event
        };
        assert!(line(&first).ends_with("none -> in sync"));
    }
}
