import sys
from typing import NoReturn

from pipeline.launch.interrupts import listen, status

listen()  # before the imports that take a second


def run() -> NoReturn:
    """Run the command that the process was started with, and exit with its status."""
    code = 0
    try:
        from pipeline.cli.commands import main

        code = main()
    except BaseException:
        if not status():
            raise
    sys.exit(status() or code)


if __name__ == "__main__":
    run()
