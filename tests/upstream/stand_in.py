"""A small repository of our own with the faults of LLaVA-NeXT's main, to test the editing on."""

from __future__ import annotations

import subprocess
from pathlib import Path

TRAINER = '''\
import os
import torch
from transformers import Trainer
from transformers.trainer import has_length


def should_only_save_mm_adapter(args):
    return False


class LLaVATrainer(Trainer):
    def __init__(self, **kwargs):
        """Zeroth-order state."""
        super().__init__(**kwargs)
        self.trainer_mode = self.args.trainer_mode
        self.zo_eps = self.args.zo_eps
        self.projected_grad = None
        self.trainable_params = list(self.model.named_parameters())
        if self.trainer_mode == "zo":
            for param in self.model.parameters():
                param.requires_grad = False

    ################
    # MeZO methods #
    ################

    def zo_perturb(self, scale=1.0):
        for _, param in self.trainable_params:
            param.data += scale * self.zo_eps

    @torch.no_grad()
    def zo_step(self, model, inputs):
        self.zo_perturb(1.0)
        return self.compute_loss(model, inputs)

    def save_mezo_state(self, folder):
        torch.save(self.zo_eps, os.path.join(folder, "mezo_state.pt"))

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.trainer_mode == "zo":
            self.save_mezo_state(output_dir)

    ################
    # MeZO methods #
    ################

    # batches of similar length
    def _get_train_sampler(self):
        if not has_length(self.train_dataset):
            return None
        return super()._get_train_sampler()

    def create_optimizer(self):
        """AdamW, as ever."""
        if self.trainer_mode == "zo":
            self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
            return self.optimizer

        return super().create_optimizer()

    def _save(self, output_dir=None, state_dict=None):
        if not should_only_save_mm_adapter(self.args):
            super()._save(output_dir, state_dict)

    def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None):
        for step in range(args.max_steps):
            if is_torch_xla_available():
                xm.mark_step()
            self.zo_step(self.model, next(self.batches))
        return TrainOutput(step, 0.0, speed_metrics("train", time.time()))


class LLaVAOtherTrainer(Trainer):
    pass
'''

TRAIN = """\
import os
import pathlib
from dataclasses import dataclass, field
from typing import Optional
import torch
import transformers
from llava.train.llava_trainer import LLaVATrainer


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    cache_dir: Optional[str] = field(default=None)
    verbose_logging: bool = field(default=False)
    trainer_mode: str = field(default="regular")
    zo_eps: float = field(default=1e-3)  # of the perturbation
    zo_num_directions: int = field(
        default=1,
    )


def safe_save_model_for_hf_trainer(trainer, output_dir):
    trainer.accelerator.wait_for_everyone()
    torch.cuda.synchronize()
    trainer._save(output_dir)


def train():
    training_args = transformers.HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()[0]
    data_module = {"train_dataset": [{"x": torch.ones(1)}]}
    trainer = LLaVATrainer(
        model=torch.nn.Linear(1, 1),
        args=training_args,
        **data_module,
    )
    if list(pathlib.Path(training_args.output_dir).glob("checkpoint-*")):
        trainer.train(resume_from_checkpoint=True)
    else:
        trainer.train()


if __name__ == "__main__":
    train()
"""

TRAIN_DPO = """\
import torch


def safe_save_model_for_hf_trainer(trainer, output_dir):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    trainer._save(output_dir)
"""
FILES = {
    "llava/__init__.py": "",
    "llava/train/__init__.py": "",
    "llava/train/llava_trainer.py": TRAINER,
    "llava/train/train.py": TRAIN,
    "llava/train/train_dpo.py": TRAIN_DPO,
    "README.md": "A stand-in for LLaVA-NeXT.\n- [LLaVA-OneVision](a.md): for demo inference.\n## Citation\n",
}


def make_checkout(folder: Path, **changes: str) -> Path:
    """A git repository with one commit; `changes` are other contents of llava_trainer, train or train_dpo."""
    files = FILES | {f"llava/train/{name}.py": text for name, text in changes.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for key, value in (("user.name", "A. Tester"), ("user.email", "tester@example.org"), ("commit.gpgsign", "false")):
        git(folder, "config", key, value)
    git(folder, "add", ".")
    git(folder, "update-index", "--chmod=+x", "llava/train/train.py")
    git(folder, "commit", "--quiet", "-m", "As it was")
    git(folder, "checkout", "--quiet", "--force", "main")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command in a checkout."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout
