from collections.abc import Callable
from pathlib import Path

import pytest
from params_text import TEXT


@pytest.fixture
def text() -> str:
    return TEXT


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], Path]:
    """Write params.yaml in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def _write(content: str | bytes) -> Path:
        path = Path("params.yaml")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write
