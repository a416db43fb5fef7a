"""Whether an unfinished run is gone on with as it was begun: same data, same settings, or changes that were asked for.

Beside every checkpoint and resume point lie the flags that led to it (`training_args.json`), with a hash of each file
of records and a mark of the model. Pictures and videos are not hashed, but for those that lie in tables.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.model.base_mark import BASE_SHA256
from llava.model.checkpoint_files import read_json
from llava.runs.run_report import ARGUMENTS_FILE
from llava.samples.loading import file_sha256

logger = logging.getLogger(__name__)

DATA, CHANGES = "data_sha256", "changes"
"""Keys beside the flags: hashes of the data's files in order; what was changed when the run went on, and when."""
OF_THE_METHOD = re.compile(
    "trainer_mode|mm_tunable_parts|tunable_layers|freeze_vectors|vision_tower|mm_projector_type|adapter.*|lora_.*|"
    "bits|quant_type|double_quant|optim|cycle_blocks|zo_(eps|noise|seed|num_directions|estimator|rule|momentum|window|"
    "rms_decay|anchor_steps|rank|basis_steps|tensor_scales|weight_storage|clip|quantized_scales)"
)
"""Flags that no run can change on the way: checkpoints or records would not fit."""
OF_ROUNDING = re.compile("attn_implementation|use_cpu|tf32|torch_compile.*|use_liger_kernel")
"""Flags that change a result's last bits, if anything: worth a warning."""
WITHOUT_EFFECT = re.compile(
    """
    output_dir | overwrite_output_dir | resume_.* | data_path | dataset_paths | cache_dir | local_rank |
    verbose_logging | logging_.* | log_.* | report_to | run_name | project | trackio_.* | disable_tqdm |
    include_.* | debug | skip_memory_metrics | save_.* | eval_.* | evaluation_strategy | do_.* |
    per_device_eval_batch_size | batch_eval_metrics | prediction_loss_only | load_best_model_at_end |
    metric_for_best_model | greater_is_better | early_stopping_.* | push_to_hub.* | hub_.* | enable_jit_checkpoint |
    dataloader_num_workers | dataloader_pin_memory | dataloader_persistent_workers | dataloader_prefetch_factor
    | dataloader_multiprocessing_context | dataloader_in_order | ddp_.* | gradient_checkpointing.* |
    activation_checkpointing.* | torch_empty_cache_steps | use_cache | mm_feature_cache.* | zo_kernel |
    zo_journal_sync_steps | zo_cuda_graphs | zo_graph_memory_gb | zo_check_ranks_steps | zo_on_divergence | zo_shard |
    zo_offload | zo_probe_steps
    """,
    re.VERBOSE,
)
"""Flags that do not decide what a step does. All others do."""
OF_A_START = frozenset(("world_size", "process_counts", "launch"))
"""Keys beside the flags that say how a run was started. What of it decides is `data_processes`."""


def hashes(files: Iterable[str | Path]) -> list[str]:
    """SHA-256 of the content of each file of records, see `llava.samples.loading.file_sha256`."""
    return [file_sha256(file) for file in files]


def earlier_arguments(checkpoint: Path) -> dict[str, Any] | None:
    """The flags that led to a checkpoint, a resume point or a journal; None where they are not kept."""
    file = checkpoint / ARGUMENTS_FILE
    if not file.exists():
        file = checkpoint.parent / ARGUMENTS_FILE  # a resume point's journal
    if not file.exists():
        return None
    earlier = read_json(file)
    if earlier.get("world_size"):  # of runs of before, in which all processes had records of their own
        earlier.setdefault("data_processes", earlier["world_size"])
    return earlier


def check_same_run(checkpoint: Path, arguments: Mapping[str, Any], steps: int, changes: bool) -> list[dict[str, Any]]:
    """Compares the flags of a run with those that led to the checkpoint that it is to go on from.

    Args:
        checkpoint: as for `earlier_arguments`.
        arguments: the flags now, with `DATA`.
        steps: how many steps the checkpoint has, for the record of changes.
        changes: whether differences are wanted (`--resume_with_changes`).

    Returns:
        All changes of the run up to now, each `{"after_step": N, "flags": {name: [before, now]}}`.

    Raises:
        InputError: the differences, unless they are wanted and a checkpoint can be loaded with them.
    """
    earlier = earlier_arguments(checkpoint)
    if earlier is None:
        logger.warning("%s has no %s: whether it is of a run with these flags is not known", checkpoint, ARGUMENTS_FILE)
        return []
    changed = {name: [earlier[name], now] for name, now in arguments.items() if earlier.get(name, now) != now}
    for name in filter(OF_ROUNDING.fullmatch, changed):
        logger.warning("--%s was %r when %s was saved and is %r now", name, earlier[name], checkpoint, arguments[name])
    harmless = OF_A_START | {name for name in changed if OF_ROUNDING.fullmatch(name) or WITHOUT_EFFECT.fullmatch(name)}
    decisive = {name: pair for name, pair in changed.items() if name not in harmless}
    lost = {name: pair for name, pair in decisive.items() if OF_THE_METHOD.fullmatch(name)}
    new_run = "choose another --output_dir, or give --overwrite_output_dir True to start again"
    if lost:
        branch = "; --zo_from_journal starts one from a step of this one" if earlier.get("zo_journal") else ""
        raise InputError(f"{checkpoint} is of an unfinished run with {_told(lost)}: {new_run}{branch}")
    if decisive and not changes:
        raise InputError(
            f"{checkpoint} is of an unfinished run with {_told(decisive)}. To go on with these changes, which are then "
            f"recorded, give --resume_with_changes True; for a new run {new_run}"
        )
    if decisive:
        logger.warning("from step %d on the run goes on with changes: %s", steps + 1, _told(decisive))
    new = [{"after_step": steps, "flags": decisive}] if decisive else []
    return [*earlier.get(CHANGES, []), *new]


def _told(changed: Mapping[str, list[Any]]) -> str:
    said = {
        DATA: "other records in --data_path",
        BASE_SHA256: "other weights in --model_name_or_path",
        "data_processes": "{0} processes (now {1})",
    }
    parts = (said.get(name, f"--{name} {{0}} (now {{1}})").format(*pair) for name, pair in sorted(changed.items()))
    return ", ".join(parts)
