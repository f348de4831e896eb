"""mergekit's recipes: values by hand, settings, refusals, and mergekit 0.1.5 itself."""

import importlib.util
from contextlib import contextmanager

import pytest
import torch

from fmerge import load_params
from fmerge.errors import UserError
from fmerge.methods.mergekit import Mergekit, _draws
from fmerge.methods.recipe import KINDS, read_recipe
from fmerge.modules import RankChoice
from tests import tiny
from tests.merging.streamed import never, save_experts, streaming

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
A = {"w": torch.tensor([2.1, 0.0, 1.5, 1.0])}
B = {"w": torch.tensor([4.0, 2.0, 1.0, 0.9])}


def recipe(method, base="base", models=("a", "b"), **parameters):
    tree = {"merge_method": method, "models": [{"model": one} for one in models]}
    if base:
        tree["base_model"] = base
    return tree | ({"parameters": parameters} if parameters else {})


BY_HAND = {
    # (1·A + 3·B) / 4
    "linear": (recipe("linear", None, weight=[1, 1]) | {
        "models": [{"model": "a", "parameters": {"weight": 1}},
                   {"model": "b", "parameters": {"weight": 3}}]}, [3.525, 1.5, 1.125, 0.925]),
    # base + 2 · (0.5 τa + 0.5 τb): τa = 1.1, −1, 0.5, 0; τb = 3, 1, 0, −0.1
    "task_arithmetic": (recipe("task_arithmetic", weight=0.5, **{"lambda": 2.0}),
                        [5.1, 1.0, 1.5, 0.9]),
    # half of each stays: τa = 1.1, −1, 0, 0; τb = 3, 1, 0, 0; where votes cancel, those above zero
    "ties": (recipe("ties", weight=1.0, density=0.5), [3.05, 2.0, 1.0, 1.0]),
    # of four entries the largest is left out, and the next two stay
    # the largest of four is left out, and the next two stay: τa = −1, 0.5 and τb = 1, −0.1
    "breadcrumbs": (recipe("breadcrumbs", weight=1.0, density=0.5, gamma=0.25),
                    [1.0, 1.0, 1.5, 0.9]),
    # all drawn: nothing is dropped
    "dare_linear": (recipe("dare_linear", weight=0.5), [3.05, 1.0, 1.25, 0.95]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(name):
    tree, expected = BY_HAND[name]
    method = Mergekit(tree)
    found = method.merge(BASE if method.needs_base else None, [A, B], [])["w"]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gradients_follow_the_depth_and_filters_the_name():
    layers = [f"model.layers.{n}.mlp.weight" for n in range(3)]
    names = [*layers, "model.layers.1.self_attn.weight", "lm_head.weight"]
    parts = {"mlp": [0, 1.0], "self_attn": 0.3}
    filters = [{"filter": key, "value": one} for key, one in parts.items()] + [{"value": 0.5}]
    tree = recipe("linear", None, weight=filters)
    tree["models"][1]["parameters"] = {"weight": [{"filter": "lm_head", "value": "1e-1"}]}
    found = read_recipe(tree)
    depths = [0, 0.5, 1, 0.5, 0]
    values = [[m["weight"] for m in found.each(*one)] for one in zip(names, depths, strict=True)]
    assert values == [[0, 0], [0.5, 0.5], [1, 1], [0.3, 0.3], [0.5, 0.1]]
    assert found.shared("x", 0.2) == {"normalize": True}
    models = [{name: torch.full((2, 2), 1.0 + m) for name in names} for m in (0, 1)]
    merged = Mergekit(tree).merge(None, models, [])
    # of the first layer all weights are 0
    assert merged[names[0]].isnan().all() and merged[names[1]].tolist() == [[1.5] * 2] * 2
    torch.testing.assert_close(merged[names[4]], torch.full((2, 2), (0.5 + 0.1 * 2) / 0.6))


@pytest.mark.parametrize(
    ("change", "text"),
    {
        "slices": ({"slices": []}, "slices: is not supported: layers of several"),
        "tokenizer": ({"tokenizer_source": "union"}, "tokenizer_source: is not supported"),
        "moe": ({"experts": []}, "mixture of experts"),
        "key": ({"dtyp": "x"}, "dtyp: is no entry of a recipe"),
        "passthrough": ({"merge_method": "passthrough"}, "'passthrough', which is not supported"),
        "method": ({"merge_method": "nope"}, "is 'nope', which is not supported; known: "),
        "dtype": ({"dtype": "int8"}, "dtype: is 'int8', but must be one of"),
        "parameter": ({"parameters": {"weigth": 1}}, "parameters.weigth: is no parameter here"),
        "number": ({"parameters": {"weight": "x"}}, "parameters.weight: is 'x', but must be"),
        "filter": ({"parameters": {"weight": [{"val": 1}]}}, "is no filter"),
        "models": ({"models": []}, "models: must be a list"),
        "entry": ({"models": [{"model": "a", "weight": 1}]}, r"models\[0\].weight: is no entry"),
        "lora": ({"models": [{"model": "a+b"}]}, r"models\[0\].model: is 'a\+b'"),
        "twice": ({"models": [{"model": "a"}] * 2}, "a is listed twice"),
    }.values(),
)
def test_what_is_not_supported_is_refused_in_one_line(change, text):
    with pytest.raises(UserError, match=text) as found:
        Mergekit(recipe("linear", None, weight=1.0) | change)
    assert "\n" not in str(found.value)


def test_what_a_method_lacks_is_named():
    with pytest.raises(UserError, match="base_model: is not set, but ties needs it"):
        read_recipe(recipe("ties", None, weight=1))
    with pytest.raises(UserError, match="slerp merges two"):
        read_recipe(recipe("slerp", "base", t=0.5))
    with pytest.raises(ValueError, match="weight is not set for tensor 'w'"):
        Mergekit(recipe("linear", None)).merge(None, [A, B], [])
    with pytest.raises(UserError, match="the recipe has 2 models, but there are 3"):
        Mergekit(recipe("linear", None, weight=1)).merge(None, [A, B, A], [])


W = {"weight": 0.6}
RECIPES = {
    "linear": recipe("linear", None, weight=0.7),
    "linear, not normalized": recipe("linear", None, weight=0.4, normalize=False),
    "linear, gradient": recipe("linear", None, weight=[0.1, 0.9, 0.4]),
    "linear, filters": recipe("linear", None, weight=[
        {"filter": "mlp", "value": [0.2, 0.8]}, {"filter": "self_attn", "value": 0.3},
        {"value": 1}]),
    "linear, float32": recipe("linear", None, weight=0.7) | {"dtype": "float32"},
    "linear, out bf16": recipe("linear", None, weight=0.7)
    | {"dtype": "float32", "out_dtype": "bfloat16"},
    "linear with base": recipe("linear", "base", weight=0.5),
    "task_arithmetic": recipe("task_arithmetic", **W),
    "task_arithmetic, normalized": recipe("task_arithmetic", normalize=True, **W),
    "task_arithmetic, lambda": recipe("task_arithmetic", **{"lambda": 0.3}, **W),
    "task_arithmetic, base listed": recipe("task_arithmetic", models=("a", "base", "b"), **W),
    "ties": recipe("ties", density=0.5, **W),
    "ties, dense": recipe("ties", **W),
    "ties, gradients": recipe("ties", density=[1, 0.7, 0.1], weight=[0.2, 0.8]),
    "ties, plain": recipe("ties", density=0.3, normalize=False, int8_mask=True, **W),
    "ties, float32": recipe("ties", density=0.4, **W) | {"dtype": "float32"},
    "breadcrumbs": recipe("breadcrumbs", density=0.6, gamma=0.1, **W),
    "breadcrumbs_ties": recipe("breadcrumbs_ties", density=0.8, **W),
    "slerp": recipe("slerp", "a", t=0.3),
    "slerp, other base": recipe("slerp", "b", t=0.3),
    "slerp, gradients": recipe("slerp", "a", models=("b",), t=[
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]),
    "karcher": recipe("karcher", None),
    "karcher of three": recipe("karcher", None, models=("a", "b", "c")),
    "karcher, one step": recipe("karcher", None, max_iter=1, tol=1e-3),
    "dare_linear": recipe("dare_linear", density=0.5, **W),
    "dare_ties": recipe("dare_ties", density=0.6, rescale=False, **W),
    "della": recipe("della", density=0.5, epsilon=0.2, **W),
    "della_linear": recipe("della_linear", density=0.4, **W),
}  # fmt: skip


@contextmanager
def drawing_as_here():
    """Makes mergekit draw from the numbers that are drawn here; else draws cannot agree."""
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

    merge_group, state = GeneralizedTaskArithmeticMerge.merge_group, {}

    def named(self, group, /, **parameters):
        state.update(name=group.metadata.name, m=0)
        return merge_group(self, group, **parameters)

    def bernoulli(chances):
        key = f"0|{state['m']}|{state['name']}"
        state["m"] += 1
        return (_draws(chances.shape, key) < chances).to(chances.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneralizedTaskArithmeticMerge, "merge_group", named)
        patch.setattr(torch, "bernoulli", bernoulli)
        yield


def in_folder(tree, folder):
    """A recipe whose models are folders."""
    tree = {**tree, "models": [{**m, "model": str(folder / m["model"])} for m in tree["models"]]}
    return tree | ({"base_model": str(folder / tree["base_model"])} if "base_model" in tree else {})


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    config = tiny.llama_config()
    config.num_hidden_layers = 3
    save_experts(folder, config, count=3)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mergekit") is None,
    reason="mergekit is not installed (pip install '.[mergekit]')",
)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore")  # those of its dependencies
def test_mergekit_agrees(llamas, tmp_path, name):
    """bf16: at most one unit in the last place; float32: rounding."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    tree = in_folder(RECIPES[name], llamas)
    with drawing_as_here():
        options = MergeOptions(copy_tokenizer=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(tree), str(tmp_path / "peer"), options)
    expected = load_params(tmp_path / "peer")
    method = Mergekit(tree)
    models = {f"m{n}": path for n, path in enumerate(method._recipe.models)}
    dtype = tree.get("out_dtype") or tree.get("dtype")
    base = tree.get("base_model") if method.needs_base else None
    planned = streaming(RankChoice(), models, method, base, dtype=dtype)
    planned.merge(dict.fromkeys(models, 1.0), tmp_path / "parts", never)
    found = {}
    for file in (tmp_path / "parts" / "0").glob("*.safetensors"):
        found |= load_params(file)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        if tensor.dtype == torch.bfloat16:
            assert units(found[key], tensor) <= 1, key
        else:
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-8)


def units(one, two):
    """The largest distance in units of the last place of bf16."""
    bits = [t.view(torch.int16).int() for t in (one, two)]
    ordered = [torch.where(b < 0, -(b & 0x7FFF), b) for b in bits]
    return int((ordered[0] - ordered[1]).abs().max())


def test_every_kind_is_compared():
    assert {tree["merge_method"] for tree in RECIPES.values()} == set(KINDS) and len(RECIPES) > 20
