"""What a merge shows at its end: intervals recomputed from the saved models, report and cards."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmerge.cli.app import main
from fmerge.methods import Average, TaskArithmetic
from fmerge.params import params_of, select, write_params
from tests import tiny
from tests.cli.test_commands import rows as rows_of
from tests.report.test_html import Page

NAMES = {"colour": "<b onclick=alert(1)>", "animal": "two | a`b"}


def body(folder):
    return select(params_of(AutoModelForSequenceClassification.from_pretrained(folder)), "bert.")


def outcomes(expert, weights, zoo, task):
    """Which test examples an expert's head gets right on a body."""
    model = AutoModelForSequenceClassification.from_pretrained(expert).eval()
    write_params(model, weights)
    tokenizer = AutoTokenizer.from_pretrained(expert)
    right = []
    for text, label in rows_of(zoo, task, "test"):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        right.append(float(tiny.LABELS[task][int(logits.argmax())] == label))
    return torch.tensor(right)


@pytest.fixture(scope="module")
def merged(zoo, tmp_path_factory):
    """A run under names of any kind, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    base = folder / "<script>alert(1)</script>"
    shutil.copytree(zoo.base, base)
    tasks = {
        NAMES[task]: {
            "class_path": "TextFiles",
            "init_args": {**files, "labels": tiny.LABELS[task]},
        }
        for task, files in zoo.tasks.items()
    }
    config = {
        "data": {"batch_size": 4, "tasks": tasks},
        "experts": {NAMES[task]: path for task, path in zoo.experts.items()},
        "base": str(base),
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    output = folder / "out"
    main([
        *["merge", "--config", str(folder / "config.yaml"), "--method", "TaskArithmetic"],
        *["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "4"],
        *["--output", str(output)],
    ])
    return output


def share(right, n):
    """Wilson's interval; Agresti and Coull's (1998) with five right or wrong examples or fewer."""
    if min(right, n - right) > 5:
        found = stats.binomtest(right, n).proportion_ci(method="wilson")
        return [found.low, found.high]
    z = stats.norm.ppf(0.975)
    centre = (right + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(centre * (1 - centre) / (n + z**2))
    return [max(0, centre - half), min(1, centre + half)]


def test_differences_are_those_of_the_very_same_examples(merged, zoo):
    log = [json.loads(line) for line in (merged / "trials.jsonl").read_text().splitlines()]
    trials = [one for one in log if "stage" not in one]  # the plain average is no merge of it
    best, runner_up, *_ = sorted(trials, key=lambda t: (-t["objective"], t["trial"]))
    bodies = [body(path) for path in zoo.experts.values()]

    def at(trial):
        return TaskArithmetic().merge(body(zoo.base), bodies, list(trial["coefficients"].values()))

    average = Average().merge(None, bodies, [])
    others = {"plain average": average, "runner-up": at(runner_up), "base": body(zoo.base)}
    record = json.loads((merged / "scores.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    found = {one["against"]: one for one in record["comparisons"]}
    compared = ["plain average", "runner-up", "experts", "base", "base, heads refitted"]
    assert list(found) == compared
    for k, (task, expert) in enumerate(zoo.experts.items()):
        mine = outcomes(expert, at(best), zoo, task)
        for against, weights in {**others, "experts": bodies[k]}.items():
            its = outcomes(expert, weights, zoo, task)
            d = (mine - its).double().numpy()
            # Bonett and Price (2012): one more discordant example for each side
            gained, lost = ((sum(d == sign) + 1) / (len(d) + 2) for sign in (1, -1))
            error = math.sqrt((gained + lost - (gained - lost) ** 2) / (len(d) + 2))
            low, high = stats.norm.interval(0.95, gained - lost, error)
            assert found[against]["differences"][NAMES[task]] == pytest.approx([
                d.mean(), low, high
            ], abs=1e-6), (task, against)  # fmt: skip
            assert rows[against]["scores"][NAMES[task]] == pytest.approx(float(its.mean()))
            interval = rows[against]["intervals"][NAMES[task]]
            assert interval[1:] == pytest.approx(share(int(its.sum()), len(its)), abs=1e-6)


def test_names_are_text_in_every_document(merged, zoo):
    found = Page((merged / "report.html").read_text())
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]  # ours
    assert "onclick" not in {name for _, attributes in found.tags for name in attributes}
    for text in (*NAMES.values(), "<script>alert(1)</script>"):
        assert text in found.text
    cards = sorted(merged.glob("merged/*/README.md"))
    assert [card.parent.name for card in cards] == sorted(NAMES.values())
    for card in (*cards, merged / "merged" / "README.md", merged / "report.md"):
        text = card.read_text()
        shown = MarkdownIt("gfm-like", {"linkify": False}).render(text.split("\n---\n", 1)[-1])
        assert not {"script", "b"} & {tag for tag, _ in Page(shown).tags}
        assert "| this merge |" in text and "| runner-up |" in text


def test_the_card_tells_where_the_merge_is_from(merged, zoo):
    inputs = json.loads((merged / "inputs.json").read_text())
    card = (merged / "merged" / NAMES["colour"] / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    # the base's folder has a name that no model of the hub can have
    assert front["base_model"] == [Path(path).name for path in zoo.experts.values()]
    assert str(zoo.root) not in card
    for sha in (*inputs["expert"].values(), inputs["base"]):
        assert sha in card
    for sha in inputs["data"].values():
        assert sha[:12] in card
    assert "| 13 | 11 |" in card and "BertForSequenceClassification.from_pretrained" in card
