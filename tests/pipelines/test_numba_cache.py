"""What numba compiles is kept where that can be; where it cannot be, that is no error."""

import errno
import importlib.util
import os
import subprocess
import sys

import numba
import pytest
from numba.core.caching import FunctionCache

from headrace.kernels import records

MODULE = """
from headrace.pipelines.numba_cache import compiled

@compiled()
def double(x):
    return 2 * x
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """() -> the module, imported anew, whose cache is in tmp_path/cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "tiny.py").write_text(MODULE)

    def fresh():
        spec = importlib.util.spec_from_file_location("tiny", tmp_path / "tiny.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return fresh


def test_it_is_kept_and_found_again(fresh):
    assert fresh().double(21) == 42
    again = fresh().double
    assert again(21) == 42 and sum(again.stats.cache_hits.values()) == 1


def test_what_is_found_again_runs_without_what_compiles(tmp_path):
    """Arrays that are made and handed out, exceptions, mathematics; numba's functions and scipy stay unread."""
    (tmp_path / "tiny.py").write_text(
        "import math\nimport numpy as np\n"
        "from numba import float64\n"
        "from headrace.pipelines.numba_cache import compiled\n\n"
        "@compiled(float64[::1](float64[::1]))\n"
        "def roots(x):\n"
        "    if x[0] < 0:\n        raise ValueError('below 0')\n"
        "    made = np.empty(len(x))\n"
        "    for i in range(len(x)):\n        made[i] = math.pow(x[i], 0.5)\n"
        "    return made\n"
    )
    code = (
        "import sys, numpy as np\nimport tiny\n"
        "print(tiny.roots(np.array([4.0, 9.0])).tolist())\n"
        "try: tiny.roots(np.array([-1.0]))\n"
        "except ValueError as fault: print(fault)\n"
        "print(sum(tiny.roots.stats.cache_hits.values()), 'numba.np.linalg' in sys.modules)\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    seen = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
        for _ in range(2)
    ]
    assert [one.returncode for one in seen] == [0, 0], seen
    assert [one.stdout.splitlines() for one in seen] == [
        ["[2.0, 3.0]", "below 0", "0 True"],
        ["[2.0, 3.0]", "below 0", "1 False"],
    ]


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_cache_is_none(fresh, tmp_path, suffix):
    fresh().double(21)
    for file in (tmp_path / "cache").rglob(f"*.{suffix}"):
        file.write_bytes(b"\x80\x04garbage")
    assert fresh().double(21) == 42


def test_a_full_disk_is_no_error(fresh, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert fresh().double(21) == 42


def test_records_without_a_home(monkeypatch):
    monkeypatch.delenv("HEADRACE_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert records.cache_folder().is_absolute() and str(os.getuid()) in records.cache_folder().parent.name


def test_a_foreign_user_without_a_home(tmp_path):
    """Nothing that could be written: one line, the right value, and no folder called ~."""
    place = tmp_path / "read-only"
    place.mkdir()
    (place / "tiny.py").write_text(MODULE)
    place.chmod(0o555)
    code = (
        "import os, sys, numba\n"
        "sys.dont_write_bytecode = True\n"
        "import headrace.pipelines.numba_cache\n"
        "numba.njit(lambda x: x)(1)  # loads what may not be readable afterwards\n"
        "if os.getuid() == 0: os.setgid(54321), os.setuid(54321)\n"
        "sys.path.insert(0, '')\n"
        "import tiny\n"
        "print(tiny.double(21), tiny.double(0.5))\n"
    )
    for folder in tmp_path.parents:  # of pytest's own, which others may not enter
        if folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    home = {} if os.getuid() == 0 else {"HOME": str(place / "none")}
    environment = {key: value for key, value in os.environ.items() if key != "HOME"} | home
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["42", "1.0"]
    assert ran.stderr.count("NUMBA_CACHE_DIR") == 1
    assert [path.name for path in place.iterdir()] == ["tiny.py"]
