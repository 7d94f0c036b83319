"""Work on several processes: the results' order, errors in their turn, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from deepcv import parallel
from deepcv.errors import DeepcvError
from deepcv.lifetime import lives
from deepcv.parallel import in_order


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start helpers with the first item."""
    monkeypatch.setattr(parallel, "_ALONE_S", -1.0)


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 if number % 3 else 0.1)
    return number * number, os.getpid()


def refuse_odd(number: int) -> int:
    if number % 2:
        raise DeepcvError(f"{number} is odd")
    return number


def end_helper(parent: int) -> None:
    time.sleep(0.05)
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items_from_all_processes(processes: int) -> None:
    found = list(in_order(slow_square, iter(range(60)), processes))
    assert [(item, square) for item, (square, _) in found] == [(n, n * n) for n in range(60)]
    workers = {worker for _, (_, worker) in found}
    assert os.getpid() in workers
    assert (len(workers) > 1) == (processes > 1)
    assert not [child for child in psutil.Process().children() if child.pid in workers]


def test_short_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    assert [result for _, result in in_order(refuse_odd, range(0, 100, 2), 8)] == list(range(0, 100, 2))


@pytest.mark.usefixtures("at_once")
def test_items_are_read_ahead_by_a_bounded_number() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(500):
            read = number
            yield 0

    for taken, _ in enumerate(in_order(refuse_odd, items(), 2)):
        assert read - taken <= 2 * parallel._AHEAD


@pytest.mark.usefixtures("at_once")
def test_an_error_is_raised_in_its_turn() -> None:
    results = in_order(refuse_odd, [0, 2, 4, 5, 6, 7], 2)
    assert [next(results)[0] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(DeepcvError, match="5 is odd"):
        next(results)


@pytest.mark.usefixtures("at_once")
def test_a_killed_helper_is_reported() -> None:
    with pytest.raises(DeepcvError, match="was killed, perhaps because memory ran out"):
        list(in_order(end_helper, [os.getpid()] * 200, 2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_helpers_end_with_the_process_that_asked_them(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import time\nfrom deepcv import parallel\n\ndef work(item):\n    time.sleep(0.05)\n\n"
        "if __name__ == '__main__':\n    parallel._ALONE_S = -1\n"
        "    for _ in parallel.in_order(work, range(10**6), 3):\n        print('working', flush=True)\n"
    )
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert main.stdout
    deadline = time.monotonic() + 30
    helpers: list[psutil.Process] = []
    while len(helpers) < 3 and time.monotonic() < deadline:  # two helpers and multiprocessing's own
        main.stdout.readline()
        helpers = psutil.Process(main.pid).children(recursive=True)
    for _ in range(60):  # until the helpers are at work
        main.stdout.readline()
    main.send_signal(number)
    main.wait(timeout=10)
    assert len(helpers) == 3
    while any(map(lives, helpers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(lives, helpers))


@pytest.mark.parametrize("processes", [1, 2])
def test_work_is_done_meanwhile(processes: int) -> None:
    with parallel.meanwhile(os.getpid, processes) as result:
        assert (result() == os.getpid()) == (processes == 1)
    with (
        pytest.raises(DeepcvError, match="3 is odd"),
        parallel.meanwhile(partial(refuse_odd, 3), processes) as result,
    ):
        result()


def test_a_killed_helper_is_told() -> None:
    with (
        pytest.raises(DeepcvError, match="was killed"),
        parallel.meanwhile(partial(end_helper, os.getpid()), 2) as result,
    ):
        result()
