"""The Triton kernel: in Triton's interpreter everywhere, compiled, and on a GPU where one is."""

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmerge.fisher import estimate_fisher
from fmerge.fisher.engine.gradients import Outer
from fmerge.fisher.engine.squares import add_squares
from tests.compare import assert_same
from tests.fisher.cases import bert, t5_tied
from tests.fisher.engine.kernel_cases import INPUTS, Inputs, two_uses

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
ROUNDING = 1e-6  # of float32 squares of a model, the largest of the order of one
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def definition(left, right, total):
    """Example by example in float64: the tokens summed, then squared."""
    expected = total.double().cpu()
    for x, y in zip(left.double().cpu(), right.double().cpu(), strict=True):
        expected += torch.einsum("ta,tb->ab", x, y) ** 2
    return expected


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    output = tmp_path_factory.mktemp("kernel") / "found.pt"
    command = [sys.executable, "-m", "tests.fisher.engine.kernel_cases", str(output)]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[3])
    return torch.load(output)


@pytest.mark.parametrize("name", INPUTS)
def test_interpreted_squares_are_the_definition(name, interpreted):
    assert_same({name: interpreted[name]}, {name: definition(*INPUTS[name].make())})


def test_uses_are_added_before_the_square(interpreted):
    expected = definition(*Inputs(3, 17, 40, 35).make())
    assert_same({"uses": interpreted["two uses"]}, {"uses": expected})


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles what a call would launch, for a GPU that is not here."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from fmerge.fisher.engine import triton_kernel as kernel

    results = []

    class Recorder:
        def __init__(self, function):
            self.function = function

        def __getitem__(self, grid):
            return lambda *arguments, **options: results.append(
                self.function.warmup(*arguments, grid=grid, **options)
            )

    def compile_for(capability, left, right, side):
        absent = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: f"absent {capability}",
            get_current_stream=lambda device: 0,
        )
        monkeypatch.setattr(driver, "_active", absent)
        total = torch.empty(left.shape[2], right.shape[2], device="meta")
        results.clear()
        kernel.add_squares(left, right, total, side)
        return results

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel, "_multiprocessors", lambda device: 132)
    for name in ("_add_squares", "_join"):
        monkeypatch.setattr(kernel, name, Recorder(getattr(kernel, name)))
    return compile_for


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [32, 64, 128])
def test_every_tile_compiles_with_matrix_units_for_half_precision_alone(
    compiled, capability, dtype, side
):
    """Ampere and Hopper, without either: the interpreter runs what no compiler accepts."""
    left, right = (torch.empty(1, 128, size, dtype=dtype, device="meta") for size in (768, 3072))
    left, right = left.expand(100, -1, -1), right.expand(100, -1, -1)
    result, joined = compiled(capability, left, right, side)
    ptx = result.asm["ptx"]
    assert joined.name == "_join"
    assert result.metadata.shared <= 99 * 2**10  # the least of any GPU since Ampere
    assert ("mma" in ptx) == (dtype != torch.float32)
    assert "tf32" not in ptx
    assert "cp.async" in ptx  # inputs are read while earlier ones are multiplied


def test_steps_in_memory_are_64_bit_if_large(compiled):
    right = torch.empty(3, 2, 48, device="meta")
    left = torch.empty_strided((3, 2, 40), (2**33, 2**32, 1), device="meta")
    signature = compiled(80, left, right, 32)[0].src.signature
    found = [signature[name] for name in ("left_n", "left_t", "right_n")]
    assert found == ["i64", "i64", "i32"]


@pytest.mark.parametrize(
    ("a", "b", "t", "dtype", "side"),
    [
        (3072, 768, 128, torch.bfloat16, 128),
        (768, 96, 128, torch.bfloat16, 64),
        (40, 3072, 64, torch.float16, 32),
        (384, 384, 64, torch.float32, 128),
        (384, 384, 65, torch.float32, None),  # its products cost more than the traffic saved
        (3072, 768, 1, torch.bfloat16, None),  # one product of squares for the whole batch
        (3072, 768, 8, torch.float64, None),
        (30000, 3, 8, torch.bfloat16, None),  # tiles would be empty but for three columns
    ],
)
def test_tile_is_the_largest_that_the_matrix_fills(a, b, t, dtype, side):
    from fmerge.fisher.engine import triton_kernel as kernel

    assert kernel.tile_side(a, b, t, dtype) == side


