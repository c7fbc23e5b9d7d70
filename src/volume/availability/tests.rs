//! Figures by hand.

use super::*;

const S: u64 = 1_000_000_000;
const A: Uuid = Uuid([1; 16]);
const B: Uuid = Uuid([2; 16]);

use EventState::{Absent, InSync, Missing, Out, Returning, Slow};

fn event(kind: EventKind, at_s: u64, numbers: [u64; 3]) -> Event {
    Event { numbers, ..Event::new(kind, at_s * S) }
}

fn moved(replica: Uuid, at_s: u64, from: EventState, to: EventState) -> Event {
    let place = if replica == A { "/a" } else { "/b" };
    Event { replica, from, to, place: place.into(), ..Event::new(EventKind::State, at_s * S) }
}

fn now() -> [Now; 2] {
    [(A, "/a"), (B, "/b")].map(|(replica, path)| Now { replica, path: path.into(), state: InSync, follows: false })
}

fn figures(events: &[Event], now_s: u64) -> Availability {
    availability(events.iter(), now_s * S, &now())
}

fn of(all: &Availability, replica: Uuid) -> Figures {
    all.replicas.iter().find(|one| one.replica == replica.to_string()).unwrap().figures.clone()
}

fn begun() -> Vec<Event> {
    vec![event(EventKind::Mounted, 1000, [0; 3]), moved(A, 1000, Absent, InSync), moved(B, 1000, Absent, InSync)]
}

fn triple(figures: &Figures) -> (u64, u64, u64) {
    (figures.up_ms / 1000, figures.down_ms / 1000, figures.outages)
}

#[test]
fn nothing_is_said_of_nothing() {
    assert_eq!(figures(&[], 5000), Availability::default());
    let all = figures(&begun(), 1000);
    assert_eq!((all.reads.availability, all.reads.nines, all.reads.mtbf_ms), (None, None, None));
}

#[test]
fn a_replica_that_goes_and_returns_costs_the_service_nothing() {
    // 1000 s in sync, 90 s out, 10 s returning, 900 s in sync.
    let mut events = begun();
    events.push(moved(B, 2000, InSync, Out));
    events.push(moved(B, 2090, Out, Returning));
    events.push(moved(B, 2100, Returning, InSync));
    let all = figures(&events, 3000);
    assert_eq!(triple(&all.reads), (2000, 0, 0));
    assert_eq!((all.reads.availability, all.reads.nines), (Some(1.0), None));
    assert_eq!(all.reads, all.writes);
    assert_eq!(triple(&of(&all, A)), (2000, 0, 0));
    let b = of(&all, B);
    assert_eq!(triple(&b), (1900, 100, 1));
    assert_eq!((b.mtbf_ms, b.mttr_ms), (Some(1_900_000), Some(100_000)));
    assert_eq!((b.availability, b.nines), (Some(0.95), Some(1.30)));
    assert_eq!((all.held_once_ms, all.at_risk_ms), (100_000, 100_000));
    assert_eq!(all.since_ns, 1000 * S);
}

#[test]
fn who_is_slow_is_in_sync() {
    let mut events = begun();
    events.push(moved(B, 1500, InSync, Slow));
    events.push(moved(B, 1600, Slow, InSync));
    events.push(moved(B, 1700, InSync, Slow));
    let all = figures(&events, 2000);
    assert_eq!((triple(&of(&all, B)), all.held_once_ms, all.at_risk_ms), ((1000, 0, 0), 0, 0));
    events.push(moved(B, 2000, Slow, Out));
    let all = figures(&events, 2100);
    assert_eq!((triple(&of(&all, B)), all.held_once_ms), ((1000, 100, 1), 100_000));
}

#[test]
fn time_unmounted_in_order_is_nobodys() {
    let mut events = begun();
    events.push(event(EventKind::Unmounted, 1500, [0; 3]));
    events.push(event(EventKind::Mounted, 9500, [0; 3]));
    events.push(moved(B, 9500, InSync, Missing));
    let all = figures(&events, 10_000);
    assert_eq!(triple(&all.reads), (1000, 0, 0));
    assert_eq!(triple(&of(&all, B)), (500, 500, 1), "it was missing at the mount, and still is");
    assert_eq!((all.held_once_ms, all.at_risk_ms), (500_000, 500_000));
    let mut now = now();
    now[1].follows = true;
    assert_eq!(availability(events.iter(), 10_000 * S, &now).at_risk_ms, 0, "a warm one is behind because it is to be");
}

