#!/bin/sh
# Makes .venv: Python 3.12 and the packages of constraints.txt. Finds uv, or installs it into .cache/.
# TORCH=cpu: with torch's build for CPUs, in place of the one that the package index serves.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$1"; }
fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }

case "${TORCH:-}" in
    "") build= size="about 7 GB on Linux, where torch brings CUDA" ;;
    cpu) build=--torch-backend=cpu size="with torch for CPUs alone" ;;
    *) fail "TORCH: expected cpu, or nothing for the build that the package index serves, found $TORCH" ;;
esac

find_uv() {
    # A version manager's shim can be on PATH and still refuse to run, so ask it for its version.
    for candidate in uv "$HOME/.local/bin/uv" .cache/uv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then printf '%s' "$candidate"; return 0; fi
    done
    return 1
}

if ! uv=$(find_uv); then
    for python in python3.12 python3 python; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then break; fi
        python=
    done
    [ -n "$python" ] || fail "neither uv nor Python with venv was found. Debian/Ubuntu: apt-get install python3-venv. Others: https://docs.astral.sh/uv/getting-started/installation"
    say "installing uv into .cache/uv"
    "$python" -m venv .cache/uv
    .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
    uv=.cache/uv/bin/uv
fi

say "Python 3.12 and packages into .venv ($size; minutes on a slow line)"
"$uv" venv --quiet --python 3.12 --allow-existing .venv ||
    fail "no Python 3.12. uv looks on PATH and in pyenv, then downloads one; install it (pyenv install 3.12, or your package manager) and run this again"
"$uv" pip install --quiet --python .venv/bin/python --constraint constraints.txt $build --editable '.[dev]'

# Rendering without a screen needs EGL; without it the simulator tests cannot draw.
if [ "$(uname -s)" = Linux ] && ! .venv/bin/python -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null; then
    say "libEGL is missing, so simulators cannot render. Debian/Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"
fi
touch .venv/ready
say "done"
