//! Bytes of files: reads, writes, sizes, holes, reserved ranges, copies.

use super::*;

on_both! {
    bytes_are_read_as_written_and_cut_ends_stay_cut,
    holes_are_told_only_when_nobody_writes,
    ranges_are_reserved_punched_and_zeroed,
    copies_inside_and_between_files,
}

fn bytes_are_read_as_written_and_cut_ends_stay_cut(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"file", &[1; 10_000]);
    assert_eq!(fs.write(ino, 9_000, &[2; 3_000], false, false).unwrap(), 3_000);
    let mut expected = vec![1; 9_000];
    expected.extend([2; 3_000]);
    assert_eq!(read_all(&fs, ino), expected);
    let mut out = vec![9];
    fs.read(ino, 11_990, &mut out, 100).unwrap();
    assert_eq!(out, [2; 10]);
    fs.read(ino, 12_000, &mut out, 100).unwrap();
    assert!(out.is_empty());
    let resize = |size| resize(&fs, ino, size);
    assert_eq!(resize(5_000).size, 5_000);
    assert_eq!(resize(20_000).blocks512, 16);
    expected.truncate(5_000);
    expected.resize(20_000, 0);
    assert_eq!(read_all(&fs, ino), expected);
    assert_eq!(errno(fs.write(ino, FILE_SIZE_MAX, b"x", false, false)), libc::EFBIG);
    assert_eq!(fs.write(ino, FILE_SIZE_MAX - 2, b"xyz", false, false).unwrap(), 2);
    resize(0);
    assert!(rig.owners().is_empty());
    rig.check();
}

fn holes_are_told_only_when_nobody_writes(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    fs.write(ino, 3 * BLOCK_U64, &[1; BLOCK], false, false).unwrap();
    resize(&fs, ino, 10 * BLOCK_U64);
    let seek = |offset, whence| fs.lseek(ino, offset, whence, false);
    assert_eq!(seek(5, libc::SEEK_DATA).unwrap(), 3 * BLOCK_U64);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 5);
    assert_eq!(seek(3 * BLOCK as i64 + 1, libc::SEEK_HOLE).unwrap(), 4 * BLOCK_U64);
    assert_eq!(errno(seek(5 * BLOCK as i64, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(errno(seek(10 * BLOCK as i64, libc::SEEK_HOLE)), libc::ENXIO);
    assert_eq!(errno(seek(-1, libc::SEEK_HOLE)), libc::ENXIO);
    let handle = fs.open(ino, libc::O_WRONLY).unwrap();
    assert_eq!(seek(5, libc::SEEK_DATA).unwrap(), 5);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 10 * BLOCK_U64);
    fs.release(ino, handle);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 5);
}

fn ranges_are_reserved_punched_and_zeroed(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", &[9; 5 * BLOCK]);
    let mut expected = vec![9; 5 * BLOCK];
    let allocate = |offset, length, mode| fs.fallocate(ino, offset, length, mode);
    allocate(100, 2 * BLOCK_U64, PUNCH).unwrap();
    expected[100..100 + 2 * BLOCK].fill(0);
    assert_eq!(read_all(&fs, ino), expected);
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 4 * 8);
    allocate(4 * BLOCK_U64 + 10, 10 * BLOCK_U64, PUNCH).unwrap();
    expected[4 * BLOCK + 10..].fill(0);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(3 * BLOCK_U64 + 5, 10, libc::FALLOC_FL_ZERO_RANGE).unwrap();
    expected[3 * BLOCK + 5..3 * BLOCK + 15].fill(0);
    allocate(4 * BLOCK_U64, 2 * BLOCK_U64, libc::FALLOC_FL_ZERO_RANGE).unwrap();
    expected[4 * BLOCK..].fill(0);
    expected.resize(6 * BLOCK, 0);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(0, 20 * BLOCK_U64, libc::FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 20 * 8);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(0, 7 * BLOCK_U64, 0).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().size, 7 * BLOCK_U64);
    assert_eq!(errno(allocate(0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(allocate(0, 5, libc::FALLOC_FL_COLLAPSE_RANGE)), libc::EOPNOTSUPP);
    assert_eq!(errno(allocate(FILE_SIZE_MAX, 5, 0)), libc::EFBIG);
    resize(&fs, ino, 7 * BLOCK_U64);
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 7 * 8, "what is past the end goes");
    fs.unlink(ROOT_INO, b"f").unwrap();
    rig.check();
}

fn copies_inside_and_between_files(rig: &Rig) {
    let fs = rig.mount();
    let source = file(&fs, b"a", &(0..100_000_u32).map(|i| i as u8).collect::<Vec<_>>());
    let target = file(&fs, b"b", b"");
    assert_eq!(fs.copy_file_range(source, 10, target, 5, 1 << 30).unwrap(), 99_990);
    assert_eq!(read_all(&fs, target)[5..], read_all(&fs, source)[10..]);
    assert_eq!(fs.copy_file_range(source, 100_000, target, 0, 10).unwrap(), 0);
    assert_eq!(errno(fs.copy_file_range(source, 0, source, 50, 100)), libc::EINVAL);
    assert_eq!(fs.copy_file_range(source, 0, source, 100_000, 100).unwrap(), 100);
    assert_eq!(read_all(&fs, source)[100_000..], read_all(&fs, source)[..100]);
    let large = file(&fs, b"c", &vec![3; 9 << 20]);
    assert_eq!(fs.copy_file_range(large, 0, target, 0, 9 << 20).unwrap(), 8 << 20);
}