#[test]
fn a_crash_is_an_outage_from_the_last_sign_of_life() {
    // Its last root was written at 1800; mounted again at 1900: 100 of 1000 s.
    let mut events = begun();
    events.push(event(EventKind::Recovered, 1900, [3, 0, 1800 * S]));
    events.push(event(EventKind::Mounted, 1900, [0; 3]));
    let all = figures(&events, 2000);
    assert_eq!(triple(&all.reads), (900, 100, 1));
    assert_eq!(triple(&all.writes), (900, 100, 1));
    assert_eq!((all.reads.availability, all.reads.nines), (Some(0.9), Some(1.0)));
    assert_eq!((all.reads.mtbf_ms, all.reads.mttr_ms), (Some(900_000), Some(100_000)));
    assert_eq!(triple(&of(&all, A)), (900, 0, 0), "a crash of the machine is no fault of a replica");
    // The root's time is not believed beyond the events around it.
    events[3].numbers[2] = 5000 * S;
    assert_eq!(triple(&figures(&events, 2000).reads), (1000, 0, 1));
    events[3].numbers[2] = 0;
    assert_eq!(triple(&figures(&events, 2000).reads), (100, 900, 1));
}

#[test]
fn a_mount_without_an_unmount_before_it_is_a_crash() {
    let mut events = begun();
    events.push(event(EventKind::Scrubbed, 1700, [0; 3]));
    events.push(event(EventKind::Mounted, 1900, [0; 3]));
    let all = figures(&events, 2000);
    assert_eq!(triple(&all.reads), (800, 200, 1));
}

#[test]
fn reading_goes_on_where_writing_has_failed() {
    let mut events = begun();
    events.push(event(EventKind::Failed, 1600, [0; 3]));
    events.push(event(EventKind::Failed, 1650, [0; 3]));
    let all = figures(&events, 2000);
    assert_eq!(triple(&all.reads), (1000, 0, 0));
    assert_eq!(triple(&all.writes), (600, 400, 1));
    // What was not to be written is not missed.
    let events = vec![event(EventKind::Mounted, 1000, [1, 0, 0])];
    let all = figures(&events, 2000);
    assert_eq!((triple(&all.reads), triple(&all.writes)), ((1000, 0, 0), (0, 0, 0)));
}

#[test]
fn a_clock_that_goes_back_takes_no_time_away() {
    // 100 s, back to 500, 50 s more, out for 20 s.
    let mut events = begun();
    events.push(event(EventKind::Scrubbed, 1100, [0; 3]));
    events.push(event(EventKind::Scrubbed, 500, [0; 3]));
    events.push(moved(B, 550, InSync, Out));
    let all = figures(&events, 570);
    assert_eq!(triple(&all.reads), (170, 0, 0));
    assert_eq!(triple(&of(&all, B)), (150, 20, 1));
    assert_eq!(triple(&figures(&events, 100).reads), (150, 0, 0), "now is before the last event");
    // A crash seen through a clock that went back: no time, but an outage.
    events.push(event(EventKind::Recovered, 300, [0, 0, 560 * S]));
    events.push(event(EventKind::Mounted, 300, [0; 3]));
    assert_eq!(triple(&figures(&events, 310).reads), (160, 0, 1));
}

#[test]
fn a_log_that_was_cut_begins_with_what_its_events_leave() {
    // The oldest events are gone: mounted already, A never moves, B was out before its first event.
    let events = vec![moved(B, 4000, Out, Returning), moved(B, 4100, Returning, InSync), moved(B, 4500, InSync, Out)];
    let all = figures(&events, 5000);
    assert_eq!(triple(&all.reads), (1000, 0, 0));
    assert_eq!(triple(&of(&all, A)), (1000, 0, 0));
    assert_eq!(triple(&of(&all, B)), (400, 600, 1));
    assert_eq!(all.held_once_ms, 600_000);
}

#[test]
fn a_new_replica_counts_from_when_it_is_in_sync() {
    let c = Uuid([3; 16]);
    let mut events = begun();
    events.push(moved(c, 1100, Absent, Returning));
    events.push(moved(B, 1200, InSync, Absent));
    events.push(moved(c, 1200, Returning, InSync));
    let all = figures(&events, 1300);
    assert_eq!(triple(&of(&all, c)), (100, 0, 0));
    assert_eq!(triple(&of(&all, B)), (200, 0, 0), "being replaced is no outage");
    assert_eq!(all.held_once_ms, 0);
}

#[test]
fn nines_are_rounded_down() {
    let nines = |up: u64, down: u64| Tally { up, down, outages: 1 }.figures().nines.unwrap();
    assert_eq!(nines(99, 1), 2.0);
    assert_eq!(nines(9989, 11), 2.95);
    assert_eq!(nines(99_999, 1), 5.0);
    assert_eq!(nines(0, 5), 0.0);
}
