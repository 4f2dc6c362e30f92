"""The generated classes in the optimizer database that torch ships for its own tests.

The database (torch.testing._internal.common_optimizers, private) brings OptimizerInfo and the
decorator that runs a test for every optimizer, configuration, device and dtype.  The bodies are
not in torch's wheel: they are written anew here under the names of torch's test/test_optim.py.

Not enrolled, because the classes have no such thing to test:
- test_foreach_*, test_peak_memory_foreach, test_defaults_changed_to_foreach: no ``foreach``
  argument; every step is fused.  test_fused_matches_forloop compares the backends instead.
- test_complex*, sparse gradients: refused (test_errors).  test_rosenbrock_sparse likewise.
- test_can_load_older_state_dict: it removes arguments that torch added over the years; a state of
  another program is refused here.
- capturable and differentiable variants: no such arguments; runtime/kernel/test_gpu.py captures.
- test_fused_large_tensor, test_fused_does_not_step_if_foundinf on GPUs: runtime/kernel/test_gpu.py.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

pytest.importorskip("expecttest", reason="torch's optimizer database imports expecttest")
database = pytest.importorskip(
    "torch.testing._internal.common_optimizers", reason="this torch has no optimizer database"
)

from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_utils import TestCase

from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support import generated_classes
from tests.support.entries import FIRST_LENGTH, first_move

Info = Any


def _inputs(cls: type[FusedOptimizer]) -> Any:
    """Configurations, params left to the test: the default, and one per hyperparameter."""

    def inputs(device: str, dtype: Any = None) -> list[Any]:
        made = [({}, "default"), ({"maximize": True}, "maximize"), ({"seed": 3}, "seed")]
        keys = {h.key for h in cls.program.hypers}
        made.append(({"lr": 0.01}, "non-default lr"))
        made.append(({"lr": torch.tensor(0.01)}, "tensor lr"))
        if "weight_decay" in keys:
            made.append(({"weight_decay": 0.1}, "nonzero weight_decay"))
        if "eps" in keys:
            made.append(({"eps": 1e-6}, "non-default eps"))
        return [database.OptimizerInput(params=None, kwargs=k, desc=d) for k, d in made]

    return inputs


def _errors(cls: type[FusedOptimizer]) -> Any:
    def inputs(device: str, dtype: Any) -> list[Any]:
        found = [
            ({"lr": -1.0}, ValueError, "lr = -1 is outside its range"),
            ({"lr": torch.tensor([1.0, 2.0])}, ValueError, "lr is a tensor of 2 elements"),
            ({"centered": True}, TypeError, "leave it out"),
        ]
        made = []
        for kwargs, error, words in found:
            p = torch.nn.Parameter(torch.randn(2, 3, device=device, dtype=dtype))
            bad = database.OptimizerInput(params=[p], kwargs=kwargs, desc=words)
            made.append(
                database.ErrorOptimizerInput(
                    bad,
                    error_on=database.OptimizerErrorEnum.CONSTRUCTION_ERROR,
                    error_type=error,
                    error_regex=words,
                )
            )
        for params, error, words in (
            (torch.zeros(2, device=device), TypeError, "params argument given to the optimizer"),
            (
                [(torch.zeros(2, device=device) + 0j).requires_grad_()],
                TypeError,
                "does not support complex",
            ),
        ):
            bad = database.OptimizerInput(params=params, kwargs={}, desc=words)
            made.append(
                database.ErrorOptimizerInput(
                    bad,
                    error_on=database.OptimizerErrorEnum.CONSTRUCTION_ERROR,
                    error_type=error,
                    error_regex=words,
                )
            )
        return made

    return inputs


def _info(cls: type[FusedOptimizer]) -> Info:
    return database.OptimizerInfo(
        cls,
        optim_inputs_func=_inputs(cls),
        optim_error_inputs_func=_errors(cls),
        supported_impls=(),
        not_og_supported_flags=(),
        supports_sparse=False,
        supports_complex=False,
        supports_fused_on=(),
    )


optim_db = [_info(cls) for cls in generated_classes().values()]
every = database.optims(optim_db, dtypes=[torch.float32])
_all_inputs = database._get_optim_inputs_including_global_cliquey_kwargs


def _on(device: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The device's own backend: on the CPU the compiled one; test_battery takes the reference."""
    return {"backend": "auto", **copy.deepcopy(kwargs)}


