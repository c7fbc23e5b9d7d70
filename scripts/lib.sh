# Shared by scripts/test and scripts/demo; sourced by bash, never run.
#
# Guarantees: what a script started or mounted is undone when it ends, however it ends; only its own processes are
# ended and only its own mounts are undone. Nothing is installed without root's rights; without them what is missing
# is named.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
case $target in /*) ;; *) target=$top/$target ;; esac
tools=$target/tools

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
fail() { warn "$*"; exit 1; }
headline() { printf '\n==> %s\n' "$*"; }

# A rustup that was installed by hand is often not in the PATH of a script.
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH=$HOME/.cargo/bin:$PATH
fi

# need COMMAND PACKAGE [COMMAND PACKAGE]...: make sure that each command is there.
need() {
    local missing=() names=()
    while [ $# -gt 0 ]; do
        if ! command -v "$1" >/dev/null && [ ! -x "/usr/sbin/$1" ] && [ ! -x "/sbin/$1" ]; then
            names+=("$1") missing+=("$2")
        fi
        shift 2
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        warn "missing: ${names[*]}"
        fail "install them first, on Debian: sudo apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null || warn "apt-get update did not work; trying with the lists that are there"
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get install ${missing[*]} failed"
}

# A Rust toolchain, and a compiler for C to link with.
need_rust() {
    need cc build-essential
    command -v cargo >/dev/null || fail "there is no Rust toolchain here: install one first (https://rustup.rs), 1.91 or newer"
}

# PostgreSQL's programs, without a database of the system's own.
need_postgresql() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
    if ! command -v pg_lsclusters >/dev/null; then
        need pg_lsclusters postgresql-common
        sed -i -E 's/^#?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    need pg_ctl postgresql
}

# Everything that a mount needs.
need_fuse() {
    need fusermount3 fuse3
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || fail "there is no /dev/fuse here: load the module (modprobe fuse) or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
    [ -r /dev/fuse ] && [ -w /dev/fuse ] || fail "/dev/fuse cannot be opened by $(id -un)"
}

# cargo_tool NAME VERSION: a program from crates.io in $tools/bin, built once.
cargo_tool() {
    [ -x "$tools/bin/$1" ] && return 0
    say "building $1 $2 into $tools"
    CARGO_TARGET_DIR=$target/tools-build cargo install --quiet --locked --root "$tools" --version "$2" "$1"
}

# A scratch directory on a real disk in $scratch, removed at the end with everything that was mounted inside it.
make_scratch() {
    local kind parent=${TMPDIR:-/tmp}
    kind=$(stat -f -c %T "$parent")
    if [ "$kind" = tmpfs ] && [ "$(stat -f -c %T /var/tmp)" != tmpfs ]; then
        parent=/var/tmp # a file in memory is no disk: no O_DIRECT on old kernels, and it eats what the tests measure
    fi
    scratch=$(mktemp -d "$parent/$1.XXXX")
    chmod 755 "$scratch" # tests act as other users inside
    export STABLEFS_STATE_DIR=$scratch/state # what this host knows of volumes that will be gone
    started=()
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# replace_between FILE BEGIN END TEXT: TEXT in place of what stands between the lines BEGIN and END.
replace_between() {
    local new
    # By the environment: what awk is given with -v loses its backslashes.
    new=$(text=$4 awk -v begin="$2" -v end="$3" '
        $0 == end { inside = 0 }
        !inside { print }
        $0 == begin { print ""; print ENVIRON["text"]; print ""; inside = 1 }' "$1") || fail "$1 cannot be read"
    case $new in *"$2"*"$3"*) printf '%s\n' "$new" >"$1" ;; *) fail "$1 has no place for the table" ;; esac
}

# remember PID: end that process at the end.
remember() { started+=("$1"); }

clean_up() {
    local code=$? place pid
    trap - EXIT HUP INT TERM
    set +e
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    # Deepest first; only what lies inside our own scratch directory.
    awk -v inside="$scratch/" 'index($2, inside) == 1 {print $2}' /proc/self/mounts | sort -r | while read -r place; do
        umount "$place" 2>/dev/null || fusermount3 -u "$place" 2>/dev/null ||
            umount -l "$place" 2>/dev/null || fusermount3 -uz "$place" 2>/dev/null
    done
    if [ "$(id -u)" = 0 ] && command -v losetup >/dev/null; then
        losetup -n -O NAME,BACK-FILE 2>/dev/null | awk -v inside="$scratch/" 'index($2, inside) == 1 {print $1}' |
            while read -r place; do losetup -d "$place"; done
    fi
    for pid in $(daemons_of "$scratch"); do # one that would not go by itself
        kill -9 "$pid" 2>/dev/null
    done
    rm -rf --one-file-system "$scratch"
    if [ -e "$scratch" ]; then
        warn "could not remove $scratch"
        [ $code -ne 0 ] || code=1
    fi
    exit $code
}

# daemons_of DIRECTORY: process ids of stablefs daemons whose command line names a path inside DIRECTORY.
daemons_of() {
    local file words
    for file in /proc/[0-9]*/cmdline; do
        words=$(tr '\0' ' ' 2>/dev/null <"$file") || continue
        case $words in *stablefs*" $1/"*) file=${file#/proc/} && printf '%s\n' "${file%/cmdline}" ;; esac
    done
}