def test_shapes_and_types_that_do_not_belong_together_are_refused():
    from fmerge.fisher.engine import triton_kernel as kernel

    left, right, total = Inputs(2, 3, 4, 5).make()
    for wrong in [
        (left, right[:1], total),
        (left, right, total.T),
        (left, right[..., 1:], total),
        (left, right, total.T.contiguous().T),
    ]:
        with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
            kernel.add_squares(*wrong, side=32)
    for wrong in [(left.double(), right.double(), total), (left, right.half(), total)]:
        with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
            kernel.add_squares(*wrong, side=32)
    with pytest.raises(ValueError, match="float32 sum"):
        kernel.add_squares(left, right, total.double(), side=32)


def test_kernel_that_does_not_start_or_gives_wrong_numbers_is_named_and_left(caplog, monkeypatch):
    """Triton compiles its launcher with the machine's C compiler, which may be missing."""
    from fmerge.fisher.engine import triton_kernel as kernel

    properties = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    left, right, total = Inputs(2, 3, 40, 50).make()
    before = total.clone()

    def missing(*arguments):
        raise RuntimeError("Failed to find C compiler")

    for launch, message in [(missing, "C compiler"), (lambda *arguments: None, "wrong numbers")]:
        kernel._verified.cache_clear()
        monkeypatch.setattr(kernel, "add_squares", launch)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert not kernel.add_if_faster([left], [right], total)
        assert [message in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()
    kernel._verified.cache_clear()
    assert torch.equal(total, before)


def test_cpu_never_asks_for_the_kernel(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "fmerge.fisher.engine.triton_kernel", None
    )  # its import would fail
    left, right, total = Inputs(3, 9, 200, 300).make()
    expected = definition(left, right, total)
    add_squares([Outer(left, right)], total)
    assert_same({"squares": total}, {"squares": expected})


def on(device, model, batch):
    return model.float().to(device), {key: value.to(device) for key, value in batch.items()}


@needs_gpu
@pytest.mark.parametrize("name", INPUTS)
def test_squares_on_a_gpu_are_the_definition(name):
    from fmerge.fisher.engine import triton_kernel as kernel

    left, right, total = INPUTS[name].make("cuda")
    expected = definition(left, right, total)
    kernel.add_squares(left, right, total, INPUTS[name].side)
    assert_same({name: total.cpu()}, {name: expected})


@needs_gpu
def test_squares_on_a_gpu_are_the_same_on_every_run():
    """However the examples of a tile were shared."""
    from fmerge.fisher.engine import triton_kernel as kernel

    left, right, total = Inputs(37, 33, 500, 300).make("cuda")
    again = total.clone()
    for result in (total, again):
        kernel.add_squares(left, right, result, 128)
    assert torch.equal(total, again)


@needs_gpu
def test_uses_on_a_gpu_are_added_before_the_square(monkeypatch):
    from fmerge.fisher.engine import triton_kernel as kernel

    monkeypatch.setattr(kernel, "tile_side", lambda *arguments: 32)
    found = two_uses(kernel.add_if_faster, "cuda")
    expected = definition(*Inputs(3, 17, 40, 35).make())
    assert_same({"uses": found.cpu()}, {"uses": expected})


@needs_gpu
def test_offsets_on_a_gpu_pass_32_bits():
    from fmerge.fisher.engine import triton_kernel as kernel

    stored = torch.zeros(3, 2**30 + 2**20, dtype=torch.bfloat16, device="cuda")
    left = stored[:, : 2 * 40].view(3, 2, 40)  # the last example starts beyond 2³¹ entries
    left.copy_(torch.randn(3, 2, 40))
    _, right, total = Inputs(3, 2, 40, 35, dtype=torch.bfloat16).make("cuda")
    expected = definition(left, right, total)
    kernel.add_squares(left, right, total, 32)
    assert_same({"squares": total.cpu()}, {"squares": expected})


@needs_gpu
@pytest.mark.parametrize("case", [bert, t5_tied])
def test_engine_with_the_kernel_is_the_engine_on_a_cpu(case, monkeypatch):
    from fmerge.fisher.engine import triton_kernel as kernel

    launched, launch = [], kernel.add_squares

    def counted(*arguments):
        launched.append(arguments[0].shape)
        launch(*arguments)

    model, batch, log_probs = case()
    expected = estimate_fisher(model, [batch], log_probs).values
    monkeypatch.setattr(kernel, "add_squares", counted)
    monkeypatch.setattr(kernel, "tile_side", lambda a, b, t, *rest: 32 if t > 1 else None)
    _, batch = on("cuda", model, batch)
    found = estimate_fisher(model, [batch], log_probs).values
    assert launched
    # float32 gradients of a whole model against float64
    assert_same(
        {name: value.cpu() for name, value in found.items()}, expected, rtol=1e-3, atol=ROUNDING
    )
