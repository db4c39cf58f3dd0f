"""What libraries print goes nowhere while it is muted; what Python prints arrives."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, sys, threading
from mrsep_deploy.process.muted import muted, separate_stderr

def library(text):
    os.write(2, text.encode() + b"\\n")

{separated}
library("before")
with muted():
    library("dropped")
    print("python", file=sys.stderr)
    with muted():
        library("dropped too")
    library("dropped again")
library("after")

def work():
    for _ in range(300):
        with muted():
            library("dropped in a thread")

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library("end")
print("ä \\udcff", file=sys.stderr)
"""


def lines(separated: str) -> list[str]:
    program = PROGRAM.format(separated=separated).replace("\\\\", "\\")
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", program], capture_output=True, check=True)
    return done.stderr.decode().splitlines()


def test_a_program_whose_own_messages_are_apart() -> None:
    expected = ["before", "python", "after", "end", "ä \\udcff"]
    assert lines("separate_stderr()") == expected
    assert lines("separate_stderr(); separate_stderr()") == expected


def test_messages_that_share_a_descriptor_are_not_dropped() -> None:
    found = lines("")
    assert found[:5] == ["before", "dropped", "python", "dropped too", "dropped again"]
    assert found.count("dropped in a thread") == 1200


def test_no_stderr_at_all() -> None:
    for beginning in ("import sys; sys.stderr = None", "import os; os.close(2)"):
        program = (
            f"{beginning}\nfrom mrsep_deploy.process.muted import *\n"
            "separate_stderr()\nwith muted(): print('done')"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "done\n"
