"""How busy the GPU is, as NVML tells it, where there are both: sampled in a thread while something runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

INTERVAL = 0.2  # seconds


class Utilisation:
    """`with Utilisation(0) as gpu: ...`, then gpu.summary(). Without NVML, or nvidia-ml-py, it does nothing.

    `device`: the number of the GPU as this process counts them, None: there is none.
    """

    def __init__(self, device: int | None) -> None:
        self.percents: list[int] = []
        self.mebibytes: list[int] = []
        self.why: str | None = "no GPU is used" if device is None else None  # nothing is measured
        self._handle: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if device is None:
            return
        try:
            import pynvml
        except ModuleNotFoundError:
            self.why = "nvidia-ml-py is not installed"
            return
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(_uuid(device))
        except pynvml.NVMLError as error:
            self.why = f"NVML: {error}"

    def __enter__(self) -> Self:
        if self._handle is not None:
            self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def summary(self) -> dict[str, float | str]:
        """Return `gpu`, the mean share of time in which a kernel ran, 0 to 1, and `gpu_memory_MiB`, the most that was
        taken of the device; without samples, `gpu_not_measured`: why."""
        percents = list(self.percents)
        if not percents:
            return {"gpu_not_measured": self.why or "the run was shorter than the interval"}
        return {"gpu": sum(percents) / len(percents) / 100, "gpu_memory_MiB": float(max(self.mebibytes))}

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            except self._nvml.NVMLError as error:
                self.why = f"NVML: {error}"
                return
            self.percents.append(int(rates.gpu))
            self.mebibytes.append(int(memory.used) >> 20)


def _uuid(device: int) -> str:
    """NVML counts all GPUs, a process those of CUDA_VISIBLE_DEVICES: the UUID is the same for both."""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
