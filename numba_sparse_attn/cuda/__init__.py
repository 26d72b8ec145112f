"""The CUDA engines, in Numba-CUDA: nothing here is imported before a GPU is asked for."""
