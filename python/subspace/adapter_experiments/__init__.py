"""Experiments with adapters on the known-answer base: `python -m subspace.adapter_experiments`."""
