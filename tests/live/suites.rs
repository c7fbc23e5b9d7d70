//! Conformance suites of others: pjdfstest and fsx, and fsx's way of working with what it lacks.
//!
//! Each is a row of the table in `docs/SEMANTICS.md`. Where a replica is lost on the way the program is held back until
//! `status` has named it out, so that it always works before, while and after it happens.

use super::bed::{Bed, Said, Scale, bytes, can_work_hard, is_root, program, scale, shell, state_of};
use super::tally::Tally;
use rustix::fs::{Advice, FallocateFlags, SeekFrom, copy_file_range, fadvise, fallocate, seek};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// These suites saturate a disk that both replicas share; what a slow disk may cost is not their question.
pub const PATIENT: &str = "deadline=60s";
/// How long a program may say nothing.
const SILENCE: Duration = Duration::from_secs(600);

fn tool(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("STABLEFS_TEST_TOOLS").map(PathBuf::from);
    let found = folder.map(|folder| folder.join(name)).filter(|path| path.exists());
    if found.is_none() {
        assert!(scale() < Scale::Default, "{name} is missing in STABLEFS_TEST_TOOLS: run scripts/test");
        println!("skipped: {name} is not there; scripts/test builds it");
    }
    found
}

/// A child that does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Run `command` and show each line that it writes to `seen`, with its number. Little fits between it and us: while
/// `seen` is busy the program soon stands still.
#[track_caller]
pub fn watch(command: &mut Command, mut seen: impl FnMut(u64, &str)) -> Said {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 1).expect("the least that there is");
    ours.set_read_timeout(Some(SILENCE)).expect("a socket of ours");
    let second = OwnedFd::from(theirs.try_clone().expect("a descriptor"));
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs)).stderr(second);
    let mut child = Running(command.spawn().unwrap_or_else(|error| panic!("{line}: {error}")));
    command.stdout(Stdio::null()).stderr(Stdio::null()); // else the command keeps its end open
    let (mut input, mut out, mut raw) = (BufReader::new(ours), String::new(), Vec::new());
    for number in 0.. {
        raw.clear();
        let count = input.read_until(b'\n', &mut raw).unwrap_or_else(|error| panic!("{line}: {error}\n{out}"));
        if count == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&raw);
        out.push_str(&text);
        seen(number, text.trim_end());
    }
    use std::os::unix::process::ExitStatusExt;
    let status = child.0.wait().expect("a child");
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Said { command: line, code, out, err: String::new() }
}

/// As [`watch`]; half-way to `total` the files of b vanish, and at three quarters `status` has named b out. `progress`
/// is how far a line tells that the program has come.
#[track_caller]
fn watch_while_b_is_lost(
    bed: &Bed,
    command: &mut Command,
    total: u64,
    progress: impl Fn(u64, &str) -> Option<u64>,
) -> Said {
    let (mut lost, mut named_out) = (None, None);
    let said = watch(command, |number, line| {
        let Some(at) = progress(number, line) else { return };
        if lost.is_none() && at >= total / 2 {
            shell(&bed.b, "rm -rf ./* && test -z \"$(ls -A)\"").ok();
            lost = Some((at, Instant::now()));
        } else if let Some((_, since)) = lost
            && named_out.is_none()
            && at >= total / 4 * 3
        {
            bed.wait_for(Duration::from_secs(60), "b is named out", |status| state_of(status, &bed.b) == "out");
            named_out = Some((at, since.elapsed()));
        }
    });
    println!("b was lost at {lost:?} of {total}, out and seen to be at {named_out:?}");
    assert!(named_out.is_some(), "the program ended before a replica was lost: {said}");
    said
}

/// Give b back to a volume that has lost it; the checker finds nothing then.
#[track_caller]
fn give_b_back(bed: &Bed) {
    assert_eq!(bed.status()["state"], "degraded");
    bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str(), bed.b.as_os_str()]).ok();
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
}

