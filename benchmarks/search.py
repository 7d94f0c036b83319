"""A search of 8 trials on digits, then `dvc repro` with the parameters that it applied.

    python -m benchmarks.search [--quick]

Runs in a copy of the checkout. Value and baseline are the val accuracy of the last epoch: of the best trial that ran to
its end, and of the training by `dvc repro`; they must be equal. While the search runs, its listening sockets are looked at.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

from benchmarks.checkouts import checkout, environment
from benchmarks.result import emit
from deepcv.params.edit import set_values

_RUNS = """
import json
from deepcv import tracking
client = tracking.connect()
runs = client.search_runs([tracking.open_experiment("deepcv-digits")], max_results=500)
parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
print(json.dumps({"nested": sum(p is not None for p in parents), "status": sorted(r.info.status for r in runs)}))
"""


def watch(process: psutil.Process, addresses: set[str], ended: threading.Event) -> None:
    """Collect the addresses on which the process and its descendants listen."""
    while not ended.wait(0.5):
        try:
            family = [process, *process.children(recursive=True)]
            for member in family:
                addresses |= {c.laddr.ip for c in member.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue


def lives_in(process: psutil.Process, folder: Path) -> bool:
    """Whether a process that has not ended works in this folder."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 trials of 3 epochs")
    options = parser.parse_args()
    trials = 2 if options.quick else 8
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder)
        set_values(folder / "params.yaml", {"search.trials": trials, **({"train.epochs": 3} if options.quick else {})})
        command = [sys.executable, "-m", "deepcv.cli", "search", "--apply"]
        addresses: set[str] = set()
        ended = threading.Event()
        search = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=sys.stderr)
        watcher = threading.Thread(target=watch, args=(psutil.Process(search.pid), addresses, ended))
        watcher.start()
        status = search.wait()
        ended.set()
        watcher.join()
        left = [process.pid for process in psutil.process_iter() if lives_in(process, folder)]
        rows = list(csv.DictReader((folder / ".deepcv/search/trials.csv").open()))
        best = max(float(row["val_accuracy"]) for row in rows if row["status"] == "succeeded")
        runs = json.loads(subprocess.check_output([sys.executable, "-c", _RUNS], cwd=folder, env=environment(folder)))
        subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "train"],
            cwd=folder,
            env=environment(folder),
            check=True,
            stdout=sys.stderr,
        )
        history = list(csv.DictReader((folder / "data/model/history.csv").open()))
        trained = float(history[-1]["val_accuracy"])
    exact = best == trained
    emit(
        "search", value=best, baseline=trained, target="ends by itself, nested runs, 127.0.0.1 only, reproduced exactly",
        holds=exact and status == 0 and runs["nested"] == trials and addresses <= {"127.0.0.1"} and not left,
        n=trials, listened_on=sorted(addresses), nested_runs=runs["nested"], processes_left=len(left),
        statuses=[row["status"] for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main()
