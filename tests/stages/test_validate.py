import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from deepcv.data import quarantine
from deepcv.errors import DeepcvError
from deepcv.params import whole
from deepcv.params.edit import with_values
from deepcv.params.validate import NO_REFERENCE, REGISTERED
from deepcv.stages import ingest, preprocess, validate
from deepcv.stages.validate import CANDIDATE, how_to_accept

NAMES = [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(20)]


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a project of 40 images the working folder; its params are the shipped ones with those that are given by dotted key."""

    def create(**values: object) -> Path:
        toys.write_images(tmp_path / "pets", NAMES)
        text = (toys.REPOSITORY / "params.yaml").read_text()
        changes = {key.replace("__", "."): value for key, value in values.items()}
        text = with_values(text, {"ingest.path": "pets", "ingest.dataset": "pets", **changes})
        (tmp_path / "params.yaml").write_text(text)
        shutil.copy(toys.REPOSITORY / "versions.yaml", tmp_path)
        monkeypatch.setenv("DEEPCV_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return create


def test_files_that_are_no_images_are_quarantined_with_their_reasons(
    pets: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project = pets(validate__severity__readable="quarantine")
    bad = {"cat/3.png": b"", "dog/4.png": b"", "dog/5.png": b"Read me"}  # two of them are equal
    bad["cat/7.png"] = (project / "pets/cat/7.png").read_bytes()[:-30]
    bad["cat/8.png"] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    for name, content in bad.items():
        (project / "pets" / name).write_bytes(content)
    ingest.main()
    assert "5 files are no images" in capsys.readouterr().out
    validate.main()
    out = pd.read_csv(validate.QUARANTINE).set_index("id")
    assert out["check"].to_dict() == dict.fromkeys(sorted(bad), "readable")
    for name, reason in {
        "cat/3.png": "the file is empty", "dog/5.png": r"not an image format that OpenCV reads: it begins with b'Read me'",
        "cat/7.png": "not a whole image: truncated", "cat/8.png": "20000 × 20000 pixels are more than",
    }.items():  # fmt: skip
        assert out.loc[name, "reason"].startswith(reason)
    page = validate.FLAGGED.read_text()
    assert page.count(">unreadable</span>") == len(bad)
    assert "5 of 40 images flagged" in page
    assert "5 pictures cannot be read" in validate.GALLERY.read_text()
    assert len(pd.read_parquet(CANDIDATE)) == 35
    preprocess.main()
    shown = sum(len(labels) for labels in map(np.load, Path("data/shards").glob("*_labels.npy")))
    assert shown == 35
    assert quarantine.digest_of_kept_test_images(ingest.RAW, quarantine.read(validate.QUARANTINE))


def test_one_file_under_two_classes_is_told_and_can_be_left_out(
    pets: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project = pets(validate__severity__label_conflict="quarantine", validate__severity__label_noise="warn")
    shutil.copy(project / "pets/cat/3.png", project / "pets/dog/twice.png")
    ingest.main()
    validate.main()
    out = capsys.readouterr().out
    assert "label_conflicts is 2, expected at most 0" in out
    assert re.search(
        r"^\d+ images flagged: .*duplicates 1, label conflict 2.* \(data/validation/flagged\.html\)$", out, re.M
    )
    left_out = pd.read_csv(validate.QUARANTINE)
    assert left_out["id"].tolist() == ["cat/3.png", "dog/twice.png"]
    assert left_out["reason"].tolist() == ["cat, but dog as dog/twice.png", "dog, but cat as cat/3.png"]


def test_files_of_another_mode_are_left_out_and_a_class_that_is_not_named_stops(pets: Callable[..., Path]) -> None:
    project = pets(validate__modes=["grey8"], validate__severity__mode="quarantine", validate__classes=["cat", "dog"])
    Image.new("CMYK", (8, 8), (9, 99, 0, 0)).save(project / "pets/cat/3.png", "JPEG")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 64).save(project / "pets/dog/4.png")  # 12 bits in 16
    ingest.main()
    validate.main()
    left_out = pd.read_csv(validate.QUARANTINE)
    assert left_out["reason"].tolist() == ["cmyk8, not grey8", "grey16+dim, not grey8"]
    assert left_out["id"].tolist() == ["cat/3.png", "dog/4.png"]
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(with_values(text, {"validate.classes": ["cat", "bird"]}))
    with pytest.raises(DeepcvError, match=r"classes_unknown is 1, expected at most 0 \(dog\)"):
        validate.main()


def test_files_that_are_no_images_stop_the_pipeline_by_default(
    pets: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project = pets()
    (project / "pets/cat/3.png").write_bytes(b"")
    ingest.main()
    assert "1 file is no image; each is packed as it is" in capsys.readouterr().out
    with pytest.raises(
        DeepcvError, match=r"1 file is no image; repair or remove each.*\n    cat/3.png: the file is empty"
    ):
        validate.main()
    assert not validate.VERDICT.exists()


def test_data_is_compared_with_that_of_the_champion(
    pets: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pets(validate__reference=REGISTERED)
    ingest.main()
    validate.main()
    out = capsys.readouterr().out
    assert f"{REGISTERED}/pets.parquet: not there, as no champion of pets is registered yet" in out
    assert "not checked: label_set, class_shares, brightness, channel_order" in out
    assert "to have later data compared" not in out
    of_champion = pd.read_parquet(CANDIDATE)
    Path(REGISTERED).mkdir(parents=True)
    of_champion.to_parquet(Path(REGISTERED, "pets.parquet"))  # as `register` does
    validate.main()
    assert "not checked: label_set" not in capsys.readouterr().out
    of_champion.loc[0, "label"] = "bird"
    of_champion.assign(brightness=of_champion["brightness"] / 3).to_parquet(Path(REGISTERED, "pets.parquet"))
    with pytest.raises(DeepcvError, match=r"classes_lost is 1.*bird"):
        validate.main()
    assert "brightness_ks is 1" in capsys.readouterr().out


def test_what_validate_says_of_accepting_data_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, content in ((CANDIDATE, b"the candidate"), (Path(NO_REFERENCE), b"")):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    command, setting = re.findall("`(.*?)`", how_to_accept("my.pets-2"))
    subprocess.run(command.split(), check=True)
    key, _, place = setting.partition(": ")
    assert Path(place).read_bytes() == b"the candidate"
    params = whole.loads(with_values((toys.REPOSITORY / "params.yaml").read_text(), {key: place}))
    assert params.validate.reference == place
