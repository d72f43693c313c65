"""Records what the page "A real model" shows: inputs of the gate projections of SmolLM2-135M, and rows of their weights.

python -m tutorials.activations          writes tutorials/activations.bin
"""

import argparse
from pathlib import Path

import numpy as np

from . import explore, model_data


def record() -> np.ndarray:
    """(blocks, positions + outputs, features) float16: for each block X, and rows of W below it."""
    inputs = model_data.layer_inputs()
    found = []
    for block in range(explore.BLOCKS):
        name = f"model.layers.{block}.mlp.gate_proj"
        weight = model_data.model().get_submodule(name).weight.detach().numpy()
        found.append(np.concatenate([inputs[name][: explore.POSITIONS], weight[: explore.OUTPUTS]]))
    return np.stack(found).astype(np.float16)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.activations", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=explore.FILE)
    arguments = parser.parse_args()
    record().tofile(arguments.out)
    print("wrote", arguments.out)


if __name__ == "__main__":
    main()
