"""Tiny random models of transformers, and what their attention reads and returns."""

import copy
import json
from typing import NamedTuple

import torch
import transformers
from torch.overrides import TorchFunctionMode

from oracle.cases import CASES

TOKENS = 11


class Seen(NamedTuple):
    """One layer inside transformers: what the norm read, what attention read, what it returned."""

    before_norm: torch.Tensor
    read: torch.Tensor
    written: torch.Tensor


class Double(TorchFunctionMode):
    """float64 wherever transformers asks for float32 (norms, softmax, rotary angles), so that its
    modules can be compared to more than seven digits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(wide(value) for value in args)
        kwargs = {key: wide(value) for key, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def tiny_model(name, auto_class=transformers.AutoModel, **more):
    """A random float64 model of that case; norm weights and biases are random as well."""
    config_class, arguments = CASES[name][:2]
    # A copy: some classes complete the dictionaries that they are given.
    config = getattr(transformers, config_class)(**copy.deepcopy(arguments), **more)
    torch.manual_seed(len(name))
    with Double():
        model = auto_class.from_config(
            config, attn_implementation="eager", experts_implementation="eager",
            dtype=torch.float64,
        )
        model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights too: a norm that is all ones would hide that it is missing.
            spread = 0.3 if parameter.dim() > 1 else 0.2
            parameter.normal_(0.0 if parameter.dim() > 1 else 0.5, spread)
    return model


def save(model, name, folder):
    """Writes the model as the case wants it: names, and model_type."""
    options = CASES[name][3] if len(CASES[name]) > 3 else {}
    model.save_pretrained(folder, save_original_format=options.get("original_names", False))
    if "model_type" in options:
        change_config(folder, lambda config: config.update(model_type=options["model_type"]))


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def attention_module(model, layer):
    """transformers' attention module of that layer, by shape of its name."""
    if model.config.model_type == "longcat_flash":
        return model.layers[layer // 2].self_attn[layer % 2]
    found = []
    for path, module in getattr(model, "language_model", model).named_modules():
        last = path.split(".")[-1]
        if last in ("self_attn", "attention", "attn") and f".{layer}." in f".{path}.":
            found.append((path, module))
    return min(found, key=lambda item: len(item[0]))[1]


def run_with_hook(model, layer):
    """What attention and the norm before it read and returned, inside a full forward pass."""
    seen = {"norms": []}

    def hook(module, args, kwargs, output):
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output[0] if isinstance(output, tuple) else output

    def before_residual(module, args, output):
        seen["output"] = output

    attention = attention_module(model, layer)
    handle = attention.register_forward_hook(hook, with_kwargs=True)
    dense = getattr(getattr(attention, "output", None), "dense", None)
    if dense is not None:
        # BERT's module goes on to add the residual and norm it; attention ends at its last Linear.
        # A module's own hook runs after its children's, so it must not overwrite theirs.
        handle.remove()
        handle = attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(
                input=args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        dense.register_forward_hook(before_residual)
    for _, module in model.named_modules():
        if "Norm" in type(module).__name__:
            module.register_forward_hook(
                lambda module, args, output: seen["norms"].append((args[0], output))
            )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad(), Double():
        if model.config.model_type == "vit":
            model(pixel_values=torch.randn(1, 3, 12, 12, dtype=torch.float64, generator=generator))
        else:
            model(input_ids=torch.randint(3, 60, (1, TOKENS), generator=generator))
    handle.remove()
    # The norm that attention reads is the one that put out just what attention was given.
    before = [x for x, y in seen["norms"] if torch.equal(y, seen["input"])]
    assert len(before) == 1
    return Seen(before[0][0], seen["input"][0], seen["output"][0])
