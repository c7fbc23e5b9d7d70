//! Looking at heartbeats before a volume is opened, and waiting for one whose owner may live elsewhere.
//!
//! *Guarantees*: if an owner on another host lives, it is seen: it is waited for as long as its lease is, longer than it
//! writes without showing itself. An owner that is known to be dead, or has let go, costs nothing. Nothing is written.
//! *Assumes*: the places are locked by us. *Fails when*: another host uses the volume: [`StoreError::Refused`], with its name and what to do.
//! *Order*: look → wait, telling how long → look again at what else stands there. *Not here*: our own heartbeat (`beat`).
//!
//! | what stands on a replica | what it means | what is done |
//! |---|---|---|
//! | zeros | a volume made before there were heartbeats, or a new replica | opened at once |
//! | released | nobody uses it | opened at once |
//! | running, of an owner that has let go of another replica | this one was out by then | opened at once |
//! | running, of a process of this boot that has ended, or of an earlier boot of this host | its owner is dead | opened at once |
//! | running, of anybody else | its owner may live | waited for; refused if anything changes |
//! | something that proves nothing | the block was damaged; a living owner would mend it with its next heartbeat | as above |
//! | cannot be read | a living owner would mend it, too; who cannot write it cannot write here | opened at once, with a warning |

use super::host::Session;
use super::{LEASE_DEFAULT, NOBODY};
use crate::disk::backing::{Backing, Done, Op};
use crate::format::geometry::BEAT_AT;
use crate::format::{Beat, BeatState, Label};
use crate::store::StoreError;
use crate::store::recover::{self, Present};
use crate::sync::Instant;
use crate::volume::{EXAMINE_WAIT, refused};
use std::sync::Arc;
use std::time::Duration;

/// Shortest and longest time that a heartbeat is waited for, whatever lease it tells.
const WAIT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// How often it is looked at meanwhile.
const STEP: Duration = Duration::from_millis(250);
/// Whether to wait for those of whom it is not known whether they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// For as long as they may take.
    Wait,
    /// A person says that they are dead.
    Force,
}

/// Where to look.
#[derive(Clone)]
pub struct Spot {
    /// Path of the replica.
    pub path: String,
    /// Its label.
    pub label: Label,
    /// Its medium.
    pub backing: Arc<dyn Backing>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The heartbeats that stood there last.
    pub beats: Vec<Beat>,
    /// It was waited: what was read of the volume before may be old.
    pub waited: bool,
    /// Another host used it last: the replicas are shared.
    pub elsewhere: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Zeros,
    Beat(Beat),
    Junk(Vec<u8>),
    Unreadable(String),
}

fn look(spots: &[Spot]) -> Vec<Found> {
    let ask = |spot: &Spot| spot.backing.submit(Op::ReadMedium { addr: BEAT_AT, blocks: 1 });
    let asked: Vec<_> = spots.iter().map(ask).collect();
    let until = Instant::now() + EXAMINE_WAIT;
    let judge = |(spot, ticket): (&Spot, crate::disk::backing::Ticket)| match ticket.wait(Some(until)) {
        Some(Ok(Done::Data(block))) if block.iter().all(|byte| *byte == 0) => Found::Zeros,
        Some(Ok(Done::Data(block))) => match Beat::decode(&block, spot.label.volume) {
            Ok(beat) => Found::Beat(beat),
            Err(_) => Found::Junk(block.to_vec()),
        },
        Some(Ok(_)) => Found::Unreadable("answered a read without data".into()),
        Some(Err(error)) => Found::Unreadable(error.to_string()),
        None => Found::Unreadable(format!("no answer within {EXAMINE_WAIT:?}")),
    };
    spots.iter().zip(asked).map(judge).collect()
}

/// How long to wait for it; `None`: not at all.
fn wait_for(me: &Session, found: &Found) -> Option<Duration> {
    match found {
        Found::Zeros | Found::Unreadable(_) => None,
        Found::Junk(_) => Some(LEASE_DEFAULT),
        Found::Beat(beat) if beat.state == BeatState::Released || me.knows_dead(beat) => None,
        Found::Beat(beat) => Some(Duration::from_millis(beat.lease_ms.into()).clamp(*WAIT.start(), *WAIT.end())),
    }
}

/// `host alpha`, for people.
pub(super) fn host_of(beat: &Beat) -> String {
    format!("host {}", if beat.name.is_empty() { NOBODY } else { &beat.name })
}

fn tell_of(spot: &Spot, found: &Found) -> String {
    match found {
        Found::Beat(beat) => format!(
            "{}: {} used this volume, and did not let go of it; its last heartbeat is of {}",
            spot.path,
            host_of(beat),
            crate::world::utc(beat.time_ns)
        ),
        _ => format!("{}: its heartbeat is damaged; if another host uses the volume, it writes it anew", spot.path),
    }
}

