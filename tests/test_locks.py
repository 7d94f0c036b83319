"""One process at a time, and no lock that outlives its holder."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepcv.locks import locked


def test_a_lock_keeps_others_out_and_leaves_nothing_behind(tmp_path: Path) -> None:
    lock = tmp_path / "new/lock"
    with locked(lock), pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    assert not lock.exists()
    with pytest.raises(ValueError, match="work"), locked(lock, wait=False):
        raise ValueError("work")
    assert not lock.exists()


def test_who_waits_for_a_lock_that_is_removed_holds_the_new_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waiting, held = threading.Event(), list[bool]()

    def wait() -> None:
        waiting.set()
        with locked(lock):
            with pytest.raises(BlockingIOError), locked(lock, wait=False):
                pass
            held.append(lock.exists())

    other = threading.Thread(target=wait)
    with locked(lock):
        other.start()
        waiting.wait()
        time.sleep(0.2)  # so that it stands at the lock
    other.join(10)
    assert held == [True]
    assert not lock.exists()


def test_a_lock_that_somebody_removed_is_not_taken_from_the_next(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        lock.unlink()
        other = locked(lock)
        other.__enter__()
    with pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    other.__exit__(None, None, None)
    assert not lock.exists()


def test_a_killed_holder_frees_its_lock_though_its_children_live(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = (
        "import subprocess, sys, time\nfrom pathlib import Path\nfrom deepcv.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(BlockingIOError), locked(lock, wait=False):
            pass
        holder.kill()
        holder.wait()
        assert lock.exists()
        with locked(lock, wait=False):
            pass
        assert not lock.exists()
    finally:
        os.kill(child, signal.SIGKILL)
