//! Who we are, so that others can tell, and whether the one that a heartbeat names has died.
//!
//! *Guarantees*: nobody is called dead who could still write: only a process of this very boot that has ended, or one of an
//! earlier boot of this machine. *Assumes*: the place of the heartbeat is locked by us; `/proc` is mounted; machines
//! differ in name or in `/etc/machine-id`. *Fails when*: something cannot be read: then this host is like no other, and is
//! waited for after its reboot as any stranger is. *Order*: none. *Not here*: waiting (`watch`).

use crate::format::{Beat, Uuid};
use crate::world::World;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::fs;
use std::hash::Hasher;

/// A session on a host.
#[derive(Debug, Clone)]
pub struct Session {
    /// Random, of this session alone.
    pub owner: Uuid,
    /// The machine; nil: not known.
    pub host: Uuid,
    /// Its boot; nil: not known.
    pub boot: Uuid,
    /// This process.
    pub process: u32,
    /// When it began, in clock ticks since the boot.
    pub started: u64,
    /// What people call the host.
    pub name: String,
}

impl Session {
    /// A new session of this process.
    pub fn begin(world: &dyn World) -> Session {
        let process = std::process::id();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            Some(text.trim().to_owned()).filter(|id| id.len() >= 32)
        });
        Session {
            owner: world.uuid(),
            host: machine.map_or(Uuid::NIL, |machine| hashed(&machine, &name)),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or(Uuid::NIL, |text| parse(&text)),
            process,
            started: stat(process).map_or(0, |(_, started)| started),
            name,
        }
    }

    /// Whether the owner of `beat` cannot write any more, as far as this host can know without waiting.
    pub fn knows_dead(&self, beat: &Beat) -> bool {
        if self.is_same_boot(beat) {
            // An earlier session of this process has let go of its lock.
            return beat.process == self.process || !lives(beat.process, beat.started);
        }
        self.is_same_host(beat)
    }

    /// Whether `beat` is of another machine, or cannot be told from one.
    pub fn is_elsewhere(&self, beat: &Beat) -> bool {
        !self.is_same_boot(beat) && !self.is_same_host(beat)
    }

    fn is_same_boot(&self, beat: &Beat) -> bool {
        !self.boot.is_nil() && beat.boot == self.boot
    }

    fn is_same_host(&self, beat: &Beat) -> bool {
        !self.host.is_nil() && beat.host == self.host
    }
}

/// machine-id(5) is not to be shown around; and copies of a machine often have the same one, but not the same name.
fn hashed(machine: &str, name: &str) -> Uuid {
    let mut hasher = SipHasher24::new_with_key(b"stablefs.beat.v1");
    hasher.write(machine.as_bytes());
    hasher.write(&[0]);
    hasher.write(name.as_bytes());
    Uuid(hasher.finish128().as_bytes())
}

/// 32 hexadecimal digits, wherever there are hyphens; nil if it is anything else.
fn parse(text: &str) -> Uuid {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    number.map_or(Uuid::NIL, |number| Uuid(number.to_be_bytes()))
}

/// State and start of a process.
fn stat(process: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name may hold anything.
    let mut rest = text.rsplit_once(") ")?.1.split(' ');
    let state = rest.next()?.chars().next()?;
    Some((state, rest.nth(18)?.parse().ok()?))
}

fn lives(process: u32, started: u64) -> bool {
    stat(process).is_some_and(|(state, since)| since == started && !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BeatState;
    use crate::world::Machine;

    #[test]
    fn this_process_is_seen_alive_and_an_ended_one_dead() {
        let me = Session::begin(&Machine);
        assert!(!me.boot.is_nil() && me.started > 0 && lives(me.process, me.started));
        assert!(!lives(me.process, me.started + 1), "another process that has got its number");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (process, (_, started)) = (child.id(), stat(child.id()).unwrap());
        let beat = Beat {
            owner: Uuid([1; 16]),
            host: me.host,
            boot: me.boot,
            sequence: 1,
            time_ns: 0,
            started,
            process,
            lease_ms: 1000,
            state: BeatState::Running,
            name: String::new(),
        };
        assert!(!me.knows_dead(&beat), "it lives");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(me.knows_dead(&beat), "it has ended");
        let known = Session { host: Uuid([5; 16]), ..me };
        let rebooted = Beat { boot: Uuid([9; 16]), host: known.host, ..beat.clone() };
        assert!(known.knows_dead(&rebooted) && !known.is_elsewhere(&rebooted));
        let stranger = Beat { host: Uuid([6; 16]), ..rebooted.clone() };
        assert!(!known.knows_dead(&stranger) && known.is_elsewhere(&stranger));
        let nobody = Session { host: Uuid::NIL, ..known };
        assert!(!nobody.knows_dead(&Beat { host: Uuid::NIL, ..rebooted }), "unknown machines are not the same one");
    }

    #[test]
    fn identities_are_read_and_copies_of_a_machine_differ() {
        assert_eq!(parse("00112233-4455-6677-8899-aabbccddeeff\n").to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert!(parse("0011").is_nil() && parse("").is_nil() && parse("x").is_nil());
        assert_ne!(hashed("m", "a"), hashed("m", "b"));
    }
}
