import base64
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tiny
import yaml
from dvc.repo import Repo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL
from prefect_runs import Run, eventually

from flows.pipeline import main

Flow = Callable[..., Run]
EVERY = ("fetch", "fit", "score", "page")


def all_are(state: str) -> dict[str, str]:
    return dict.fromkeys(EVERY, state)


def artifacts(run: Run) -> dict[str, object]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        return {artifact.key or "": artifact.data for artifact in client.read_artifacts(artifact_filter=wanted)}


def test_first_run_runs_all_and_dvc_then_has_nothing_to_do(fresh: Path, run: Flow) -> None:
    first = run()
    assert first.state.is_completed()
    assert first.stages == all_are("Ran")
    assert "up to date" in tiny.command(fresh, "dvc", "repro")
    assert run().stages == all_are("Cached")


def test_after_dvc_repro_the_flow_has_nothing_to_do(done: Path, run: Flow) -> None:
    lock = (done / "dvc.lock").read_bytes()
    again = run()
    assert again.stages == all_are("Cached")
    assert again.state.message == "stages: 4 cached"
    assert (done / "dvc.lock").read_bytes() == lock


@pytest.mark.usefixtures("fresh")
def test_output_and_artifacts_reach_prefect(run: Flow) -> None:
    first = run()
    lines = first.logs(until="fitted ONE")
    assert "fetched" in lines
    assert [line for line in lines if line.startswith("fit:")] == [
        "fit:   0%|###",
        "fit: 100%|###",
    ]  # 50 % came too soon
    found = artifacts(first)
    assert {key: found[f"stage-{key}"] for key in EVERY} == dict.fromkeys(EVERY, 100.0)
    report = str(found["pipeline-report"])
    assert "| score | Ran |" in report
    assert "| metrics.accuracy | 0.8 |" in report
    assert "`data/report/index.html`" in report


@pytest.mark.usefixtures("done")
def test_a_cached_stage_has_no_progress(run: Flow) -> None:
    assert list(artifacts(run())) == ["pipeline-report"]


def test_a_stages_picture_is_shown_once_per_content(fresh: Path, run: Flow) -> None:
    (fresh / "draw.py").write_text(
        "import sys; open('data/dot.png', 'wb').write(b'PNG of ' + open('source.txt', 'rb').read())"
    )
    with (fresh / "dvc.yaml").open("a") as file:
        file.write("  draw it:\n    cmd: python draw.py\n    deps: [source.txt, data/raw]\n    outs: [data/dot.png]\n")
    tiny.command(fresh, "dvc", "repro")

    def shown(one: Run) -> object:
        return artifacts(one).get("stage-draw-it-dot")

    def holding(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    first = run(stages=5)
    assert first.stages["draw it"] == "Cached"
    assert shown(first) == holding(b"PNG of one\n")  # no run has shown it yet
    assert shown(run(stages=5)) is None
    (fresh / "source.txt").write_text("two\n")
    assert shown(run(stages=5)) == holding(b"PNG of two\n")
    assert shown(run(stages=5)) is None
    (fresh / "source.txt").write_text("one\n")
    restored = run(stages=5)
    assert restored.stages["draw it"] == "Restored"
    assert shown(restored) == holding(b"PNG of one\n")


def test_an_earlier_state_is_restored_without_running(done: Path, run: Flow) -> None:
    (done / "source.txt").write_text("two\n")
    assert run().stages == all_are("Ran")
    (done / "source.txt").write_text("one\n")
    assert run().stages == all_are("Restored")
    assert (done / "data/model.txt").read_text().startswith("ONE")


def test_overrides_stay_and_keep_comments(done: Path, run: Flow) -> None:
    before = (done / "params.yaml").read_text()
    changed = run(overrides={"train.epochs": 3})
    assert changed.stages == {"fetch": "Cached", "fit": "Ran", "score": "Ran", "page": "Cached"}
    after = (done / "params.yaml").read_text()
    assert after == before.replace("epochs: 12", "epochs: 3")
    assert (done / "data/model.txt").read_text() == "ONE3"
    assert "up to date" in tiny.command(done, "dvc", "repro")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"overrides": {"train.epochs": "many"}}, ("epochs", "many")),
        ({"overrides": {"train.epoch": 3}}, ("train.epoch", "train.epochs")),
        ({"targets": ["fits"]}, ("'fits'", "did you mean 'fit'?")),
    ],
)
def test_wrong_parameters_run_nothing(done: Path, run: Flow, parameters: dict[str, object], words: tuple[str]) -> None:
    before = (done / "params.yaml").read_bytes()
    (done / "source.txt").write_text("two\n")
    refused = run(**parameters, stages=0)
    assert refused.state.is_failed()
    assert refused.stages == {}
    for word in words:
        assert word in refused.state.message
    assert (done / "params.yaml").read_bytes() == before


