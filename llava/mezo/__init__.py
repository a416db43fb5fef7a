"""Zeroth-order fine-tuning (MeZO) for any torch model: weights untouched by perturbation, noise as a pure function.

Needs torch and NumPy; uses numba where it is installed. Imports nothing else of `llava`.
"""

from llava.mezo.config import MeZOConfig
from llava.mezo.measuring import StepResult
from llava.mezo.names import no_decay_names
from llava.mezo.optimizer import MeZO
from llava.mezo.perturb import Perturbation
from llava.mezo.reuse import reuse_outputs

__all__ = ["MeZO", "MeZOConfig", "Perturbation", "StepResult", "no_decay_names", "reuse_outputs"]
