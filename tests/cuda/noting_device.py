"""A driver that only notes what the tile engine asks of it: launches, copies to the device, descriptions."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import numpy as np

from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.tile import maps, prepared, prepared_backward, schedule, statistics
from numba_sparse_attn.cuda.view import DeviceView

MULTIPROCESSORS = 132
HALF = np.dtype(np.float16)


def view_of(array, address):
    return DeviceView(address, array.shape, array.strides, array.dtype, 0, 7, "other", array)


class Device:
    """Notes launches and uploads; `memory` has what was uploaded, by address."""

    def __init__(self, sets=1024):
        self.launches, self.memory, self.capturing, self.waits = [], {}, False, 0
        self._next = 1 << 40
        self._sets = sets

    @contextlib.contextmanager
    def installed(self):
        fresh = maps.MapSets(0)
        kernels = {"load_kernel": self.load_kernel, "launch": self.launch}
        engine = kernels | {
            "memory": SimpleNamespace(scratch=self.scratch),
            "map_sets": lambda device: fresh,
            "multiprocessors": lambda device: MULTIPROCESSORS,
        }
        with (
            mock.patch.multiple(prepared, **engine),
            mock.patch.multiple(prepared_backward, **engine),
            mock.patch.multiple(statistics, **kernels),
            mock.patch.multiple(
                maps, _encode=self.encode, upload=self.upload, overwrite=self.overwrite, _SETS=self._sets
            ),
            mock.patch.object(tile, "has_wgmma", lambda device: True),
            mock.patch.multiple(schedule, upload=self.upload, _LISTS={}, _KEY_LISTS={}),
            mock.patch.multiple(
                "numba_sparse_attn.cuda.streams",
                stream_object=lambda handle, device: handle,
                is_capturing=lambda handle: self.capturing,
                call=self.call,
            ),
        ):
            yield self

    @staticmethod
    def load_kernel(make, shape, *rest, **options):
        return make.__name__

    def launch(self, kernel, blocks, threads, stream, arguments, *, shared_bytes=0):
        self.launches.append((kernel, blocks, arguments))

    def scratch(self, nbytes, device, stream, library):
        return SimpleNamespace(address=self.room(nbytes))

    def room(self, nbytes):
        address = self._next
        self._next += -(-nbytes // 256) * 256
        return address

    def upload(self, device, *arrays):
        results = []
        for array in arrays:
            address = self.room(array.nbytes)
            self.memory[address] = array.copy()
            results.append(SimpleNamespace(address=address))
        return tuple(results)

    def overwrite(self, device, address, array):
        self.memory[address] = array.copy()

    def encode(self, address, operand, rows, kind):
        assert operand.moved(address).boxable and kind == "float16"
        return np.array([address, rows, *operand.lengths, *operand.strides], np.uint64)

    def call(self, name, *arguments):
        assert name == "cuCtxSynchronize"
        self.waits += 1
