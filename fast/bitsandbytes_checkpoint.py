"""bitsandbytes' checkpoint format of an int8 layer, read and written.

    bitsandbytes        here              meaning
    weight              weight            (N, K) int8 codes, the same bits
    SCB (N,) float32    weight_absmax     (N, 1) float32, the largest magnitude of each row of the float weight
    weight_format       -                 uint8, the memory layout of the codes; 0 is row major, the only one read
    bias                bias

`Int8Linear.load_state_dict` reads such a state dict as it is; `to_bitsandbytes` writes one.
"""

from typing import Any

import torch
from torch import Tensor

ROW_MAJOR = 0


def rename_layer(state_dict: dict[str, Any], prefix: str = "") -> None:
    """Turns the entries of one bitsandbytes layer into ours, in place; leaves others alone.

    Args:
        state_dict: parameter names to tensors.
        prefix: of the layer's names, with its trailing dot.

    Raises:
        ValueError: the codes are not row major, or SCB is not one float32 per row of the codes.
    """
    absmax = state_dict.get(prefix + "SCB")
    if absmax is None:
        return
    if (layout := state_dict.get(prefix + "weight_format")) is not None:
        check_layout(prefix + "weight_format", layout)
    codes = state_dict.get(prefix + "weight")
    rows = None if codes is None else codes.shape[0]
    if absmax.dtype != torch.float32 or absmax.ndim != 1 or (rows is not None and absmax.shape[0] != rows):
        raise ValueError(f"{prefix}SCB must be float32 of shape ({rows},), one per row of weight, got {absmax.dtype} {tuple(absmax.shape)}")
    del state_dict[prefix + "SCB"]
    state_dict.pop(prefix + "weight_format", None)
    state_dict[prefix + "weight_absmax"] = absmax.reshape(-1, 1)


def check_layout(name: str, layout: Any) -> None:
    """Checks a layer's memory layout, the entry `name`: a uint8 tensor of one number.

    Raises:
        ValueError: the codes are not row major.
    """
    # Older files hold the layout's name instead of its number.
    if layout != "row" and (isinstance(layout, str) or int(layout) != ROW_MAJOR):
        raise ValueError(
            f"{name} must be {ROW_MAJOR}, row major, it is {layout if isinstance(layout, str) else int(layout)}; "
            "load the file with bitsandbytes and save it again, which writes row major"
        )


def to_bitsandbytes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict in bitsandbytes' names, layers that are not int8 unchanged; the tensors are shared, not copied.

    Args:
        state_dict: of an `Int8Linear` or of a model that holds some, quantized with "absmax" and "vector".

    Raises:
        ValueError: a layer has no counterpart there: zeropoint, one scale per tensor, a kept float weight, or experts.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        prefix, _, last = name.rpartition("weight_absmax")
        if last == "" and name.endswith("weight_absmax"):
            rows = state_dict[prefix + "weight"].shape[0]
            if value.shape != (rows, 1):
                raise ValueError(f"{name} must be one per row, ({rows}, 1), for bitsandbytes, got {tuple(value.shape)}")
            renamed[prefix + "SCB"] = value.reshape(-1)
            renamed[prefix + "weight_format"] = torch.tensor(ROW_MAJOR, dtype=torch.uint8)
        elif name.endswith("_proj_absmax"):
            raise ValueError(f"{name.removesuffix('_absmax')} are experts in int8, for which bitsandbytes has no format; keep them float")
        elif name.rpartition(".")[2] in ("weight_scale", "weight_zero_point", "float_weight"):
            raise ValueError(f'{name} has no counterpart in bitsandbytes: only quantizer="absmax", outlier_weight="dequantized" do')
        else:
            renamed[name] = value
    return renamed