/// What pjdfstest may skip; `docs/SEMANTICS.md` says why.
const PJDFSTEST_SKIPS: [&str; 1] = ["link::link_count_max"];
/// Cases of version 0.2.2 on Linux.
const PJDFSTEST_CASES: usize = 398;
/// Every feature that a case for Linux asks for.
const PJDFSTEST: &str = "[features.posix_fallocate]\n[features.utime_now]\n[features.utimensat]\n\
    [features.rename_ctime]\n[features.stat_st_birthtime]\n\
    [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n[settings]\nnaptime = 0.01\n";

fn pjdfstest(order: u32, suite: &str, lose_b: bool) {
    if !can_work_hard() {
        return;
    }
    if !is_root() {
        println!("skipped: needs root, to act as several users");
        return;
    }
    let Some(pjdfstest) = tool("pjdfstest") else { return };
    let tally = Tally::begin(order, suite);
    let bed = Bed::formatted("512M");
    // A container that is lost is not to be made anew before it was looked at.
    bed.mount(&format!("{PATIENT},noreturn")).ok();
    bed.open_to_others();
    // Its sockets' paths must stay below 108 bytes, and it panics on paths below 12.
    let folder = bed.at("p");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let (config, other) = (bed.path().join("pjdfstest.toml"), bed.path().join("other-filesystem"));
    fs::write(&config, PJDFSTEST).unwrap();
    fs::create_dir(&other).unwrap();
    // mount(8), which it calls to remount, looks for us in the system's folders: one is covered, for it alone.
    let script = "mount --make-rprivate /; mount -t tmpfs none /usr/local/sbin
        ln -s \"$PROGRAM\" /usr/local/sbin/stablefs
        helper=/sbin/mount.fuse.stablefs; [ ! -e $helper ] || mount --bind /sbin/mount.fuse $helper; exec \"$0\" \"$@\"";
    // Cases leave files open for writing behind, so that on no filesystem is one read-only from then on: those that
    // remount are a run of their own.
    let command = |remount: bool| {
        let text = format!("{PJDFSTEST}allow_remount = {remount}\n");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "bash", "-ec", script]).arg(&pjdfstest).arg("-c").arg(&config).arg("-s").arg(&other);
        command.arg("-p").arg(&folder).args(remount.then_some("erofs"));
        command.current_dir(&folder).env("NO_COLOR", "1").env("PROGRAM", program());
        command
    };
    let began = Instant::now();
    let first = if lose_b {
        watch_while_b_is_lost(&bed, &mut command(false), PJDFSTEST_CASES as u64, |number, _| Some(number))
    } else {
        watch(&mut command(false), |_, _| ())
    };
    let second = watch(&mut command(true), |_, _| ());
    let took = began.elapsed();
    let out = format!("{}{}", first.out, second.out);
    // Each verdict stands at the end of a line, and what a failure was in the next.
    let lines = |verdict: &'static str| out.lines().filter(move |line| line.trim_end().ends_with(verdict));
    let names = |verdict| lines(verdict).filter_map(|line| line.split_whitespace().next()).collect::<BTreeSet<_>>();
    let (good, bad) = (names(" ok"), names(" FAILED"));
    let skips: Vec<_> = names(" skipped").difference(&good).filter(|name| !bad.contains(*name)).copied().collect();
    let all: Vec<_> = out.lines().collect();
    for pair in all.windows(2).filter(|pair| pair[0].ends_with(" FAILED")) {
        println!("{}", pair.join("\n"));
    }
    for name in &skips {
        assert!(PJDFSTEST_SKIPS.contains(name), "{name} was skipped: {first}{second}");
        assert!(SEMANTICS.contains(&format!("`{name}`")), "docs/SEMANTICS.md does not say why {name} is skipped");
    }
    if lose_b {
        give_b_back(&bed);
    } else {
        bed.umount_and_check();
    }
    let (good, bad, skipped) = (good.len(), bad.len(), skips.len());
    assert_eq!(good + bad + skipped, PJDFSTEST_CASES, "it did not do everything: {first}{second}");
    assert_eq!((first.code, second.code) == (0, 0), bad == 0, "{first}{second}");
    let loss = if lose_b { "b emptied half-way, named out, replaced; " } else { "" };
    let note = format!("{:.0} s; {loss}skipped: {} (no such value over FUSE)", took.as_secs_f64(), skips.join(", "));
    tally.end(good as u64, bad as u64, skipped as u64, &note);
}

