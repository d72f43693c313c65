"""The weight of an `Int8Linear` as others see it: frozen, and guarded against those who take its codes for a weight.

Two faults are caught here. Someone asks for gradients to codes: `Frozen` refuses and says what to do. And a model's own code reads
`self.proj.weight` to compute with it (Mamba multiplies by it, others cast their input to its dtype): such a reader gets
`GuardedCodes`, the same memory, on which anything that would turn codes into floats raises an error. Whoever is not a module on the way
to a result (a loader, an optimizer, your own script) reads the plain parameter. The layer itself reads `self._parameters["weight"]`,
so a call costs nothing more.
"""

import importlib.util
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from .adapters import Adaptable, read_by_peft

MESSAGE = (
    "Int8Linear's weight holds codes; name the layer in skip (quantize_model) or skip_modules (Int8Config), "
    "so that it stays float. layer.dequantize() gives a float layer"
)


def _folder(package: str) -> tuple[str, ...]:
    """The folder of an installed package, which is not imported for it."""
    spec = importlib.util.find_spec(package)
    return (str(Path(spec.origin).parent),) if spec is not None and spec.origin else ()


#: Code in these folders handles weights without computing with them. accelerate moves those of offloaded layers while their parent runs.
_HANDLERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), *_folder("accelerate"))

#: Operations that write into the tensor without arithmetic.
_PLAIN_WRITES = {"copy_", "zero_", "fill_", "detach_", "requires_grad_", "share_memory_"}
#: Operations that take a shape from the tensor, and no value.
_SHAPES_ONLY = ("_like", "new_")


class CodesTakenForFloatsError(RuntimeError):
    """Code outside an `Int8Linear` computes with its weight as if it were floats. No TypeError: Python's operators would swallow it."""


class Frozen:
    """What `requires_grad_` is on a parameter of int8 codes: an attribute of the parameter itself.

    A subclass of torch.nn.Parameter would do the same at 3 microseconds per call of the layer, which torch spends on its type.
    """

    def __init__(self, codes: Tensor | None = None, holder: str = "Int8Linear's weight") -> None:
        self._codes, self._holder = None if codes is None else weakref.ref(codes), holder

    def __call__(self, requires_grad: bool = True) -> Tensor | None:
        """Does nothing for False.

        Raises:
            RuntimeError: for True; codes have no gradient.
        """
        if requires_grad:
            raise RuntimeError(
                f"{self._holder} holds int8 codes and stays frozen: only Tensors of floating point dtype can require gradients. "
                "Train an adapter on top, or keep the layer float: name it in skip (quantize_model) or skip_modules (Int8Config); "
                "that is what PEFT's modules_to_save needs, too"
            )
        return None if self._codes is None else self._codes()

    def __reduce__(self) -> tuple:
        return Frozen, ()  # the module that holds the parameter freezes it anew


torch.serialization.add_safe_globals([Frozen])  # for parameters that are saved as such, not as a state dict


class GuardedCodes(Tensor):
    """Codes that a parent module reads: shapes, views and moves work; what would compute with them as floats raises."""

    _is_param = True  # for isinstance(_, torch.nn.Parameter), as the parameter itself
    _codes: Tensor

    @staticmethod
    def of(codes: Tensor) -> "GuardedCodes":
        """The same memory, guarded. What is assigned to an attribute is assigned to `codes`."""
        guarded = codes.as_subclass(GuardedCodes)
        object.__setattr__(guarded, "_codes", codes)
        return guarded

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._codes, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "_codes":
            raise AttributeError(name)
        return getattr(self._codes, name)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__set__":
            return func(args[0]._codes, *args[1:])
        args, kwargs = tree_map_only(GuardedCodes, unguarded, (args, kwargs or {}))
        if name.endswith("_") and not name.endswith("__") and name not in _PLAIN_WRITES:
            raise CodesTakenForFloatsError(f"{MESSAGE}; {name} would change the codes")
        if name == "__get__" or any(part in name for part in _SHAPES_ONLY):
            return _guarded(func(*args, **kwargs))
        if any(_is_float(value) for value in tree_flatten((args, kwargs))[0]):
            raise CodesTakenForFloatsError(f"{MESSAGE}; {name} would mix them with floats")
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            raise CodesTakenForFloatsError(f"{MESSAGE}; {name} fails on them: {error}") from error
        if any(_is_float(value) for value in tree_flatten(result)[0]):
            raise CodesTakenForFloatsError(f"{MESSAGE}; {name} would take them for floats")
        return _guarded(result)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _guarded(result: Any) -> Any:
    return tree_map_only(Tensor, lambda t: GuardedCodes.of(t) if type(t) is Tensor and t.dtype == torch.int8 else t, result)


def unguarded(codes: Tensor) -> Tensor:
    """The tensor under `GuardedCodes`; others as they are. For code that knows that these are codes."""
    return codes.as_subclass(Tensor) if isinstance(codes, GuardedCodes) else codes


class HoldsCodes(Adaptable):
    """A module whose parameter `weight` is int8 codes: keeps it frozen, and hands it to its parents guarded."""

    def _read_weight(self) -> Tensor | None:
        try:
            codes = self._parameters["weight"]
        except KeyError:  # copies of a module for several devices (DataParallel, FSDP1) keep parameters as attributes
            if "weight" in self.__dict__:
                return self.__dict__["weight"]
            raise AttributeError("weight") from None
        if read_by_peft(self):
            return self.weight_for_peft()
        if type(codes) is not nn.Parameter or codes.dtype != torch.int8 or not _read_by_another_module(self):
            return codes
        return GuardedCodes.of(codes)

    def _write_weight(self, value: Tensor) -> None:
        self.__dict__["weight"] = value  # torch.nn.Module takes parameters before they come here

    #: (N, K) int8 codes. Code of another module that reads them gets `GuardedCodes`.
    weight: Tensor = property(_read_weight, _write_weight)  # type: ignore[assignment]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch.nn.Module's."""
        super().register_parameter(name, param)
        self._freeze()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._freeze()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._freeze()
        return self

    def _freeze(self) -> None:
        codes = self._parameters.get("weight")
        if type(codes) is nn.Parameter and codes.dtype == torch.int8:
            codes.requires_grad_ = Frozen(codes)  # type: ignore[method-assign, assignment]


def _read_by_another_module(layer: nn.Module) -> bool:
    """Whether the code that reads `layer.weight` runs on behalf of another module: one of its methods is being executed."""
    if torch.compiler.is_compiling():  # it cannot trace the guard; mixing int8 with floats is an error there, too
        return False
    frame = sys._getframe(2)
    if frame.f_code.co_filename.startswith(_HANDLERS):
        return False
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self" and not code.co_filename.startswith(_HANDLERS):
            reader = frame.f_locals.get("self")
            if isinstance(reader, nn.Module) and reader is not layer:
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
