//! What programs hear when the disks fail: EIO for a block that neither disk can prove, and for what cannot be made durable.

use super::BLOCKS;
use super::core::Core;
use super::place::{Errno, Place, Usual, refused};
use stablefs::disk::sim::Fault;

/// Goal: a write that no disk took is heard of by every fsync after it, through whichever open file, until the volume is
/// opened anew: more than POSIX asks for (each open file once), as what the disks hold is not known any more.
#[test]
fn every_open_file_hears_of_a_lost_write() {
    // SEMANTICS: DUR-5
    let core = Core::new(BLOCKS);
    let place: &dyn Place = &core;
    place.make("before", b"safe");
    let before = place.open("before", libc::O_RDWR, 0).unwrap();
    place.fsync(before).unwrap();
    let one = place.open_to_write("file");
    let two = place.open("file", libc::O_RDWR, 0).unwrap();
    for disk in &core.disks {
        disk.faults(|faults| faults.fail_writes = Fault::Always);
    }
    place.write_all(one, 0, &[7; 10_000]);
    for (round, file) in [one, two, one, two].into_iter().enumerate() {
        let outcome = place.fsync(file);
        assert!(outcome.is_err(), "round {round}: what no disk has is said to be durable");
        println!("fsync {round}: {outcome:?}");
    }
    // Opened later: it hears of it, too.
    let third = place.open("file", libc::O_RDONLY, 0).unwrap();
    refused(place.fsync(third), Errno::IO);
    // The disks work again; what they lost is not known to be safe, and nobody is told that it is.
    for disk in &core.disks {
        disk.faults(|faults| faults.fail_writes = Fault::Never);
    }
    for file in [one, two, third] {
        refused(place.fsync(file), Errno::IO);
    }
    let state = (place.fsync(before), place.mkdir("after", 0o755), place.read(before, 0, 10));
    println!("afterwards: {state:?}");
}
