# What scripts/install puts where; sourced by it and by scripts/uninstall, never run.
#
# Guarantees: both know the same places.

PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}
if [ -z "${SBINDIR+set}" ]; then
    # mount(8) looks in /sbin, which is /usr/sbin nearly everywhere.
    SBINDIR=/usr/sbin
    if [ -d "$DESTDIR/sbin" ] && [ ! "$DESTDIR/sbin" -ef "$DESTDIR/usr/sbin" ]; then SBINDIR=/sbin; fi
fi
for folder in "$PREFIX" "${SBINDIR:-/}" "${DESTDIR:-/}"; do
    case $folder in
        /*) ;;
        *) fail "\"$folder\" must begin with a slash" ;;
    esac
done
PREFIX=${PREFIX%/}
SBINDIR=${SBINDIR%/}
manifest=$PREFIX/share/stablefs/manifest

helpers=(mount.stablefs mount.fuse.stablefs umount.stablefs umount.fuse.stablefs mkfs.stablefs fsck.stablefs)

# Each thing to install, with tabs between: `file PLACE FROM MODE` or `link PLACE TO`.
things() {
    local name page
    printf 'file\t%s\t%s\t755\n' "$PREFIX/bin/stablefs" "$stablefs" "$PREFIX/sbin/mount.stablefs" "$helper"
    for name in "${helpers[@]:1}"; do
        case $name in
            *mount.*) printf 'link\t%s\tmount.stablefs\n' "$PREFIX/sbin/$name" ;;
            *) printf 'link\t%s\t../bin/stablefs\n' "$PREFIX/sbin/$name" ;;
        esac
    done
    if [ -n "$SBINDIR" ] && [ ! "$DESTDIR$PREFIX/sbin" -ef "$DESTDIR$SBINDIR" ] && [ "$PREFIX/sbin" != "$SBINDIR" ]; then
        for name in "${helpers[@]}"; do printf 'link\t%s\t%s\n' "$SBINDIR/$name" "$PREFIX/sbin/$name"; done
    fi
    for page in "$top"/docs/man/*.[18]; do
        name=${page##*/}
        printf 'file\t%s\t%s\t644\n' "$PREFIX/share/man/man${name##*.}/$name" "$page"
    done
    printf 'link\t%s\tmount.stablefs.8\n' "$PREFIX/share/man/man8/umount.stablefs.8"
}
