"""Forward with perturbed parameters; the stored weights are read and never written.

While a pass runs, every module that owns trained parameters has a stand-in for its table of parameters. Reading a
parameter from it, by whatever code, gives weight + scale * z in scratch memory. A copy that was read within its
owner's forward is dropped when that forward returns, so that at any time about one layer exists twice; a copy that
was read from elsewhere (LLaVA's `image_newline`) is kept until the pass ends. Of an embedding matrix, and of a matrix
that is read from elsewhere (an output head), only the rows that are asked for are made (`tables.py`).

`model.parameters()`, `named_parameters()` and `state_dict()` go on giving the stored parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llava.mezo.scratch import ScratchPool
from llava.mezo.tables import PerturbedTable
from llava.mezo.weights import Storage

logger = logging.getLogger(__name__)


class Perturbation:
    """Perturbed passes through `model` for the parameters that are keys of `storages`.

        with perturbation.attached():
            with perturbation.at(seed, +eps):
                loss_plus = loss()
            with perturbation.at(seed, -eps):
                loss_minus = loss()

    `attached` puts the model into evaluation mode without autograd and installs the stand-ins; `at` chooses the point.
    Both leave the model as it was, also when the forward raises.
    """

    def __init__(self, model: nn.Module, storages: Mapping[nn.Parameter, Storage]) -> None:
        self.model = model
        self.storages = storages
        self.pool = ScratchPool()
        self._tables: set[nn.Parameter] = set()
        self._owners: list[_Owner] = []
        self._kept: dict[nn.Parameter, torch.Tensor] = {}
        self._point: tuple[int, float] | None = None
        self._reads = 0
        self._warned = False
        self._owned_modules()  # refuses now what could not work later

    @contextmanager
    def attached(self) -> Iterator[Perturbation]:
        """Install the stand-ins for any number of `at`."""
        if self._owners:
            raise RuntimeError("this perturbation is attached already; passes do not nest")
        modules = self._owned_modules()
        self._tables = {
            p for m in modules if isinstance(m, nn.Embedding) for p in m._parameters.values() if p is not None
        }
        with ExitStack() as stack, torch.no_grad():
            stack.callback(self._owners.clear)
            for module in modules:
                owner = _Owner(module, self)
                self._owners.append(owner)
                stack.callback(owner.detach)
                owner.attach()
            stack.enter_context(evaluation_mode(self.model))
            yield self

    @contextmanager
    def at(self, seed: int, scale: float) -> Iterator[None]:
        """Parameters read as weight + scale * z(seed). Only while attached."""
        if not self._owners:
            raise RuntimeError("choose a point inside `with perturbation.attached()`")
        if self._point is not None:
            raise RuntimeError("a pass is running already; passes do not nest")
        self._point, self._reads = (seed, scale), 0
        try:
            yield
            self._warn_if_unread()
        finally:
            self._point = None
            self._kept.clear()
            for owner in self._owners:
                owner.parameters.end_pass()

    def read(self, parameter: nn.Parameter, own: dict[nn.Parameter, torch.Tensor] | None) -> torch.Tensor:
        """What a read of `parameter` gives now. `own` is the owner's shelf while its forward runs, else None."""
        storage = self.storages.get(parameter)
        if storage is None or self._point is None:
            return parameter
        self._reads += 1
        shelf = self._kept if own is None else own
        found = self._kept.get(parameter)
        if found is None:
            found = shelf.get(parameter)
        if found is None:
            by_rows = parameter.dim() == 2 and (own is None or parameter in self._tables)
            found = shelf[parameter] = self._perturbed(parameter, storage, by_rows)
        return found

    def _perturbed(self, parameter: nn.Parameter, storage: Storage, by_rows: bool) -> torch.Tensor:
        assert self._point is not None
        seed, scale = self._point
        if by_rows:
            return PerturbedTable.make(parameter, storage, self.pool, seed, scale)
        out = self.pool.empty(storage.shape, storage.dtype, storage.device)
        storage.perturb(out, seed, scale)
        return out

    def _owned_modules(self) -> list[nn.Module]:
        """The modules that directly own trained parameters; ValueError where reads cannot be intercepted."""
        owners: list[nn.Module] = []
        missing = set(self.storages)
        for name, module in self.model.named_modules():
            _refuse_compiled(name, module)
            own = {p for p in module._parameters.values() if p is not None and p in self.storages}
            if own:
                _refuse_unreadable(name, module)
                owners.append(module)
                missing -= own
        if missing:
            shapes = ", ".join(sorted(str(tuple(p.shape)) for p in missing))
            raise ValueError(
                f"{len(missing)} trained parameters (shapes {shapes}) are not in the model that is perturbed"
            )
        return owners

    def _warn_if_unread(self) -> None:
        if self._reads == 0 and not self._warned:
            self._warned = True
            logger.warning(
                "mezo: the loss read none of the trained parameters, so it cannot depend on them. This is right for a "
                "batch that does not reach the trained part, and wrong if the loss runs another copy of the model."
            )


class _Owner:
    """Installs and removes one module's stand-in and the hooks that tell when its forward runs."""

    def __init__(self, module: nn.Module, perturbation: Perturbation) -> None:
        self.module = module
        self.parameters = _PerturbedParameters(module._parameters, perturbation)
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._handles.append(self.module.register_forward_pre_hook(self._enter, prepend=True))
        self._handles.append(self.module.register_forward_hook(self._leave, always_call=True))
        self.module.__dict__["_parameters"] = self.parameters

    def detach(self) -> None:
        self.module.__dict__["_parameters"] = self.parameters.stored
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module is not self.module:
            raise RuntimeError(
                "the loss runs a replica of the model (nn.DataParallel); its weights would not be perturbed. Use one "
                "process per device instead (torchrun)"
            )
        self.parameters.depth += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.parameters.depth -= 1
        if self.parameters.depth <= 0:
            self.parameters.end_pass()


class _PerturbedParameters(dict[str, Any]):
    """Stand-in for a module's `_parameters`: `[name]`, which is how nn.Module reads an attribute, is perturbed.

    Listing (`items`, `values`, `get`) gives what is stored. Assignments reach the module's own table as well.
    """

    def __init__(self, stored: dict[str, Any], perturbation: Perturbation) -> None:
        super().__init__(stored)
        self.stored = stored
        self.perturbation = perturbation
        self.depth = 0
        self.shelf: dict[nn.Parameter, torch.Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is None:
            return None
        return self.perturbation.read(value, self.shelf if self.depth > 0 else None)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.stored[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self.stored[name]

    def end_pass(self) -> None:
        """Forget the copies and that a forward is running."""
        self.depth = 0
        self.shelf.clear()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module's `training` flag off, then each back to what it was.

    The flags are set directly: `model.eval()` may be overridden to do more, up to merging adapters into weights.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refuse_compiled(name: str, module: nn.Module) -> None:
    if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"module {name or 'at the top'!r} is compiled by torch.compile, which reads weights in its own way; "
            "give MeZO the model before compilation and run the loss without it"
        )


def _refuse_unreadable(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.DataParallel):
        raise ValueError("nn.DataParallel copies weights past the perturbation; use one process per device (torchrun)")
    if isinstance(module, nn.RNNBase):
        raise ValueError(f"module {name!r} ({type(module).__name__}) keeps a private list of its weights; freeze it")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise ValueError(f"module {name!r} has max_norm, which writes its weights in the forward; set it to None")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"module {name!r} is a TorchScript module, which reads weights in its own way; freeze it")
