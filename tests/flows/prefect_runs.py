"""What Prefect's server knows of a run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId


@dataclass
class Run:
    """What Prefect's server knows of a finished run."""

    state: Any
    stages: dict[str, str] = field(default_factory=dict)  # name: state name
    messages: dict[str, str] = field(default_factory=dict)  # name: state message

    @property
    def id(self) -> Any:
        return self.state.state_details.flow_run_id

    def logs(self, until: str) -> list[str]:
        """All log lines; they reach the server with a delay, so wait until one holds `until`."""

        def read() -> list[str]:
            log_filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]))
            with get_client(sync_client=True) as client:
                return [entry.message for entry in client.read_logs(log_filter, limit=200)]

        return eventually(read, lambda lines: any(until in line for line in lines))


def eventually(read: Callable[[], Any], good: Callable[[Any], bool], timeout_s: float = 20) -> Any:
    """Return the first value read that is good. Raises TimeoutError with the last one."""
    deadline = time.monotonic() + timeout_s
    while not good(value := read()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not as expected within {timeout_s:g} s: {value!r}")
        time.sleep(0.1)
    return value
