import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toys

from deepcv.cli import _parser, main
from deepcv.params import whole

COMMANDS = ("check", "init", "predict", "search", "data", "profile", "ops", "find-lr", "preview", "resume")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project under git with params.yaml committed; it is the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).write_bytes((toys.REPOSITORY / name).read_bytes())
    (folder / "networks").symlink_to(toys.REPOSITORY / "networks")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q"), ("add", "params.yaml"), (*who, "commit", "-q", "-m", "start")):
        subprocess.run(["git", *words], check=True)
    return folder


def message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one message."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    text = exited.value.code if isinstance(exited.value.code, str) else capsys.readouterr().err
    assert exited.value.code not in (0, None)
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([command, "--help"] for command in COMMANDS),
        *(["data", command, "--help"] for command in ("diff", "drift", "who-saw", "forget")),
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: deepcv {' '.join(arguments[:-1])}".rstrip())
    if len(arguments) == 1:
        assert all(f"    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", ["init", "ops", "data", "data diff", "data drift", "data who-saw", "data forget"])
def test_examples_of_help_are_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    examples = re.findall(
        rf"^(?:  |example: )deepcv ({command} (?:\S+ ?)+)", text.partition("\n\n")[2].replace(",", "  "), re.MULTILINE
    )
    assert examples
    for example in examples:
        assert _parser().parse_args(shlex.split(example)).run


def test_init_tells_how_tables_and_boxes_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("dataset.yaml", "source: table", "COCO", "Pascal VOC", "docs/data.md"))


