//! PostgreSQL on the mount: stopped at once, its daemon killed, or a replica lost, in the middle of its transactions.

use super::bed::{Bed, Said, Scale, can_work_hard, is_root, run, scale, shell, state_of};
use super::tally::Tally;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A database cluster of our own, on the mount: no port, its socket in the scratch folder. Everything of it is ended when
/// it goes.
struct Cluster<'a> {
    bed: &'a Bed,
    programs: PathBuf,
    /// How its processes call themselves: the name of the scratch folder.
    name: String,
    /// The system's number of its piece of shared memory, which outlives a `kill -9`.
    memory: Option<String>,
    transactions: u64,
}

impl<'a> Cluster<'a> {
    /// `None` if PostgreSQL is not installed and nobody asked for it.
    fn made(bed: &'a Bed, scale_factor: u32) -> Option<Cluster<'a>> {
        let mut versions: Vec<PathBuf> =
            fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path().join("bin")).collect();
        versions.retain(|programs| programs.join("pgbench").exists());
        versions.sort();
        let Some(programs) = versions.pop() else {
            assert_eq!(scale(), Scale::Light, "PostgreSQL is not installed; scripts/test does that");
            println!("skipped: PostgreSQL is not installed");
            return None;
        };
        let name = bed.path().file_name().unwrap().to_str().unwrap().to_owned();
        bed.open_to_others();
        for folder in [bed.at("pg"), bed.path().join("out")] {
            fs::create_dir(&folder).unwrap();
            if is_root() {
                std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let cluster = Cluster { bed, programs, name, memory: None, transactions: 0 };
        let data = cluster.data();
        cluster.run("initdb", &["--data-checksums", "--auth=trust", "--username=t", "--locale=C", "-D", &data]).ok();
        let settings = format!(
            "listen_addresses=''\nunix_socket_directories='{}'\ncluster_name='{}'\ndynamic_shared_memory_type=mmap\n\
             checkpoint_timeout=30s\nmax_wal_size=64MB\nfull_page_writes=on\nfsync=on\nsynchronous_commit=on\nmax_connections=20\n",
            cluster.out(),
            cluster.name
        );
        let mut file = fs::File::options().append(true).open(bed.at("pg/data/postgresql.conf")).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        let mut cluster = cluster;
        cluster.start();
        cluster.run("pgbench", &["-i", "-q", "-s", &scale_factor.to_string(), "postgres"]).ok();
        Some(cluster)
    }
    fn data(&self) -> String {
        self.bed.at("pg/data").to_str().unwrap().to_owned()
    }
    fn out(&self) -> String {
        self.bed.path().join("out").to_str().unwrap().to_owned()
    }
    /// One of its programs; as nobody, since it refuses to serve root.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
                .arg(self.programs.join(program));
            command
        } else {
            Command::new(self.programs.join(program))
        };
        command.args(words).current_dir("/").env("LC_ALL", "C").env("PGHOST", self.out()).env("PGUSER", "t");
        command
    }
    #[track_caller]
    fn run(&self, program: &str, words: &[&str]) -> Said {
        run(&mut self.command(program, words))
    }
    #[track_caller]
    fn start(&mut self) {
        let (data, log) = (self.data(), format!("{}/log", self.out()));
        let said = self.run("pg_ctl", &["start", "-s", "-w", "-t", "300", "-D", &data, "-l", &log]);
        assert_eq!(said.code, 0, "{said}\n{}", fs::read_to_string(&log).unwrap_or_default());
        let lines = fs::read_to_string(self.bed.at("pg/data/postmaster.pid")).unwrap();
        self.memory = lines.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned);
    }
    #[track_caller]
    fn stop(&self, mode: &str) {
        self.run("pg_ctl", &["stop", "-s", "-w", "-t", "300", "-m", mode, "-D", &self.data()]).ok();
    }
    /// Processes of this cluster, whatever they are named for: the first has our folder among its words, the others our name.
    fn processes(&self) -> Vec<i32> {
        let (data, title) = (self.data(), format!("postgres: {}", self.name));
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let words = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned();
            let first = words.split('\0').next().unwrap_or_default();
            let ours = first.starts_with(&title) || first.ends_with("/postgres") && words.contains(&data);
            ours.then_some(process)
        })
        .collect()
    }
    fn end_all(&self) {
        self.end_processes();
        if let Some(memory) = &self.memory {
            // Gone already after a proper stop.
            let _ = Command::new("ipcrm").args(["-m", memory]).stderr(Stdio::null()).status();
        }
    }
    /// Wait until nothing is left of them, not even an entry among the processes: PostgreSQL takes that for a living server.
    fn end_processes(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        let mut seen = BTreeSet::new();
        while Instant::now() < until {
            seen.extend(self.processes());
            seen.retain(|process| Path::new(&format!("/proc/{process}")).exists());
            if seen.is_empty() {
                return;
            }
            for process in &seen {
                let pid = rustix::process::Pid::from_raw(*process).expect("a process");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("processes of PostgreSQL that do not end: {seen:?}");
    }
    /// Let `pgbench` work with several clients and do `meanwhile` after so many seconds; counts what was acknowledged, and
    /// tells whether `pgbench` came to its end.
    #[track_caller]
    fn bench(&mut self, seconds: u64, meanwhile_at_ms: u64, meanwhile: impl FnOnce(&Cluster)) -> Said {
        let worker = self.command("pgbench", &["-n", "-c", "6", "-j", "2", "-T", &seconds.to_string(), "postgres"]);
        let said = std::thread::scope(|scope| {
            let mut worker = worker;
            let bench = scope.spawn(move || run(&mut worker));
            std::thread::sleep(Duration::from_millis(meanwhile_at_ms));
            let was_running = !bench.is_finished();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(self)));
            if let Err(panic) = outcome {
                self.end_all();
                std::panic::resume_unwind(panic);
            }
            let said = bench.join().unwrap();
            assert!(was_running, "{said}");
            said
        });
        let line = said.out.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        let processed: u64 =
            line.and_then(|rest| rest.split('/').next()?.trim().parse().ok()).unwrap_or_else(|| panic!("{said}"));
        assert!(processed > 0, "{said}");
        self.transactions += processed;
        said
    }
    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        self.run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]).ok().out.trim().to_owned()
    }
    /// All that was acknowledged is there, and its books balance; at most one more per client, of which nobody heard.
    #[track_caller]
    fn check_books(&mut self, unheard: u64) {
        let there: u64 = self.ask("select count(*) from pgbench_history").parse().unwrap();
        let range = self.transactions..=self.transactions + unheard;
        assert!(range.contains(&there), "{} were acknowledged, {there} are there", self.transactions);
        println!("{} transactions acknowledged, {there} there", self.transactions);
        let sums = self.ask(
            "select (select sum(abalance) from pgbench_accounts) = sum(delta) and (select sum(tbalance) from pgbench_tellers)
             = sum(delta) and (select sum(bbalance) from pgbench_branches) = sum(delta) from pgbench_history",
        );
        assert_eq!(sums, "t", "the books do not balance");
        self.transactions = there;
    }
    /// Tables and indexes as `pg_amcheck` sees them, then each page's checksum, with the cluster stopped.
    #[track_caller]
    fn check_pages(&self) {
        let words = ["--install-missing", "--heapallindexed", "--parent-check", "--rootdescend", "-d", "postgres"];
        let said = self.run("pg_amcheck", &words).ok();
        assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""), "{said}");
        self.stop("fast");
        let said = self.run("pg_checksums", &["--check", "-D", &self.data()]).ok();
        assert!(said.out.contains("Bad checksums:  0"), "{said}");
    }
}

