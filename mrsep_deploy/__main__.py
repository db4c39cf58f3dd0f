"""The program ``mrsep-deploy``, also ``python -m mrsep_deploy``."""

from __future__ import annotations

from mrsep_deploy.process import interrupts


def main() -> None:
    """Run the command line. A signal that ends the program is heeded from here on."""
    interrupts.install()
    from mrsep_deploy.commands.main import main as command
    from mrsep_deploy.commands.options import PROGRAM

    try:
        command(prog_name=PROGRAM)
    finally:
        if interrupts.pending() is not None:
            interrupts.leave()
        interrupts.uninstall()


if __name__ == "__main__":
    main()