def test_the_installed_command_loads_nothing_heavy_for_help() -> None:
    heavy = {
        "torch", "mlflow", "numpy", "pandas", "cv2", "pydantic", "sklearn", "prefect", "dvc", "nni", "ignite", "yaml",
        "great_expectations", "matplotlib", "onnx", "onnxruntime",
    }  # fmt: skip
    script = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from deepcv.cli import main\nmain(['predict', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not heavy & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "required: COMMAND"),
        (("chek",), "invalid choice: 'chek'"),
        (("init",), "required: folder"),
        (("predict",), r"required: FILE|FOLDER"),
        (("search", "--aply"), "unrecognized arguments: --aply"),
        (("data",), "required: COMMAND"),
        (("data", "who-saw"), "required: SHA256|FILE"),
        (("data", "diff", "a", "b", "c"), "unrecognized arguments: c"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in message(capsys, *arguments)


def test_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check"])
    assert capsys.readouterr().out == "params.yaml: valid\n"
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 12", "epoch: 12"))
    text = message(capsys, "check")
    assert text.startswith("deepcv: params.yaml:")
    assert "epochs" in text


@pytest.mark.usefixtures("project")
def test_a_reader_that_has_gone() -> None:
    for unbuffered in ("", "1"):
        command = subprocess.Popen(
            [sys.executable, "-m", "deepcv.cli", "check"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(toys.REPOSITORY)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == ""
        assert command.wait(60) == 1


def test_a_state_folder_that_cannot_be(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPCV_HOME", str(project / "params.yaml"))
    assert message(capsys, "check").startswith("deepcv: [Errno 17] File exists: '")


def test_check_of_a_file_outside_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    main(["check", str(toys.REPOSITORY / "params.yaml")])
    assert "valid" in capsys.readouterr().out
    assert "no-such.yaml" in message(capsys, "check", "no-such.yaml")


def test_check_drops_receipts_whose_database_is_gone(project: Path) -> None:
    receipt = project / ".deepcv" / "mlflow" / "registered.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text("{}")
    (project / ".deepcv" / "mlflow" / "mlflow.db").write_bytes(b"")
    main(["check"])
    assert receipt.exists()
    (project / ".deepcv" / "mlflow" / "mlflow.db").unlink()
    main(["check"])
    assert not receipt.exists()


def test_init_writes_params_that_are_valid(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_images(project / "data" / "Pets", [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(4)])
    main(["init", "data/Pets"])
    params = whole.load()
    assert (params.ingest.dataset, params.ingest.path) == ("pets", "data/Pets")
    assert (params.preprocess.height, params.preprocess.width, params.preprocess.channels) == (8, 8, 1)
    assert params.train.network == "networks/digits.yaml"
    assert params.train.batch_size == 16
    assert "# peak of the OneCycle schedule" in (project / "params.yaml").read_text()
    printed = capsys.readouterr().out
    assert printed.startswith("found 8 images (8 to be split) of 2 classes (cat, dog), 8×8, grey")
    assert printed.endswith("Next:\n\n  dvc repro\n\n")


def test_init_reads_a_tar_and_takes_a_name(project: Path, tmp_path: Path) -> None:
    root = toys.write_images(
        tmp_path / "x", [f"{s}/{c}/{n}.png" for s in ("train", "test") for c in "ab" for n in "12"]
    )
    toys.write_tar(root, project / "images.tar.gz", "w:gz")
    main(["init", "images.tar.gz", "--dataset", "letters"])
    assert (whole.load().ingest.dataset, whole.load().ingest.path) == ("letters", "images.tar.gz")


def test_init_keeps_changes_that_git_does_not_know(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_images(project / "pets", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 12", "epochs: 5"))
    before = params.read_text()
    text = message(capsys, "init", "pets")
    assert "changes that git does not know" in text
    assert "--force" in text
    assert params.read_text() == before
    main(["init", "pets", "--force"])
    assert whole.load().ingest.path == "pets"


def test_init_below_a_project_says_where_to_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.write_images(project / "data" / "pets", ["a/1.png", "b/1.png"])
    monkeypatch.chdir(project / "data")
    assert message(capsys, "init", "pets") == (
        "deepcv: params.yaml: there is no such file; run this in a DeepCV project's folder"
    )


def test_init_writes_through_a_symlink_and_keeps_permissions(project: Path) -> None:
    toys.write_images(project / "pets", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    params = project / "params.yaml"
    params.rename(project / "real.yaml").chmod(0o664)
    params.symlink_to("real.yaml")
    main(["init", "pets", "--force"])
    assert params.is_symlink()
    assert params.stat().st_mode & 0o777 == 0o664
    assert whole.load().ingest.path == "pets"


def test_init_refuses_to_keep_values_of_another_network(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_images(project / "pets", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("    width: 16\n", "    width: 16\n    depth: 3\n"))
    before = params.read_text()
    assert "networks/digits.yaml" in (text := message(capsys, "init", "pets", "--force"))
    assert "unknown parameter 'depth'" in text
    assert params.read_text() == before


def test_init_without_git(project: Path) -> None:
    toys.write_images(project / "pets", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    (project / ".git").rename(project / "git-is-gone")
    main(["init", "pets"])
    assert whole.load().ingest.path == "pets"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere",), "nowhere: there is no such file or folder"),
        (("empty",), "empty: holds no files"),
        (("pets", "--dataset", "My Pets"), "dataset"),
    ],
)
def test_init_with_bad_input_changes_nothing(
    arguments: tuple[str, ...], expected: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "empty").mkdir()
    toys.write_images(project / "pets", ["a/1.png", "b/1.png"])
    before = (project / "params.yaml").read_text()
    assert expected in message(capsys, "init", *arguments)
    assert (project / "params.yaml").read_text() == before


@pytest.mark.parametrize("command", [("init", "pets"), ("predict", "pets")])
def test_outside_a_project(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    toys.write_images(tmp_path / "pets", ["a/1.png", "b/1.png"])
    assert message(capsys, *command).startswith("deepcv: ")


def test_predict_with_bad_paths(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "empty").mkdir()
    assert "nowhere: there is no such file or folder" in message(capsys, "predict", "nowhere")
    assert "no image files in empty" in message(capsys, "predict", "empty")


def test_predict_without_a_model(project: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(empty_store, project / ".deepcv")
    toys.write_images(project / "pets", ["1.png"])
    text = message(capsys, "predict", "pets")
    assert text.startswith("deepcv: models:/deepcv-digits@champion cannot be loaded")
    assert "`dvc repro` registers a model" in text
    assert not (project / "predictions").exists()