def _coarse(cls: type[FusedOptimizer], kwargs: dict[str, Any]) -> dict[str, Any]:
    """``--math bf16`` rounds the parameter, and a default lr is lost in that."""
    return {"lr": 0.02, **kwargs} if cls.program.precision == "bf16" else kwargs


def _problem(device: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], Any]:
    """Parameters and a closure of their loss, as in torch's tests: |W x + b|²."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=rng).to(device, dtype) for s in ((4, 32), (4,), (32,))]
    made[2] /= 8  # or SGD's learning rates diverge
    weight, bias = (torch.nn.Parameter(x) for x in made[:2])

    def loss() -> torch.Tensor:
        return (weight.mv(made[2]) + bias).pow(2).sum()

    return [weight, bias], loss


def _train(optimizer: FusedOptimizer, loss: Any, steps: int, sign: float = 1.0) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * loss()).backward()
        optimizer.step()


class TestOptimRenewed(TestCase):
    @every
    def test_errors(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        for bad in optim_info.optim_error_inputs_func(device, dtype):
            given = bad.optimizer_error_input
            with self.assertRaisesRegex(bad.error_type, bad.error_regex):
                optim_info.optim_cls(given.params, **given.kwargs)

    @every
    def test_forloop_goes_right_direction(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        for given in _all_inputs(device, dtype, optim_info):
            up = given.kwargs.get("maximize", False)
            params, loss = _problem(device, dtype)
            before = loss().item()
            kwargs = _coarse(optim_info.optim_cls, given.kwargs)
            optimizer = optim_info.optim_cls(params, **_on(device, kwargs))
            _train(optimizer, loss, 5)
            after = loss().item()
            self.assertTrue(after > before if up else after < before, given.desc)

    @every
    def test_fused_matches_forloop(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        """The fused backend of the device against the for-loop reference, bit for bit."""
        if device.startswith("cpu"):
            self.skipTest("tests/runtime/cpu/test_engine.py compares every class")
        sides = []
        for backend in ("reference", "auto"):
            params, loss = _problem(device, dtype)
            optimizer = optim_info.optim_cls(params, backend=backend)
            _train(optimizer, loss, 2)
            sides.append((params, optimizer))
        (ps, a), (qs, b) = sides
        for p, q in zip(ps, qs, strict=True):
            self.assertEqual(different(p, q), 0)
            for name, x in a.state[p].items():
                self.assertEqual(different(x, b.state[q][name]), 0)

    @every
    def test_mixed_device_dtype(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        """Parameters of both dtypes, and on a GPU of both devices, in one group."""
        where = ["cpu", device] if not device.startswith("cpu") else ["cpu"]
        params = [
            torch.nn.Parameter(torch.ones(2, 32, device=d, dtype=t))
            for d in where
            for t in (torch.float32, torch.bfloat16)
        ]
        cls = optim_info.optim_cls
        # A first step of about an eighth, which bf16 shows
        lr = 0.125 / FIRST_LENGTH.get(cls.program.spec, 1.0)
        optimizer = cls(params, lr=lr, **_on(device, {}))
        for _ in range(first_move(cls)):
            for p in params:
                p.grad = torch.full_like(p, 0.5)
            optimizer.step()
        for p in params:
            self.assertTrue((p != 1).all() and p.isfinite().all())

    @every
    def test_tensor_lr(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        moves = []
        for lr in (2.0**-7, torch.tensor(2.0**-7), torch.tensor([2.0**-7])):
            params, loss = _problem(device, dtype)
            optimizer = optim_info.optim_cls(params, lr=lr, **_on(device, {}))
            _train(optimizer, loss, 2)
            moves.append([p.detach() for p in params])
            if isinstance(lr, torch.Tensor):
                self.assertIs(optimizer.param_groups[0]["lr"], lr)
        self.assertEqual(moves[0], moves[1], rtol=0, atol=0)
        self.assertEqual(moves[0], moves[2], rtol=0, atol=0)

    @every
    def test_param_groups_lr(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        params, loss = _problem(device, dtype)
        start = [p.detach().clone() for p in params]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.0}]
        optimizer = optim_info.optim_cls(groups, lr=0.01, **_on(device, {}))
        _train(optimizer, loss, 2)
        self.assertFalse(torch.equal(params[0], start[0]))
        if optimizer.program.precision == "fp32":  # in bf16 the parameter is rounded
            self.assertEqual(params[1].detach(), start[1], rtol=0, atol=0)

    @every
    def test_param_groups_weight_decay(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        if all(h.key != "weight_decay" for h in optim_info.optim_cls.program.hypers):
            self.skipTest("no weight decay")
        ends = []
        for decay in (0.0, 0.5):
            params, loss = _problem(device, dtype)
            groups = [{"params": params[:1], "weight_decay": decay}, {"params": params[1:]}]
            kwargs = _coarse(optim_info.optim_cls, {"weight_decay": 0.0})
            optimizer = optim_info.optim_cls(groups, **_on(device, kwargs))
            _train(optimizer, loss, first_move(optim_info.optim_cls))
            ends.append([p.detach() for p in params])
        self.assertFalse(torch.equal(ends[0][0], ends[1][0]))
        self.assertEqual(ends[0][1], ends[1][1], rtol=0, atol=0)

    @every
    def test_param_group_with_lrscheduler_goes_right_direction(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        for constructors in optim_info.scheduler_inputs:
            params, loss = _problem(device, dtype)
            before = loss().item()
            groups = [{"params": params[:1], "lr": 0.01}, {"params": params[1:]}]
            optimizer = optim_info.optim_cls(groups, lr=0.001, **_on(device, {}))
            schedulers = [make(optimizer) for make in constructors]
            for _ in range(4):
                _train(optimizer, loss, 1)
                for s in schedulers:
                    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
                    s.step(*([loss().item()] if isinstance(s, plateau) else []))
            self.assertLess(loss().item(), before)

    @every
    def test_step_is_noop_when_params_have_no_grad(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        for given in _all_inputs(device, dtype, optim_info):
            params, _ = _problem(device, dtype)
            start = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **_on(device, given.kwargs))
            optimizer.step()
            self.assertEqual([p.detach() for p in params], start, rtol=0, atol=0)

    @every
    def test_step_is_noop_for_zero_grads(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        decays = any(h.key == "weight_decay" for h in optim_info.optim_cls.program.hypers)
        for given in _all_inputs(device, dtype, optim_info):
            kwargs = {**given.kwargs, **({"weight_decay": 0.0} if decays else {})}
            param = torch.nn.Parameter(torch.full((2, 32), 2.0, device=device, dtype=dtype))
            optimizer = optim_info.optim_cls([param], **_on(device, kwargs))
            for _ in range(2):
                param.grad = torch.zeros_like(param)
                optimizer.step()
            self.assertEqual(param.detach(), torch.full_like(param, 2.0), rtol=0, atol=0)

    @every
    def test_state_dict_deterministic(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        params, loss = _problem(device, dtype)
        optimizer = optim_info.optim_cls(params, **_on(device, {}))
        _train(optimizer, loss, 2)
        others, other_loss = _problem(device, dtype)
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        other = optim_info.optim_cls(others, **_on(device, {}))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        self.assertEqual(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
        _train(optimizer, loss, 2)
        _train(other, other_loss, 2)
        self.assertEqual(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
        self.assertEqual([p.detach() for p in params], [p.detach() for p in others], rtol=0, atol=0)

    @every
    def test_can_load_from_to_named_state_dict(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        """A state_dict saved with parameter names loads without, and the other way round."""
        params, loss = _problem(device, dtype)
        named = list(zip(("weight", "bias"), params, strict=True))
        for first, second in ((named, params), (params, named)):
            a = optim_info.optim_cls(first, **_on(device, {}))
            _train(a, loss, 1)
            b = optim_info.optim_cls(second, **_on(device, {}))
            b.load_state_dict(a.state_dict())
            _train(b, loss, 1)
            self.assertEqual(int(b.state[params[0]]["step"]), 2)

    @every
    def test_save_load_equality_with_weights_only(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        for given in _all_inputs(device, dtype, optim_info):
            params, loss = _problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **_on(device, given.kwargs))
            _train(optimizer, loss, 1)
            saved = optimizer.state_dict()
            with io.BytesIO() as file:
                torch.save(saved, file)
                file.seek(0)
                loaded = torch.load(file, weights_only=True)
            self.assertEqual(saved, loaded, rtol=0, atol=0)

    @every
    def test_load_nontensor_step(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        params, loss = _problem(device, dtype)
        optimizer = optim_info.optim_cls(params, **_on(device, {}))
        _train(optimizer, loss, 1)
        saved = optimizer.state_dict()
        saved["state"][0]["step"] = 1.0
        optimizer.load_state_dict(saved)
        self.assertEqual(optimizer.state[params[0]]["step"].dtype, torch.int64)
        _train(optimizer, loss, 1)
        self.assertEqual(int(optimizer.state[params[0]]["step"]), 2)

    @every
    def test_cpu_load_state_dict(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        """A state_dict of this device into an optimizer of CPU parameters, and back."""
        params, loss = _problem(device, dtype)
        optimizer = optim_info.optim_cls(params, **_on(device, {}))
        _train(optimizer, loss, 1)
        others = [torch.nn.Parameter(p.detach().cpu()) for p in params]
        other = optim_info.optim_cls(others, backend="reference")
        other.load_state_dict(optimizer.state_dict())
        for q in others:
            self.assertTrue(all(x.device.type == "cpu" for x in other.state[q].values()))
        optimizer.load_state_dict(other.state_dict())
        for p, q in zip(params, others, strict=True):
            for name, x in optimizer.state[p].items():
                self.assertEqual(x.cpu(), other.state[q][name], rtol=0, atol=0)
                if name != "offset":
                    self.assertEqual(x.device, p.device)

    @every
    def test_deepcopy_copies_all_public_attrs(
        self, device: str, dtype: torch.dtype, optim_info: Info
    ) -> None:
        params, loss = _problem(device, dtype)
        optimizer = optim_info.optim_cls(params, **_on(device, {}))
        _train(optimizer, loss, 1)

        def public(o: FusedOptimizer) -> dict[str, Any]:
            return {k: getattr(o, k) for k in o.__dict__ if not k.startswith("_")}

        copied = copy.deepcopy(optimizer)
        self.assertEqual(set(public(optimizer)), set(public(copied)))
        self.assertEqual(optimizer.state_dict(), copied.state_dict(), rtol=0, atol=0)

    @every
    def test_non_empty_state(self, device: str, dtype: torch.dtype, optim_info: Info) -> None:
        params, loss = _problem(device, dtype)
        optimizer = optim_info.optim_cls(params, **_on(device, {}))
        _train(optimizer, loss, 1)
        for p in params:
            self.assertGreater(len(optimizer.state[p]), 0)


instantiate_device_type_tests(TestOptimRenewed, globals(), only_for=("cpu", "cuda"))
