"""Runs a Python program that may not open a socket: ``python silent.py -m mrsep_deploy ...`` or ``-c CODE``.

The kernel ends the process, and every one that it starts, with SIGSYS when anything in it, native code included, asks
for a socket that is not local to the machine's own programs (AF_UNIX). Linux on x86-64 and AArch64, as any user.
"""

from __future__ import annotations

import ctypes
import platform
import runpy
import signal
import struct
import sys

ENDED = -int(getattr(signal, "SIGSYS", 31))
"""The exit code, as ``subprocess`` has it, of a program that asked for a socket."""

_NUMBERS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""The kernel's names of the architecture, and of the system call ``socket``: linux/audit.h, asm/unistd.h."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_ARCHITECTURE, _CALL, _FAMILY = 4, 0, 16  # offsets in struct seccomp_data
_UNIX = 1


def available() -> bool:
    """Whether this machine can do it."""
    return sys.platform == "linux" and platform.machine() in _NUMBERS


def forbid_sockets() -> None:
    """Forbid them to this process and its children, for good."""
    architecture, call = _NUMBERS[platform.machine()]
    rules = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _CALL),
        (_EQUAL, 0, 3, call),
        (_LOAD, 0, 0, _FAMILY),
        (_EQUAL, 1, 0, _UNIX),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HP", len(rules), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, program, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


if __name__ == "__main__":
    forbid_sockets()
    if sys.argv[1] == "-c":
        exec(sys.argv[2])
    else:
        name = sys.argv[2]
        sys.argv = [name, *sys.argv[3:]]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
