"""What `launch` starts in test_distributed.py: it tells its process number and waits."""

import os
import signal
import time
from pathlib import Path

from deepcv.lifetime import die_with_parent

die_with_parent(signal.SIGTERM)  # as stages do
rank = os.environ["RANK"]
(Path(os.environ["FOLDER"]) / f"pid{rank}").write_text(f"{os.getpid()} ")
time.sleep(300)
