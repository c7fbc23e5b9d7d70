//! The mount as the ground for other filesystems: overlayfs above it, a loop device on a file in it.

use super::bed::{Bed, Scale, can_work_hard, is_root, scale, shell};
use super::tally::Tally;

/// Whether the long tests are wanted, and the machine lets us mount more than a volume.
fn may_stack() -> bool {
    scale() == Scale::All && can_work_hard() && (is_root() || panic!("needs root, to mount on a mount"))
}

/// What stands below the overlay.
const LOWER: &str = "
    mkdir -p dir/sub deep/er/est opaque moved replaced gone_dir; for i in $(seq 50); do echo $i >dir/$i; echo $i >deep/er/$i; done
    echo one >opaque/hidden; echo one >gone; echo one >renamed; echo one >over; echo one >appended; echo one >moved/in; echo x >gone_dir/x
    head -c 3000000 /dev/urandom >big; truncate -s 20M sparse; echo mid | dd of=sparse bs=1 seek=10000000 conv=notrunc status=none
    echo attr >attributes; setfattr -n user.k -v v attributes; setfattr -n trusted.t -v t attributes; setfacl -m u:7:rw attributes
    setfacl -d -m g:9:rwx dir; chown 12:34 attributes; chmod 2745 attributes; echo u >setuid; chmod 4755 setuid; setfattr -n user.d -v d deep
    echo link >linked; ln linked linked2; ln -s dir symlink; mkfifo fifo; mknod null c 1 3
    cp -a /usr/share/perl5 library";

