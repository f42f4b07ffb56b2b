"""The memory that trainings of LLaVA-1.5 7B take, from the model's own configuration; no weight is made.

python -m experiments.training_memory        # the table of docs/training.md
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from common.command import command, run
from vlm.image_input import ImageConfig
from vlm.model import PixelVLM
from vlm.tokenizer import build_tokenizer
from vlm.training.config import ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from vlm.training.memory import training_memory

GIGABYTE = 1e9
SEQUENCE = 1000  # tokens: an image takes 576, a question about a pixel some 20
ADAMW = OptimizerConfig(optimizer="adamw")
WHOLE = ModelConfig(init=Path("llava-hf/llava-1.5-7b-hf"))
HALF = replace(WHOLE, dtype="bfloat16")
RECIPES = {  # model, optimizer, processes that share
    "everything": (WHOLE, ADAMW, 1),
    "everything, `--fsdp` on 8 GPUs, each": (WHOLE, ADAMW, 8),
    "`--decoder lora`": (WHOLE, replace(ADAMW, decoder="lora"), 1),
    "`--decoder lora --dtype bfloat16`": (HALF, replace(ADAMW, decoder="lora"), 1),
    "`--decoder lora --dtype bfloat16 --quantize nf4`": (
        replace(HALF, quantize="nf4"),
        replace(ADAMW, decoder="lora"),
        1,
    ),
    "`--decoder frozen --dtype bfloat16`": (HALF, replace(ADAMW, decoder="frozen"), 1),
}


@dataclass(frozen=True)
class Args:
    """Print a table of bytes a parameter and of gigabytes."""


def llava_7b() -> PixelVLM:
    """Return LLaVA-1.5 7B (Liu et al. 2023, arXiv 2310.03744) on the meta device, which takes no memory."""
    config = LlavaConfig()  # the model's own, but for the padded vocabulary
    config.text_config.vocab_size = 32064
    with torch.device("meta"):
        return PixelVLM(LlavaForConditionalGeneration(config), build_tokenizer(), ImageConfig())


def memory_table(vlm: PixelVLM) -> str:
    """Return the table in Markdown."""
    count = sum(parameter.numel() for parameter in vlm.model.parameters())
    lines = ["| trained | bytes a parameter | weights | gradients | optimizer | in all |", "|---|---|---|---|---|---|"]
    for name, (model, optimizer, shares) in RECIPES.items():
        found = training_memory(vlm, TrainConfig(RunConfig(Path("runs/llava")), model, optimizer), shares)
        parts = (found.weights, found.gradients, found.optimizer, found.total)
        sizes = " | ".join(f"{part / GIGABYTE:.1f} GB" for part in parts)
        lines.append(f"| {name} | {found.total / count:.2f} | {sizes} |")
    return "\n".join(lines)


def kept_activations(vlm: PixelVLM) -> float:
    """Return the bytes that activation checkpointing keeps of the decoder for `SEQUENCE` tokens, in bfloat16."""
    config: Any = vlm.model.config.text_config
    return SEQUENCE * config.num_hidden_layers * config.hidden_size * torch.bfloat16.itemsize


main = command(Args, lambda _: memory_table(llava_7b()), __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
