"""What every command of this folder starts and ends with: its options, and one line for what the user gave wrong."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what and why."""


class Parser(argparse.ArgumentParser):
    """A command line; what is wrong with it is said in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError instead of printing the usage first."""
        raise InputError(f"{message} (--help lists the options)")


def positive(text: str) -> int:
    """Reads a whole number of 1 or more, for `type=` of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; what the user gave wrong becomes one line on standard error and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
