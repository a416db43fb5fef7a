"""The first commit: LLaVA-NeXT's own trainer without the MeZO that was merged into it as pull request 469.

What goes is found by what it is: the override of transformers' training loop, the methods and the state of zeroth-order
training, the branch of `create_optimizer` for it, its three flags. What was merged since stays.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from source_edits import Block, Source, identifiers, undefined_names

from llava.errors import InputError

TRAINER = "llava/train/llava_trainer.py"
TRAIN = "llava/train/train.py"
TRAIN_DPO = "llava/train/train_dpo.py"
EDITED = (TRAINER, TRAIN, TRAIN_DPO)
MESSAGE = """Trainer: remove the copied training loop, train again

The copy of transformers' _inner_training_loop in LLaVATrainer uses 32 names that are not imported, so that
every run ends in a NameError (#483, #504). LLaVATrainer is as it was before #469 again, with what was merged since.
Saving no longer needs a GPU.
"""
LOOP = "_inner_training_loop"
STATE = {"projected_grad", "trainable_params"}
"""What the constructor keeps for MeZO under names that do not say so."""


def without_mezo(files: dict[str, str]) -> dict[str, str]:
    """The edited files, of those in `EDITED`.

    Raises:
        InputError: a piece was not found, or is not what it is taken for.
    """
    edited = {TRAINER: plain_trainer(files[TRAINER]), TRAIN: plain_arguments(files[TRAIN])}
    return {name: guarded_synchronize(name, edited.get(name, text)) for name, text in files.items()}


def is_about_mezo(name: str) -> bool:
    """Whether an identifier speaks of zeroth-order training."""
    return name == "trainer_mode" or any(word in ("zo", "mezo") for word in name.lower().split("_"))


def plain_trainer(text: str) -> str:
    """LLaVATrainer with transformers' own loop."""
    source = Source(TRAINER, text)
    trainer = source.class_named("LLaVATrainer")
    loop = source.function(trainer, LOOP)
    if not _mentions_mezo(loop):
        raise InputError(f"{TRAINER}: {LOOP}() has nothing of MeZO, so it is not the copy of pull request 469")
    methods = [node for node in trainer.body if isinstance(node, ast.FunctionDef) and is_about_mezo(node.name)]
    if not methods:
        raise source.missing("a method zo_... of LLaVATrainer")
    save = source.function(trainer, "save_model")
    if not _mentions_mezo(save):
        raise InputError(f"{TRAINER}: save_model() of LLaVATrainer saves nothing of MeZO")
    source.cut(trainer, [_constructor(source, trainer), *methods, save, loop], about=_names_mezo)
    optimizer = source.function(trainer, "create_optimizer")
    branch = source.only((n for n in optimizer.body if _is_branch(n)), "the branch of create_optimizer for MeZO")
    source.cut(optimizer, [branch])
    result = source.result()

    left = Source(TRAINER, result).class_named("LLaVATrainer")
    for node in ast.walk(left):
        if isinstance(node, ast.stmt) and not isinstance(node, Block) and _mentions_mezo(node):
            raise InputError(f"{TRAINER}: LLaVATrainer still has {ast.unparse(node)!r} of MeZO, which is not known")
    undefined = sorted(undefined_names(result))
    if undefined:
        raise InputError(f"{TRAINER}: without the copied loop it still uses {', '.join(undefined)}, defined nowhere")
    return result


def plain_arguments(text: str) -> str:
    """train.py without the flags of MeZO."""
    source = Source(TRAIN, text)
    arguments = source.class_named("TrainingArguments")
    flags = [node for node in arguments.body if isinstance(node, ast.AnnAssign) and _mentions_mezo(node.target)]
    if not flags:
        raise source.missing("a flag trainer_mode or zo_... of TrainingArguments")
    source.cut(arguments, flags)
    return source.result()


def guarded_synchronize(name: str, text: str) -> str:
    """A file whose bare calls of `torch.cuda.synchronize()` are made only where there is a GPU."""
    source = Source(name, text)
    for statement, guarded in _statements(source.tree, guarded=False):
        if not guarded and isinstance(statement, ast.Expr) and ast.unparse(statement) == "torch.cuda.synchronize()":
            source.replace(statement, "if torch.cuda.is_available():\n    torch.cuda.synchronize()\n")
    return source.result()


def _statements(node: ast.AST, guarded: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below one, each with whether a test for a GPU stands over it."""
    for child in ast.iter_child_nodes(node):
        inside = guarded or (isinstance(child, ast.If) and "cuda.is_available" in ast.unparse(child.test))
        yield child, guarded
        yield from _statements(child, inside)


def _constructor(source: Source, trainer: ast.ClassDef) -> ast.FunctionDef:
    """The constructor, if all that it keeps is MeZO's."""
    constructor = source.function(trainer, "__init__")
    for node in ast.walk(constructor):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        known = is_about_mezo(node.attr) or node.attr in STATE or node.attr == "requires_grad"
        if not known:
            raise InputError(
                f"{TRAINER}, line {node.lineno}: the constructor of LLaVATrainer also sets {ast.unparse(node)}, "
                "which is not known as MeZO's; nothing was changed"
            )
    return constructor


def _is_branch(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and _mentions_mezo(node.test)


def _mentions_mezo(node: ast.AST) -> bool:
    return any(is_about_mezo(name) for name in identifiers(node))


def _names_mezo(comment: str) -> bool:
    return re.search("mezo", comment, re.IGNORECASE) is not None
