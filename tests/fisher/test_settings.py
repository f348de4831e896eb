"""One statement of the Fisher's defaults, for both commands and from Python."""

import inspect

import pytest
import yaml

from fmerge.cli.app import main
from fmerge.errors import UserError
from fmerge.fisher import MERGE_DEFAULTS, FisherAccumulator, FisherSettings, estimate_fisher
from fmerge.trainer import FMergeTrainer


def printed(capsys, *args: str) -> dict:
    with pytest.raises(SystemExit):
        main([*args, "--output", "out.safetensors", "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_one_option_of_a_merge_leaves_the_others_at_their_defaults(capsys):
    experts = ["--experts.a", "x", "--experts.b", "y"]
    found = printed(capsys, "merge", *experts, "--fisher.curve", "5")["fisher"]
    assert (found["split"], found["examples"], found["curve"]) == ("validation", 30, 5)
    found = printed(capsys, "merge", *experts)["fisher"]
    assert FisherSettings(**found) == MERGE_DEFAULTS


def test_the_command_fisher_takes_all_of_training(capsys):
    found = printed(capsys, "fisher", "--expert", "x")
    names = ["estimator", "split", "examples", "samples", "seed", "until", "standard_error"]
    assert FisherSettings(**{name: found[name] for name in names}) == FisherSettings()
    assert (found["split"], found["examples"]) == ("train", None)


@pytest.mark.parametrize("callable_", [FisherAccumulator, estimate_fisher, FMergeTrainer.fisher])
def test_signatures_take_their_defaults_from_the_settings(callable_):
    parameters = inspect.signature(callable_).parameters
    shared = parameters.keys() & FisherSettings.__dataclass_fields__.keys()
    assert {"estimator", "samples", "seed", "fallback"} <= shared
    for name in shared:
        assert parameters[name].default == getattr(FisherSettings(), name), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": 0}, "examples: is 0, but a Fisher needs at least 1"),
        ({"samples": 0}, "samples: is 0"),
        ({"curve": 1}, "curve: is 1, but a curve needs 2 nodes"),
        ({"until": 1.0}, "until: is 1.0, but a relative error lies between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        FisherSettings(**wrong)


def test_standard_errors_follow_from_what_is_asked():
    assert FisherSettings().errors is None
    assert FisherSettings(until=0.1).errors == FisherSettings(standard_error=True).errors == "total"
