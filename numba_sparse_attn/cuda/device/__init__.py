"""Device functions that kernels are made of, above PTX and below any kernel.

``lanes`` is what a kernel imports: it stands for the real thing on a GPU and for a twin in Numba's
simulator, so that one kernel source runs on both.
"""
