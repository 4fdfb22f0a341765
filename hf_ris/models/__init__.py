"""The architectures. Flat on purpose: a model file and its single-dot siblings are what a Hub repository carries."""
