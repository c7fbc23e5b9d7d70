//! Bytes and holes.

use super::place::{Errno, Handle, Place, Usual, refused};
use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO};
use std::ops::Range;

/// Sizes at which something changes: nothing, the content beside the attributes, blocks.
const SIZES: [u64; 10] = [0, 1, 1919, 1920, 1921, 4095, 4096, 4097, 8192, 12_289];

fn pattern(seed: u64, length: u64) -> Vec<u8> {
    (0..length).map(|index| ((index * 7 + seed * 31) % 255 + 1) as u8).collect()
}

fn resized(content: &mut Vec<u8>, size: u64) {
    content.resize(size as usize, 0);
}

fn put(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = offset as usize + data.len();
    content.resize(content.len().max(end), 0);
    content[offset as usize..end].copy_from_slice(data);
}

#[track_caller]
fn holds(place: &dyn Place, file: Handle, content: &[u8]) {
    assert_eq!(place.stat_open(file).unwrap().size, content.len() as u64);
    assert!(place.read(file, 0, content.len() + 10).unwrap() == content, "other bytes");
}

/// What was cut never comes back, also where content moves from beside the attributes to blocks, and back.
pub fn cut_and_made_longer(place: &dyn Place) {
    let file = place.open_to_write("file");
    let mut content = vec![];
    for (step, from) in SIZES.into_iter().enumerate() {
        for to in SIZES {
            let data = pattern(step as u64 + to, from);
            place.resize(file, 0).unwrap();
            place.write_all(file, 0, &data);
            content.clear();
            put(&mut content, 0, &data);
            for (nth, size) in [to, 12_289, to / 2 + 1, from].into_iter().enumerate() {
                if (step + nth) % 3 == 0 {
                    place.fsync(file).unwrap();
                }
                place.resize(file, size).unwrap();
                resized(&mut content, size);
                holds(place, file, &content);
            }
        }
    }
    place.close(file);
    assert!(place.content("file") == content);
}

pub fn written_past_the_end(place: &dyn Place) {
    for size in SIZES {
        for gap in [0, 1, 100, 2000, 4096, 10_000] {
            let file = place.open_to_write("file");
            let mut content = pattern(gap, size);
            place.write_all(file, 0, &content);
            if gap % 2 == 0 {
                place.fsync(file).unwrap();
            }
            let more = pattern(size, 300);
            place.write_all(file, size + gap, &more);
            put(&mut content, size + gap, &more);
            holds(place, file, &content);
            assert_eq!(place.read(file, content.len() as u64 + 5000, 10).unwrap(), b"");
            place.close(file);
            assert!(place.content("file") == content);
            place.unlink("file").unwrap();
        }
    }
}

/// Every way to make zeros, over the borders of blocks and over content beside the attributes.
pub fn punched_zeroed_and_allocated(place: &dyn Place) {
    let ranges: [Range<u64>; 9] =
        [0..1, 0..4096, 100..200, 4000..4200, 1..16_384, 4096..12_288, 5000..40_000, 19_000..19_100, 30_000..50_000];
    for size in [0, 50, 1920, 1921, 20_000] {
        for range in ranges.clone() {
            for mode in [PUNCH | KEEP, ZERO, ZERO | KEEP, 0, KEEP] {
                let file = place.open_to_write("file");
                let mut content = pattern(range.start, size);
                place.write_all(file, 0, &content);
                if range.start % 8 == 0 {
                    place.fsync(file).unwrap();
                }
                place.allocate(file, mode, range.start, range.end - range.start).unwrap();
                if mode & KEEP == 0 {
                    let longer = range.end.max(size);
                    resized(&mut content, longer);
                }
                if mode & (PUNCH | ZERO) != 0 {
                    let end = range.end.min(content.len() as u64);
                    let start = range.start.min(end);
                    content[start as usize..end as usize].fill(0);
                }
                holds(place, file, &content);
                // What lies beyond the end must be zeros once it is reached.
                place.resize(file, 60_000).unwrap();
                resized(&mut content, 60_000);
                holds(place, file, &content);
                place.close(file);
                place.unlink("file").unwrap();
            }
        }
    }
}

