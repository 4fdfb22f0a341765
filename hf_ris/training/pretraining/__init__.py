"""Pretraining of encoders for models that are too small for public weights."""
