#!/bin/sh
# Is this machine ready for `make quickstart`? Says what is missing and how to get it.
python="${1:-python3}"

if [ "$(uname -s)" != Linux ]; then
    echo "This is $(uname -s): the project runs on Linux. Use a Linux machine or a container." >&2
    exit 2
fi
if ! command -v git >/dev/null 2>&1; then
    echo "git is missing: install it (Debian, Ubuntu: apt-get install git)." >&2
    exit 2
fi
if ! command -v "$python" >/dev/null 2>&1; then
    echo "$python is missing: install Python 3.11 or newer (Debian, Ubuntu:" \
        "apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3." >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$("$python" --version) is too old: Python 3.11 or newer is needed." \
        "Name another one: make PYTHON=/path/to/python3.11." >&2
    exit 2
fi
if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    echo "$python has no venv: install it (Debian, Ubuntu: apt-get install python3-venv)." >&2
    exit 2
fi
