import re
import subprocess
from pathlib import Path

import pytest
import toys

from deepcv.params import whole
from deepcv.params.edit import with_values
from deepcv.params.validate import NO_REFERENCE
from deepcv.stages.validate import CANDIDATE, how_to_accept


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
