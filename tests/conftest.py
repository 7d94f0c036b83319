import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from histories import History

# Who starts us in the background has our SIGINT ignored, and every process that we start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Small layers on a busy machine: two threads wait for each other far longer than they compute. Stages set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# With a file at a time for each worker, a long file that begins last leaves the other workers idle: these begin first.
LONG = (
    "end_to_end/test_pipeline_laws.py",  # it makes the project that test_interruptions.py takes a copy of
    "flows/test_pipeline.py",
    "end_to_end/test_interruptions.py",
    "search/test_search_run.py",
    "search/test_search_experiment.py",
    "end_to_end/test_flow_on_the_pipeline.py",
    "flows/test_servers.py",
    "stages/test_bad_input.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist would begin with the files of many tests, which are short ones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    place = {root / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))  # it keeps the order of all others


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread also after a training in this process, which takes all cores."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with an empty MLflow database, made once (8 s); copy it, do not change it."""
    from deepcv import tracking

    project = tmp_path_factory.mktemp("empty")
    (project / "dvc.yaml").write_text("stages: {}\n")
    state = project / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("DEEPCV_HOME", str(state))
        tracking.connect()
    return state


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own, with an empty MLflow database; DEEPCV_HOME points to it.

    The working directory is a project of its own: to open another store in the repository itself would unregister it.
    """
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    shutil.copytree(empty_store, state)
    monkeypatch.setenv("DEEPCV_HOME", str(state))
    return state


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> "History":
    """A project with four datasets in its past; do not change it."""
    from histories import make

    return make(tmp_path_factory.mktemp("history"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An address and the folder that it serves."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
