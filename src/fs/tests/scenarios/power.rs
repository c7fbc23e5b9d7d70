//! Sizes and bytes after a power cut: what was cut off stays gone, what grew shows zeros.

use super::*;

/// A file of that many bytes 0xaa and another one, both durable.
fn with_two_files(rig: &Rig, length: usize) -> (Filesystem, u64, u64) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", &vec![0xaa; length]);
    let other = file(&fs, b"other", b"x");
    fs.sync().unwrap();
    (fs, ino, other)
}

/// Cut the power, which takes all that no flush covered, and mount again.
fn cut_and_mount(rig: Rig, fs: Filesystem, seed: u64) -> (Rig, Filesystem) {
    drop(fs);
    let rig = rig.crash(CrashPlan::DropAll, seed);
    let fs = rig.mount();
    (rig, fs)
}

/// A file made longer keeps its length if anything later survives, and shows zeros there: also where the last block held
/// other bytes before, or was written to without an fsync.
#[test]
fn a_size_that_grew_survives_with_later_names() {
    for way in 0..7 {
        let rig = Rig::disks(way);
        let (fs, ino, other) = with_two_files(&rig, 3_000);
        let resize = |size| {
            resize(&fs, ino, size);
        };
        let mut from = 3_000;
        match way {
            0 => resize(1 << 20),
            1 => fs.fallocate(ino, 0, 1 << 20, 0).unwrap(),
            2 => {
                fs.write(ino, 0, &[0xaa; 10], false, false).unwrap();
                resize(1 << 20);
            }
            3 => {
                resize(100);
                resize(1 << 20);
                fs.write(ino, 50, &[0xaa; 10], false, false).unwrap();
                from = 100;
            }
            4 => {
                fs.fallocate(ino, 10, 20, PUNCH).unwrap();
                fs.write(ino, 10, &[0xaa; 20], false, false).unwrap();
                resize(1 << 20);
            }
            5 => {
                fs.write(ino, 3_000, &[0xaa; 6_000], false, false).unwrap();
                resize(2_000);
                resize(1 << 20);
                from = 2_000;
            }
            _ => {
                resize(1_000);
                resize(1 << 20);
                rig.real.as_ref().unwrap().place_step().unwrap();
                from = 1_000;
            }
        }
        rename(&fs, (ROOT_INO, b"other"), (ROOT_INO, b"renamed"), 0).unwrap();
        fsync(&fs, other);
        let (rig, fs) = cut_and_mount(rig, fs, way);
        assert_eq!(fs.lookup(ROOT_INO, b"renamed").unwrap().ino, other);
        let bytes = read_all(&fs, ino);
        assert_eq!(bytes.len(), 1 << 20, "way {way}");
        assert!(bytes[..from].iter().all(|byte| *byte == 0xaa || (way == 4 && *byte == 0)), "way {way}");
        assert!(bytes[from..].iter().all(|byte| *byte == 0), "way {way}");
        rig.check();
    }
}

/// Bytes that were not made durable may be lost with the size that they gave the file, but do not turn up when it grows.
#[test]
fn bytes_beyond_a_size_that_was_cut_short_stay_away() {
    let rig = Rig::disks(3);
    let (fs, ino, other) = with_two_files(&rig, 3_000);
    fs.write(ino, 3_000, &[0xbb; 6_000], false, false).unwrap();
    resize(&fs, ino, 8_500);
    resize(&fs, ino, 1 << 20);
    fsync(&fs, other);
    let (_rig, fs) = cut_and_mount(rig, fs, 3);
    assert_eq!(fs.getattr(ino).unwrap().size, 3_000);
    resize(&fs, ino, 20_000);
    assert!(read_all(&fs, ino)[3_000..].iter().all(|byte| *byte == 0));
}

/// What was cut off does not come back, whatever of the cut survived a power cut.
#[test]
fn cut_bytes_stay_gone_after_a_power_cut() {
    for grows in 0..4 {
        let rig = Rig::disks(grows);
        let (fs, ino, other) = with_two_files(&rig, 10_000);
        resize(&fs, ino, 5_000);
        fsync(&fs, other);
        rig.real.as_ref().unwrap().log_step();
        let (_rig, fs) = cut_and_mount(rig, fs, grows);
        assert_eq!(read_all(&fs, ino), [0xaa; 5_000]);
        match grows {
            0 => drop(resize(&fs, ino, 9_000)),
            1 => assert_eq!(fs.write(ino, 6_000, &[1; 3_000], false, false).unwrap(), 3_000),
            2 => assert_eq!(fs.write(ino, 8_500, &[1; 500], false, false).unwrap(), 500),
            _ => fs.fallocate(ino, 7_000, 2_000, 0).unwrap(),
        }
        let bytes = read_all(&fs, ino);
        assert_eq!(bytes.len(), 9_000);
        assert_eq!(bytes[..5_000], [0xaa; 5_000]);
        let zeros = [6_000, 6_000, 8_500, 9_000][grows as usize];
        assert!(bytes[5_000..zeros].iter().all(|byte| *byte == 0), "way {grows}");
    }
}
