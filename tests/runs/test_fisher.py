"""A Fisher file is that of the checkpoint, whatever the data call first."""

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.merging.expert_fishers import Expert, read_fishers
from fmerge.modules import TextClassifier
from fmerge.params import fingerprint, params_of
from fmerge.store import load_classifier, read_fisher, write_fisher
from tests import tiny
from tests.cli.run import data_config
from tests.compare import assert_same

OWN = tiny.LABELS["colour"]
TURNED = [OWN[2], OWN[0], OWN[1]]


@pytest.fixture(scope="module")
def files(zoo, tmp_path_factory):
    """The same Fisher with the data's labels in the expert's order and in another."""
    folder = tmp_path_factory.mktemp("fishers")
    config = data_config(zoo, folder, "colour")
    found = {}
    for name, labels in (("own", OWN), ("turned", TURNED)):
        with open(config) as file:
            content = yaml.safe_load(file)
        content["data"]["tasks"]["colour"]["init_args"]["labels"] = labels
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        found[name] = folder / f"{name}.safetensors"
        main([
            "fisher", "--config", str(path), "--expert", zoo.experts["colour"], "--output",
            str(found[name]), "--examples", "6",
        ])  # fmt: skip
    return found


def test_the_head_has_the_checkpoints_order(zoo, files):
    own, turned = (read_fisher(files[name]) for name in ("own", "turned"))
    assert_same(turned[0], own[0], rtol=1e-4, atol=1e-10)
    rows = own[0]["classifier.weight"]
    assert not (rows[0] - rows[1]).abs().max() < 1e-3 * rows.max()  # the order shows
    for _, provenance in (own, turned):
        assert provenance["labels"] == OWN
        model = AutoModelForSequenceClassification.from_pretrained(zoo.experts["colour"])
        assert provenance["model_sha256"] == fingerprint(params_of(model))


@pytest.mark.parametrize("labels", [OWN, TURNED, OWN[::-1]])
@pytest.mark.parametrize("name", ["own", "turned"])
def test_a_merge_reads_it_in_any_order(zoo, files, labels, name):
    assert_same(read(zoo, files[name], labels), bodies(zoo, files["own"]), rtol=1e-4, atol=1e-10)


def test_files_in_the_datas_order_are_read_as_before(zoo, files, tmp_path):
    values, provenance = read_fisher(files["own"])
    model = load_classifier(zoo.experts["colour"], "colour", TURNED)
    former = {k: v for k, v in provenance.items() if k != "labels"}
    former["model_sha256"] = fingerprint(params_of(model))
    write_fisher(tmp_path / "former.safetensors", values, former)
    found = read(zoo, tmp_path / "former.safetensors", TURNED)
    assert_same(found, bodies(zoo, files["own"]), rtol=0, atol=0)


def read(zoo, file, labels):
    path = zoo.experts["colour"]
    model = load_classifier(path, "colour", labels)
    body = TextClassifier(path).body(model)
    found, _ = read_fishers(
        {"x": file}, {"x": Expert(path, file)}, {"x": model}, {"x": body}, values=True
    )
    return found["x"]


def bodies(zoo, file):
    return {k: v for k, v in read_fisher(file)[0].items() if k.startswith("bert.")}
