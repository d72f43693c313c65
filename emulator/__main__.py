"""`python -m emulator`: every form of instruction that the emulator knows, and where the PTX manual defines it."""

from .machine import supported
from .manual import VERSION, numbers


def main() -> None:
    """The command."""
    print(f"Sections of the PTX ISA manual, version {VERSION}")
    for pattern, section in sorted(supported(), key=lambda pair: pair[1]):
        print(f"{', '.join(numbers(section))} {section}\n    {pattern}")


if __name__ == "__main__":
    main()