fn in_use<T>(spot: &Spot, now: &Found) -> Result<T, StoreError> {
    refused(match now {
        Found::Beat(beat) => format!(
            "{}: {} uses this volume now: its heartbeat goes on ({} of {}); two hosts that write at the same time destroy it. \
             Unmount it there (stablefs umount), then try again",
            spot.path,
            host_of(beat),
            beat.sequence,
            crate::world::utc(beat.time_ns)
        ),
        _ => format!("{}: something else writes to this replica now; find out what, and end it", spot.path),
    })
}

/// Look at the heartbeats in `spots`, and wait for those whose owner may live elsewhere.
///
/// # Errors
/// One of them lives.
pub fn watch(me: &Session, spots: &[Spot], patience: Patience) -> Result<Seen, StoreError> {
    let mut last = look(spots);
    let mut waited = false;
    let suspects = |last: &[Found]| {
        let all = spots.iter().zip(last).filter(|(_, found)| !has_let_go(found, last));
        let all = all.filter_map(|(spot, found)| Some((spot, found, wait_for(me, found)?)));
        all.map(|(spot, found, wait)| (tell_of(spot, found), wait)).collect::<Vec<_>>()
    };
    let (began, mut told) = (Instant::now(), None);
    loop {
        let waiting = suspects(&last);
        let Some(wait) = waiting.iter().map(|(_, wait)| *wait).max() else { break };
        if patience == Patience::Force {
            for (text, _) in waiting {
                ::log::warn!(
                    "{text}; taken by force. If that host lives, both write until its next heartbeat, and the volume may be damaged"
                );
            }
            break;
        }
        let left = wait.saturating_sub(began.elapsed());
        if left.is_zero() {
            ::log::warn!("nothing has moved for {} s: the volume is taken over", wait.as_secs());
            break;
        }
        count_down(&waiting, left, &mut told);
        waited = true;
        crate::sync::thread::sleep(STEP.min(left));
        let now = look(spots);
        for ((spot, before), now) in spots.iter().zip(&mut last).zip(now) {
            match (&*before, &now) {
                // What cannot be read now may be read the next time.
                (_, Found::Unreadable(_)) => continue,
                (before, now) if before == now => continue,
                (Found::Unreadable(_), _) => {}
                (Found::Beat(before), Found::Beat(now)) if lets_go(before, now) => {}
                _ => return in_use(spot, &now),
            }
            *before = now;
        }
    }
    for (spot, found) in spots.iter().zip(&last) {
        if let Found::Unreadable(why) = found {
            ::log::warn!("{}: whether another host uses this replica cannot be read: {why}", spot.path);
        }
    }
    let beats: Vec<Beat> =
        last.into_iter().filter_map(|found| if let Found::Beat(beat) = found { Some(beat) } else { None }).collect();
    let elsewhere = beats.iter().any(|beat| me.is_elsewhere(beat));
    Ok(Seen { beats, waited, elsewhere })
}

/// Whether its owner has let go of the volume, as another replica says: this one was out, or not in sync, by then.
fn has_let_go(found: &Found, all: &[Found]) -> bool {
    let Found::Beat(beat) = found else { return false };
    all.iter().any(|other| matches!(other, Found::Beat(last) if lets_go(beat, last)))
}

/// Whether the owner that was waited for has ended in order meanwhile.
fn lets_go(before: &Beat, now: &Beat) -> bool {
    now.owner == before.owner && now.state == BeatState::Released
}

/// Tell what is waited for, once, and then how long, each second.
fn count_down(waiting: &[(String, Duration)], left: Duration, told: &mut Option<u64>) {
    let seconds = left.as_millis().div_ceil(1000) as u64;
    if told.is_none() {
        let texts: Vec<&str> = waiting.iter().map(|(text, _)| text.as_str()).collect();
        ::log::warn!(
            "{}. Waiting {seconds} s to see whether it lives (with force-owner it is not waited: only if you know that it is dead)",
            texts.join("; ")
        );
    } else if *told != Some(seconds) && (seconds <= 10 || seconds.is_multiple_of(10)) {
        ::log::warn!("{seconds} s left");
    }
    *told = Some(seconds);
}

/// Where these replicas stand.
pub fn spots_of(present: &[Present]) -> Vec<Spot> {
    let spot = |p: &Present| Spot { path: p.path.clone(), label: p.found.label.clone(), backing: p.backing.clone() };
    present.iter().map(spot).collect()
}

/// As [`watch`], of what is to be opened; it is looked at anew if it may have changed meanwhile.
///
/// # Errors
/// One of the owners lives, or a replica cannot be read any more.
pub fn watch_present(me: &Session, present: &mut [Present], patience: Patience) -> Result<Seen, StoreError> {
    let seen = watch(me, &spots_of(present), patience)?;
    for one in present.iter_mut().filter(|_| seen.waited) {
        match recover::examine(&*one.backing, EXAMINE_WAIT) {
            Ok(found) => one.found = found,
            Err(why) => return refused(format!("{}: {why}", one.path)),
        }
    }
    Ok(seen)
}
