"""A signal to one of several processes reaches all of them, whatever they wait for."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

WORKER = Path(__file__).with_name("stop_worker.py")


def test_a_signal_is_handed_on_from_within_a_collective():
    """The first process is in a barrier, where Python runs no handler; the second one joins only when it is hurried."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    where |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env={**where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
        time.sleep(0.5)  # until the first one is in its barrier
        workers[0].send_signal(signal.SIGTERM)
        said = [worker.communicate(timeout=60)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert said == ["SIGTERM [False, True] True\n", "None [False, True] True\n"]
