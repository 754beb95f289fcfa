#!/usr/bin/env bash
# Installs Debian's Chromium without a window, Japanese fonts and what playwright's own program needs, where this user
# may.
set -euo pipefail
has_fonts() { [ -d /usr/share/fonts/opentype/noto ] && ls /usr/share/fonts/opentype/noto/NotoSansCJK* >/dev/null 2>&1; }
has_libatomic() { ls /usr/lib/*/libatomic.so.1 >/dev/null 2>&1; }
if command -v chromium-headless-shell >/dev/null && has_fonts && has_libatomic; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null || true
    apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install chromium-headless-shell fonts-noto-cjk libatomic1 >/dev/null
elif ! command -v chromium >/dev/null; then
    echo "Chromium is not on the PATH and only root can install it: the browser tests will be skipped" >&2
fi
