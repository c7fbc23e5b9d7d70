//! Junk over blocks that are in use, while the mount is busy.

use super::bed::{Bed, bytes, can_mount, counter, run};
use super::degraded::{check_still_files, load, still_files};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const STILL: u64 = 400;
const SMALL: u64 = 12_000;

/// Blocks that the newest root of a replica reaches, by kind.
fn reachable(bed: &Bed, replica: &Path) -> BTreeMap<u64, String> {
    let said = bed.stablefs(["debug".as_ref(), "blocks".as_ref(), replica.as_os_str()]).ok();
    let parse = |line: &str| line.split_once(' ').map(|(addr, kind)| (addr.parse().unwrap(), kind.to_owned()));
    said.out.lines().filter_map(parse).collect()
}

/// Choose: all of the rare kinds, and of leaves and data so many, spread over the volume.
fn choose(all: &BTreeMap<u64, String>, leaves: usize, data: usize) -> BTreeSet<u64> {
    let mut kinds: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    all.iter().for_each(|(addr, kind)| kinds.entry(kind).or_default().push(*addr));
    let mut chosen = BTreeSet::new();
    for (kind, addrs) in &kinds {
        let wanted = match *kind {
            "leaf" => leaves,
            "data" => data,
            _ => addrs.len(),
        };
        let step = (addrs.len() / wanted.max(1)).max(1);
        chosen.extend(addrs.iter().step_by(step).take(wanted));
    }
    chosen
}

fn count(all: &BTreeMap<u64, String>, chosen: &BTreeSet<u64>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    chosen.iter().for_each(|addr| *kinds.entry(all[addr].clone()).or_insert(0) += 1);
    kinds
}

/// Overwrite blocks of a container with junk behind everybody's back, as dd would.
fn inject(replica: &Path, addrs: &BTreeSet<u64>) {
    let file = fs::File::options().write(true).open(replica.join("stablefs.data")).unwrap();
    for addr in addrs {
        file.write_all_at(&bytes(addr ^ 0xbad, 4096), addr * 4096).unwrap();
    }
    file.sync_data().unwrap();
}

fn small_files(bed: &Bed) {
    for i in 0..SMALL {
        if i % 1000 == 0 {
            fs::create_dir(bed.at(&format!("small-{}", i / 1000))).unwrap();
        }
        fs::write(small_name(bed, i), bytes(i, 200)).unwrap();
    }
}

fn small_name(bed: &Bed, i: u64) -> std::path::PathBuf {
    bed.at(&format!("small-{}/{i}", i / 1000))
}

fn check_small_files(bed: &Bed, from: u64, step: usize) {
    for i in (from..SMALL).step_by(step) {
        let found = fs::read(small_name(bed, i)).unwrap_or_else(|e| panic!("small file {i}: {e}"));
        assert!(found == bytes(i, 200), "small file {i} reads as other bytes");
    }
}

