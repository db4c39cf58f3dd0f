"""Subnormal numbers taken as zero on the calling thread, as GPUs take them.

An x86 core needs about a hundred cycles for an operation on a subnormal float32 (below 1.2e-38). Attention
of a trained HTDemucs makes millions of them, where softmax rounds the weight of a far key down to almost
nothing: they cost a quarter of a segment's time and change none of its samples. The switch belongs to a
thread (MXCSR on x86, FPCR on Arm), so only the worker threads of this package's streams are switched,
never the caller's.
"""

from __future__ import annotations

import ctypes
import platform
import sys

import numpy as np

_X86 = ("x86_64", "amd64", "i686", "i386")
_ARM = ("aarch64", "arm64")
_MXCSR_OFFSET = 28
"""Of the control word in glibc's ``fenv_t`` on x86 (bits/fenv.h)."""
_FTZ_AND_DAZ = 0x8040
_FPCR_FZ = 1 << 24
_DN_FLUSH, _MCW_DN = 0x01000000, 0x03000000
"""``float.h`` of Windows' C library."""


def flush_denormals() -> bool:
    """Switch the calling thread, where there is a way to.

    Returns:
        Whether subnormal float32 results are zero on this thread now.
    """
    try:
        if sys.platform == "win32":
            ctypes.CDLL("ucrtbase")._controlfp_s(ctypes.byref(ctypes.c_uint()), _DN_FLUSH, _MCW_DN)
        elif sys.platform == "darwin":  # whose library has whole environments with the switch in them
            kind = "" if platform.machine() in _ARM else "SSE_"
            library = ctypes.CDLL(None)
            environment = ctypes.c_byte.in_dll(library, f"_FE_DFL_DISABLE_{kind}DENORMS_ENV")
            library.fesetenv(ctypes.byref(environment))
        else:
            _change_environment()
    except (OSError, AttributeError, ValueError):
        pass  # an exotic C library: exact, only slower
    return denormals_flushed()


def denormals_flushed() -> bool:
    """Whether a float32 product below the smallest normal number is zero on this thread."""
    smallest = np.full(1, np.float32(2.0**-126))
    with np.errstate(under="ignore"):
        return bool((smallest * np.float32(0.5))[0] == 0)


def _change_environment() -> None:
    """glibc: read the environment, set the bits, write it back."""
    machine = platform.machine().lower()
    library = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 16)()
    library.fegetenv(ctypes.byref(environment))
    if machine in _X86:
        environment[_MXCSR_OFFSET // 4] |= _FTZ_AND_DAZ
    elif machine in _ARM:
        environment[0] |= _FPCR_FZ
    else:
        raise ValueError(machine)
    library.fesetenv(ctypes.byref(environment))
