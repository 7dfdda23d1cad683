"""Adapters without fine-tuning: a generator learns many, and makes one from examples (ICM-LoRA)."""
