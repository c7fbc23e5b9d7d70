//! The system's own tools: `mount(8)`, `umount(8)`, `fstab(5)`, `findmnt`, `df`, and the installation that they need.
//!
//! Goal: with the helpers in place, a volume is mounted and unmounted as any filesystem is.
//! Method: `scripts/install` puts everything in place in a mount namespace of its own, whose `/usr/sbin`, `/run` and
//! `/etc/fstab` are covered, so that nothing of the host changes; a shell script works there.

use super::bed::{Bed, Said, can_mount, is_root, program, run, shell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Words of the scripts below, and the system that they find.
const SYSTEM: &str = r#"
trap 'echo "line $LINENO of the script" >&2' ERR
is() { [ "$1" = "$2" ] || { echo "line ${BASH_LINENO[0]} of the script: is '$1', not '$2'" >&2; exit 99; }; }
gives() { local want=$1 got=0; shift; "$@" || got=$?; is "$got" "$want"; }
mount --make-rprivate /
looked_at=/usr/sbin; [ /sbin -ef /usr/sbin ] || looked_at=/sbin
mkdir helpers real
mount --bind $looked_at real; mount -t tmpfs none helpers; ln -s "$PWD"/real/* helpers/; mount --bind helpers $looked_at
mount -t tmpfs none /run
PREFIX=$PWD/prefix "$SCRIPTS/install" >/dev/null
PATH=$PWD/prefix/bin:$PATH
"#;

/// The folder with both programs, built as this test is.
fn built() -> PathBuf {
    let folder = program().parent().expect("a folder").to_owned();
    if std::env::var_os("STABLEFS_TEST_PROGRAM").is_none() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "mount-stablefs"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.args((!cfg!(debug_assertions) && folder.ends_with("release")).then_some("--release"));
        run(&mut cargo).ok();
    }
    folder
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// A volume that is not mounted, on a machine where these tests can run.
fn bed() -> Option<Bed> {
    if !can_mount() {
        return None;
    }
    if !is_root() {
        println!("skipped: needs root, for a mount namespace");
        return None;
    }
    let bed = Bed::formatted("64M");
    bed.open_to_others();
    Some(bed)
}

/// Run `script` in the folder of `bed`, on a system on which stablefs is installed.
#[track_caller]
fn on_a_system(bed: &Bed, script: &str) -> Said {
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-ec", &format!("{SYSTEM}{script}")]).current_dir(bed.path()).env("LC_ALL", "C");
    command.env("STABLEFS_STATE_DIR", bed.path().join("state")).env("FROM", built()).env("SCRIPTS", scripts());
    command.env_remove("LIBMOUNT_FSTAB");
    run(&mut command)
}

/// Goal: `mount -t stablefs`, `findmnt`, `df` and `umount` as for any filesystem; when `umount` returns, the daemon has ended.
#[test]
fn mount_and_umount_know_the_type() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        a=$PWD/a b=$PWD/b mnt=$PWD/mnt
        mount -t stablefs -o noexec,x-mine=1,_netdev,nofail $a:$b $mnt
        is "$(findmnt -no SOURCE,FSTYPE mnt)" "$a:$b fuse.stablefs"
        is "$(findmnt -no FS-OPTIONS mnt | grep -o '^rw')" rw
        findmnt -no OPTIONS mnt | grep -qw noexec
        is "$(df --output=source,fstype,target mnt | tail -n 1 | tr -s ' ')" "$a:$b fuse.stablefs $mnt"
        is "$(df --output=size -B1M mnt | tail -n 1 | tr -d ' ')" 60
        head -c 30000000 /dev/zero | tee mnt/file >/dev/null
        daemon=$(pgrep -f -- "-- $a:$b $mnt\$")
        umount mnt
        [ ! -e /proc/$daemon/exe ]
        gives 1 findmnt mnt
        stablefs fsck -n a b
        gives 32 umount mnt"#,
    );
    said.ok();
    assert!(super::bed::daemons_of(bed.path()).is_empty());
}

/// Goal: mount(8)'s own options do what its manual page says, and exit codes are those it documents.
#[test]
fn options_and_exit_codes_are_those_of_mount() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        v="$PWD/a:$PWD/b"
        mount -f -t stablefs $v mnt; gives 1 findmnt mnt
        mount -r -n -t stablefs $v mnt; gives 1 touch mnt/file; umount mnt
        mount -w -t stablefs -o ro,rw $v mnt; touch mnt/file; umount mnt
        gives 32 mount -t stablefs -o bogus $v mnt 2>said; grep -q 'unknown option "bogus"' said
        mount -s -t stablefs -o bogus $v mnt; umount mnt
        mount -v -t stablefs $v mnt >said; grep -q "stablefs mount -o rw -- $v" said; umount -v mnt
        gives 32 mount -t stablefs $PWD/a:$PWD/none mnt 2>said; is "$(wc -l <said)" 1
        gives 32 mount -t stablefs $v none 2>/dev/null
        gives 1 $looked_at/mount.stablefs $v 2>said; grep -q '^mount.stablefs: give a source and a directory' said
        gives 1 $looked_at/umount.stablefs 2>said; grep -q '^umount.stablefs: give one mount point' said
        mount -t fuse.stablefs $v mnt; umount mnt; gives 1 findmnt mnt
        # What suites of tests ask for: a source of their own and the plain type. Then only uhelper= tells umount(8) of us.
        mount -t stablefs -o 'subtype=,fsname="a,b c",uhelper=stablefs' $v mnt
        is "$(findmnt -no SOURCE,FSTYPE mnt)" 'a,b c  fuse'
        umount mnt; stablefs fsck -n a b >/dev/null
        mount -t stablefs $v mnt; (cd mnt; gives 32 umount ../mnt 2>/dev/null; umount -l ../mnt); gives 1 findmnt mnt
        until stablefs fsck -n a b >/dev/null 2>&1; do sleep 0.1; done
        mount -t stablefs $v mnt; umount -f mnt; gives 1 findmnt mnt
        until stablefs fsck -n a b >/dev/null 2>&1; do sleep 0.1; done"#,
    );
    said.ok();
}

/// Goal: lines of fstab with the options that people write there; a second `mount -a` finds everything mounted.
#[test]
fn lines_of_fstab_are_mounted() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        a=$PWD/a b=$PWD/b; mkdir two three
        cat >fstab <<TAB
$a:$b $PWD/mnt stablefs _netdev,nofail,x-systemd.requires-mounts-for=$a,x-systemd.requires-mounts-for=$b,ro 0 0
$PWD/none:$PWD/nothing $PWD/two stablefs noauto,nofail,degraded 0 0
TAB
        mount -T fstab -a
        mount -T fstab -a
        is "$(findmnt -no SOURCE,FSTYPE,TARGET mnt)" "$a:$b fuse.stablefs $PWD/mnt"
        is "$(grep -c " $PWD/mnt " /proc/self/mounts)" 1
        gives 1 touch mnt/file 2>/dev/null
        gives 32 mount -T fstab two 2>/dev/null
        umount mnt
        # A replica is lost: only with degraded.
        mv b gone
        gives 32 mount -T fstab mnt 2>/dev/null
        echo "$a:$b $PWD/mnt stablefs defaults,degraded 0 0" >fstab
        mount -T fstab -a; touch mnt/file; umount $PWD/mnt"#,
    );
    said.ok();
}

/// Goal: blanks, colons, commas and backslashes in paths, as fstab and as a shell has them; the source in the table of mounts
/// is what mount(8) was told, so that it finds what is mounted already.
#[test]
fn paths_with_blanks_colons_and_commas_are_mounted() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        mkdir 'my disk' 'co:lon' 'com,ma' 'back\slash' 'at end:' 'the mount'
        one="$PWD/my disk/v" two="$PWD/co:lon/v" three="$PWD/com,ma/v" four="$PWD/back\\slash/v" five="$PWD/at end:/v"
        stablefs format -f --size 16M "$one" "$two" 2>/dev/null >/dev/null || { mkdir "$one" "$two" "$three" "$four" "$five"
            stablefs format --size 16M "$one" "$two" >/dev/null 2>&1; stablefs format --size 16M "$three" "$four" "$five" >/dev/null 2>&1; }
        line() { printf '%s %s stablefs defaults 0 0\n' "$1" "$PWD/the\\040mount" >fstab; }
        check() {
            mount -T fstab -a; mount -T fstab -a
            is "$(grep -c "the.040mount" /proc/self/mounts)" 1
            touch "the mount/$1"; umount 'the mount'
        }
        line "$PWD/my\\040disk/v:$PWD/co\\072lon/v"; check octal
        line "$PWD/my\\040disk/v:$PWD/co\\:lon/v"; check backslash
        line "$PWD/com\\054ma/v:$PWD/back\\134\\134slash/v:$PWD/at\\040end\\134072/v"; check more
        mount -t stablefs "$PWD/com,ma/v:$PWD/back\\134slash/v:$PWD/at\\040end\\072/v" 'the mount'
        is "$(ls 'the mount')" more; umount 'the mount'
        mount -t stablefs "$PWD/my disk/v:$PWD/co:lon/v" 'the mount'
        is "$(ls 'the mount' | tr '\n' ' ')" 'backslash octal '; umount 'the mount'
        stablefs mount "$one" "$two" 'the mount'
        is "$(findmnt -rno SOURCE 'the mount')" "$PWD/my\\x20disk/v:$PWD/co\\x5c:lon/v"; umount 'the mount'"#,
    );
    said.ok();
}

/// Goal: `mount -o remount` changes whether the mount can be written to, and refuses what cannot be.
#[test]
fn remounting_changes_flags() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        v="$PWD/a:$PWD/b"
        mount -t stablefs $v mnt; echo one >mnt/file
        mount -o remount,ro,noexec mnt
        is "$(findmnt -no OPTIONS mnt | grep -ow -e ro -e noexec | tr '\n' ' ')" 'ro noexec '
        gives 1 touch mnt/other 2>/dev/null; is "$(cat mnt/file)" one
        mount -o remount,rw mnt; echo two >mnt/file
        exec 7>>mnt/file; gives 32 mount -o remount,ro mnt 2>said; exec 7>&-
        grep -q 'open for writing' said; echo three >>mnt/file
        umount mnt
        mount -t stablefs -o ro $v mnt; is "$(cat mnt/file | tr '\n' ' ')" 'two three '
        gives 32 mount -o remount,rw mnt 2>said; grep -q 'mounted for reading only' said
        umount mnt; gives 32 mount -o remount -t stablefs $v mnt 2>/dev/null"#,
    );
    said.ok();
}

/// Goal: unmounting a copy of the mount (`mount --bind`, another namespace) leaves the mount alone, and its daemon.
#[test]
fn copies_of_a_mount_are_unmounted_alone() {
    let Some(bed) = bed() else { return };
    let said = on_a_system(
        &bed,
        r#"
        v="$PWD/a:$PWD/b"; mkdir copy inner
        mount -t stablefs $v mnt; mkdir mnt/below; mount --bind mnt copy; mount --bind mnt/below inner
        umount copy; gives 1 findmnt copy; touch mnt/one
        stablefs umount inner; gives 1 findmnt inner; touch mnt/two
        unshare -m bash -ec "umount mnt; ! findmnt mnt"
        unshare -m bash -ec "stablefs umount mnt; ! findmnt mnt"
        findmnt mnt >/dev/null; touch mnt/three
        # The last copy is the mount.
        mount --bind mnt copy; umount -i mnt; ls copy/three >/dev/null; umount copy
        stablefs fsck -n a b
        # A mount in another namespace, by mount(8) -N.
        unshare -m sleep 600 & sleeper=$!
        until [ "$(readlink /proc/$sleeper/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.01; done
        mount -N $sleeper -t stablefs $v $PWD/mnt
        gives 1 findmnt mnt; nsenter -m -t $sleeper findmnt $PWD/mnt >/dev/null
        umount -N $sleeper $PWD/mnt; stablefs fsck -n a b; kill $sleeper"#,
    );
    said.ok();
}

/// Goal: an ordinary user mounts and unmounts what fstab lets him, and nothing else.
#[test]
fn an_ordinary_user_mounts_a_line_of_fstab() {
    let Some(bed) = bed() else { return };
    if !Path::new("/etc/fstab").exists() {
        println!("skipped: there is no /etc/fstab to cover");
        return;
    }
    let said = on_a_system(
        &bed,
        r#"
        chmod 755 prefix; chown -R 65534:65534 a b mnt state; chmod -R go= a b
        mkdir second; install -d -m 700 -o 65534 -g 65534 /run/user/65534
        mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
        printf '%s stablefs %s 0 0\n' "$PWD/a:$PWD/b $PWD/mnt" user,noauto "$PWD/a:$PWD/b $PWD/second" noauto >fstab; mount --bind fstab /etc/fstab
        as() { XDG_RUNTIME_DIR=/run/user/65534 setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"; }
        as stablefs format --force --size 64M a b 2>/dev/null
        as mount $PWD/mnt
        is "$(findmnt -no SOURCE,FSTYPE mnt)" "$PWD/a:$PWD/b fuse.stablefs"
        findmnt -no OPTIONS mnt | grep -w nosuid | grep -w nodev | grep -qw user_id=65534
        # Root changes a flag: what the user brought along gains no rights by it.
        stablefs mount -o remount,noexec $PWD/a $PWD/b $PWD/mnt
        findmnt -no OPTIONS mnt | grep -w nosuid | grep -w nodev | grep -qw noexec
        as bash -ec 'echo mine >mnt/file'; is "$(as stat -c %u mnt/file)" 65534
        daemon=$(pgrep -u 65534 -f -- " $PWD/mnt\$")
        as umount $PWD/mnt
        [ ! -e /proc/$daemon/exe ]; gives 1 findmnt mnt
        as stablefs fsck -n a b
        if as mount $PWD/second 2>/dev/null; then exit 98; fi
        if as mount -t stablefs $PWD/a:$PWD/b $PWD/second 2>/dev/null; then exit 98; fi
        gives 1 findmnt second"#,
    );
    said.ok();
}

/// Everything below a folder: kinds, modes, names, targets of links, and sizes.
fn tree(folder: &Path) -> String {
    shell(folder, "find . \\( -type d -printf '%M %p\\n' \\) -o -printf '%M %p %l %s\\n' | sort").ok().out
}

/// Goal: installing twice is as installing once; uninstalling takes away that and nothing else, also twice.
#[test]
fn what_is_installed_can_be_taken_away() {
    let folder = tempfile::Builder::new().prefix("live.install.").tempdir().unwrap();
    let root = folder.path().join("root with a blank");
    fs::create_dir_all(root.join("usr/local/share/man/man8")).unwrap();
    fs::create_dir_all(root.join("usr/sbin")).unwrap();
    fs::write(root.join("usr/sbin/mount.other"), "another's").unwrap();
    let from = built();
    let script = |name: &str, word: Option<&str>| {
        let mut command = Command::new(scripts().join(name));
        command.args(word).env("DESTDIR", &root).env("FROM", &from).env_remove("PREFIX").env_remove("SBINDIR");
        run(&mut command)
    };
    let before = tree(&root);
    for name in ["install", "uninstall"] {
        assert!(script(name, Some("--help")).ok().out.starts_with(&format!("usage: scripts/{name}")));
        script(name, Some("--bogus")).code(2);
    }
    script("uninstall", None).ok();
    assert_eq!(before, tree(&root), "asking for help, or taking away what is not there, changed something");

    script("install", None).ok();
    let installed = tree(&root);
    for name in [
        "usr/local/bin/stablefs",
        "usr/local/share/man/man8/mount.stablefs.8",
        "usr/sbin/mount.stablefs",
        "usr/sbin/umount.fuse.stablefs",
        "usr/sbin/fsck.stablefs",
    ] {
        assert!(root.join(name).symlink_metadata().is_ok(), "{name} is not there:\n{installed}");
    }
    assert_eq!(fs::read(root.join("usr/local/bin/stablefs")).unwrap(), fs::read(program()).unwrap());
    script("install", None).ok();
    assert_eq!(installed, tree(&root), "installing again changed something");

    script("uninstall", None).ok();
    assert_eq!(before, tree(&root), "uninstalling leaves something, or took too much");
    script("uninstall", None).ok();
    assert_eq!(before, tree(&root));

    fs::write(root.join("usr/sbin/mount.stablefs"), "another's").unwrap();
    let said = script("install", None).code(1);
    assert!(said.err.contains("mount.stablefs is not of this installation"), "{said}");
    fs::remove_file(root.join("usr/sbin/mount.stablefs")).unwrap();
    assert_eq!(before, tree(&root), "a refused installation changed something");
}
