"""Where models live: on the CPU, or on a CUDA GPU.

Weights, hidden states, caches and the optimiser's moments are there. `Role` and the sampler bring back what methods work with, one number a token, so
whatever is drawn at random, every advantage, loss and metric is made on the CPU: seeds and resume mean the same on any device.
"""

from __future__ import annotations

import torch

from truing.errors import ConfigError

CPU = torch.device("cpu")


def find(name: str, place: str) -> torch.device:
    """The device of a name, ready for use. ``place`` is the option that asks for it.

    Raises ConfigError for a GPU that is not there.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            why = "is built without CUDA" if torch.version.cuda is None else "finds no GPU it can use"
            raise ConfigError(f"{place}=cuda: PyTorch {torch.__version__} {why}; use device: cpu, or a machine with a GPU and a PyTorch built for it")
        if torch.backends.cuda.matmul.fp32_precision == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32, whatever the process was told before: tf32 has 11 bits
    return torch.device(name)


def has_bfloat16() -> bool:
    """True when the GPU multiplies bfloat16 natively."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def peak(device: torch.device) -> dict[str, float]:
    """The most memory of a GPU that tensors have taken, as it is logged; nothing for the CPU, where the process's own is."""
    return {"memory/device_peak_mib": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