def test_an_invalid_params_file_runs_nothing(fresh: Path, run: Flow) -> None:
    path = fresh / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 12", "epoch: 12"))
    refused = run(stages=0)
    assert refused.state.is_failed()
    assert refused.stages == {}
    assert "params.yaml:" in refused.state.message
    assert "epochs" in refused.state.message


def test_a_failing_stage_says_why_and_what_needs_it_does_not_run(done: Path, run: Flow) -> None:
    (done / "fit.py").write_text("import sys\nprint('working')\nsys.exit('error: no rows in data/raw')\n")
    failed = run(stages=2)
    assert failed.state.is_failed()
    assert failed.stages == {"fetch": "Cached", "fit": "Failed"}
    for message in (failed.messages["fit"], failed.state.message):
        assert "exited with 1" in message
        assert "error: no rows in data/raw" in message
    assert "no rows" in str(artifacts(failed)["pipeline-report"])
    (done / "fit.py").write_text(tiny.SCRIPTS["fit.py"])
    assert set(run().stages.values()) <= {"Cached", "Restored"}  # what was there comes back without running


def test_targets_and_force(done: Path, run: Flow) -> None:
    (done / "source.txt").write_text("two\n")
    assert run(targets=["page"], stages=2).stages == {"fetch": "Ran", "page": "Ran"}
    assert run(targets=["page"], force=True, stages=2).stages == {"fetch": "Ran", "page": "Ran"}


def test_a_new_stage_shows_up(done: Path, run: Flow) -> None:
    text = (done / "dvc.yaml").read_text()
    (done / "dvc.yaml").write_text(
        f"{text}  copy:\n    cmd: cp source.txt copied.txt\n    deps: [source.txt]\n    outs: [copied.txt]\n"
    )
    assert run(stages=5).stages == {**all_are("Cached"), "copy": "Ran"}


def test_the_flow_waits_for_another_dvc_process(done: Path, run: Flow) -> None:
    (done / "source.txt").write_text("two\n")
    (done / "fetch.py").write_text("import time\ntime.sleep(6)\n" + tiny.SCRIPTS["fetch.py"])
    other = subprocess.Popen(["dvc", "repro", "-q"], cwd=done, env=tiny.environment(done))
    try:
        deadline = time.monotonic() + 30
        while not list(psutil.Process(other.pid).children()) and time.monotonic() < deadline:
            time.sleep(0.1)
        waited = run()
        assert other.wait(timeout=30) == 0  # we did not stand in its way
    finally:
        other.kill()
    assert waited.state.is_completed()
    assert (done / "data/raw/rows.txt").read_text() == "TWO"
    told = [line for line in waited.logs(until="waiting for it") if "waiting for it" in line]
    assert len(told) == 1  # also where it held first the repository and then the stage
    assert str(other.pid) in told[0]
    assert "repro" in told[0]
    assert "up to date" in tiny.command(done, "dvc", "repro")


def test_overrides_wait_for_a_stage_that_runs_with_the_present_params(done: Path, run: Flow) -> None:
    params = (done / "params.yaml").read_text()
    (done / "params.yaml").write_text(params.replace("epochs: 12", "epochs: 5"))
    (done / "fit.py").write_text(tiny.SCRIPTS["fit.py"] + "import time\ntime.sleep(8)\n")  # params were read before
    other = subprocess.Popen(["dvc", "repro", "-q", "fit"], cwd=done, env=tiny.environment(done))
    try:
        model = done / "data/model.txt"
        assert eventually(lambda: model.exists() and model.read_text() == "ONE5", bool, timeout_s=30)
        # "page" asks for nothing that the running stage holds: it is the edit that must wait.
        waited = run(targets=["page"], overrides={"train.epochs": 3}, stages=2)
        assert other.wait(timeout=30) == 0
    finally:
        other.kill()
    assert waited.state.is_completed()
    assert set(waited.stages.values()) == {"Cached"}
    told = [line for line in waited.logs(until="waiting for it") if "waiting for it" in line]
    assert len(told) == 1
    assert "params.yaml' is busy" in told[0]
    assert str(other.pid) in told[0]
    recorded = yaml.safe_load((done / "dvc.lock").read_text())["stages"]
    assert recorded["fit"]["params"]["params.yaml"]["train"]["epochs"] == 5
    assert (done / "data/model.txt").read_text() == "ONE5"
    assert "  epochs: 3" in (done / "params.yaml").read_text()
    (done / "fit.py").write_text(tiny.SCRIPTS["fit.py"])
    assert run().stages == {"fetch": "Cached", "fit": "Ran", "score": "Ran", "page": "Cached"}
    recorded = yaml.safe_load((done / "dvc.lock").read_text())["stages"]
    assert recorded["fit"]["params"]["params.yaml"]["train"]["epochs"] == 3
    assert (done / "data/model.txt").read_text() == "ONE3"


