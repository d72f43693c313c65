"""A choice among names that holds within a `with` block: per thread and task, since it is a context variable."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from . import arguments


class Choice:
    """One name out of several.

    Args:
        name: what is chosen, for errors.
        choices: the names.

    Attributes:
        get: returns what is chosen here, or None outside of every context.
    """

    def __init__(self, name: str, choices: tuple[str, ...]) -> None:
        self._name, self._choices = name, choices
        self._chosen: ContextVar[str | None] = ContextVar(name, default=None)
        self.get = self._chosen.get  # the method itself: a layer asks at every call

    @contextmanager
    def within(self, choice: str) -> Iterator[None]:
        """Within this context `choice` is chosen.

        Raises:
            ValueError: it is none of the choices.
        """
        token = self._chosen.set(arguments.one_of(self._name, choice, self._choices))
        try:
            yield
        finally:
            self._chosen.reset(token)
