//! SQLite on the mount, where an acknowledgement that was not meant shows: the program or the daemon is killed in the middle.

use super::bed::{Bed, Scale, can_mount, run, scale, shell};
use super::tally::Tally;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Goal: a database with both kinds of journal stays sound, also over a remount.
#[test]
fn suite_sqlite_finds_its_databases_sound() {
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(210, "SQLite, WAL and rollback journal");
    let bed = Bed::mounted("512M");
    for journal in JOURNALS {
        let said = shell(
            &bed.mnt,
            &format!(
                "sqlite3 {journal}.db 'pragma journal_mode={journal}; create table t(k integer primary key, v blob);
                 begin; with recursive n(i) as (select 1 union all select i+1 from n where i<20000)
                 insert into t select i, randomblob(200) from n; commit;'
                 for i in $(seq 40); do sqlite3 {journal}.db \"update t set v=randomblob(300) where k%40=$i;
                 delete from t where k=$i\"; done
                 sqlite3 {journal}.db 'vacuum; pragma integrity_check; select count(*) from t'"
            ),
        )
        .ok();
        assert!(said.out.ends_with("ok\n19960\n"), "{said}");
    }
    bed.umount_and_check();
    bed.mount("").ok();
    for journal in JOURNALS {
        let said = shell(&bed.mnt, &format!("sqlite3 {journal}.db 'pragma integrity_check; select count(*) from t'"));
        assert_eq!(said.ok().out, "ok\n19960\n");
    }
    bed.umount_and_check();
    tally.end(JOURNALS.len() as u64, 0, 0, "20,000 rows, updates, vacuum, remount: integrity_check ok");
}

const JOURNALS: [&str; 2] = ["wal", "delete"];

/// What COMMIT has to be asked for to outlive a power cut: with a rollback journal, that the deletion of the journal is
/// synced as well (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
fn synchronous(journal: &str) -> &'static str {
    if journal == "delete" { "extra" } else { "full" }
}
/// Programs that write into one database at a time.
const WRITERS: u64 = 2;

/// `sqlite3` on one database, fed with transactions for ever; each number that it prints is a COMMIT that returned.
struct Writer {
    child: Child,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Make the database, if it is not there, with a table for the rows and one that counts them.
fn make_database(bed: &Bed, journal: &str) {
    let said = shell(
        &bed.mnt,
        &format!(
            "sqlite3 {journal}.db 'pragma journal_mode={journal}; create table if not exists rows(writer, number, part, v,
             primary key(writer, number, part)); create index if not exists by_v on rows(v);
             create table if not exists counts(writer primary key, number);'"
        ),
    )
    .ok();
    assert_eq!(said.out.trim(), journal);
}

/// What a row of transaction `number` holds: SQL that the checker can use as well.
const ROW: &str = "hex(number*7919+part)||substr(hex(zeroblob(150)),1,(number*31)%300)";

/// Let `WRITERS` programs write into the database from where they left off, do `interrupt` meanwhile, and tell what each of
/// them was told is safe.
///
/// SQLite calls a COMMIT good although the folder could not be opened to be synced (`unixDelete` in its `os_unix.c`), as
/// happens once the daemon is dead: so what a rollback journal is told counts until `dying` only.
fn write_until(
    bed: &Bed,
    journal: &str,
    from: &[u64],
    interrupt: impl FnOnce(&mut Vec<Writer>, &AtomicBool),
) -> Vec<u64> {
    let dying = AtomicBool::new(false);
    let acknowledged: Vec<AtomicU64> = from.iter().map(|number| AtomicU64::new(*number)).collect();
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let mut child = Command::new("sqlite3")
                .args(["-batch", "-bail"])
                .arg(bed.at(&format!("{journal}.db")))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("sqlite3");
            let (mut feed, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            writers.push(Writer { child });
            let first = acknowledged.load(Ordering::Relaxed) + 1;
            scope.spawn(move || {
                let mut text = format!(
                    ".timeout 600000\npragma synchronous={};\npragma wal_autocheckpoint=50;\n",
                    synchronous(journal)
                );
                for number in first.. {
                    text += &format!(
                        "begin immediate; insert into rows select {writer}, number, part, {ROW} from
                         (select {number} as number) join (select 1 as part union select 2 union select 3);
                         insert into counts values({writer}, {number}) on conflict(writer) do update set number={number};
                         commit; select 'safe ' || {number};\n"
                    );
                    if feed.write_all(text.as_bytes()).is_err() {
                        return;
                    }
                    text.clear();
                }
            });
            let dying = &dying;
            scope.spawn(move || {
                let counts = || journal == "wal" || !dying.load(Ordering::SeqCst);
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Some(number) = line.strip_prefix("safe ").filter(|_| counts()) {
                        acknowledged.store(number.parse().unwrap(), Ordering::Relaxed);
                    }
                }
            });
        }
        interrupt(&mut writers, &dying);
    });
    acknowledged.into_iter().map(AtomicU64::into_inner).collect()
}

