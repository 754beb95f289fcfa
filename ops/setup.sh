#!/usr/bin/env bash
# Makes .venv from requirements.lock and puts both packages into it, editable. Needs Python >= 3.11 and the network.
# Works on a bare Debian 12 without python3-venv, without pip and without root. `PYTHON=...` names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "nbpulse needs Python 3.11 or newer; '$python' is older or missing. Name another: PYTHON=/path/to/python3.11 make setup" >&2
    exit 1
}

# Debian ships pip for virtual environments as a wheel in a package of its own, which a bare machine lacks.
find_pip_wheel() {
    find /usr/share/python-wheels .cache/debian/pip/usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | sort | tail -n 1
}

make_venv() {
    if "$python" -m venv "$venv" >/dev/null 2>&1; then return; fi
    rm -rf "$venv"
    "$python" -m venv --without-pip "$venv"
    [ -n "$(find_pip_wheel)" ] || ops/debian.sh .cache/debian/pip python3-pip-whl
    PYTHONPATH="$(find_pip_wheel)" "$venv/bin/python" -m pip install --quiet --no-index --no-deps "$(find_pip_wheel)"
}

[ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv

mkdir -p .cache
awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' requirements.lock > .cache/uv.lock.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .cache/uv.lock.txt
# pip answers where only pip has been told of a mirror or a certificate.
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps -r requirements.lock || {
    echo "uv could not install requirements.lock (above); once more with pip, which is slower" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e server -e capture
