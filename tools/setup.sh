#!/usr/bin/env bash
# setup.sh PYTHON VENV: a virtual environment with headrace (editable), its dependencies, the test tools, and FFCV where
# it can be built. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2
say() { printf 'setup: %s\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { say "headrace needs Python 3.11 or newer, $python is $("$python" -V 2>&1); run: make PYTHON=python3.12 ..."; exit 2; }

install_packages() { # names of Debian packages; fails where the rights or apt are missing
    local sudo=""
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || { sudo="sudo -n"; sudo -n true 2>/dev/null || return 1; }
    $sudo apt-get update -qq >/dev/null && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

if [ ! -x "$venv/bin/pip" ]; then
    say "creating $venv with $("$python" -V)"
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then # Debian keeps ensurepip in a package of its own
        rm -rf "$venv"
        install_packages python3-venv && "$python" -m venv "$venv" ||
            { rm -rf "$venv"; say "$python cannot make virtual environments; run: sudo apt-get install python3-venv"; exit 2; }
    fi
fi
say "installing headrace and its dependencies (PyTorch with CUDA and DALI: about 5 GB, a few minutes the first time)"
"$venv/bin/pip" install -q -e '.[dev]'

if "$venv/bin/python" -c 'import ffcv' 2>/dev/null; then
    exit 0
fi
needs=(build-essential pkg-config libopencv-dev libturbojpeg0-dev python3-dev)
if ! { command -v g++ && pkg-config --exists opencv4 libturbojpeg; } >/dev/null 2>&1; then
    say "installing system packages for FFCV: ${needs[*]}"
    install_packages "${needs[@]}" || true
fi
log=$(mktemp)
if ! "$venv/bin/pip" install -q -e '.[ffcv]' >"$log" 2>&1; then
    say "FFCV could not be built, so .beton files cannot be read or written; all else works." \
        "To add it: sudo apt-get install ${needs[*]} && $venv/bin/pip install 'ffcv' (log: $log)"
fi
