"""How much more memory ten times as many images take to pack.

    python -m benchmarks.ingest_memory --path cifar10-jpeg.tar.gz [--quick]

60,000 and 600,000 images, those of the tar again and again under new names with bytes of their own, packed by a process each. `value`
is the ratio of the two peaks of anonymous resident memory (RssAnon: without files that are mapped). `--quick` takes a tenth.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import ROOT, cpu_s, emit
from deepcv.data import packing
from deepcv.data.samples import Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule

_LIMIT = 1.2
_IMAGES = 60_000
_EVERY_S = 0.005


def rss_anon() -> int:
    """Anonymous resident memory of this process, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


class Peak(threading.Thread):
    """Watches RssAnon, for which the kernel keeps no peak."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.start()

    def run(self) -> None:
        """Look every few milliseconds."""
        while True:
            self.bytes = max(self.bytes, rss_anon())
            time.sleep(_EVERY_S)


def repeated(tar: Path, count: int) -> Iterator[Sample]:
    """The tar's images over and over; a number behind the end of the file makes each of them a content of its own."""
    given = itertools.chain.from_iterable(open_source(tar, tar.parent).samples() for _ in itertools.count())
    for number, sample in enumerate(itertools.islice(given, count)):
        encoded = sample.encoded + number.to_bytes(4, "big")
        yield sample._replace(id=f"{number:06d}/{sample.id}", split=None, encoded=encoded)


def measure(tar: Path, count: int, processes: int, parent: Path) -> None:
    """Pack and print the peak; the source is opened here too, so that its memory is part of it."""
    peak = Peak()
    classes = open_source(tar, tar.parent).classes
    before, start = cpu_s(), time.perf_counter()
    packing.pack(
        repeated(tar, count), classes, parent, name="repeated", source=tar.name, processes=processes,
        rule=SplitRule(0.1, 0.2, 0),
    )  # fmt: skip
    print(json.dumps({"rss_anon": peak.bytes, "wall_s": time.perf_counter() - start, "pack_cpu_s": cpu_s() - before}))


def packed(tar: Path, count: int, processes: int) -> dict[str, float]:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ingest_memory", "--path", str(tar), "--processes", str(processes)]
        command += ["--images", str(count), "--folder", folder]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a tar of images")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="6,000 and 60,000 images")
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tar = options.path.resolve()
    if options.images:
        measure(tar, options.images, options.processes, options.folder)
        return
    fewer = _IMAGES // 10 if options.quick else _IMAGES
    few, many = (packed(tar, count, options.processes) for count in (fewer, 10 * fewer))
    ratio = many["rss_anon"] / few["rss_anon"]
    emit(
        "ingest-memory", value=round(ratio, 3), baseline=None, target=f"<= {_LIMIT:g}", holds=ratio <= _LIMIT, n=1,
        images=[fewer, 10 * fewer], mib=[round(side["rss_anon"] / 2**20, 1) for side in (few, many)],
        images_per_s=[round(n / side["wall_s"]) for n, side in ((fewer, few), (10 * fewer, many))],
        pack_cpu_s=[round(side["pack_cpu_s"], 1) for side in (few, many)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
