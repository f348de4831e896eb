"""Mistakes with donors, tokenizers and data sets: one line each, before any long work."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fmerge.cli.app import main
from fmerge.params import fingerprint, params_of
from fmerge.store import write_fisher
from tests import hub_layout, tiny
from tests.cli.run import fails


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("donors")
    hub_layout.glue(root / "glue", "rte")
    hub_layout.roberta(root / "rte", hub_layout.LABELS["rte"], seed=1)
    hub_layout.answering_roberta(root / "squad2", seed=2)
    hub_layout.roberta(root / "foreign", seed=3)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *reversed(tiny.WORDS)])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(root / "foreign")
    tiny.save(tiny.classifier(tiny.bert_config()), root / "bert")
    return root


def donor(folders, name, **more):
    return "--experts.other=" + json.dumps({"path": str(folders / name), "donor": True} | more)


CASES = {
    "no donor, no data": (
        lambda f: [f"--experts.squad2={f / 'squad2'}"],
        "--experts: are for rte, squad2, but the data's tasks are rte; give each task one expert "
        "of the same name, or make an expert without data a donor",
    ),
    "a donor as target": (
        lambda f: [donor(f, "squad2"), "--optimizer.target=other"],
        "--optimizer.target: 'other' is a donor, which has no task to score",
    ),
    "another tokenizer": (
        lambda f: [donor(f, "foreign")],
        "foreign: its tokenizer differs from that of",
    ),
    "another architecture": (
        lambda f: [donor(f, "bert")],
        "bert: its config says model_type bert, but",
    ),
    "Fishers of some": (
        lambda f: [donor(f, "squad2", fisher="x.h5"), "--method=FisherMerge"],
        "2 experts but 1 Fishers; none is given for rte",
    ),
}


def test_a_donor_needs_the_fisher_of_its_own_body(folders, tmp_path, capsys):
    body = params_of(AutoModelForQuestionAnswering.from_pretrained(folders / "squad2").roberta)
    body = {f"roberta.{name}": value for name, value in body.items()}
    head = {"qa_outputs.weight": torch.ones(2, 16)}
    own = {}
    for name in ("rte", "squad2"):
        expert = params_of(AutoModelForSequenceClassification.from_pretrained(folders / "rte"))
        values = {k: torch.ones_like(v) for k, v in (expert if name == "rte" else body).items()}
        hashes = {"model_sha256": fingerprint(expert), "body_sha256": fingerprint(body)}
        own[name] = tmp_path / f"{name}.safetensors"
        write_fisher(own[name], values | (head if name == "squad2" else {}), hashes)
    arguments = [
        *["merge", "--method=FisherMerge", "--optimizer.search=Fixed"],
        "--experts.rte=" + json.dumps({"path": str(folders / "rte"), "fisher": str(own["rte"])}),
    ]
    other = donor(folders, "squad2", fisher=str(own["squad2"]))
    main([*arguments, other, "--output", str(tmp_path / "out")])
    hub_layout.answering_roberta(tmp_path / "stranger", seed=8)
    stranger = donor(tmp_path, "stranger", fisher=str(own["squad2"]))
    line = fails(capsys, *arguments, stranger, "--output", tmp_path / "again")
    assert "squad2.safetensors: is the Fisher of another model" in line


@pytest.mark.parametrize("case", CASES)
def test_merge_refuses(case, folders, tmp_path, capsys):
    arguments, expected = CASES[case]
    line = fails(
        capsys,
        *["merge", "--output", tmp_path / "out", "--method=Isotropic"],
        *["--optimizer.search=Fixed", f"--experts.rte={folders / 'rte'}"],
        *["--data.tasks.rte=Glue", "--data.tasks.rte.init_args.task=rte"],
        f"--data.tasks.rte.init_args.source={folders / 'glue'}",
        *arguments(folders),
    )
    assert expected in line, line
    assert not (tmp_path / "out").exists()


def test_donors_alone_make_no_merge(folders, tmp_path, capsys):
    both = [donor(folders, "squad2"), donor(folders, "rte").replace("other", "more")]
    line = fails(capsys, "merge", "--output", tmp_path / "out", *both)
    assert (
        "--experts: more, other are all donors; a merge needs at least one expert that has" in line
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.tasks.rte.init_args.task=ax"], "unknown value 'ax'; known: cola, sst2"),
        (
            ["--data.tasks.rte.init_args.task=rte", "--data.tasks.rte.init_args.test=test"],
            "unknown value 'test'; known: half, validation",
        ),
        (["--data.tasks.rte.init_args.task=cola"], "cannot read its train split"),
    ],
)
def test_data_are_refused(options, expected, folders, tmp_path, capsys):
    line = fails(
        capsys,
        *["fisher", "--expert", folders / "rte", "--output", tmp_path / "f.h5"],
        *["--data.tasks.rte=Glue", *options],
        f"--data.tasks.rte.init_args.source={folders / 'glue'}",
    )
    assert expected in line, line
