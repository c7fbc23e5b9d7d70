//! The same work in several directories, round by round, and a table of how they compare.
//!
//! Goal: figures that can be trusted on a machine whose speed wanders: every ratio is of two times measured in the same
//! round, rounds are interleaved, the table shows medians. Method: each job runs in each place in turn; what a job writes is on the
//! medium when its time ends (`sync=`); before a cold job all caches are emptied (`remount=`, `drop_caches`). A place with
//! `twin=` does each job that writes twice, at once, as somebody without a mirror would. Run by `scripts/bench`.
//!
//! ```text
//! compare --rounds N [--only TEXT] [--scale F] --tar FILE --repository DIR --out FILE --place NAME=DIR[;twin=DIR][;sync=COMMAND][;remount=COMMAND]...
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const FILES: usize = 10_000;
const FILE_BYTES: usize = 3000;
const FILES_PER_DIRECTORY: usize = 100;

type Outcome<T> = Result<T, String>;

fn told<T>(what: &str, outcome: io::Result<T>) -> Outcome<T> {
    outcome.map_err(|error| format!("{what}: {error}"))
}

/// Somewhere that work is done.
#[derive(Default)]
struct Place {
    name: String,
    dir: PathBuf,
    twin: Option<PathBuf>,
    sync: Option<String>,
    remount: Option<String>,
}

impl Place {
    fn parse(text: &str) -> Outcome<Place> {
        let (name, rest) = text.split_once('=').ok_or("a place is NAME=DIR;…")?;
        let mut parts = rest.split(';');
        let mut place = Place { name: name.into(), dir: parts.next().unwrap_or("").into(), ..Place::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("twin", dir)) => place.twin = Some(dir.into()),
                Some(("sync", command)) => place.sync = Some(command.into()),
                Some(("remount", command)) => place.remount = Some(command.into()),
                _ => return Err(format!("{part}: what is this?")),
            }
        }
        Ok(place)
    }

    fn directories(&self) -> Vec<&Path> {
        std::iter::once(self.dir.as_path()).chain(self.twin.as_deref()).collect()
    }

    /// Everything is on the medium.
    fn settle(&self) -> Outcome<()> {
        match &self.sync {
            Some(command) => shell(command),
            None => {
                let dir = told("opening", File::open(&self.dir))?;
                told("syncfs", rustix::fs::syncfs(&dir).map_err(Into::into))
            }
        }
    }

    /// Nothing is in anybody's memory.
    fn forget(&self) -> Outcome<()> {
        self.settle()?;
        if let Some(command) = &self.remount {
            shell(command)?;
        }
        rustix::fs::sync();
        told("drop_caches", fs::write("/proc/sys/vm/drop_caches", "3"))
    }

    /// Do `work` in each directory, at once, and wait until it is on the medium.
    fn write(&self, work: &(dyn Fn(&Path) -> Outcome<()> + Sync)) -> Outcome<Duration> {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.directories().into_iter().map(|dir| scope.spawn(move || work(dir))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic")?).collect::<Outcome<Vec<()>>>()
        })?;
        self.settle()?;
        Ok(begun.elapsed())
    }

    /// Do `work`, which changes nothing.
    fn read(&self, work: &dyn Fn(&Path) -> Outcome<()>) -> Outcome<Duration> {
        let begun = Instant::now();
        work(&self.dir)?;
        Ok(begun.elapsed())
    }
}

fn shell(command: &str) -> Outcome<()> {
    run(Command::new("sh").args(["-c", command]))
}

fn run(command: &mut Command) -> Outcome<()> {
    let output = told("starting a program", command.stdin(Stdio::null()).output())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Numbers that look random, the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed | 1);
    (0..count.div_ceil(8)).flat_map(|_| numbers.below(u64::MAX).to_le_bytes()).take(count).collect()
}

/// A buffer that O_DIRECT takes: its part from the returned offset on.
fn aligned(count: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0; count + BLOCK];
    let skip = buffer.as_ptr().align_offset(BLOCK);
    (buffer, skip)
}

/// What came of the jobs of one round in one place: ns, by job.
type Times = BTreeMap<&'static str, Outcome<f64>>;