pub const SEMANTICS: &str = include_str!("../../docs/SEMANTICS.md");

/// Goal: the POSIX suite holds in every case, remounts and a second filesystem among them; what is skipped is known.
#[test]
fn suite_pjdfstest_holds() {
    // SEMANTICS: NS-1
    pjdfstest(102, "pjdfstest 0.2.2", false);
}

/// Goal: the same when a replica vanishes in the middle.
#[test]
fn suite_pjdfstest_holds_while_a_replica_is_lost() {
    // SEMANTICS: NS-1, DEG-1, DEG-7
    pjdfstest(103, "pjdfstest 0.2.2, a replica lost half-way", true);
}

/// What the program does to a file, with weights; without what is not promised (see docs/SEMANTICS.md).
const FSX: &str = "flen = 1048576\n[opsize]\nmax = 131072\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\n\
    truncate = 3\ninvalidate = 1\nclose_open = 1\nfsync = 0.3\nfdatasync = 0.3\npunch_hole = 2\nsendfile = 1\n\
    posix_fallocate = 1\ncopy_file_range = 3\nposix_fadvise = 1\n";
const FSX_NOTE: &str = "read, write, mapped read and write, truncate, punch, fallocate, copy range, sendfile";

/// Operations of one fsx: it leaves each mapping that it has read through (`domapread` in its main.rs), and the kernel refuses
/// more than 65,530 of them (`vm.max_map_count`), long after they have made every truncate slow.
const FSX_AT_ONCE: u64 = 100_000;

/// So many operations by one fsx after the other, each with a seed of its own.
fn fsx_rounds(operations: u64) -> Vec<(u64, u64)> {
    let rounds = operations.div_ceil(FSX_AT_ONCE);
    (0..rounds).map(|round| (round, FSX_AT_ONCE.min(operations - round * FSX_AT_ONCE))).collect()
}

/// fsx on the file `name`. It tells of what touches one byte, so that it is known how far it has come.
fn fsx_on(bed: &Bed, fsx: &Path, name: &str, seed: u64, operations: u64) -> Command {
    let config = bed.path().join("fsx.toml");
    fs::write(&config, FSX).unwrap();
    let mut command = Command::new(fsx);
    command.args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-m", "1048575:1048576", "-f"]);
    command.arg(config).arg("-P").arg(bed.path()).arg(bed.at(name)).env("NO_COLOR", "1");
    command
}

/// Of "[WARN  fsx]     9 read …": 9.
fn fsx_step(line: &str) -> Option<u64> {
    line.split_once(']')?.1.split_whitespace().next()?.parse().ok()
}

#[track_caller]
fn fsx_is_content(said: Said) {
    assert!(said.code == 0 && said.out.contains("All operations completed A-OK!"), "{said}");
}

/// Goal: random operations on one file, mapped ones among them, without a mismatch, although a replica vanishes half-way.
#[test]
fn suite_fsx_finds_no_mismatch_while_a_replica_is_lost() {
    // SEMANTICS: READ-1, DEG-1, DEG-7
    if !can_work_hard() {
        return;
    }
    let Some(fsx) = tool("fsx") else { return };
    let operations = if scale() == Scale::All { 1_000_000 } else { 100_000 };
    let tally = Tally::begin(110, "fsx 0.3.2, a replica lost half-way");
    let bed = Bed::formatted("1G");
    bed.mount(&format!("{PATIENT},noreturn")).ok();
    let began = Instant::now();
    let rounds = fsx_rounds(operations);
    for (round, operations) in &rounds {
        let mut command = fsx_on(&bed, &fsx, &format!("fsx-{round}.data"), 20_261_123 + round, *operations);
        let in_the_middle = *round == rounds.len() as u64 / 2;
        fsx_is_content(match in_the_middle {
            true => watch_while_b_is_lost(&bed, &mut command, *operations, |_, line| fsx_step(line)),
            false => watch(&mut command, |_, _| ()),
        });
    }
    let took = began.elapsed().as_secs_f64();
    give_b_back(&bed);
    tally.end(operations, 0, 0, &format!("operations; {took:.0} s; {FSX_NOTE}"));
}

