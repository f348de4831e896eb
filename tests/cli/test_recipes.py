"""``--mergekit``: which options a recipe becomes, what is refused, and the merge itself."""

import json

import pytest
import torch
import yaml

from fmerge import load_params
from fmerge.cli.app import main
from fmerge.cli.recipes import with_recipe
from fmerge.errors import UserError
from tests import tiny
from tests.merging.streamed import save_experts


def written(path, tree):
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_recipe_becomes_experts_method_base_and_dtype(tmp_path):
    (tmp_path / "llama").mkdir()
    config = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    models = [str(tmp_path / "llama"), "owner/mo.del", "other/mo.del", "base"]
    tree = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": one} for one in models],
        "parameters": {"weight": 1},
        "dtype": "bfloat16",
    }
    path = written(tmp_path / "recipe.yml", tree)
    for given in (["--mergekit", path], [f"--mergekit={path}"]):
        found = with_recipe(["merge", *given, "--output", "out"])
        assert found[:3] == ["merge", "--output", "out"]
        said = dict(one.split("=", 1) for one in found[3:])
        assert json.loads(said["--experts"]) == {
            "llama": models[0], "mo_del": models[1], "mo_del_3": models[2]
        }  # fmt: skip
        method = json.loads(said["--method"])
        assert method["class_path"] == "fmerge.methods.mergekit.Mergekit"
        assert method["init_args"] == {"recipe": tree}
        assert said["--base"] == "base" and said["--dtype"] == "bfloat16"
        assert said["--model"] == "fmerge.modules.RankChoice"
    assert with_recipe(["fit", "--output", "x"]) == ["fit", "--output", "x"]


@pytest.mark.parametrize(
    ("content", "more", "text"),
    [
        (None, [], "no such file"),
        ("a: [", [], "is no YAML"),
        ("- 1", [], "holds list, but a recipe is a mapping"),
        ("slices: []", [], "slices: is not supported"),
        ("{}", ["--base", "x"], "leave --base out"),
        ("{}", ["--experts.a", "x"], "leave --experts out"),
    ],
)
def test_what_is_no_recipe_is_named(tmp_path, content, more, text):
    path = tmp_path / "recipe.yml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=text):
        with_recipe(["merge", "--mergekit", str(path), *more])


@pytest.mark.slow
def test_a_merge_is_saved_as_a_recipe_that_makes_it_again(tmp_path):
    base, experts = save_experts(tmp_path, tiny.llama_config())
    options = [f"--experts.{name}={path}" for name, path in experts.items()]
    given = ["--coefficients", json.dumps({"a": 0.4, "b": 0.3})]
    main(["merge", "--model=RankChoice", "--method=TaskArithmetic", f"--base={base}", *options,
        *given, f"--output={tmp_path / 'one'}"])  # fmt: skip
    recipe = tmp_path / "one" / "mergekit.yml"
    assert yaml.safe_load(recipe.read_text()) == {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [
            {"model": experts["a"], "parameters": {"weight": 0.4}},
            {"model": experts["b"], "parameters": {"weight": 0.3}},
        ],
    }
    main(["merge", "--mergekit", str(recipe), f"--output={tmp_path / 'two'}"])
    found, expected = (load_params(tmp_path / name / "merged") for name in ("two", "one"))
    for name, tensor in expected.items():  # bf16 is rounded at each step there, and once here
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=2**-10)
    assert yaml.safe_load((tmp_path / "two" / "mergekit.yml").read_text())["models"]
