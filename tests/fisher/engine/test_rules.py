"""The table of rules: what it covers, and rules that are added from outside the package."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fmerge.fisher import Rule, estimate_fisher, register_rule, unregister_rule
from fmerge.fisher.engine.gradients import Outer
from fmerge.fisher.engine.rules import RULES, find_rule, rule_of
from tests import oracle
from tests.compare import assert_same
from tests.fisher.cases import N

NAMED = [key for key in RULES if isinstance(key, str)]


class Gated(nn.Module):
    """y = tanh(gain) · (x W): PyTorch multiplies W without a layer that has a rule."""

    def __init__(self, i=5, o=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o) / 2)
        self.gain = nn.Parameter(torch.randn(o))

    def forward(self, x):
        return torch.einsum("nti,io->nto", x, self.weight) * self.gain.tanh()


def gated_weight(layer, x, g, n):
    left, right = (side.reshape(n, -1, side.shape[-1]) for side in (x, g * layer.gain.tanh()))
    return Outer(left, right)


def gated_gain(layer, x, g, n):
    """A plain tensor (n, o): every example's gradient."""
    through = g * (x @ layer.weight) * (1 - layer.gain.tanh() ** 2)
    return through.reshape(n, -1, through.shape[-1]).sum(1)


GATED = Rule({"weight": gated_weight, "gain": gated_gain})


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(3, 5), layer, nn.Linear(4, 3)

    def forward(self, batch):
        hidden = self.layer(self.first(batch["x"]).tanh())
        return self.head(hidden.tanh().mean(1)).log_softmax(1)


@pytest.fixture
def case():
    torch.manual_seed(0)
    return Model(Gated()).double(), {"x": torch.randn(N, 6, 3, dtype=torch.float64)}


@pytest.fixture
def registered():
    """Registers rules that are removed after the test."""
    added = []

    def register(layer_type, rule):
        register_rule(layer_type, rule)
        added.append(layer_type)

    yield register
    for layer_type in added:
        unregister_rule(layer_type)


def definition(model, batch):
    def exact(values, n):
        return values.exp() / values.exp().sum()

    singles = [{"x": row[None]} for row in batch["x"]]
    return oracle.fisher(model, singles, model, exact)[0]


@pytest.mark.parametrize("key", [Gated, f"{__name__}.Gated"])
def test_a_registered_rule_gives_the_exact_fisher_and_is_used(case, registered, key):
    model, batch = case
    with pytest.raises(ValueError, match=r"no rule covers.*layer\.weight"):
        estimate_fisher(model, [batch], model, fallback="error")
    registered(key, GATED)
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert_same(found, definition(model, batch))
    unregister_rule(key)
    try:
        with pytest.raises(ValueError, match=r"no rule covers.*layer\.weight"):
            estimate_fisher(model, [batch], model, fallback="error")
    finally:
        register_rule(key, GATED)


def test_a_wrong_rule_is_found_and_not_used(case, registered, caplog):
    def wrong(layer, x, g, n):
        return 2 * gated_gain(layer, x, g, n)

    model, batch = case
    registered(Gated, Rule({"weight": gated_weight, "gain": wrong}))
    found = estimate_fisher(model, [batch], model).values
    assert_same(found, definition(model, batch))
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == ["layer.gain"]


def test_gradients_of_another_shape_are_refused(case, registered):
    def wrong(layer, x, g, n):
        return gated_gain(layer, x, g, n).sum(0)

    model, batch = case
    registered(Gated, Rule({"weight": gated_weight, "gain": wrong}))
    with pytest.raises(ValueError, match=r"'layer' gave .* \(4,\) for 'gain'; expected \(8, 4\)"):
        estimate_fisher(model, [batch], model)


def test_a_layer_with_a_rule_must_return_one_tensor(case, registered):
    class Two(Gated):
        def forward(self, x):
            return super().forward(x), x

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Two()

        def forward(self, x):
            return self.inner(x)[0]

    _, batch = case
    model = Model(First()).double()
    registered(Two, GATED)
    with pytest.raises(TypeError, match=r"'layer\.inner' returned tuple; .* one tensor"):
        estimate_fisher(model, [batch], model)


def test_inputs_of_other_dimensions_are_not_covered(case, registered):
    model, batch = case
    registered(Gated, Rule(dict(GATED.gradients), max_ndim=2))
    with pytest.raises(ValueError, match=r"no rule covers.*layer\.weight"):
        estimate_fisher(model, [batch], model, fallback="error")


