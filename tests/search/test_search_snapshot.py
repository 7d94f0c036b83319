"""Copies of what a search works from, and which finished search answers for the present files."""

import re
from pathlib import Path

import pytest
import toys

from deepcv.errors import DeepcvError
from deepcv.nn.spec import SpecError
from deepcv.nn.weights import WeightsError
from deepcv.params import whole
from deepcv.params.edit import set_values
from deepcv.params.search import SearchParams
from deepcv.params.train import NO_WEIGHTS
from deepcv.search.manager import SearchError
from deepcv.search.snapshot import BEST, check_files, finished, network_copy, params_copy, take, weights_copy
from deepcv.search.tuned import with_tuned

REPOSITORY = Path(__file__).parents[2]
PARAMS = Path("params.yaml")
ONE_NETWORK = SearchParams.model_validate({"space": {"train.lr": {"uniform": [0.001, 0.1]}}})
TWO_NETWORKS = SearchParams.model_validate({"space": {"train.network": {"choice": ["a.yaml", "nets/a.yaml"]}}})


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for searches, in a project whose train.network is `a.yaml`; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    PARAMS.write_bytes(re.sub(r"(?m)^  network: \S+", "  network: a.yaml", text).replace("\n", "\r\n").encode())
    for folder in ("nets", "networks/weights", "data/shards", "searches"):
        Path(folder).mkdir(parents=True)
    Path("a.yaml").write_text("one")
    Path("nets/a.yaml").write_text("two")
    Path(NO_WEIGHTS).write_text("source: none")
    Path("data/shards/dataset.json").write_text("{}")
    return tmp_path / "searches"


def ended(searches: Path, name: str, params: SearchParams = ONE_NETWORK) -> Path:
    folder = searches / name
    folder.mkdir()
    take(folder, params, PARAMS)
    (folder / BEST).write_text("train.lr: 0.5\n")
    return folder


def test_copies_are_exact_and_an_edit_does_not_reach_them(searches: Path) -> None:
    before = PARAMS.read_bytes()
    folder = ended(searches, "1", TWO_NETWORKS)
    Path("a.yaml").write_text("edited")
    set_values(PARAMS, {"train.epochs": 77})
    assert params_copy(folder).read_bytes() == before
    assert network_copy(folder, "a.yaml").read_text() == "one"
    assert network_copy(folder, "nets/a.yaml").read_text() == "two"
    assert weights_copy(folder, NO_WEIGHTS).read_text() == "source: none"


def test_the_newest_finished_search_of_the_same_files_answers(searches: Path) -> None:
    assert finished(searches, ONE_NETWORK, PARAMS) is None
    ended(searches, "1")
    second = ended(searches, "2")
    (ended(searches, "3") / BEST).unlink()  # cut off
    assert finished(searches, ONE_NETWORK, PARAMS) == second
    before = PARAMS.read_bytes()
    set_values(PARAMS, {"train.lr": 0.5})
    assert finished(searches, ONE_NETWORK, PARAMS) is None
    fourth = ended(searches, "4")
    assert finished(searches, ONE_NETWORK, PARAMS) == fourth
    PARAMS.write_bytes(before)
    assert finished(searches, ONE_NETWORK, PARAMS) == second


@pytest.mark.parametrize("changed", ["params.yaml", "a.yaml", "nets/a.yaml", NO_WEIGHTS, "data/shards/dataset.json"])
def test_any_other_byte_is_another_search(searches: Path, changed: str) -> None:
    folder = ended(searches, "1", TWO_NETWORKS)
    before = Path(changed).read_bytes()
    Path(changed).write_bytes(before + b" ")
    assert finished(searches, TWO_NETWORKS, PARAMS) is None
    Path(changed).write_bytes(before)
    assert finished(searches, TWO_NETWORKS, PARAMS) == folder


@pytest.mark.usefixtures("searches")
def test_a_missing_network_file_is_named() -> None:
    Path("a.yaml").unlink()
    with pytest.raises(SearchError, match=r"a\.yaml: cannot be read: No such file"):
        take(Path("searches"), ONE_NETWORK, PARAMS)


def test_choices_that_cannot_be_searched_start_no_search(searches: Path) -> None:
    assert searches
    Path("a.yaml").write_text(toys.CHOICES)

    def check(second: list[str]) -> None:
        entry = {"train.network_choices.mix.0": {"choice": ["small", *second]}}
        check_files(SearchParams.model_validate({"space": entry}), PARAMS)

    with pytest.raises(
        SearchError, match=r"a\.yaml: the choice 'mix\.1' is open; let train\.network_choices pick one of small, wide"
    ):
        check(["wide"])
    set_values(PARAMS, {"train.network_choices.mix.1": "wide"})
    check(["wide"])
    with pytest.raises(SpecError, match=r"network_choices: mix\.0 has no candidate 'wid'; the closest is 'wide'"):
        check(["wid"])


def test_a_wrong_file_of_weights_starts_no_search(searches: Path) -> None:
    assert searches
    Path("a.yaml").write_bytes((REPOSITORY / "networks/digits.yaml").read_bytes())
    check_files(ONE_NETWORK, PARAMS)
    Path(NO_WEIGHTS).write_text("source: tim")
    with pytest.raises(WeightsError, match=r"none\.yaml: expected `source:` with one of none, file.*, got 'tim'"):
        check_files(ONE_NETWORK, PARAMS)


@pytest.mark.parametrize(("key", "entry", "text"), [
    ("optimizer_options.epss", {"uniform": [1e-8, 1e-6]}, r"epss: adamw has no such option; the closest is 'eps'"),
    ("optimizer_options.betas", {"uniform": [0.8, 0.9]}, r"betas: expected a list of two numbers or more, got 0\.8"),
    ("optimizer_options.lr", {"uniform": [0.1, 0.2]}, r"set train\.lr, which is the same"),
    ("optimizer", {"choice": ["adamw", "timm/lionn"]}, "timm has no optimizer 'lionn'"),
    ("lr_scales.stemm", {"uniform": [0.1, 0.2]}, r"train\.lr_scales: no part 'stemm'"),
])  # fmt: skip
def test_what_the_optimizer_or_the_network_lacks_starts_no_search(
    searches: Path, key: str, entry: dict[str, list[object]], text: str
) -> None:
    assert searches
    Path("a.yaml").write_bytes((REPOSITORY / "networks/digits.yaml").read_bytes())
    good = {"train.lr_scales.stem": {"uniform": [0.1, 0.2]}, "train.optimizer_options.eps": {"uniform": [1e-8, 1e-6]}}
    check_files(SearchParams.model_validate({"space": good}), PARAMS)
    with pytest.raises(DeepcvError, match=text):
        check_files(SearchParams.model_validate({"space": {f"train.{key}": entry}}), PARAMS)


def test_a_searched_momentum_is_the_first_of_the_betas(searches: Path) -> None:
    assert searches
    Path("a.yaml").write_bytes((REPOSITORY / "networks/digits.yaml").read_bytes())
    set_values(PARAMS, {"train.optimizer_options.betas": [0.8, 0.95]})
    check_files(SearchParams.model_validate({"space": {"train.momentum": {"uniform": [0.7, 0.9]}}}), PARAMS)
    text = with_tuned(PARAMS.read_text(encoding="utf-8"), {"train.momentum": 0.7}, "params.yaml")
    train = whole.loads(text).train
    assert (train.momentum, train.optimizer_options) == (0.7, {"betas": [0.7, 0.95]})
