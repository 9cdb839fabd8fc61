"""`python -m subspace.tensorboard RUN`: a run's metrics.jsonl as TensorBoard event files."""
