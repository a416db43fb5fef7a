"""LLaVA-NeXT's path for the trainer, which is in `llava/train/zo`."""

from __future__ import annotations

from llava.train.zo.extended_trainer import ExtendedMeZOTrainer as MeZOTrainer

__all__ = ["MeZOTrainer"]