pub fn room_that_is_taken(place: &dyn Place) {
    let file = place.open_to_write("file");
    let blocks = || place.stat_open(file).unwrap().blocks;
    assert_eq!(blocks(), 0);
    place.write_all(file, 0, b"small");
    // Tar takes it for a hole else. Of what the kernel holds back nothing is known.
    assert!(blocks() > 0 || place.holds_back(), "a file with content takes room before it is written out");
    place.fsync(file).unwrap();
    assert!(blocks() > 0);
    place.allocate(file, KEEP, 0, 1 << 20).unwrap();
    assert!(blocks() >= 2048 && blocks() < 2100, "{}", blocks());
    assert_eq!(place.stat_open(file).unwrap().size, 5);
    assert_eq!(place.read(file, 0, 100).unwrap(), b"small");
    // Within the file: what was set aside behind its end stays so on ext4.
    place.resize(file, 1 << 20).unwrap();
    place.allocate(file, PUNCH | KEEP, 0, 1 << 20).unwrap();
    place.fsync(file).unwrap();
    assert_eq!(blocks(), 0);
    assert_eq!(place.read(file, 0, 100).unwrap(), [0; 100]);
    place.resize(file, 1 << 30).unwrap();
    assert_eq!(blocks(), 0);
    place.write_all(file, 1 << 29, &[1; 4096]);
    place.fsync(file).unwrap();
    assert_eq!(blocks(), 8);
    place.close(file);
}

/// Data ranges of a file as SEEK_DATA and SEEK_HOLE show them.
pub fn data(place: &dyn Place, file: Handle) -> Vec<Range<u64>> {
    let (mut found, mut at) = (vec![], 0);
    loop {
        let start = match place.seek(file, at, libc::SEEK_DATA) {
            Err(Errno::NXIO) => return found,
            start => start.unwrap(),
        };
        assert!(start >= at);
        let end = place.seek(file, start, libc::SEEK_HOLE).unwrap();
        assert!(end > start);
        found.push(start..end);
        at = end;
    }
}

pub fn holes_are_found(place: &dyn Place) {
    const MIB: u64 = 1 << 20;
    for synced in [false, true] {
        let file = place.open_to_write("file");
        place.resize(file, 10 * MIB + 77).unwrap();
        let written = [MIB..MIB + 8192, 3 * MIB..4 * MIB, 5 * MIB - 4096..5 * MIB, 10 * MIB + 50..10 * MIB + 77];
        for range in &written {
            place.write_all(file, range.start, &pattern(1, range.end - range.start));
        }
        place.allocate(file, PUNCH | KEEP, 3 * MIB + 4096, 8192).unwrap();
        if synced {
            place.fsync(file).unwrap();
        }
        let exact = [
            MIB..MIB + 8192,
            3 * MIB..3 * MIB + 4096,
            3 * MIB + 12_288..4 * MIB,
            5 * MIB - 4096..5 * MIB,
            10 * MIB..10 * MIB + 77,
        ];
        assert_eq!(data(place, file), exact, "open for writing");
        place.close(file);
        let file = place.open("file", libc::O_RDONLY, 0).unwrap();
        place.settled(&exact.to_vec(), || data(place, file));
        assert_eq!(place.seek(file, 3 * MIB + 5000, libc::SEEK_DATA).unwrap(), 3 * MIB + 12_288);
        assert_eq!(place.seek(file, 3 * MIB + 5000, libc::SEEK_HOLE).unwrap(), 3 * MIB + 5000);
        place.close(file);
        place.unlink("file").unwrap();
    }
}

pub fn allocated_is_no_data(place: &dyn Place) {
    let file = place.open_to_write("file");
    place.allocate(file, 0, 0, 1 << 20).unwrap();
    place.write_all(file, 65_536, &[1; 4096]);
    place.fsync(file).unwrap();
    place.close(file);
    let file = place.open("file", libc::O_RDONLY, 0).unwrap();
    // Both answers are right (lseek(2)); what was written must be in.
    let shown = data(place, file);
    assert!(shown.iter().any(|data| data.start <= 65_536 && data.end >= 65_536 + 4096), "{shown:?}");
    assert!(place.read(file, 0, 65_536).unwrap().iter().all(|byte| *byte == 0));
    place.close(file);
}

