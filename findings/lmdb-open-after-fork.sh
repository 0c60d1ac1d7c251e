#!/usr/bin/env bash
# A forked process that opens its own LMDB environment, as it must, is refused: "already open in this process".
#
# Expected: LMDB and py-lmdb say that an environment may not be used in another process than that which opened it, so a
#   forked worker (of a DataLoader, for one) opens its own. Its process has opened none.
# Happens: the table of open environments is inherited with the memory, and the worker's open is refused for what its
#   parent holds open, read-only and without locks included. Closing the inherited object in the worker first helps; to
#   use it, against the documentation, raises nothing.
# Versions: those printed, Python 3.11. Seen on 2026-11-30.
# Source: http://www.lmdb.tech/doc/ (caveats: "Use an MDB_env* in the process which opened it, without fork()ing");
#   https://github.com/jnwatson/py-lmdb/issues/159, where a maintainer says to instantiate one in each process.
#
# Printed, and compared with at the end:
#> lmdb 3.0.0
#> worker opens its own, the parent has none open: b'value'
#> worker opens its own, the parent has one open: Error: The environment 'set' is already open in this process.
#> worker closes what it inherited, and opens its own: b'value'
#> worker reads through what it inherited: b'value'
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q lmdb==3.0.0
cat >look.py <<'PY'
import os

import lmdb

OPTIONS = {"readonly": True, "lock": False}
print("lmdb", lmdb.__version__, flush=True)
with lmdb.open("set") as database, database.begin(write=True) as writer:
    writer.put(b"key", b"value")


def read(database):
    with database.begin() as reader:
        return reader.get(b"key")


def in_worker(what, work):
    """What `work` returns or raises in a forked process."""
    if os.fork() == 0:
        try:
            print(f"worker {what}: {work()}", flush=True)
        except Exception as fault:
            print(f"worker {what}: {type(fault).__name__}: {fault}", flush=True)
        os._exit(0)
    os.wait()


def own():
    return read(lmdb.open("set", **OPTIONS))


def closed_first():
    parents.close()
    return own()


in_worker("opens its own, the parent has none open", own)
parents = lmdb.open("set", **OPTIONS)
assert read(parents) == b"value"
in_worker("opens its own, the parent has one open", own)
in_worker("closes what it inherited, and opens its own", closed_first)
in_worker("reads through what it inherited", lambda: read(parents))
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