def test_the_flow_gives_up_after_the_time_out(done: Path, run: Flow) -> None:
    code = "from dvc.repo import Repo\nwith Repo().lock:\n    print('held', flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=done,
        env=tiny.environment(done),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = run(lock_timeout_s=0.1, stages=0)
        holder.kill()
    assert refused.state.is_failed()
    assert "gave up" in refused.state.message
    assert str(holder.pid) in refused.state.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("prefect_server")
def test_a_stopped_flow_leaves_no_stage_behind(done: Path, number: signal.Signals) -> None:
    # Like deepcv.stages: the stage asks the kernel for a signal when its parent dies.
    (done / "fit.py").write_text(
        "import ctypes, signal, time\nctypes.CDLL(None).prctl(1, signal.SIGTERM)\nprint('asleep')\ntime.sleep(60)\n"
    )
    environment = {**tiny.environment(done), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=done,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as flow:
        assert flow.stdout is not None
        for line in flow.stdout:
            if b"asleep" in line:
                break
        (stage,) = [child for child in psutil.Process(flow.pid).children(recursive=True) if "fit.py" in child.cmdline()]
        flow.send_signal(number)
        psutil.wait_procs([stage], timeout=10)
        assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
        flow.stdout.read()
        assert flow.wait(timeout=30) != 0
    (done / "fit.py").write_text(tiny.SCRIPTS["fit.py"])
    assert "up to date" not in tiny.command(done, "dvc", "repro")  # the half-done stage is not taken for a whole one


@pytest.mark.usefixtures("prefect_server")
def test_the_command_line(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--targets", "fit", "-S", "train.epochs=2"]) == 0
    assert (done / "data/model.txt").read_text() == "ONE2"
    assert main(["--targets", "fitt"]) == 1
    with pytest.raises(SystemExit):
        main(["-S", "train.epochs"])
    assert "expected KEY=VALUE" in capsys.readouterr().err


def _edit(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def _set(key: str, value: int) -> Callable[[], object]:
    def change() -> None:
        lines = Path("params.yaml").read_text().splitlines(keepends=True)
        Path("params.yaml").write_text(
            "".join(f"  {key}: {value}\n" if line.startswith(f"  {key}:") else line for line in lines)
        )

    return change


CHANGES = {
    "source one": _edit("source.txt", "one\n"),
    "source two": _edit("source.txt", "two\n"),
    "same meaning": _edit("source.txt", " one\n"),  # fetch runs, its output is the same
    "epochs 2": _set("epochs", 2),
    "epochs 3": _set("epochs", 3),
    "worst 9": _set("worst", 9),
    "code": lambda: Path("score.py").write_text(Path("score.py").read_text() + "\n"),
    "output lost": lambda: Path("data/model.txt").unlink(missing_ok=True),
    "output damaged": _edit("data/raw/rows.txt", "THREE"),
    "lock lost": lambda: Path("dvc.lock").unlink(missing_ok=True),
}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.booleans()), min_size=1, max_size=3))
def test_flow_and_dvc_agree_on_what_is_up_to_date(done: Path, run: Flow, steps: list[tuple[str, bool]]) -> None:
    for change, flow_first in steps:
        CHANGES[change]()
        if flow_first:
            assert run().state.is_completed()
            lock = (done / "dvc.lock").read_bytes()
            assert Repo().reproduce() == []
        else:
            Repo().reproduce()
            lock = (done / "dvc.lock").read_bytes()
            assert run().stages == all_are("Cached")
        assert (done / "dvc.lock").read_bytes() == lock
