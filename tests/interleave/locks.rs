//! The semantic locks by themselves.
//!
//! Goal: the compatibility table holds, nothing deadlocks, no wake-up is lost, nobody starves. Method: threads that ask for
//! random sets of keys, and count who is inside; a deadlock or a lost wake-up leaves nobody to run, which shuttle reports.

use crate::explorer::{Scenario, explore, happened, seed};
use stablefs::disk::sim::Random;
use stablefs::fs::lock::{LockKey, LockManager, Mode};
use stablefs::sync::thread;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Who is inside, by key: shared and exclusive holders. A real mutex: it is never held over a step.
type Inside = Mutex<HashMap<LockKey, (u32, u32)>>;

fn enter(inside: &Inside, wanted: &[(LockKey, Mode)]) {
    let mut inside = inside.lock().expect("not poisoned");
    for (key, mode) in wanted {
        let (shared, exclusive) = inside.entry(*key).or_default();
        match mode {
            Mode::Shared => *shared += 1,
            Mode::Exclusive => *exclusive += 1,
        }
        assert!(
            *exclusive == 0 || (*exclusive == 1 && *shared == 0),
            "{key:?} is held together with its exclusive owner"
        );
    }
}

/// Whether somebody is inside who must leave first.
fn conflicts(inside: &Inside, wanted: &[(LockKey, Mode)]) -> bool {
    let inside = inside.lock().expect("not poisoned");
    wanted.iter().any(|(key, mode)| match (inside.get(key).copied().unwrap_or_default(), mode) {
        ((_, exclusive), Mode::Shared) => exclusive > 0,
        ((shared, exclusive), Mode::Exclusive) => shared + exclusive > 0,
    })
}

fn leave(inside: &Inside, wanted: &[(LockKey, Mode)]) {
    let mut inside = inside.lock().expect("not poisoned");
    for (key, mode) in wanted {
        let (shared, exclusive) = inside.get_mut(key).expect("it was entered");
        match mode {
            Mode::Shared => *shared -= 1,
            Mode::Exclusive => *exclusive -= 1,
        }
    }
}

fn draw(random: &mut Random) -> Vec<(LockKey, Mode)> {
    let all = [LockKey::Rename, LockKey::Alive(1), LockKey::Alive(2), LockKey::Name(1, 256), LockKey::Inode(7)];
    let mut keys = all.to_vec();
    random.shuffle(&mut keys);
    keys.truncate(random.range(1, 4) as usize);
    keys.into_iter().map(|key| (key, *random.pick(&[Mode::Shared, Mode::Exclusive]))).collect()
}

/// Threads that want the same locks.
fn contend() {
    let mut random = Random::new(seed());
    let (manager, inside) = (Arc::new(LockManager::default()), Arc::new(Inside::default()));
    let threads: Vec<_> = (0..random.range(2, 4))
        .map(|_| {
            let (manager, inside, mut random) = (manager.clone(), inside.clone(), random.fork());
            thread::spawn(move || {
                for _ in 0..random.range(1, 4) {
                    let wanted = draw(&mut random);
                    if conflicts(&inside, &wanted) {
                        happened("asked for what is held");
                    }
                    let held = manager.acquire(&wanted);
                    enter(&inside, &wanted);
                    thread::yield_now();
                    leave(&inside, &wanted);
                    drop(held);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
}

pub const SCENARIO: Scenario =
    Scenario { name: "locks", count: 40_000, happens: &["asked for what is held"], run: contend };

#[test]
fn locks_exclude_as_the_table_says_and_never_wait_for_ever() {
    explore(&SCENARIO);
}
