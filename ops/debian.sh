#!/usr/bin/env bash
# debian.sh DIRECTORY PACKAGE...: unpacks Debian packages into DIRECTORY, without root and without touching the system.
# Where their programs miss shared libraries, the libraries they depend on are unpacked beside them. Done once.
set -euo pipefail
target=$(mkdir -p "$1" && cd "$1" && pwd)
shift
own=$target/.apt
[ "$(cat "$target/.unpacked" 2>/dev/null)" != "$*" ] || exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "no apt-get and dpkg-deb here: cannot get $* (these are Debian's packages)" >&2
    exit 1
}
mkdir -p "$own/lists/partial" "$own/archives/partial"
options=(-q -o "Dir::State::Lists=$own/lists" -o "Dir::Cache=$own" -o APT::Sandbox::User= -o Debug::NoLocking=1
    -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=60)

unpack() {
    (cd "$own/archives" && apt-get "${options[@]}" download "$@" >/dev/null)
    for file in "$own"/archives/*.deb; do dpkg-deb -x "$file" "$target" && rm "$file"; done
}

# Every program here and the sonames it misses.
find_missing() {
    find "$target" -path "$own" -prune -o -type f -path '*/bin/*' -print |
        LD_LIBRARY_PATH=$(library_path) xargs -r ldd 2>/dev/null | awk '/not found/ { print $1 }' | sort -u || true
}
library_path() { find "$target/usr/lib" "$target/lib" -maxdepth 1 -type d -name '*-linux-gnu*' 2>/dev/null | paste -sd: || true; }

# The libraries the named packages depend on that this system has not installed.
find_libraries() {
    apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances --no-pre-depends "$@" | grep -E '^(lib|zlib|lua-)[^ ]*$' | grep -vE '^(libc6|libc-bin|libgcc-s1)(:|$)' | sort -u |
        while read -r name; do
            dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q ' installed$' || echo "$name"
        done
}

# One source that does not answer must not stop the others: what is really missing, `download` says.
apt-get "${options[@]}" update >/dev/null || true
unpack "$@"
if [ -n "$(find_missing)" ]; then
    mapfile -t libraries < <(find_libraries "$@")
    unpack "${libraries[@]}"
fi
missing=$(find_missing | paste -sd' ')
[ -z "$missing" ] || { echo "programs of $* still miss: $missing" >&2; exit 1; }
rm -rf "$own"
echo "$*" > "$target/.unpacked"
