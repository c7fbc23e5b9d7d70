//! Programs that people use, on the mount and over remounts; mail also over the death of the daemon.

use super::bed::{Bed, Scale, can_mount, can_work_hard, is_root, scale, shell};
use super::tally::Tally;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// Goal: git, which links, renames and syncs a lot, finds its repositories sound on the mount, also after a remount, and
/// says of all that it packed, linked and fetched what it says on the disk below.
#[test]
fn suite_git_clones_with_hard_links_and_finds_no_fault() {
    // SEMANTICS: NS-1, NS-2
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(200, "git");
    let commits = if scale() == Scale::All { 100 } else { 8 };
    let bed = Bed::mounted("1G");
    let begin = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
        git config --global user.name t; git config --global user.email t@example.org
        git config --global init.defaultBranch main; git config --global core.fsync all
        git config --global core.fsyncMethod fsync; git config --global gc.auto 0";
    let history = format!(
        "{begin}
         git init -q origin; cp -r {SOURCES}/src {SOURCES}/docs {SOURCES}/tests origin/; cd origin
         for i in $(seq {commits}); do echo $i >>src/lib.rs; mkdir -p n/$((i % 7)); echo $i >n/$((i % 7))/$i
             mv docs* docs-$i; git add -A; git commit -qm $i; git tag -a -m t v$i; done
         git checkout -q -b side HEAD~3; echo side >side; git add -A; git commit -qm side
         git checkout -q main; git merge -q --no-edit side; git rev-parse HEAD; git status --porcelain"
    );
    let twin = bed.path().join("twin");
    fs::create_dir(&twin).unwrap();
    let on_disk = shell(&twin, &history).ok().out;
    let on_mount = shell(&bed.mnt, &history).ok().out;
    assert_eq!(on_mount, on_disk, "the same commits give the same names everywhere");
    shell(
        &bed.mnt,
        &format!(
            "{begin}
             git clone -q --local origin clone; git -C clone fsck --full --strict
             git -C clone checkout -q -b other HEAD~2; git -C clone checkout -q main
             test -z \"$(git -C clone status --porcelain)\""
        ),
    )
    .ok();
    let mut linked = 0;
    for entry in walk(&bed.at("clone/.git/objects")) {
        let meta = fs::symlink_metadata(&entry).unwrap();
        if meta.is_file() && meta.nlink() == 2 {
            let twin = bed.at("origin/.git/objects").join(entry.strip_prefix(bed.at("clone/.git/objects")).unwrap());
            assert_eq!(fs::metadata(twin).unwrap().ino(), meta.ino(), "hard links have one inode number");
            linked += 1;
        }
    }
    assert!(linked > 100, "only {linked} objects are hard links");
    bed.umount_and_check();
    bed.mount("").ok();
    let said = shell(
        &bed.mnt,
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
         for r in origin clone; do git -C $r fsck --full --strict; test -z \"$(git -C $r status --porcelain)\"; done
         git -C origin repack -q -a -d -f --depth=50; git -C origin gc -q --prune=now --aggressive
         git -C origin fsck --full --strict; git -C origin prune-packed
         test -z \"$(find origin/.git/objects -type f -path '*/??/*')\"
         git -C clone fsck --full --strict # its objects were hard links that origin has let go of
         git clone -q --bare --no-local origin bare; git -C bare fsck --full --strict
         git -C clone worktree add -q ../tree side 2>/dev/null || git -C clone worktree add -q -b side ../tree origin/side
         echo more >tree/more; git -C tree add more; git -C tree commit -qm more; git -C tree push -q ../bare HEAD:refs/heads/pushed
         git -C clone gc -q; git -C clone fsck --full --strict; git -C bare fsck --full --strict
         git -C origin cat-file --batch-all-objects --batch-check | sort | sha256sum",
    )
    .ok();
    let objects = shell(&twin, "git -C origin cat-file --batch-all-objects --batch-check | sort | sha256sum").ok();
    assert_eq!(said.out, objects.out, "origin has other objects than the same history on the disk below");
    shell(bed.path(), "diff -r --exclude .git mnt/origin twin/origin").ok();
    bed.umount_and_check();
    tally.end(
        1,
        0,
        0,
        &format!("{commits} commits, {linked} hard-linked objects, repack, gc, worktree, push; fsck --full --strict"),
    );
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(one) = folders.pop() {
        for entry in fs::read_dir(one).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// Goal: a compiler and a linker, which map their files, build a real crate on the mount, and it runs.
#[test]
fn suite_cargo_builds_a_crate() {
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(250, "cargo build");
    let bed = Bed::mounted("1G");
    let crate_folder = bed.at("crate");
    fs::create_dir_all(crate_folder.join("src")).unwrap();
    fs::write(
        crate_folder.join("Cargo.toml"),
        "[package]\nname = \"built\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[dependencies]\nserde_json = \"1\"\n\n[workspace]\n",
    )
    .unwrap();
    fs::write(
        crate_folder.join("src/main.rs"),
        "fn main() { let v: serde_json::Value = serde_json::from_str(\"[1, 2, 39]\").unwrap();\n\
         println!(\"{}\", v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>()); }\n",
    )
    .unwrap();
    // Our own lock file: all that it names has been fetched already.
    fs::copy(format!("{SOURCES}/Cargo.lock"), crate_folder.join("Cargo.lock")).unwrap();
    let said = shell(
        &crate_folder,
        "unset CARGO_TARGET_DIR RUSTFLAGS; CARGO_TARGET_DIR=$PWD/target cargo build --offline --quiet; ./target/debug/built",
    )
    .ok();
    assert_eq!(said.out.trim(), "42", "{said}");
    bed.umount_and_check();
    bed.mount("").ok();
    assert_eq!(shell(&crate_folder, "./target/debug/built").ok().out.trim(), "42");
    tally.end(1, 0, 0, "a crate with a dependency, built, run, and run again after a remount");
}

/// Goal: this project itself is built on the mount; after a remount cargo finds that nothing has changed, and after a
/// change builds only what hangs on it.
#[test]
fn suite_cargo_builds_this_project() {
    if scale() != Scale::All || !can_work_hard() {
        return;
    }
    let tally = Tally::begin(251, "cargo build of stablefs itself");
    let bed = Bed::mounted("6G");
    let build = "unset RUSTFLAGS; export CARGO_TARGET_DIR=$PWD/target; cargo build --offline --locked --bin stablefs";
    shell(
        &bed.mnt,
        &format!(
            "cp -a {SOURCES}/src {SOURCES}/mount-helper {SOURCES}/benches {SOURCES}/Cargo.toml {SOURCES}/Cargo.lock .
             cp -a {SOURCES}/README.md {SOURCES}/docs {SOURCES}/tests .; {build}; target/debug/stablefs --version"
        ),
    )
    .ok();
    bed.umount_and_check();
    bed.mount("").ok();
    let said = shell(&bed.mnt, &format!("{build} -v")).ok();
    assert!(said.err.contains("Fresh stablefs") && !said.err.contains("Compiling"), "{said}");
    let said = shell(&bed.mnt, &format!("touch src/main.rs; {build}; target/debug/stablefs --version")).ok();
    assert_eq!(said.err.matches("Compiling").count(), 1, "{said}");
    bed.umount_and_check();
    tally.end(1, 0, 0, "built; nothing to do after a remount; one crate after a change");
}

/// What was changed just now gets an old time: rsync leaves a time alone that differs by less than a second.
const SET_TIMES: &str =
    "find . -depth -newermt 2021-01-01 -not -newermt 2037-01-01 -exec touch -h -d '2020-05-05 05:05:05.000000005' {} +";

/// A tree with one of everything.
fn odd_tree(folder: &Path) {
    let root_only = if is_root() {
        "mknod null c 1 3; mknod disk b 7 200; mknod sock p; chown 1234:4321 owned; chown -h 7:8 link; chmod 0 nothing
         setfattr -n trusted.t -v kept file; setfattr -n security.x -v kept deep"
    } else {
        "true"
    };
    shell(
        folder,
        &format!(
            "mkdir -p deep/er/est empty; echo hello >file; ln file hard; ln file deep/hard2; ln -s file link
             ln -s /nowhere/at/all dangling; mkfifo fifo; : >nothing; echo x >owned; {root_only}
             head -c 5000000 /dev/urandom >big; truncate -s 1G sparse; echo mid | dd of=sparse bs=1 seek=500000000 conv=notrunc status=none
             truncate -s 3M allhole; echo start | dd of=tailhole bs=4k conv=sync status=none; truncate -s 10M tailhole
             echo a >'new
line'; echo b >'spaces  and	tab'; echo c >$'\\xff\\xfe'; echo d >\"$(printf 'n%.0s' $(seq 255))\"
             setfattr -n user.small -v value file; setfattr -n user.big -v \"$(head -c 3000 /dev/zero | tr '\\0' z)\" file
             setfattr -n user.dir -v d deep; setfacl -m u:1234:rwx,g:99:r file; setfacl -d -m u:1234:rx deep
             mkdir -p $(printf 'path/%.0s' $(seq 100)); echo far >$(printf 'path/%.0s' $(seq 100))/end
             chmod 4755 big; chmod 1777 deep
             for i in $(seq 300); do echo $i >deep/er/$i; done; {SET_TIMES}
             touch -d '1999-12-31 23:59:59.123456789' file; touch -d '1901-01-01 00:00:01' big; touch -h -d '2038-01-20' link
             touch -d '1970-01-01 00:00:00.000000001 UTC' deep/er; touch -d '2100-02-28 12:00:00.5' deep"
        ),
    )
    .ok();
}

/// Fails unless both folders below `bed` are the same in all that rsync can see.
#[track_caller]
fn assert_same(bed: &Bed, source: &str, copy: &str) {
    let said = shell(bed.path(), &format!("rsync -aHAXn --numeric-ids --checksum --delete -i {source}/ {copy}/")).ok();
    assert_eq!(said.out, "", "{copy} differs: {said}");
    // Directories count their links differently from one filesystem to the next.
    let list = "find . '(' -type d -printf '%P %m %U:%G %T@\\n' ')' -o -printf '%P %y %m %n %U:%G %T@ %l\\n' | sort";
    let said = shell(bed.path(), &format!("diff <(cd {source}; {list}) <(cd {copy}; {list})"));
    assert_eq!(said.code, 0, "{copy}: other times, modes, owners or link counts: {said}");
    for sparse in ["sparse", "allhole", "tailhole"] {
        let blocks = fs::metadata(bed.path().join(copy).join(sparse)).unwrap().blocks();
        assert!(blocks < 2_000, "{copy}: the hole in {sparse} was filled: {blocks} blocks of 512 bytes");
    }
    let inodes =
        ["file", "hard", "deep/hard2"].map(|name| fs::metadata(bed.path().join(copy).join(name)).unwrap().ino());
    assert!(inodes.iter().all(|ino| *ino == inodes[0]), "hard links are one inode");
}

/// Goal: a copy onto the mount and back differs in nothing that rsync can see.
#[test]
fn suite_rsync_there_and_back_shows_no_difference() {
    // SEMANTICS: NS-4
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(230, "rsync -aHAXS");
    let bed = Bed::mounted("512M");
    let source = bed.path().join("source");
    fs::create_dir(&source).unwrap();
    odd_tree(&source);
    shell(bed.path(), "rsync -aHAXS --numeric-ids source/ mnt/copy/ && rsync -aHAXS --numeric-ids mnt/copy/ back/")
        .ok();
    for copy in ["mnt/copy", "back"] {
        assert_same(&bed, "source", copy);
    }
    // Once more over what is there, with changes of every kind, in place and by renaming.
    for (round, way) in ["", "--inplace --no-whole-file --no-sparse"].into_iter().enumerate() {
        shell(
            bed.path(),
            &format!(
                "cd source; rm -rf deep/er/1*; ln file hard{round}; echo {round} >>big; setfattr -x user.small file || true
                 setfacl -b file; setfacl -m g:{round}:w nothing; mv link link{round}; ln -s link{round} link; chmod 640 'new
line'; {SET_TIMES}; cd ..; rsync -aHAXS {way} --numeric-ids --delete source/ mnt/copy/"
            ),
        )
        .ok();
        assert_same(&bed, "source", "mnt/copy");
    }
    bed.umount_and_check();
    bed.mount("").ok();
    assert_same(&bed, "source", "mnt/copy");
    bed.umount_and_check();
    tally.end(5, 0, 0, "there, back, changed, changed in place, after a remount: nothing differs");
}

/// Goal: tar, with holes, extended attributes and ACLs, loses nothing on the way onto the mount and back.
#[test]
fn suite_tar_there_and_back_shows_no_difference() {
    // SEMANTICS: NS-4, NS-5
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(231, "tar --sparse --xattrs --acls");
    let bed = Bed::mounted("512M");
    let source = bed.path().join("source");
    fs::create_dir(&source).unwrap();
    odd_tree(&source);
    // Asked with SEEK_HOLE as well as by reading; the archive of what lies on the mount lies there, too.
    let mut passed = 0;
    for detection in ["seek", "raw"] {
        let tar = format!(
            "tar --format=posix --sparse --hole-detection={detection} --xattrs --xattrs-include='*' --acls --no-selinux --numeric-owner"
        );
        shell(
            bed.path(),
            &format!(
                "mkdir mnt/{detection} back-{detection}; {tar} -cf - -C source . | {tar} -xpf - -C mnt/{detection}
                 {tar} -cf mnt/{detection}.tar -C mnt/{detection} .; {tar} -xpf mnt/{detection}.tar -C back-{detection}
                 {tar} -df mnt/{detection}.tar -C mnt/{detection}
                 test $(stat -c %s mnt/{detection}.tar) -lt 12000000"
            ),
        )
        .ok();
        assert_same(&bed, "source", &format!("mnt/{detection}"));
        assert_same(&bed, "source", &format!("back-{detection}"));
        passed += 2;
    }
    bed.umount_and_check();
    bed.mount("").ok();
    assert_same(&bed, "source", "mnt/seek");
    bed.umount_and_check();
    tally.end(passed + 1, 0, 0, "there and back, holes found by seeking and by reading; nothing differs");
}

/// Delivers into a maildir for ever, and says of each message when it is safe.
const DELIVER: &str = r#"
use strict; use IO::Handle; use Fcntl; $| = 1;
my ($box, $who) = @ARGV;
sub settle { sysopen(my $d, $_[0], O_RDONLY) or die "$_[0]: $!"; $d->sync or die "$_[0]: $!"; close $d }
for (my $i = 0; ; $i++) {
    my $id = "$who.$i.host"; my $text = "$id\n" x (1 + $i * 37 % 900);
    sysopen(my $f, "$box/tmp/$id", O_WRONLY | O_CREAT | O_EXCL) or die "create: $!";
    print $f $text or die "write: $!"; $f->flush or die "write: $!"; $f->sync or die "fsync: $!"; close $f or die "close: $!";
    if ($i % 2) { rename("$box/tmp/$id", "$box/new/$id") or die "rename: $!" }
    else { link("$box/tmp/$id", "$box/new/$id") or die "link: $!"; unlink("$box/tmp/$id") or die "unlink: $!" }
    settle("$box/new"); print "D $id\n";
}"#;

/// Moves new messages into cur/ with a flag, reads them, marks some as answered, and says which it has seen.
const COLLECT: &str = r#"
use strict; use IO::Handle; use Fcntl; $| = 1;
my ($box, $who) = @ARGV;
sub settle { sysopen(my $d, $_[0], O_RDONLY) or die "$_[0]: $!"; $d->sync or die "$_[0]: $!"; close $d }
while (1) {
    opendir(my $d, "$box/new") or die "opendir: $!"; my @new = grep { !/^\./ } readdir($d); closedir $d;
    my %seen; for (@new) { die "WRONG $_ is listed twice\n" if $seen{$_}++ }
    my @mine;
    for my $id (@new) {
        if (!rename("$box/new/$id", "$box/cur/$id:2,S")) { next if $!{ENOENT}; die "rename: $!" }
        open(my $f, '<', "$box/cur/$id:2,S") or die "open: $!"; local $/; my $text = <$f>;
        die "read: $!" if $f->error || !defined $text; close $f;
        my ($n) = $id =~ /^\w+\.(\d+)\./; die "WRONG text in $id\n" unless $text eq "$id\n" x (1 + $n * 37 % 900);
        if ($n % 3 == 0) { rename("$box/cur/$id:2,S", "$box/cur/$id:2,RS") or die "flag: $!" }
        push @mine, $id;
    }
    if (@mine) { settle("$box/cur"); print "S $_\n" for @mine } else { select(undef, undef, undef, 0.005) }
}"#;

/// Processes that are ended when it goes.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Goal: mail that was said to be delivered is there once, whole, and what was said to be read is in cur/, when the daemon
/// dies at any moment among several deliverers and readers. Method: each says so outside the mount, after its fsync.
#[test]
fn suite_maildir_loses_and_doubles_no_message() {
    // SEMANTICS: DUR-1, DUR-2, CRASH-1, CRASH-2, NS-1
    if !can_mount() {
        return;
    }
    let tally = Tally::begin(240, "maildir, daemon killed");
    let rounds: &[u64] =
        if scale() == Scale::All { &[300, 900, 2_100, 4_000, 7_000, 500, 1_500, 20_000] } else { &[800, 2_500] };
    let bed = Bed::formatted("2G");
    let (mut delivered, mut collected) = (BTreeSet::new(), BTreeSet::new());
    for (round, wait_ms) in rounds.iter().enumerate() {
        bed.mount("deadline=60s").ok();
        shell(&bed.mnt, "mkdir -p box/tmp box/new box/cur").ok();
        bed.sync();
        let (lines, errors) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let mut workers = Processes(Vec::new());
        std::thread::scope(|scope| {
            for worker in 0..5 {
                let script = if worker < 3 { DELIVER } else { COLLECT };
                let mut child = Command::new("perl")
                    .args(["-e", script, "--"])
                    .arg(bed.at("box"))
                    .arg(format!("r{round}w{worker}"))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("perl");
                let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
                let (lines, errors) = (&lines, &errors);
                scope.spawn(move || {
                    BufReader::new(out).lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
                });
                scope.spawn(move || {
                    BufReader::new(err).lines().map_while(Result::ok).for_each(|line| errors.lock().unwrap().push(line))
                });
                workers.0.push(child);
            }
            std::thread::sleep(Duration::from_millis(*wait_ms));
            let alive = workers.0.iter_mut().all(|child| child.try_wait().unwrap().is_none());
            bed.kill();
            drop(workers);
            assert!(alive, "a worker ended before the daemon did");
        });
        let errors = errors.into_inner().unwrap();
        assert!(!errors.iter().any(|line| line.contains("WRONG")), "{errors:?}");
        for line in lines.into_inner().unwrap() {
            match line.split_once(' ') {
                Some(("D", id)) => assert!(delivered.insert(id.to_owned()), "{id} was delivered twice"),
                Some(("S", id)) => assert!(collected.insert(id.to_owned()), "{id} was taken twice"),
                _ => panic!("what is {line:?}?"),
            }
        }
        bed.mount("").ok();
        check_mail(&bed.at("box"), &delivered, &collected);
        println!("round {round}: {} delivered, {} collected so far", delivered.len(), collected.len());
        bed.umount_and_check();
    }
    assert!(delivered.len() > 20 && collected.len() > 10, "the mail hardly moved");
    let note =
        format!("{} messages acknowledged, {} collected; none lost, none twice", delivered.len(), collected.len());
    tally.end(rounds.len() as u64, 0, 0, &note);
}

fn check_mail(folder: &Path, delivered: &BTreeSet<String>, collected: &BTreeSet<String>) {
    let names = |place: &str| -> Vec<String> {
        let entries = fs::read_dir(folder.join(place)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut found = BTreeSet::new();
    let mut in_cur = BTreeSet::new();
    for place in ["new", "cur"] {
        for name in names(place) {
            let id = name.split(':').next().unwrap().to_owned();
            let number: usize = id.split('.').nth(1).unwrap().parse().unwrap();
            let text = fs::read_to_string(folder.join(place).join(&name)).unwrap();
            assert!(text == format!("{id}\n").repeat(1 + number * 37 % 900), "{place}/{name} is not what was sent");
            assert!(found.insert(id.clone()), "{id} is there twice");
            if place == "cur" {
                in_cur.insert(id);
            }
        }
    }
    let lost: Vec<_> = delivered.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged, and gone: {lost:?}");
    let back: Vec<_> = collected.difference(&in_cur).collect();
    assert!(back.is_empty(), "taken, and not in cur/: {back:?}");
}