/// Changes of every kind; `$links` is set where hard links are to survive being copied up, and `$moves` where directories
/// from below can be renamed.
const CHANGES: &str = "
    echo new >created; mkdir made; echo in >made/in; echo two >>appended; truncate -s 1000 big; chmod 600 dir/1; chown 5:6 dir/2
    rm gone; rm -r gone_dir; rm -r opaque; mkdir opaque; echo two >opaque/visible; mv renamed renamed2; echo three >renamed
    echo src >src; mv src over; mv dir/3 made/3; mv -T dir/4 dir/5; rm dir/6; mkdir dir/6; touch dir/6/in; rmdir dir/sub; echo file >dir/sub
    [ -z \"$moves\" ] || { mv moved moved2; echo more >moved2/more; rm moved2/in; mkdir moved; echo again >moved/in; mv deep/er elsewhere; }
    setfattr -n user.more -v m attributes; setfattr -x user.k attributes; setfacl -m u:8:r attributes; setfattr -n user.d -v e deep
    [ -z \"$links\" ] || { echo both >>linked; ln linked linked3; rm linked2; }
    ln created created2; rm created; ln -s nowhere dangling; rm symlink; mkfifo fifo2; rm fifo null; mknod null c 1 5
    echo data | dd of=sparse bs=1 seek=15000000 conv=notrunc status=none; fallocate -p -o 0 -l 4096 big
    exec 3<>dir/10; rm dir/10; echo unlinked >&3; exec 3>&-; for i in $(seq 11 30); do mv dir/$i dir/n$i; done; rm -r library/*/
    mkdir -p library/new; cp -a dir library/new/; for i in $(seq 200); do echo $i >library/f$i; done; for i in $(seq 2 2 200); do rm library/f$i; done
    rm replaced -r; ln -s dir replaced; mkdir swap; rmdir swap; echo swap >swap; sync swap; touch -d '1999-09-09 09:09:09.999999999' dir/20 2>/dev/null || touch dir/n20";

/// Goal: overlayfs takes the mount for its upper layer with all its features, and shows what the same changes make of a plain
/// copy, also after the volume was mounted anew.
#[test]
fn suite_overlayfs_has_its_upper_layer_on_the_mount() {
    // SEMANTICS: NS-1, NS-4
    if !may_stack() {
        return;
    }
    let tally = Tally::begin(260, "overlayfs, upper layer on the mount");
    let bed = Bed::mounted("2G");
    shell(
        bed.path(),
        &format!("mkdir lower merged mnt/lower; (cd lower; {LOWER}); cp -a --sparse=always lower/. mnt/lower/"),
    )
    .ok();
    // Its options, whether the lower layer stands on the mount as well, hard links, renamed directories.
    let ways = [
        ("", false, "", ""),
        ("redirect_dir=on", true, "", "1"),
        ("index=on,nfs_export=on,redirect_dir=off,xino=on", false, "1", ""),
        ("index=on,redirect_dir=on,metacopy=on", true, "1", "1"),
        ("userxattr", false, "", ""),
        ("volatile", true, "", ""),
    ];
    // In a namespace of mounts of its own: nothing is left whatever happens.
    let overlaid = |options: &str, n: usize, on_mount: bool, script: &str| {
        let lower = if on_mount { "mnt/lower" } else { "lower" };
        let options = if options.is_empty() { String::new() } else { format!(",{options}") };
        let script = format!(
            "mount -t overlay overlay -o lowerdir={lower},upperdir=mnt/upper{n},workdir=mnt/work{n}{options} merged
             {script}; cd {}; sync -f merged; umount merged",
            bed.path().display()
        );
        shell(bed.path(), &format!("export script={}; unshare -m bash -ec \"$script\"", quoted(&script))).ok()
    };
    for (n, (options, on_mount, links, moves)) in ways.into_iter().enumerate() {
        // With nfs_export overlayfs shows one link too many, on ext4 as well.
        let count = if options.contains("nfs_export") { "" } else { links };
        let compare = format!(
            "grep ' {}/merged overlay ' /proc/self/mounts
             diff <(rsync -rlpgoDAXcn{} --numeric-ids --delete -i plain{n}/ merged/) /dev/null
             test -z '{count}' || diff <(cd plain{n}; find . -type f -links +1 | sort) <(cd merged; find . -type f -links +1 | sort)",
            bed.path().display(), if links.is_empty() { "" } else { "H" }
        );
        let env = format!("links={links}; moves={moves}");
        shell(
            bed.path(),
            &format!(
                "cp -a --sparse=always lower plain{n}; mkdir mnt/upper{n} mnt/work{n}; cd plain{n}; {env}; {CHANGES}"
            ),
        )
        .ok();
        let said = overlaid(options, n, on_mount, &format!("{env}; cd merged; {CHANGES}; cd ..; {compare}"));
        for option in options.split(',').filter(|option| option.ends_with("=on")) {
            assert!(said.out.contains(option), "{option} was switched off: {said}");
        }
        let marks = shell(
            &bed.at(&format!("upper{n}")),
            "stat -c '%F %t:%T' gone; getfattr -d -m overlay --absolute-names opaque | sort",
        );
        let marks = marks.ok().out;
        assert!(marks.starts_with("character special file 0:0"), "{options}: no whiteout: {marks}");
        let space = if options.contains("userxattr") { "user" } else { "trusted" };
        assert!(marks.contains(&format!("{space}.overlay.opaque=\"y\"")), "{options}: not opaque: {marks}");
        bed.umount_and_check();
        bed.mount("").ok();
        // One that is volatile says so and is not mounted again as it stands.
        if options != "volatile" {
            overlaid(options, n, on_mount, &compare);
            overlaid(
                options,
                n,
                on_mount,
                "cd merged; find . -mindepth 1 -depth -not -name 'linked*' -delete
                 test -z \"$(ls -A | grep -v ^linked)\"; echo again >gone; cat gone",
            );
        }
        shell(bed.path(), &format!("rm -rf mnt/upper{n} mnt/work{n} plain{n}")).ok();
    }
    let unchanged = shell(bed.path(), "rsync -aHAXcn --numeric-ids --delete -i lower/ mnt/lower/").ok();
    assert_eq!(unchanged.out, "", "the lower layer was changed");
    bed.umount_and_check();
    // Of the files here, two kinds cannot be as on ext4 (SEMANTICS, "not promised"): set-user-id that is copied up, and hard
    // links in the upper layer of which one is removed.
    tally.end(ways.len() as u64, 0, 2, "plain, redirect_dir, index, nfs_export, metacopy, xino, userxattr, volatile; skipped: set-user-id of what is copied up, hard links of which one is removed (the kernel's, see above)");
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Goal: ext4 in a file on the mount, through a loop device with and without the page cache, stays sound; what it trims
/// becomes a hole. Method: `mount -o loop` detaches the device when it is unmounted, however that comes.
#[test]
fn suite_ext4_on_a_loop_device_in_a_file() {
    // SEMANTICS: NS-5
    if !may_stack() {
        return;
    }
    let tally = Tally::begin(270, "ext4 on a loop device in a file");
    let bed = Bed::mounted("3G");
    let ways = ["off", "on"];
    for direct in ways {
        shell(
            bed.path(),
            &format!(
                "mkdir -p inner; truncate -s 1G mnt/disk-{direct}; mkfs.ext4 -q -E lazy_itable_init=0 mnt/disk-{direct}
                 device=$(losetup -f --show --direct-io={direct} mnt/disk-{direct})
                 trap 'umount -q inner || true; losetup -d $device 2>/dev/null || true' EXIT
                 losetup -l -n -O DIO $device | grep -q {}
                 mount $device inner; cp -a {SOURCES}/src {SOURCES}/tests inner/; git init -q inner/repository
                 for i in $(seq 40); do head -c $((i * 250000)) /dev/urandom >inner/file-$i; done
                 sync -f inner; for i in $(seq 3 3 39); do rm inner/file-$i; done; fallocate -p -o 4096 -l 100000 inner/file-2
                 fio --name=t --directory=inner --size=64M --rw=randrw --bsrange=512-64k --ioengine=psync --verify=crc32c --do_verify=1 --fsync=16 --minimal >/dev/null
                 rm inner/t.*; (cd inner; find . -type f -print0 | sort -z | xargs -0 sha256sum) >sums-{direct}
                 before=$(stat -c %b mnt/disk-{direct}); fstrim inner; sync -f inner; umount inner; losetup -d $device
                 test $(stat -c %b mnt/disk-{direct}) -lt $before; e2fsck -fn mnt/disk-{direct}",
                if direct == "on" { 1 } else { 0 }
            ),
        )
        .ok();
    }
    bed.umount_and_check();
    bed.mount("").ok();
    for direct in ways {
        shell(
            bed.path(),
            &format!(
                "e2fsck -fn mnt/disk-{direct}; mount -o loop mnt/disk-{direct} inner; trap 'umount -q inner || true' EXIT
                 (cd inner; sha256sum --quiet -c ../sums-{direct}; diff -r src {SOURCES}/src); umount inner; e2fsck -fn mnt/disk-{direct}"
            ),
        )
        .ok();
    }
    let left = shell(bed.path(), "losetup -n -O BACK-FILE").ok().out;
    assert!(!left.contains(bed.path().to_str().unwrap()), "{left}");
    bed.umount_and_check();
    tally.end(
        ways.len() as u64,
        0,
        0,
        "buffered and direct: files, fio --verify, fstrim, e2fsck -fn before and after a remount",
    );
}

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");
