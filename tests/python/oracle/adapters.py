"""Adapters as PEFT makes them, on tiny models of every family, and what PEFT merges them to."""

import copy
import re

import peft
import torch

from oracle.cases import CASES
from oracle.models import save, tiny_model

ATTENTION = re.compile(r"(^|\.)(self_attn|attention|attn)\.")


def attention_modules(model):
    """Paths of the matrices of attention that the program reads: no vision tower, no indexer."""
    return [
        path
        for path, module in model.named_modules()
        if ATTENTION.search(path + ".")
        and getattr(getattr(module, "weight", None), "dim", int)() == 2
        and not re.search(r"vision|indexer|compressor", path)
    ]


def randomise(model, seed=3):
    """Every number that PEFT would train, B among them, which it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                # Magnitudes are norms: positive, and of the size that norms have.
                parameter.copy_(random.abs() + 0.5 if "magnitude" in name else random * 0.3)


def adapt(name, folder, **options):
    """Writes base, adapter and what PEFT merges them to; returns their folders."""
    base = tiny_model(name)
    save(base, name, folder / "base")
    options.setdefault("target_modules", attention_modules(base))
    options.setdefault("r", 3)
    options.setdefault("lora_alpha", 7)
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).double()
    randomise(model)
    model.save_pretrained(folder / "adapter")
    save(model.merge_and_unload(), name, folder / "merged")
    return folder / "base", folder / "adapter", folder / "merged"


def layers_of(name):
    config_class, arguments = CASES[name][:2]
    arguments = arguments.get("text_config", arguments)
    count = next(
        arguments[key]
        for key in ("num_layers", "num_hidden_layers", "n_layer", "n_layers")
        if key in arguments
    )
    return range(2 * count if config_class == "LongcatFlashConfig" else count)
