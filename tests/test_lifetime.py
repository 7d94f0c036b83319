"""Signals, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

# Notes a signal, works on for 0.5 s (or for 60 s), then lets it act, as the stage `train` does.
GRACEFUL = """
import signal, sys, time
from deepcv.lifetime import Grace

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
grace_s, work_s = map(float, sys.argv[1:])
try:
    with Grace(grace_s) as grace:
        print("ready", flush=True)
        while grace.asked is None:
            time.sleep(0.01)
        print("asked", grace.asked, flush=True)
        time.sleep(work_s)
        print("saved", flush=True)
        grace.obey()
        print("disobeyed")
except KeyboardInterrupt:
    sys.exit(130)
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert read(process) == "ready"
    return process


def read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_waits_for_the_work_to_be_saved(number: signal.Signals) -> None:
    process = start(GRACEFUL, 30, 0.5)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert output.split("\n") == [f"asked {int(number)}", "saved", ""]
    assert process.returncode == STATUS[number]
    assert errors == ""


@pytest.mark.parametrize("number", STATUS)
def test_work_that_takes_longer_than_the_grace_is_ended(number: signal.Signals) -> None:
    process = start(GRACEFUL, 0.5, 60)
    asked_s = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert "saved" not in output
    assert process.returncode == STATUS[number]
    assert 0.5 <= time.monotonic() - asked_s < 10


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("second", STATUS)
def test_a_later_signal_acts_at_once(number: signal.Signals, second: signal.Signals) -> None:
    process = start(GRACEFUL, 30, 60)
    process.send_signal(number)
    assert read(process).startswith("asked")
    time.sleep(1.1)
    process.send_signal(second)
    output, _ = process.communicate(timeout=20)
    assert output == ""
    assert process.returncode == STATUS[second]


def test_a_signal_that_comes_twice_counts_once() -> None:
    process = start(GRACEFUL, 30, 0.8)
    process.send_signal(signal.SIGTERM)
    assert read(process).startswith("asked")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert output.strip() == "saved"
    assert process.returncode == STATUS[signal.SIGTERM]


def test_after_the_block_signals_act_as_before_it_and_no_alarm_is_left() -> None:
    code = """
import signal, sys, time
from deepcv.lifetime import Grace
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
with Grace(0.2) as grace:
    signal.raise_signal(signal.SIGTERM)
    assert grace.asked == signal.SIGTERM
time.sleep(0.5)  # the work was done within the grace: nothing acts
print("ready", flush=True)
time.sleep(60)
"""
    process = start(code)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 3


def test_obey_without_a_signal_does_nothing() -> None:
    process = start("from deepcv.lifetime import Grace\nwith Grace(0.1) as grace:\n    grace.obey()\nprint('ready')")
    assert process.wait(20) == 0


def test_a_process_dies_with_the_one_that_started_it() -> None:
    child = (
        "import signal, time\nfrom deepcv.lifetime import die_with_parent\ndie_with_parent(signal.SIGTERM)\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    parent = start(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])")
    parent.kill()
    output, _ = parent.communicate(timeout=20)  # the child holds the pipe until it has ended
    assert output == ""


def test_a_process_whose_parent_died_before_it_could_ask_ends_too() -> None:
    """As a helper does that is still importing when its stage is killed."""
    child = (
        "import os, signal, sys, time\nfrom deepcv.lifetime import die_with_parent\n"
        "while os.getppid() == int(sys.argv[1]):\n    time.sleep(0.01)\n"
        "die_with_parent(signal.SIGKILL, int(sys.argv[1]))\nprint('left behind', flush=True)\ntime.sleep(60)"
    )
    parent = start(
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\nprint('ready', flush=True)"
    )
    output, _ = parent.communicate(timeout=20)
    assert output == ""


def test_the_handler_that_acts_may_change_itself() -> None:
    """As a stage's does: its end must not bring back what would raise once more in the middle of the exit."""
    code = (
        "import signal, sys, time\n"
        "from deepcv.lifetime import Grace\n"
        "def leave(number, frame):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "try:\n"
        "    with Grace(60) as grace:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        grace.obey()\n"
        "except SystemExit:\n"
        "    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN\n"
        "    print('left once')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "left once\n", done.stderr