/// Goal: the same where the kernel holds pages back.
#[test]
fn suite_fsx_finds_no_mismatch_with_the_writeback_cache() {
    if !can_work_hard() {
        return;
    }
    let Some(fsx) = tool("fsx") else { return };
    let operations = if scale() == Scale::All { 100_000 } else { 25_000 };
    let tally = Tally::begin(111, "fsx 0.3.2, -o writeback");
    let bed = Bed::formatted("1G");
    bed.mount(&format!("{PATIENT},writeback")).ok();
    let began = Instant::now();
    fsx_is_content(watch(&mut fsx_on(&bed, &fsx, "fsx.data", 20_261_123, operations), |_, _| ()));
    let took = began.elapsed().as_secs_f64();
    bed.umount_and_check();
    tally.end(operations, 0, 0, &format!("operations; {took:.0} s"));
}

/// Goal: the same on several files of one mount at once.
#[test]
fn suite_fsx_finds_no_mismatch_in_parallel() {
    if !can_work_hard() {
        return;
    }
    let Some(fsx) = tool("fsx") else { return };
    let operations = if scale() == Scale::All { 250_000 } else { 10_000 };
    let tally = Tally::begin(112, "fsx 0.3.2, four at once");
    let bed = Bed::formatted("1G");
    bed.mount(PATIENT).ok();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (bed, fsx) = (&bed, &fsx);
        let run = |seed: u64| {
            move || {
                for (round, operations) in fsx_rounds(operations) {
                    let name = format!("fsx-{seed}-{round}");
                    let mut command = fsx_on(bed, fsx, &name, 10 * seed + round, operations);
                    fsx_is_content(watch(&mut command, |_, _| ()));
                }
            }
        };
        (1..=4).for_each(|seed| drop(scope.spawn(run(seed))));
    });
    let took = began.elapsed().as_secs_f64();
    bed.umount_and_check();
    tally.end(4 * operations, 0, 0, &format!("operations; {took:.0} s; four files, four seeds, no loss"));
}

/// Longest file of [`Model`].
const LENGTH_MAX: u64 = 1 << 20;

/// A file and what must be in it.
struct Model {
    file: fs::File,
    bytes: Vec<u8>,
    random: u64,
    log: Vec<String>,
}

