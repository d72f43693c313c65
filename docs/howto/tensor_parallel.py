"""Two processes share a model: torchrun --nproc-per-node 2 docs/howto/tensor_parallel.py FOLDER, the folder of a model saved in int8."""

import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import fast.huggingface  # before from_pretrained: transformers must know the method

tokens = torch.arange(3, 13)[None]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], distributed_config=DistributedConfig(tp_size=2))
with torch.no_grad():
    logits = model(tokens.to(model.device)).logits

if dist.get_rank() == 0:
    layer = model.model.layers[0].mlp.down_proj
    print(type(layer).__name__, "holds", tuple(layer.weight.to_local().shape), "of", tuple(layer.weight.shape))
    if fast.dispatch.implementation(logits).__name__ == "fast.cpu":
        alone = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        print("equal to one process:", torch.equal(logits, alone(tokens).logits))
dist.destroy_process_group()
