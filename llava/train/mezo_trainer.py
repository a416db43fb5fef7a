"""LLaVA-NeXT's path for the trainer, which is in `llava/train/zo`."""

from __future__ import annotations

from llava.train.zo.trainer import MeZOTrainer

__all__ = ["MeZOTrainer"]