impl Model {
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end.max(1)
    }
    /// A range below [`LENGTH_MAX`], of whole blocks half of the time.
    fn range(&mut self) -> (u64, u64) {
        let mask = if self.below(2) == 0 { !4095 } else { !0 };
        let offset = self.below(LENGTH_MAX - 4096) & mask;
        let longest = (LENGTH_MAX - offset).min(100_000);
        (offset, ((1 + self.below(longest)) & mask).max(1))
    }
    fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.bytes.len() as u64) as usize;
        self.bytes[(offset as usize).min(end)..end].fill(0);
    }
    fn reach(&mut self, end: u64) {
        let len = self.bytes.len().max(end as usize);
        self.bytes.resize(len, 0);
    }
    /// One operation on the file and on what must be in it.
    fn step(&mut self, number: u64) {
        let (offset, len) = self.range();
        let end = offset + len;
        let kind = self.below(10);
        self.log.push(format!("{number}: kind {kind}, {offset:#x}..{end:#x} of {:#x}", self.bytes.len()));
        let (zero, keep) = (FallocateFlags::ZERO_RANGE, FallocateFlags::KEEP_SIZE);
        match kind {
            0 | 1 => {
                let data = bytes(number, len as usize);
                self.file.write_all_at(&data, offset).unwrap();
                self.reach(end);
                self.bytes[offset as usize..end as usize].copy_from_slice(&data);
            }
            2 | 3 => {
                fallocate(&self.file, zero, offset, len).unwrap();
                self.zero(offset, len);
                self.reach(end);
            }
            4 => {
                fallocate(&self.file, zero | keep, offset, len).unwrap();
                self.zero(offset, len);
            }
            5 => {
                fallocate(&self.file, FallocateFlags::PUNCH_HOLE | keep, offset, len).unwrap();
                self.zero(offset, len);
            }
            6 => {
                let kept = self.below(2) == 0;
                fallocate(&self.file, if kept { keep } else { FallocateFlags::empty() }, offset, len).unwrap();
                self.reach(if kept { 0 } else { end });
            }
            7 => {
                self.file.set_len(offset).unwrap();
                self.bytes.resize(offset as usize, 0);
            }
            8 => self.copy(offset, len),
            _ if self.below(4) == 0 => {
                self.file.sync_all().unwrap();
                fadvise(&self.file, 0, None, Advice::DontNeed).unwrap(); // what is read next comes from the daemon
            }
            _ => {
                let found = self.read(offset, len);
                let to = self.bytes.len().min(end as usize);
                assert!(found == self.bytes[(offset as usize).min(to)..to], "{}", self.tell("a read"));
            }
        }
        assert_eq!(self.file.metadata().unwrap().len(), self.bytes.len() as u64, "{}", self.tell("the size"));
        if number % 16 == 15 {
            self.check();
        }
    }
    /// Copy `len` bytes from somewhere else in the file to `offset`.
    fn copy(&mut self, offset: u64, len: u64) {
        let from = self.below(self.bytes.len() as u64);
        let len = len.min(self.bytes.len() as u64 - from).min(from.abs_diff(offset));
        if len == 0 {
            return;
        }
        let (mut source, mut target, mut rest) = (from, offset, len as usize);
        while rest > 0 {
            let count = copy_file_range(&self.file, Some(&mut source), &self.file, Some(&mut target), rest).unwrap();
            assert!(count > 0, "{}", self.tell("copying"));
            rest -= count;
        }
        self.reach(offset + len);
        self.bytes.copy_within(from as usize..(from + len) as usize, offset as usize);
    }
    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut found = vec![0; len as usize];
        let mut count = 0;
        while count < found.len() {
            match self.file.read_at(&mut found[count..], offset + count as u64).unwrap() {
                0 => break,
                more => count += more,
            }
        }
        found.truncate(count);
        found
    }
    /// Every byte, and that no hole lies where data is.
    fn check(&self) {
        let len = self.bytes.len() as u64;
        assert!(self.read(0, LENGTH_MAX + 1) == self.bytes, "{}", self.tell("the file"));
        let mut at = 0;
        while at < len {
            let data = seek(&self.file, SeekFrom::Data(at)).unwrap_or(len);
            let hole = &self.bytes[at as usize..data as usize];
            let lost = hole.iter().position(|byte| *byte != 0).map(|byte| at + byte as u64);
            assert!(lost.is_none(), "{}", self.tell(&format!("the hole {at:#x}..{data:#x} at {lost:#x?}")));
            at = if data < len { seek(&self.file, SeekFrom::Hole(data)).unwrap() } else { len };
        }
    }
    fn tell(&self, what: &str) -> String {
        let last: Vec<_> = self.log.iter().rev().take(40).rev().cloned().collect();
        format!("{what} is not as it must be, after\n{}", last.join("\n"))
    }
}

/// Goal: what the crate fsx lacks: zero range, and fallocate that keeps the size; beside writes, punches, copies, holes.
#[test]
fn suite_zero_ranges_and_their_like_find_no_mismatch() {
    // SEMANTICS: NS-4, NS-5
    if !can_work_hard() {
        return;
    }
    let operations = if scale() == Scale::All { 200_000 } else { 10_000 };
    let tally = Tally::begin(113, "zero range and its like, in fsx's way");
    let began = Instant::now();
    for options in ["", ",writeback"] {
        let bed = Bed::formatted("1G");
        bed.mount(&format!("{PATIENT}{options}")).ok();
        let file = fs::File::options().read(true).write(true).create_new(true).open(bed.at("file")).unwrap();
        let mut model = Model { file, bytes: Vec::new(), random: 20_261_123, log: Vec::new() };
        (0..operations).for_each(|number| model.step(number));
        model.check();
        drop(model);
        bed.umount_and_check();
    }
    let took = began.elapsed().as_secs_f64();
    let note = "zero range, keeping the size and not, which fsx lacks; also with -o writeback; holes are compared, too";
    tally.end(2 * operations, 0, 0, &format!("operations; {took:.0} s; {note}"));
}
