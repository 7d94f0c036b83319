import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcv.lifetime import lives
from flows.processes import Lines, describe, run, stop


def feed(chunks: list[bytes]) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    lines = Lines(lambda text: seen.append(("line", text)), lambda text: seen.append(("progress", text)))
    for chunk in chunks:
        lines.feed(chunk)
    lines.feed(b"", final=True)
    return seen


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"a\nb", [("line", "a"), ("line", "b")]),
        (b"a\r\nb\r\n", [("line", "a"), ("line", "b")]),
        (b" 1%|\r 2%|\r 3%|\n", [("progress", " 1%|"), ("progress", " 2%|"), ("line", " 3%|")]),
        (b"\n\n \n", []),
        (b"caf\xc3\xa9 \xff\n", [("line", "caf\u00e9 \ufffd")]),
        (b"end\r", [("progress", "end")]),
    ],
)
def test_lines(data: bytes, seen: list[tuple[str, str]]) -> None:
    assert feed([data]) == seen


@given(st.text(alphabet="ab\r\n\u00e9 ", max_size=30).map(str.encode), st.data())
def test_how_the_stream_is_cut_does_not_matter(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(chunks) == feed([stream])


def test_a_line_without_end_is_handed_on_in_pieces() -> None:
    texts = [text for _, text in feed([b"x" * 50_000] * 5)]
    assert len(texts) > 1
    assert "".join(texts) == "x" * 250_000


def ended(pid: int) -> bool:
    """Whether a process is gone; an orphan may stay as a zombie where the container's first process reaps none."""
    return not psutil.pid_exists(pid) or not lives(psutil.Process(pid))


def python(code: str, lines: Lines) -> int:
    return run([sys.executable, "-c", code], lines)


def test_output_comes_while_the_command_runs_and_the_status_at_the_end() -> None:
    seen: list[tuple[float, str]] = []
    lines = Lines(lambda text: seen.append((time.monotonic(), text)), lambda _: None)
    code = "import sys, time\nprint('one', flush=True)\ntime.sleep(1)\nprint('two', file=sys.stderr)\nsys.exit(3)"
    assert python(code, lines) == 3
    assert [text for _, text in seen] == ["one", "two"]
    assert seen[1][0] - seen[0][0] > 0.7


def test_a_grandchild_that_holds_the_pipe_does_not_hold_us() -> None:
    seen: list[str] = []
    code = "import subprocess\nprint(subprocess.Popen(['sleep', '30']).pid, flush=True)"
    started = time.monotonic()
    assert python(code, Lines(seen.append, seen.append)) == 0
    assert time.monotonic() - started < 10
    stop([int(seen[0])], patience_s=2)
    assert ended(int(seen[0]))


def test_an_interrupt_ends_the_command_and_its_children() -> None:
    pids: list[int] = []

    def interrupt(text: str) -> None:
        pids.extend(int(word) for word in text.split())
        raise KeyboardInterrupt

    code = (
        "import os, signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)\ntime.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        python(code, Lines(interrupt, interrupt))
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


def test_describe_names_the_command() -> None:
    with subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"1")
        cat.stdin.flush()
        assert cat.stdout.read(1) == b"1"  # it runs: before, its command line may be empty
        assert describe(cat.pid) == f"pid {cat.pid} (cat -)"
    assert describe(2**30) == f"pid {2**30}"


def test_who_is_killed_leaves_nobody_behind() -> None:
    code = (
        "import subprocess, time\nfrom flows.processes import leave_nobody_behind\n"
        "before = subprocess.Popen(['sleep', '60'])\nleave_nobody_behind(5)\n"
        "after = [subprocess.Popen(['sleep', '60'], start_new_session=new) for new in (False, True)]\n"
        "print(before.pid, *(process.pid for process in after), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        before, *after = map(int, program.stdout.readline().split())
        watchman = [child.pid for child in psutil.Process(program.pid).children() if child.pid not in {before, *after}]
        assert len(watchman) == 1
        program.kill()
    deadline = time.monotonic() + 10
    while not all(ended(pid) for pid in [*after, *watchman]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not ended(before)
    stop([before], patience_s=2)