/// Readers over everything until `work` is done. Any error or wrong byte fails the test.
fn readers<R>(bed: &Bed, work: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..2)
            .map(|reader| {
                let (stop, rounds) = (&stop, &rounds);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        check_still_files(bed, STILL);
                        check_small_files(bed, reader, 7);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        handles.into_iter().for_each(|handle| handle.join().expect("an application error"));
        println!("readers: {} rounds", rounds.load(Ordering::Relaxed));
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Goal: over a thousand rotten blocks of every kind on one container cost nothing while the mount is busy, are all
/// found and all healed; then the same on the other one.
///
/// Method: (1) with writers and readers at work, junk over what a list from before says; what is written meanwhile
/// may have freed some of it, so only what is read is judged. (2) with readers at work, junk over what is in use then:
/// each of it is in use until it is healed, so detected = injected = healed.
#[test]
fn rot_on_one_container_and_then_on_the_other_costs_nothing() {
    // SEMANTICS: READ-1, READ-2, HEAL-1, HEAL-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, STILL);
    small_files(&bed);
    bed.umount().ok();
    for replica in [bed.a.clone(), bed.b.clone()] {
        // Nothing is in the kernel's cache or the daemon's.
        let list = reachable(&bed, &replica);
        let still = list.iter().filter(|(_, kind)| matches!(kind.as_str(), "data" | "leaf"));
        let still: BTreeMap<u64, String> = still.map(|(addr, kind)| (*addr, kind.clone())).collect();
        let busy = choose(&still, 400, 800);
        bed.mount("").ok();
        load(&bed.at("load"), || {
            readers(&bed, || {
                inject(&replica, &busy);
                check_small_files(&bed, 0, 1);
                check_still_files(&bed, STILL);
            })
        });
        bed.sync();
        let scrub = bed.scrub();
        assert_eq!((scrub["lost"].as_u64(), scrub["failed"].as_u64()), (Some(0), Some(0)), "{scrub:#}");
        println!("{}: {} blocks under writers: {}", replica.display(), busy.len(), scrub["summary"]);

        bed.umount().ok();
        // A changed access time would be a commit, which frees bitmaps and nodes that have been chosen; so would dead lists
        // that are worth one, until a few commits have given back what they hold.
        bed.mount("noatime").ok();
        (0..4).for_each(|_| bed.sync());
        let list = reachable(&bed, &replica);
        let chosen = choose(&list, 700, 1500);
        let kinds = count(&list, &chosen);
        println!("{}: injected by kind: {kinds:?}", replica.display());
        assert!(chosen.len() >= 1000, "only {} blocks", chosen.len());
        assert!(chosen.len() - kinds["data"] >= 300, "only {} blocks of metadata", chosen.len() - kinds["data"]);
        for kind in ["label", "root", "leaf", "inner", "data", "bitmap", "space-node", "dead-list"] {
            assert!(kinds.get(kind).is_some_and(|n| *n > 0), "no {kind} among the blocks in use");
        }
        let before = bed.status();
        let scrub = readers(&bed, || {
            inject(&replica, &chosen);
            check_small_files(&bed, 0, 1);
            check_still_files(&bed, STILL);
            bed.scrub()
        });
        let after = bed.status();
        let grown = |name: &str| counter(&after, name) - counter(&before, name);
        let detected = grown("checksum") + grown("unreadable");
        let (injected, healed) = (chosen.len() as u64, grown("healed"));
        println!("{}: detected = {detected}, injected = {injected}, healed = {healed}", replica.display());
        println!("scrub: {}", scrub["summary"]);
        assert_eq!((detected, healed), (injected, injected), "{scrub:#}\n{after:#}");
        assert_eq!(after["state"], "healthy");
        assert_eq!(bed.scrub()["detected"].as_u64(), Some(0), "a second scrub finds more");
        bed.umount_and_check();
    }
}

/// Goal: where both replicas have lost a block there is an error for that block alone, never other bytes.
#[test]
fn what_both_have_lost_is_an_error_for_that_block_alone() {
    // SEMANTICS: READ-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let data = bytes(5, 64 * 4096);
    fs::write(bed.at("victim"), &data).unwrap();
    fs::write(bed.at("neighbour"), &data).unwrap();
    bed.umount().ok();
    // The block of the file by its content.
    let image = fs::read(bed.a.join("stablefs.data")).unwrap();
    let wanted = &data[10 * 4096..11 * 4096];
    let places: BTreeSet<u64> = (0..image.len() / 4096)
        .filter(|block| &image[block * 4096..(block + 1) * 4096] == wanted)
        .map(|block| block as u64)
        .collect();
    assert_eq!(places.len(), 2, "both files have the block once");
    let first = BTreeSet::from([*places.first().unwrap()]);
    inject(&bed.a, &first);
    inject(&bed.b, &first);
    let said = bed.fsck("-n").code(4);
    assert!(said.out.contains("victim") || said.out.contains("neighbour"), "the path is not named: {said}");
    bed.mount("").ok();
    let mut lost = 0;
    for name in ["victim", "neighbour"] {
        let file = fs::File::open(bed.at(name)).unwrap();
        for block in 0..64 {
            let mut found = vec![0; 4096];
            match file.read_exact_at(&mut found, block * 4096) {
                Ok(()) => assert!(found == data[block as usize * 4096..][..4096], "{name}, block {block}: wrong bytes"),
                Err(error) => {
                    assert_eq!((block, error.raw_os_error()), (10, Some(5)), "{name}: {error}");
                    lost += 1;
                }
            }
        }
    }
    assert_eq!(lost, 1);
    // Who lets cron do it hears of it, too.
    for words in [&["scrub", "--json"][..], &["scrub", "--status", "--json"], &["scrub"]] {
        let said = run(bed.command().args(words).arg(&bed.mnt)).code(1);
        assert!(said.err.contains("damaged on every replica"), "{said}");
        if words.contains(&"--json") {
            let json = said.json();
            let report = if words.contains(&"--status") { &json["result"] } else { &json };
            assert_eq!(report["lost"].as_u64(), Some(1), "{json:#}");
        }
    }
    bed.umount().ok();
}

/// Goal: a block of a file that is damaged in different sectors of both containers is an error to readers, is put together by
/// a scrub of the mount or by fsck, with a receipt, and is right from then on. Method: as dd would, behind everybody's back.
#[test]
fn what_both_have_lost_in_different_places_is_put_together() {
    // SEMANTICS: HEAL-5, READ-3, HEAL-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let data = bytes(6, 64 * 4096);
    fs::write(bed.at("victim"), &data).unwrap();
    bed.umount().ok();
    let image = fs::read(bed.a.join("stablefs.data")).unwrap();
    let holds = |block: &usize| image[block * 4096..(block + 1) * 4096] == data[10 * 4096..11 * 4096];
    let places: Vec<usize> = (0..image.len() / 4096).filter(holds).collect();
    let [place] = places[..] else { panic!("the block stands in {places:?}") };
    let hurt = |replica: &Path, sector: usize, count: usize| {
        let file = fs::File::options().write(true).open(replica.join("stablefs.data")).unwrap();
        file.write_all_at(&bytes(99, count * 512), (place * 4096 + sector * 512) as u64).unwrap();
        file.sync_data().unwrap();
    };
    let read_block = |block: u64| {
        let mut found = vec![0; 4096];
        let file = fs::File::open(bed.at("victim")).unwrap();
        file.read_exact_at(&mut found, block * 4096).map(|()| found == data[block as usize * 4096..][..4096])
    };
    for by_scrub in [true, false] {
        hurt(&bed.a, 3, 1);
        hurt(&bed.b, 0, 2);
        let wanted = "sectors 0-2,4-7 from replica 0, 3 from replica 1; 8 candidates";
        let said = bed.fsck("-n").code(4);
        assert!(said.out.contains("could be put together: /victim (inode ") && said.out.contains(wanted), "{said}");
        bed.mount("").ok();
        assert_eq!(read_block(10).unwrap_err().raw_os_error(), Some(5), "a read puts nothing together");
        assert!(read_block(9).unwrap() && read_block(11).unwrap());
        if by_scrub {
            let said = run(bed.command().arg("scrub").arg(&bed.mnt)).ok();
            assert!(said.out.contains("put together = 1") && said.out.contains("2^32"), "{said}");
            assert!(
                said.out.contains("put together: /victim: file data at block ") && said.out.contains(wanted),
                "{said}"
            );
            let json = bed.stablefs(["scrub".as_ref(), "--status".as_ref(), "--json".as_ref(), bed.mnt.as_os_str()]);
            let report = json.ok().json()["result"].clone();
            assert_eq!((report["combined"].as_u64(), report["healed"].as_u64()), (Some(1), Some(2)), "{report:#}");
        } else {
            bed.umount().ok();
            let said = bed.fsck("-y").code(1);
            assert!(said.out.contains("put together: /victim (inode ") && said.out.contains(wanted), "{said}");
            assert!(said.out.contains("repaired: 1 blocks that no replica had"), "{said}");
            bed.mount("").ok();
        }
        assert!(fs::read(bed.at("victim")).unwrap() == data, "by scrub: {by_scrub}");
        bed.umount_and_check();
        for replica in [&bed.a, &bed.b] {
            let image = fs::read(replica.join("stablefs.data")).unwrap();
            assert!(image[place * 4096..][..4096] == data[10 * 4096..11 * 4096], "{}", replica.display());
        }
    }
}