/// The jobs, in the order in which they are shown, with what is done.
const JOBS: [(&str, &str); 26] = [
    ("write 1 MiB", "sequential, 1 MiB a call"),
    ("read 1 MiB cold", "sequential"),
    ("read 1 MiB warm", "sequential, the second time"),
    ("read 4 KiB", "random, buffered, cold"),
    ("read 4 KiB direct", "random, O_DIRECT"),
    ("read 4 KiB direct x4", "random, O_DIRECT, four threads"),
    ("overwrite 4 KiB", "random, buffered; on the medium at the end"),
    ("overwrite 4 KiB fdatasync", "random, fdatasync after each"),
    ("fsync p50", "append 4 KiB, fsync: median"),
    ("fsync p99", "append 4 KiB, fsync: 99th percentile"),
    ("create", "10,000 files of 3000 bytes, one process"),
    ("create x2", "the same by two"),
    ("create x4", "the same by four"),
    ("stat cold", "each file"),
    ("stat warm", "each file, the second time"),
    ("ls -lR cold", "the program"),
    ("read all cold", "each file whole"),
    ("rename", "each file within its directory"),
    ("delete", "each file and directory"),
    ("untar", "a tree of headers"),
    ("rm -rf", "that tree"),
    ("git clone", "a repository, --no-hardlinks"),
    ("git status", "in the clone, cold"),
    ("sqlite FULL", "100 transactions, rollback journal"),
    ("sqlite WAL", "300 transactions, synchronous=FULL"),
    ("sqlite bulk", "200,000 rows in one transaction"),
];

struct Plan {
    rounds: usize,
    only: Option<String>,
    scale: f64,
    tar: PathBuf,
    repository: PathBuf,
    out: Option<PathBuf>,
    places: Vec<Place>,
}

struct Round<'a> {
    plan: &'a Plan,
    place: &'a Place,
    times: Times,
}

