"""What the command lines of the commands share: parsers, whole numbers, and how they complain."""

import argparse
import sys
from collections.abc import Callable


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a command, whose epilog is shown as it is laid out."""
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def whole_number(expected: str, least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """Return a type for argparse: a whole number from `least` to `most`, which is what `expected` says."""

    def number(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
        return int(text)

    return number


def complain(command: str, error: object, code: int = 2) -> int:
    """Write to stderr what is wrong, and return the exit code of the command."""
    sys.stderr.write(f"{command}: error: {error}\n")
    return code
