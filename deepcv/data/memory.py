"""What is freed goes back: allocators keep it apart, for each thread, tens of MB and never the same."""

import ctypes

import pyarrow as pa

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h
_LARGE_BYTES = 2**20


def keep_little() -> None:
    """Have Arrow and all threads of this process take memory from one place, where what is freed is used again."""
    pa.set_memory_pool(
        pa.system_memory_pool()
    )  # mimalloc gives back late: 45 MB while a manifest of 600,000 rows is read
    _glibc("mallopt", _ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free to the system, and large arrays from now on as soon as they are freed."""
    _glibc("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Call it where the C library has it."""
    if function := getattr(ctypes.CDLL(None), name, None):
        function(*arguments)
