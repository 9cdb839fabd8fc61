"""Makes training data: `python -m subspace.prepare text|sst2|images --help`; the format is in
docs/data.md. Each module imports what it needs when it is used, so that text needs no image library
and images no tokenizer."""