impl Round<'_> {
    fn scaled(&self, count: usize) -> usize {
        ((count as f64 * self.plan.scale) as usize).max(1)
    }

    fn wants(&self, job: &str) -> bool {
        self.plan.only.as_ref().is_none_or(|only| job.contains(only.as_str()))
    }

    fn note(&mut self, job: &'static str, outcome: Outcome<Duration>) {
        if let Err(error) = &outcome {
            eprintln!("{}: {job}: {error}", self.place.name);
        }
        self.times.insert(job, outcome.map(|time| time.as_secs_f64() * 1e9));
    }

    /// A job that writes, if it is wanted or (`needed`) others need what it leaves.
    fn write(&mut self, job: &'static str, needed: bool, work: &(dyn Fn(&Path) -> Outcome<()> + Sync)) {
        if self.wants(job) || needed {
            let outcome = self.place.write(work);
            self.note(job, outcome);
        }
    }

    fn read(&mut self, job: &'static str, cold: bool, work: &dyn Fn(&Path) -> Outcome<()>) {
        if self.wants(job) {
            let ready = if cold { self.place.forget() } else { Ok(()) };
            let outcome = ready.and_then(|()| self.place.read(work));
            self.note(job, outcome);
        }
    }

    fn large(&mut self) {
        let jobs = ["write 1 MiB", "read 1 MiB", "read 4 KiB", "overwrite 4 KiB"];
        let only = self.plan.only.as_deref().unwrap_or("");
        if !jobs.iter().any(|job| job.contains(only) || only.starts_with(job)) {
            return;
        }
        let size = self.scaled(256) * MIB;
        let piece = bytes(MIB, 11);
        self.write("write 1 MiB", true, &|dir| {
            let mut file = told("creating", File::create(dir.join("large")))?;
            for _ in 0..size / MIB {
                told("writing", file.write_all(&piece))?;
            }
            told("fsync", file.sync_all())
        });
        let sequential = |dir: &Path| {
            let mut file = told("opening", File::open(dir.join("large")))?;
            let mut buffer = vec![0; MIB];
            while told("reading", file.read(&mut buffer))? > 0 {}
            Ok(())
        };
        self.read("read 1 MiB cold", true, &sequential);
        self.read("read 1 MiB warm", false, &sequential);
        let blocks = (size / BLOCK) as u64;
        let count = self.scaled(3000);
        let random = |dir: &Path, seed: u64, flags: i32| {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(dir.join("large"));
            let file = told("opening", file)?;
            // No read-ahead helps a random reader, nor may it hurt: all are told so.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
            let (mut buffer, skip) = aligned(BLOCK);
            let mut numbers = Numbers(seed);
            for _ in 0..count {
                let at = numbers.below(blocks) * BLOCK as u64;
                told("reading", file.read_exact_at(&mut buffer[skip..skip + BLOCK], at))?;
            }
            Ok(())
        };
        self.read("read 4 KiB", true, &|dir| random(dir, 21, 0));
        self.read("read 4 KiB direct", true, &|dir| random(dir, 22, libc::O_DIRECT));
        self.read("read 4 KiB direct x4", true, &|dir| {
            std::thread::scope(|scope| {
                let readers: Vec<_> =
                    (0..4).map(|i| scope.spawn(move || random(dir, 31 + 2 * i, libc::O_DIRECT))).collect();
                readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| "a panic")?)
            })
        });
        let block = bytes(BLOCK, 41);
        let overwrite = |dir: &Path, count: usize, sync: bool| {
            let file = told("opening", OpenOptions::new().read(true).write(true).open(dir.join("large")))?;
            let mut numbers = Numbers(51);
            for _ in 0..count {
                told("writing", file.write_all_at(&block, numbers.below(blocks) * BLOCK as u64))?;
                if sync {
                    told("fdatasync", file.sync_data())?;
                }
            }
            told("fsync", file.sync_all())
        };
        let (many, few) = (self.scaled(20_000), self.scaled(200));
        self.write("overwrite 4 KiB", false, &|dir| overwrite(dir, many, false));
        self.write("overwrite 4 KiB fdatasync", false, &|dir| overwrite(dir, few, true));
    }

    fn fsync(&mut self) {
        if !self.wants("fsync p50") && !self.wants("fsync p99") {
            return;
        }
        let count = self.scaled(300);
        let one = |dir: &Path| {
            let mut file = told("creating", File::create(dir.join("appended")))?;
            let block = bytes(BLOCK, 61);
            let mut times = Vec::new();
            for _ in 0..count {
                let begun = Instant::now();
                told("writing", file.write_all(&block))?;
                told("fsync", file.sync_all())?;
                times.push(begun.elapsed());
            }
            Ok(times)
        };
        let all: Outcome<Vec<Vec<Duration>>> = std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> =
                self.place.directories().into_iter().map(|dir| scope.spawn(move || one(dir))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic")?).collect()
        });
        // Both copies must be there: the later of the two.
        let times = all.map(|all| {
            let mut times: Vec<Duration> =
                (0..count).map(|i| all.iter().map(|times| times[i]).max().unwrap_or_default()).collect();
            times.sort();
            times
        });
        let at = |share: f64| times.clone().map(|times| times[((times.len() - 1) as f64 * share) as usize]);
        let (median, late) = (at(0.5), at(0.99));
        self.note("fsync p50", median);
        self.note("fsync p99", late);
    }

    fn small(&mut self) {
        let names = [
            "create",
            "create x2",
            "create x4",
            "stat cold",
            "stat warm",
            "ls -lR cold",
            "read all cold",
            "rename",
            "delete",
        ];
        if !names.iter().any(|name| self.wants(name)) {
            return;
        }
        let files = self.scaled(FILES);
        let content = bytes(FILE_BYTES, 71);
        let path = |dir: &Path, i: usize| dir.join(format!("d{}/file-{i}", i / FILES_PER_DIRECTORY));
        let create = |dir: &Path, set: &str, jobs: usize| {
            let dir = dir.join(set);
            told("mkdir", fs::create_dir(&dir))?;
            for i in 0..files.div_ceil(FILES_PER_DIRECTORY) {
                told("mkdir", fs::create_dir(dir.join(format!("d{i}"))))?;
            }
            let (dir, content) = (&dir, &content);
            std::thread::scope(|scope| {
                let makers: Vec<_> = (0..jobs)
                    .map(|job| {
                        scope.spawn(move || {
                            (job..files).step_by(jobs).try_for_each(|i| {
                                let mut file = told("creating", File::create_new(path(dir, i)))?;
                                told("writing", file.write_all(content))
                            })
                        })
                    })
                    .collect();
                makers.into_iter().try_for_each(|maker| maker.join().map_err(|_| "a panic")?)
            })
        };
        for (job, set, jobs) in [("create x4", "files4", 4), ("create x2", "files2", 2)] {
            self.write(job, false, &|dir| create(dir, set, jobs));
        }
        self.write("create", true, &|dir| create(dir, "files", 1));
        let stat = |dir: &Path| {
            (0..files).try_for_each(|i| told("stat", fs::symlink_metadata(path(&dir.join("files"), i)).map(drop)))
        };
        self.read("stat cold", true, &stat);
        self.read("stat warm", false, &stat);
        self.read("ls -lR cold", true, &|dir| run(Command::new("ls").arg("-lR").arg(dir.join("files"))));
        self.read("read all cold", true, &|dir| {
            let mut buffer = Vec::new();
            (0..files).try_for_each(|i| {
                buffer.clear();
                let file = File::open(path(&dir.join("files"), i));
                told("reading", file.and_then(|mut file| file.read_to_end(&mut buffer)).map(drop))
            })
        });
        self.write("rename", false, &|dir| {
            (0..files).try_for_each(|i| {
                let from = path(&dir.join("files"), i);
                told("renaming", fs::rename(&from, from.with_extension("renamed")))
            })
        });
        self.write("delete", false, &|dir| told("deleting", fs::remove_dir_all(dir.join("files"))));
    }

    fn programs(&mut self) {
        let (tar, repository) = (self.plan.tar.clone(), self.plan.repository.clone());
        if self.wants("untar") || self.wants("rm -rf") {
            self.write("untar", true, &|dir| {
                told("mkdir", fs::create_dir(dir.join("tree")))?;
                run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(dir.join("tree")))
            });
            self.write("rm -rf", false, &|dir| run(Command::new("rm").arg("-rf").arg(dir.join("tree"))));
        }
        if self.wants("git clone") || self.wants("git status") {
            self.write("git clone", true, &|dir| {
                run(Command::new("git")
                    .args(["clone", "--quiet", "--no-hardlinks"])
                    .arg(&repository)
                    .arg(dir.join("clone")))
            });
            self.read("git status", true, &|dir| {
                run(Command::new("git").arg("-C").arg(dir.join("clone")).args(["status", "--porcelain"]))
            });
        }
        let sqlite = |dir: &Path, name: &str, script: &str| {
            let file = dir.join(name);
            let mut child = Command::new("sqlite3")
                .arg("-bail")
                .arg(file)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| format!("sqlite3: {error}"))?;
            if let Some(mut input) = child.stdin.take() {
                told("sqlite3", input.write_all(script.as_bytes()))?;
            }
            let status = told("sqlite3", child.wait())?;
            if status.success() { Ok(()) } else { Err(format!("sqlite3: {status}")) }
        };
        let inserts = |pragma: &str, count: usize| {
            let mut script = format!("{pragma}\ncreate table t (a integer primary key, b text);\n");
            for i in 0..count {
                let _ = writeln!(script, "insert into t values ({i}, 'row {i} of a table with some text in it');");
            }
            script
        };
        let full = inserts("pragma journal_mode=delete; pragma synchronous=full;", self.scaled(100));
        self.write("sqlite FULL", false, &|dir| sqlite(dir, "full.db", &full));
        let wal = inserts("pragma journal_mode=wal; pragma synchronous=full;", self.scaled(300));
        self.write("sqlite WAL", false, &|dir| sqlite(dir, "wal.db", &wal));
        let bulk = format!(
            "create table t (a integer primary key, b text);\nbegin;\nwith recursive n(i) as (select 1 union all select \
             i+1 from n where i < {}) insert into t select i, 'row ' || i || ' of a table with some text' from n;\ncommit;\n",
            self.scaled(200_000)
        );
        self.write("sqlite bulk", false, &|dir| sqlite(dir, "bulk.db", &bulk));
    }

    fn clear(&self) -> Outcome<()> {
        for dir in self.place.directories() {
            for entry in told("listing", fs::read_dir(dir))? {
                let path = told("listing", entry)?.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                told("clearing", removed)?;
            }
        }
        self.place.settle()
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

fn time(ns: f64) -> String {
    match ns {
        _ if ns < 1e6 => format!("{:.0} µs", ns / 1e3),
        _ if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

/// Our time, and how many times longer each other place takes (medians over the rounds of the ratio within a round).
fn table(plan: &Plan, rounds: &[Vec<Times>]) -> String {
    let others: Vec<usize> = (1..plan.places.len()).collect();
    let mut out = String::from("| job | ");
    let _ = write!(out, "{} | ", plan.places[0].name);
    let _ = writeln!(out, "{} |", others.iter().map(|i| plan.places[*i].name.as_str()).collect::<Vec<_>>().join(" | "));
    let _ = writeln!(out, "|---|---|{}", "---|".repeat(others.len()));
    let mut logs: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (job, _) in JOBS.iter().filter(|(job, _)| !job.is_empty()) {
        let ours = |times: &Vec<Times>| times[0].get(job).and_then(|t| t.as_ref().ok().copied());
        let mut own: Vec<f64> = rounds.iter().filter_map(ours).collect();
        if own.is_empty() {
            continue;
        }
        let _ = write!(out, "| {job} | {} |", time(median(&mut own)));
        for i in &others {
            let ratio = |times: &Vec<Times>| Some(times[*i].get(job)?.as_ref().ok()? / ours(times)?);
            let mut ratios: Vec<f64> = rounds.iter().filter_map(ratio).collect();
            if ratios.is_empty() {
                out.push_str(" – |");
            } else {
                let ratio = median(&mut ratios);
                logs.entry(*i).or_default().push(ratio.ln());
                let _ = write!(out, " {ratio:.2} |");
            }
        }
        out.push('\n');
    }
    out.push_str("| *geometric mean* | |");
    for i in &others {
        let logs = logs.get(i).cloned().unwrap_or_default();
        let _ = write!(out, " *{:.2}* |", (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp());
    }
    out.push('\n');
    out
}

fn plan() -> Outcome<Plan> {
    let mut plan = Plan {
        rounds: 3,
        only: None,
        scale: 1.0,
        tar: PathBuf::new(),
        repository: PathBuf::new(),
        out: None,
        places: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--rounds" => plan.rounds = value()?.parse().map_err(|_| "--rounds wants a number")?,
            "--only" => plan.only = Some(value()?),
            "--scale" => plan.scale = value()?.parse().map_err(|_| "--scale wants a number")?,
            "--tar" => plan.tar = value()?.into(),
            "--repository" => plan.repository = value()?.into(),
            "--out" => plan.out = Some(value()?.into()),
            "--place" => plan.places.push(Place::parse(&value()?)?),
            "--bench" => {} // cargo says so
            other => return Err(format!("{other}: what is this?")),
        }
    }
    if plan.places.is_empty() {
        return Err("no --place".into());
    }
    Ok(plan)
}

fn compare() -> Outcome<()> {
    let plan = plan()?;
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        let mut all: Vec<Times> = plan.places.iter().map(|_| Times::new()).collect();
        type Part = fn(&mut Round<'_>);
        let parts: [(&str, Part); 4] = [
            ("large file", |round| round.large()),
            ("fsync", |round| round.fsync()),
            ("small files", |round| round.small()),
            ("programs", |round| round.programs()),
        ];
        for (name, part) in parts {
            for step in 0..plan.places.len() {
                // Another one begins each round.
                let index = (step + number) % plan.places.len();
                let place = &plan.places[index];
                rustix::fs::sync();
                let mut round = Round { plan: &plan, place, times: Times::new() };
                let begun = Instant::now();
                part(&mut round);
                round.clear().unwrap_or_else(|error| eprintln!("{}: {error}", place.name));
                eprintln!("round {} of {}: {name}: {}: {:.1?}", number + 1, plan.rounds, place.name, begun.elapsed());
                all[index].append(&mut round.times);
            }
        }
        rounds.push(all);
    }
    let table = table(&plan, &rounds);
    println!("{table}");
    match &plan.out {
        Some(out) => told("writing the table", fs::write(out, table)),
        None => Ok(()),
    }
}

fn main() {
    if let Err(error) = compare() {
        eprintln!("compare: {error}");
        std::process::exit(1);
    }
}