pub fn copied_ranges(place: &dyn Place) {
    let (from, to) = (place.open_to_write("from"), place.open_to_write("to"));
    let source = pattern(3, 300_000);
    place.write_all(from, 0, &source[..100_000]);
    place.write_all(from, 250_000, &source[250_000..]);
    let mut source_content = source.clone();
    source_content[100_000..250_000].fill(0);
    let mut content = vec![];
    let mut copy = |off_in: u64, off_out: u64, length: usize, expected: usize| {
        let mut done = 0;
        while done < expected {
            let step = place.copy((from, off_in + done as u64), (to, off_out + done as u64), length - done).unwrap();
            assert!(step > 0);
            done += step;
        }
        assert_eq!(done, expected);
        if expected > 0 {
            put(&mut content, off_out, &source_content[off_in as usize..off_in as usize + expected]);
        }
        holds(place, to, &content);
    };
    copy(0, 0, 10, 10);
    copy(5, 5000, 8000, 8000);
    copy(90_001, 3, 20_000, 20_000);
    copy(299_000, 400_001, 5000, 1000);
    copy(120_000, 60_000, 9000, 9000);
    for beyond in [300_000, 300_001, 1 << 40] {
        assert_eq!(place.copy((from, beyond), (to, 0), 100).unwrap(), 0);
    }
    assert_eq!(place.copy((from, 0), (to, 0), 0).unwrap(), 0);
    // Within one file: apart, touching, and over itself.
    let mut content = place.read(to, 0, 1 << 20).unwrap();
    assert_eq!(place.copy((to, 0), (to, 20_000), 20_000).unwrap(), 20_000);
    let piece = content[..20_000].to_vec();
    put(&mut content, 20_000, &piece);
    holds(place, to, &content);
    refused(place.copy((to, 0), (to, 19_999), 20_000), Errno::INVAL);
    refused(place.copy((to, 19_999), (to, 0), 20_000), Errno::INVAL);
    refused(place.copy((to, 7), (to, 7), 1), Errno::INVAL);
    holds(place, to, &content);
    place.mkdir("folder", 0o755).unwrap();
    let folder = place.open("folder", libc::O_RDONLY, 0).unwrap();
    refused(place.copy((folder, 0), (to, 0), 10), Errno::ISDIR);
    [from, to, folder].into_iter().for_each(|handle| place.close(handle));
}

/// A full filesystem can be emptied and filled again, as often as one likes; what was there stays whole.
pub fn filled_and_emptied(place: &dyn Place) {
    let keep = pattern(9, 100_000);
    place.make("keep", &keep);
    let fill = |round: usize| {
        let (mut files, mut bytes) = (0, 0);
        loop {
            let file = place.open(&format!("fill{files}"), libc::O_CREAT | libc::O_WRONLY, 0o600);
            let file = match file {
                Err(error) => {
                    assert_eq!(error, Errno::NOSPC, "round {round}");
                    return (files, bytes);
                }
                Ok(file) => file,
            };
            files += 1;
            for piece in 0..16 {
                let data = pattern(round as u64, 100_000);
                match place.write(file, piece * 100_000, &data) {
                    Ok(count) if count == data.len() => bytes += count,
                    outcome => {
                        if let Err(error) = outcome {
                            assert_eq!(error, Errno::NOSPC, "round {round}");
                        }
                        place.close(file);
                        return (files, bytes);
                    }
                }
            }
            // What the kernel holds back is refused only then.
            let synced = if place.holds_back() { place.fsync(file) } else { Ok(()) };
            place.close(file);
            if synced.is_err() {
                assert_eq!(synced, Err(Errno::NOSPC), "round {round}");
                return (files, bytes);
            }
        }
    };
    let mut first = 0;
    for round in 0..4 {
        let (files, bytes) = fill(round);
        if round == 0 {
            first = bytes;
            assert!(bytes > 4_000_000, "only {bytes} bytes fitted");
        }
        assert!(bytes > first / 10 * 9, "round {round}: {first} bytes fitted at first, now {bytes}");
        // Full as it is: what needs no room works, and what is cut leaves room.
        assert!(place.content("keep") == keep);
        place.rename("keep", "kept", 0).unwrap();
        place.rename("kept", "keep", 0).unwrap();
        place.chmod("keep", 0o600).unwrap();
        place.resize_path("fill0", 5).unwrap();
        (0..files).for_each(|index| place.unlink(&format!("fill{index}")).unwrap());
        assert_eq!(place.names(".").iter().filter(|name| name.starts_with("fill")).count(), 0);
    }
}
