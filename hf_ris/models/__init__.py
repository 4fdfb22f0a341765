"""The architectures; flat, since transformers copies a file with its single-dot siblings to the Hub."""

import transformers  # noqa: F401, before any file here: it is what `hf_ris` waits for to register them all
