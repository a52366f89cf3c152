"""Writes the folder of a Hugging Face model from a GGUF file: `convert.py FOLDER FILE OUT`.

Run with the Python of the environment, which has transformers.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import quantization_config


def main(folder: str, file: str, out: str) -> None:
    """Convert the weights, which are stored with four bits, to ones that SGLang computes with."""
    kinds = {name.lower(): name for name in dir(quantization_config)}
    config = getattr(quantization_config, kinds["ggufconfig"])(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)


main(*sys.argv[1:])