@pytest.mark.parametrize("cast", [True, False])
def test_the_input_is_cast_where_the_rule_says_so(registered, cast):
    seen = []

    def weight(layer, x, g, n):
        seen.append(x.dtype)
        return Outer(*(s.reshape(n, -1, s.shape[-1]).float() for s in (x, g * layer.gain.tanh())))

    def gain(layer, x, g, n):
        return gated_gain(layer, x.float(), g.float(), n)

    model = Model(Gated())
    model.first = nn.Identity()  # so that the layer is given float32
    registered(Gated, Rule({"weight": weight, "gain": gain}, cast_input=cast))
    with torch.autocast("cpu", torch.bfloat16):
        estimate_fisher(model, [{"x": torch.randn(N, 6, 5)}], model)
    assert set(seen) == {torch.bfloat16 if cast else torch.float32}


def test_registering_twice_and_removing_nothing_are_refused(registered):
    registered(Gated, GATED)
    for key in (Gated, f"{__name__}.Gated"):
        with pytest.raises(ValueError, match=r"test_rules\.Gated has a rule already"):
            register_rule(key, GATED)
    with pytest.raises(ValueError, match=r"modules\.linear\.Linear has a rule already"):
        register_rule(nn.Linear, GATED)
    unregister_rule(f"{__name__}.Gated")  # a name stands for the class, and a class for its name
    assert find_rule(Gated) is None
    register_rule(f"{__name__}.Gated", GATED)
    unregister_rule(Gated)
    register_rule(Gated, GATED)
    with pytest.raises(ValueError, match=r"test_rules\.Model has no rule"):
        unregister_rule(Model)
    with pytest.raises(ValueError, match=r"test_rules\.Model covers no parameter"):
        register_rule(Model, Rule({}))
    with pytest.raises(TypeError, match="subclass of nn.Module or its name, not 3"):
        register_rule(3, GATED)


def test_a_subclass_has_no_rule_of_its_parent(registered):
    class Mine(nn.Linear):
        pass

    assert rule_of(Mine(2, 2)) is None and rule_of(nn.Linear(2, 2)) is RULES[nn.Linear]
    registered(Gated, GATED)

    class Special(Gated):
        pass

    assert rule_of(Gated()) is GATED and rule_of(Special()) is None
    # nor one of a class that only has the same name
    assert find_rule(type("Gated", (nn.Module,), {})) is None


@pytest.mark.parametrize("name", NAMED)
def test_named_types_exist_and_their_subclasses_have_no_rule(name):
    module, _, qualified = name.rpartition(".")
    layer_type = getattr(importlib.import_module(module), qualified)
    assert issubclass(layer_type, nn.Module) and find_rule(layer_type) is RULES[name]
    assert find_rule(type(qualified, (layer_type,), {"__module__": __name__})) is None
    with pytest.raises(ValueError, match=f"{qualified} has a rule already"):
        register_rule(layer_type, GATED)


@pytest.mark.parametrize(
    ("layer", "covered"),
    [
        (nn.Embedding(5, 3), True),
        (nn.Embedding(5, 3, max_norm=1.0), False),
        (nn.Embedding(5, 3, scale_grad_by_freq=True), False),
        (nn.Embedding(5, 3, sparse=True), False),
        (nn.Conv2d(2, 2, 3, padding="valid"), True),
        (nn.Conv2d(2, 2, 3, padding="same"), True),
        (nn.Conv2d(2, 2, 3, groups=2), True),
        (nn.BatchNorm1d(2), True),
        (nn.BatchNorm1d(2, track_running_stats=False), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), False),
        (nn.Bilinear(2, 2, 2), False),
    ],
)
def test_options_that_a_rule_does_not_know_are_not_covered(layer, covered):
    assert (rule_of(layer) is not None) == covered


def test_a_layer_whose_forward_or_parameters_were_changed_is_not_covered():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    assert rule_of(layer) is None
    layer = nn.Linear(2, 2)
    layer.scale = nn.Parameter(torch.ones(2))
    assert rule_of(layer) is None


def test_registering_imports_no_framework():
    program = (
        "import sys\n"
        "from fmerge.fisher import Rule, register_rule\n"
        "register_rule('a.B', Rule({'weight': lambda layer, x, g, n: g}))\n"
        "heavy = {'transformers', 'lightning', 'ax', 'datasets', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_the_example_of_the_readme_works():
    readme = (Path(__file__).parents[3] / "fmerge/fisher/README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    torch.manual_seed(0)
    names = {"__name__": "readme"}
    exec(example, names)
    try:
        model = Model(names["Mix"](5, 4)).double()
        batch = {"x": torch.randn(N, 6, 3, dtype=torch.float64)}
        found = estimate_fisher(model, [batch], model, fallback="error").values
        assert_same(found, definition(model, batch))
    finally:
        unregister_rule(names["Mix"])
