"""Two processes share a model: torchrun --nproc-per-node 2 docs/howto/tensor_parallel.py FOLDER, the folder of a model saved in int8."""

import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import fast.huggingface  # noqa: F401, before from_pretrained: this registers the method with transformers

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], distributed_config=DistributedConfig(tp_size=2))
tokens = torch.arange(3, 13, device=model.device)[None]
generated = model.generate(tokens, max_new_tokens=5, do_sample=False)

if dist.get_rank() == 0:
    layer = model.model.layers[0].mlp.down_proj
    print(type(layer).__name__, "holds", tuple(layer.weight.to_local().shape), "of", tuple(layer.weight.shape))
    print("generated", generated[0, 10:].tolist())
dist.destroy_process_group()
