"""The second commit: the engine and its trainer as files of their own, tests, flags and the choice of trainer.

What goes along is the engine and `llava/train/zo`, whole. Flags and their help come from `llava.train.flags.arguments`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

from source_edits import Source
from trainer_edits import TRAIN, is_about_mezo

from llava.errors import InputError
from llava.train.flags.arguments import TRAINER_MODES, TrainingArguments

ROOT = Path(__file__).resolve().parents[2]
SEAM = "llava/train/zo/trainer.py"
FILES = (
    *("llava/mezo/**/*.py", "llava/train/zo/*.py"),
    *("tests/mezo/*.py", "tests/train/test_mezo_trainer_alone.py", "tests/train/test_halved_run.py"),
    "docs/journal_format.md",
)
STAY = (
    *("llava/mezo/offloading/*", "llava/mezo/sharding/*", "llava/mezo/graphs.py", "llava/mezo/answer_tree.py"),
    *("llava/train/zo/extended_trainer.py", "llava/train/zo/device_settings.py", "llava/train/zo/meeting.py"),
    *("llava/train/zo/laid_out_forwards.py", "llava/train/zo/step_inputs.py", "llava/train/zo/offloading.py"),
    *("llava/train/zo/shared_*.py", "llava/train/zo/sharded_run.py", "tests/mezo/test_answer_tree.py"),
    *("tests/mezo/test_sharding.py", "tests/mezo/test_graphs.py", "tests/mezo/test_offload.py"),
    *("tests/mezo/test_bus.py", "tests/mezo/fake_cuda.py"),
)
"""Of these, what nothing there would come to: what `ExtendedMeZOTrainer` adds for this tree's models and runs."""
LEFT_OUT = ("zo_cuda_graphs", "zo_graph_memory_gb", "zo_length_bucket", "zo_quantized_scales", "zo_shard", "zo_offload")
"""Flags that LLaVA-NeXT's models have no use for: they put a batch together on the GPU, which cannot be recorded, and
their layers in 4 and 8 bits have no scales of their own. Nor is it known that their models can be cut into shards, or
that they are loaded onto the host."""
THERE = {
    "zo_objective": {
        "help": "MeZO: what is to become better: loss, or accuracy (of single tokens)",
        "choices": ["loss", "accuracy"],
    }
}
"""What is said otherwise of a flag: its train.py generates no answers and reads none of a list."""
MESSAGE = """MeZO: zeroth-order training as an engine and a trainer of its own

--trainer_mode zo is MeZOTrainer, a LLaVATrainer that touches transformers' loop nowhere. Perturbed weights are
never written, updates of 16-bit weights are not lost, ranks share their losses, and each step is recorded in
36 bytes (with one learning rate) from which a run resumes and replays bit for bit. The flags of before keep their
names; regular training imports nothing of this.
"""

# imported in these branches alone, so that regular training does not need any of it
CHECK = """\

if training_args.trainer_mode == "zo":
    from llava.train.zo.settings import check_kernel, refuse_impossible

    refuse_impossible(training_args)
    check_kernel(training_args.zo_kernel, training_args.device.type)
"""
CHOICE = """\
trainer_class = LLaVATrainer
if training_args.trainer_mode == "zo":
    from llava.train.zo.settings import Settings
    from llava.train.zo.trainer import MeZOTrainer as trainer_class

    Settings.of(training_args).check_plan(training_args, len({data}["train_dataset"]))
"""


def new_files() -> dict[str, bytes]:
    """Path -> contents of the modules, tests and the description of the journal that are added."""
    taken, stay = ({path for one in some for path in ROOT.glob(one)} for some in (FILES, STAY))
    found = sorted(taken - stay)
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in found}


def train_with_mezo(text: str) -> str:
    """train.py with the flags, the choice of trainer and the way on from a journal.

    Raises:
        InputError: a piece of train.py was not found.
    """
    source = Source(TRAIN, text)
    source.add_after(source.class_named("TrainingArguments").body[-1], flags())

    train = source.function(source.tree, "train")
    parsed = source.only(
        (n for n in ast.walk(train) if isinstance(n, ast.Assign) and "parse_args_into_dataclasses" in ast.unparse(n)),
        "parse_args_into_dataclasses() in train()",
    )
    source.add_after(parsed, CHECK)
    made = source.only(
        (n for n in ast.walk(train) if isinstance(n, ast.Assign) and _calls(n.value, "LLaVATrainer")),
        "LLaVATrainer(...) in train()",
    )
    call = made.value
    data = source.only((k.value for k in call.keywords if k.arg is None), "the **data_module of LLaVATrainer(...)")
    source.replace_expression(call.func, "trainer_class")
    source.add_before(made, CHOICE.format(data=ast.unparse(data)))
    resumes = source.only(
        (n for n in ast.walk(train) if isinstance(n, ast.If) and "checkpoint-*" in ast.unparse(n.test)),
        "the question for checkpoint-* in train()",
    )
    test = f'training_args.trainer_mode == "zo" or {ast.get_source_segment(text, resumes.test)}'
    source.replace_expression(resumes.test, test)
    source.add_before(resumes, "# MeZOTrainer finds out by itself where a run stopped, if one did\n")
    return source.result()


def flags() -> str:
    """The fields of TrainingArguments, as LLaVA-NeXT writes fields."""
    lines = []
    for field in dataclasses.fields(TrainingArguments):
        if not is_about_mezo(field.name) or field.name in LEFT_OUT:
            continue
        kind = TrainingArguments.__annotations__[field.name]  # as written; field.type may have been resolved since
        kind = f"Optional[{kind.removesuffix(' | None')}]" if kind.endswith(" | None") else kind
        metadata = {"help": field.metadata["help"].replace("docs/mezo.md", "docs/MeZO.md")} | THERE.get(field.name, {})
        if field.name == "trainer_mode":
            metadata["choices"] = list(TRAINER_MODES)
        value = f"field(default={_literal(field.default)}, metadata={_literal(metadata)})"
        lines.append(f"{field.name}: {kind} = {value}\n")
    if not lines:
        raise InputError("llava/train/flags/arguments.py has no flag of MeZO")
    return "".join(lines)


def _literal(value: object) -> str:
    """Python source of a plain value, strings in double quotes."""
    return json.dumps(value) if isinstance(value, (str, dict)) else repr(value)


def _calls(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
