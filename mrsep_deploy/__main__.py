"""The program ``mrsep-deploy``, also ``python -m mrsep_deploy``."""

from __future__ import annotations

from mrsep_deploy import interrupts


def main() -> None:
    """Run the command line. A signal that ends the program is heeded from here on."""
    interrupts.install()
    from mrsep_deploy.cli import PROGRAM
    from mrsep_deploy.cli import main as command

    code: int | str | None = 0
    try:
        command(prog_name=PROGRAM)
    except SystemExit as end:
        code = end.code
        if interrupts.pending() is None:
            interrupts.uninstall()
            raise
    interrupts.leave(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
