"""What a process uses of the machine it runs on."""

from contextlib import suppress

import psutil
import torch


class MachineUse:
    """Memory, and the use of CPU and GPU since the last look. A look takes a tenth of a millisecond."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # what the next look counts from

    def measured(self) -> dict:
        """memory (bytes: on the GPU, else of the process), cpu and gpu (0 to 1), as far as they are known."""
        cores = psutil.cpu_count() or 1
        values = {"cpu": round(min(1.0, self._process.cpu_percent() / 100 / cores), 3)}
        if not torch.cuda.is_available():
            return values | {"memory": self._process.memory_info().rss}
        with suppress(Exception):  # without NVIDIA's library there is no such number
            values["gpu"] = torch.cuda.utilization() / 100
        return values | {"memory": torch.cuda.memory_allocated()}
