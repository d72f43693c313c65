"""`python -m emulator`: every form of instruction that the emulator knows, and where the PTX manual defines it."""

from .machine import supported


def main() -> None:
    """The command."""
    for pattern, section in sorted(supported(), key=lambda pair: pair[1]):
        print(f"{section}\n    {pattern}")


if __name__ == "__main__":
    main()
