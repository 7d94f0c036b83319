"""The stages of dvc.yaml: each reads params and input paths, calls the library, writes its outputs."""

import signal
import sys
from pathlib import Path

from deepcv.lifetime import die_with_parent

if sys.argv[0] == "-m":  # `python -m deepcv.stages.NAME`, before the imports of the stage, which take seconds
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback
    environment = Path(".venv")
    if environment.is_dir() and Path(sys.prefix).resolve() != environment.resolve():
        print(f"note: {sys.executable} runs this stage, not the project's .venv/bin/python", file=sys.stderr)
