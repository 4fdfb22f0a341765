"""Official checkpoints to ours: `python -m hf_ris.conversion ARCHITECTURE CHECKPOINT OUT_DIR`."""