/// Whom it runs as, if we are root.
const NOBODY: u32 = 65534;

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(Path::new(&self.out()).join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            println!("PostgreSQL said\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.end_all();
    }
}

/// Goal: PostgreSQL that is stopped at once, in the middle of its transactions, recovers with all that it acknowledged.
#[test]
fn suite_postgresql_recovers_from_an_immediate_stop() {
    // SEMANTICS: DUR-1
    if !can_work_hard() {
        return;
    }
    let tally = Tally::begin(220, "PostgreSQL, immediate stop");
    let (factor, stops): (u32, &[u64]) =
        if scale() == Scale::All { (30, &[20_000, 3_000, 40_000]) } else { (2, &[3_000]) };
    let bed = Bed::formatted(if factor > 2 { "6G" } else { "1G" });
    bed.mount("allow_other,deadline=60s").ok();
    let Some(mut cluster) = Cluster::made(&bed, factor) else { return };
    for stop in stops {
        let said = cluster.bench(600, *stop, |cluster| cluster.stop("immediate"));
        assert_ne!(said.code, 0, "{said}");
        cluster.start();
        cluster.check_books(6);
    }
    cluster.check_pages();
    cluster.start();
    cluster.check_books(0);
    cluster.stop("smart");
    let transactions = cluster.transactions;
    drop(cluster);
    bed.umount_and_check();
    tally.end(
        stops.len() as u64,
        0,
        0,
        &format!("scale {factor}, {transactions} transactions; pg_amcheck and pg_checksums find nothing"),
    );
}

/// Goal: when the daemon dies below PostgreSQL, it recovers on the next mount with all that it acknowledged.
#[test]
fn suite_postgresql_survives_the_death_of_the_daemon() {
    // SEMANTICS: DUR-1, CRASH-1
    if !can_work_hard() {
        return;
    }
    let tally = Tally::begin(221, "PostgreSQL, daemon killed");
    let (factor, kills): (u32, &[u64]) =
        if scale() == Scale::All { (30, &[5_000, 1_000, 20_000, 40_000]) } else { (2, &[2_500]) };
    let bed = Bed::formatted(if factor > 2 { "6G" } else { "1G" });
    bed.mount("allow_other,deadline=60s").ok();
    let Some(mut cluster) = Cluster::made(&bed, factor) else { return };
    for kill in kills {
        let said = cluster.bench(600, *kill, |cluster| {
            cluster.bed.kill();
            cluster.end_all();
        });
        assert_ne!(said.code, 0, "{said}");
        bed.fsck("-n").ok();
        bed.mount("allow_other,deadline=60s").ok();
        cluster.start();
        cluster.check_books(6);
    }
    cluster.check_pages();
    let transactions = cluster.transactions;
    drop(cluster);
    bed.umount_and_check();
    tally.end(
        kills.len() as u64,
        0,
        0,
        &format!("scale {factor}, {transactions} transactions; pg_amcheck and pg_checksums find nothing"),
    );
}

/// Goal: PostgreSQL does not notice that a replica is lost while it works, nor that it is replaced.
#[test]
fn suite_postgresql_does_not_notice_a_lost_replica() {
    // SEMANTICS: DEG-1, DEG-7
    if !can_work_hard() {
        return;
    }
    let tally = Tally::begin(222, "PostgreSQL, replica lost and replaced");
    let (factor, seconds): (u32, u64) = if scale() == Scale::All { (30, 90) } else { (2, 8) };
    let bed = Bed::formatted(if factor > 2 { "6G" } else { "1G" });
    bed.mount("allow_other,deadline=60s,noreturn").ok();
    let Some(mut cluster) = Cluster::made(&bed, factor) else { return };
    let said = cluster
        .bench(seconds, seconds * 250, |_| {
            shell(&bed.b, "rm -rf ./* && test -z \"$(ls -A)\"").ok();
            bed.wait_for(Duration::from_secs(60), "b is named out", |status| state_of(status, &bed.b) == "out");
            std::thread::sleep(Duration::from_millis(seconds * 125));
            bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str(), bed.b.as_os_str()]).ok();
        })
        .ok();
    assert!(said.out.contains("number of failed transactions: 0 "), "{said}");
    cluster.check_books(0);
    cluster.check_pages();
    let transactions = cluster.transactions;
    drop(cluster);
    bed.umount_and_check();
    tally.end(
        1,
        0,
        0,
        &format!("scale {factor}, {transactions} transactions, 0 failed; pg_amcheck and pg_checksums find nothing"),
    );
}
