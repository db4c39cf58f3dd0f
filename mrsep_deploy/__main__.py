"""``python -m mrsep_deploy``."""

from mrsep_deploy.cli import PROGRAM, main

main(prog_name=PROGRAM)
