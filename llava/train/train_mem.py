"""Entry point for launchers: `torchrun llava/train/train_mem.py FLAGS`; the same run as llava.train.train."""

from llava.train.train import train

if __name__ == "__main__":
    train()