/// The database is sound, holds what was acknowledged, and of each transaction all or nothing. Returns what it holds.
#[track_caller]
fn check_database(bed: &Bed, journal: &str, acknowledged: &[u64]) -> Vec<u64> {
    let mut held = Vec::new();
    let ask = |sql: &str| run(Command::new("sqlite3").arg(bed.at(&format!("{journal}.db"))).arg(sql)).ok().out;
    assert_eq!(ask("pragma integrity_check").trim(), "ok", "{journal}");
    for (writer, safe) in acknowledged.iter().enumerate() {
        let said = ask(&format!(
            "select count(*), count(distinct number), coalesce(max(number),0), coalesce(sum(v={ROW}),0),
             coalesce((select number from counts where writer={writer}),0) from rows where writer={writer}"
        ));
        let numbers: Vec<u64> = said.trim().split('|').map(|n| n.parse().unwrap()).collect();
        let last = numbers[2];
        assert_eq!(numbers, [3 * last, last, last, 3 * last, last], "{journal}, writer {writer}: half a transaction");
        assert!(last >= *safe, "{journal}, writer {writer}: COMMIT {safe} had returned, {last} is the last there is");
        held.push(last);
    }
    held
}

/// Several rounds with each kind of journal on one volume; `interrupt` ends something after so many milliseconds.
fn sqlite_rounds(bed: &Bed, waits_ms: &[u64], mut interrupt: impl FnMut(&Bed, &mut Vec<Writer>, &AtomicBool)) -> u64 {
    let mut transactions = 0;
    for journal in JOURNALS {
        let mut held = vec![0; WRITERS as usize];
        for wait_ms in waits_ms {
            make_database(bed, journal);
            let before: u64 = held.iter().sum();
            let safe = write_until(bed, journal, &held, |writers, dying| {
                std::thread::sleep(Duration::from_millis(*wait_ms));
                for writer in writers.iter_mut() {
                    assert!(writer.child.try_wait().unwrap().is_none(), "{journal}: a writer ended by itself");
                }
                interrupt(bed, writers, dying);
                writers.clear();
            });
            held = check_database(bed, journal, &safe);
            println!("{journal}: {safe:?} acknowledged, {held:?} there");
            assert!(safe.iter().sum::<u64>() > before, "{journal}: nothing was written");
        }
        transactions += held.iter().sum::<u64>();
    }
    transactions
}

/// Goal: SQLite that is killed in the middle of its transactions finds its database sound, with all that COMMIT returned from.
#[test]
fn suite_sqlite_is_killed_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(211, "SQLite, killed while it writes");
    let waits: &[u64] =
        if scale() == Scale::All { &[300, 700, 1_100, 2_000, 3_100, 5_000, 20_000] } else { &[400, 1_300] };
    let bed = Bed::mounted("512M");
    let transactions = sqlite_rounds(&bed, waits, |_, _, _| ());
    bed.umount_and_check();
    tally.end(
        2 * waits.len() as u64,
        0,
        0,
        &format!("{transactions} transactions of {WRITERS} writers, WAL and rollback"),
    );
}

/// Goal: when the daemon dies in the middle, SQLite recovers on the next mount, with all that COMMIT returned from.
#[test]
fn suite_sqlite_survives_the_death_of_the_daemon() {
    // SEMANTICS: DUR-1, CRASH-1
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(212, "SQLite, daemon killed");
    let waits: &[u64] =
        if scale() == Scale::All { &[300, 700, 1_100, 2_000, 3_100, 5_000, 20_000] } else { &[500, 1_700] };
    let bed = Bed::mounted("512M");
    let transactions = sqlite_rounds(&bed, waits, |bed, writers, dying| {
        dying.store(true, Ordering::SeqCst);
        bed.kill();
        writers.clear();
        bed.mount("").ok();
    });
    bed.umount_and_check();
    tally.end(
        2 * waits.len() as u64,
        0,
        0,
        &format!("{transactions} transactions of {WRITERS} writers, WAL and rollback"),
    );
}
