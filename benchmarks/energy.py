"""The GPU's own count of the energy that it has taken, through NVIDIA's management library."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["EnergyMeter", "find_meter"]

LIBRARY = "libnvidia-ml.so.1"


class EnergyMeter:
    """Joules since the driver was loaded, of the GPU at a PCI address; the driver counts them in hardware.

    The count moves in steps of some 20 to 100 ms, so it says something over seconds only.
    """

    def __init__(self, library: Any, pci_address: str) -> None:
        self._library = library
        self._device = ctypes.c_void_p()
        self._ask("nvmlInit_v2")
        self._ask("nvmlDeviceGetHandleByPciBusId_v2", pci_address.encode("ascii"), ctypes.byref(self._device))

    def joules(self) -> float:
        """The count now."""
        millijoules = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", self._device, ctypes.byref(millijoules))
        return millijoules.value * 1e-3

    def _ask(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise OSError(f"{function} answers with status {status}")


def find_meter(pci_address: str) -> EnergyMeter | None:
    """The meter of a GPU; None without the library, the right to ask, or a GPU that counts (since Volta)."""
    try:
        meter = EnergyMeter(ctypes.CDLL(LIBRARY), pci_address)
        meter.joules()
    except OSError:
        return None
    return meter
