"""Language models from fit to a merged folder, through the command line."""

import json
import math

import pytest
import rich
import torch
import yaml
from transformers import pipeline

from fmerge.cli.app import main
from fmerge.modules import TextGenerator
from fmerge.store import load_tokenizer, read_fisher
from tests import tiny
from tests.cli.run import fails

PROMPTS = {"colours": 3, "animals": 40}


def examples(seed, n):
    prompts, answers = tiny.sentences(n, seed), tiny.sentences(n, seed + 1)
    return [
        {"prompt": prompt, "reply": " ".join(answer.split()[:3])}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, its data, and a configuration of both."""
    folder = tmp_path_factory.mktemp("generator")
    base = tiny.language_model(tiny.gpt2_config())
    base.save_pretrained(folder / "base")
    tiny.text_tokenizer("$A").save_pretrained(folder / "base")
    tasks = {}
    for task, seed in PROMPTS.items():
        splits = {}
        for i, (split, n) in enumerate({"train": 12, "validation": 6, "test": 5}.items()):
            splits[split] = str(folder / f"{task}_{split}.jsonl")
            rows = [json.dumps(one) for one in examples(seed + 2 * i, n)]
            (folder / f"{task}_{split}.jsonl").write_text("\n".join(rows))
        init_args = {"splits": splits, "text": "{{ prompt }}", "answer": "reply"}
        tasks[task] = {"class_path": "Prompted", "init_args": init_args}
    config = {
        "model": {"class_path": "TextGenerator", "init_args": {"max_new_tokens": 4}},
        "data": {"batch_size": 4, "tasks": tasks},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "all.yaml").write_text(yaml.safe_dump(config))
    for task, own in tasks.items():
        one = {**config, "data": {"batch_size": 4, "tasks": {task: own}}}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(one))
    return folder


@pytest.fixture(scope="module")
def experts(place):
    for task in PROMPTS:
        config = ["--config", str(place / f"{task}.yaml")]
        main([
            *["fit", *config, f"--model.path={place / 'base'}", f"--output={place / task}"],
            *["--model.learning_rate=0.01", "--trainer.max_epochs=3"],
        ])
        main([
            *["fisher", *config, f"--expert={place / task / 'expert'}", "--estimator=sampled"],
            *["--samples=2", f"--output={place / task / 'fisher.safetensors'}"],
        ])
    return place


def scores(table):
    """Reads Lightning's table of metrics, of one set of examples or of several."""
    rows = [line.split("│")[1:-1] for line in table.splitlines() if line.count("│") > 2]
    return {name.strip(): float("".join(values).split()[0]) for name, *values in rows}


def merge(place, output, *options):
    given = [
        part
        for task in PROMPTS
        for part in (
            f"--experts.{task}.path={place / task / 'expert'}",
            f"--experts.{task}.fisher={place / task / 'fisher.safetensors'}",
        )
    ]
    main([
        *["merge", "--config", str(place / "all.yaml"), f"--base={place / 'base'}", *given],
        *[f"--output={output}", *map(str, options)],
    ])


METRICS = [
    f"--data.tasks.{task}.init_args.metrics={value}"
    for task, value in zip(PROMPTS, ("[token_f1, bleu]", "[inverse_perplexity]"), strict=True)
]
SEARCH = ["--optimizer.search=RandomSearch", "--optimizer.search.trials=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--method=Average"],
        ["--method=TIES", *SEARCH],
        ["--method=FisherMerge", *SEARCH, *METRICS],
        ["--method=DFMerge", *SEARCH, "--fisher.estimator=sampled", "--fisher.examples=3"],
        ["--method=RegMean", "--fisher.split=train"],
        [
            *["--method=TaskArithmetic", "--coefficients={colours: 0.5, animals: 0.5}"],
            *["--optimizer.learn=layers", "--optimizer.steps=2", "--polish_steps=2"],
        ],
    ],
    ids=["Average", "TIES", "FisherMerge", "DFMerge", "RegMean", "learned"],
)
def test_merges_open_in_transformers_with_the_same_texts(experts, options, tmp_path, capsys):
    merge(experts, tmp_path / "run", *options)
    trials = [json.loads(line) for line in (tmp_path / "run/trials.jsonl").open()]
    scored = [one for one in trials if one.get("objective") is not None]
    assert scored and all(0 < one["objective"] < 1 for one in scored)
    merged = tmp_path / "run/merged"
    module = TextGenerator(max_new_tokens=4)
    module.adopt({"colours": module.read(str(merged), "colours")}, load_tokenizer(str(merged)))
    module.eval()
    rows = examples(PROMPTS["colours"] + 4, 5)
    given = [{"text": one["prompt"], "answer": one["reply"]} for one in rows]
    texts = module.write(module.collate(given, "colours"))
    pipe = pipeline("text-generation", model=str(merged), device="cpu")
    for one, text in zip(rows, texts, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 4, "return_full_text": False}
        assert pipe(one["prompt"], **settings)[0]["generated_text"].strip() == text
    capsys.readouterr()
    config = ["--config", str(experts / "all.yaml")]
    metrics = [one for one in options if ".metrics=" in one]
    main(["validate", *config, f"--model.path={merged}", *metrics])
    found = scores(capsys.readouterr().out)
    best = max(one["objective"] for one in scored)
    assert found["val/score"] == pytest.approx(best, rel=1e-4)
    assert found["val/perplexity"] > 1


@pytest.mark.slow
def test_fishers_are_of_what_the_experts_write(experts):
    values, provenance = read_fisher(experts / "colours/fisher.safetensors")
    assert provenance["estimator"] == "sampled" and provenance["samples"] == 2
    assert all(bool(((value >= 0) & value.isfinite()).all()) for value in values.values())
    assert sum(float(value.sum()) for value in values.values()) > 0


@pytest.mark.slow
def test_mistakes_are_one_line(experts, tmp_path, capsys):
    config = ["--config", str(experts / "colours.yaml")]
    expert = str(experts / "colours/expert")
    fisher = ["fisher", *config, "--expert", expert, "--output", str(tmp_path / "f.safetensors")]
    assert "estimator: is exact, a sum over all answers" in fails(capsys, *fisher)
    merging = ["merge", "--config", str(experts / "all.yaml"), "--method=DFMerge"]
    for task in PROMPTS:
        merging.append(f"--experts.{task}={experts / task / 'expert'}")
    merging += ["--base", str(experts / "base"), f"--output={tmp_path / 'run'}"]
    assert "estimator: is exact, a sum over all answers" in fails(capsys, *merging)
    validate = ["validate", *config, f"--model.path={expert}"]
    wrong = "--data.tasks.colours.init_args.metrics=[accuracy]"
    assert "metric 'accuracy': does not fit TextGenerator" in fails(capsys, *validate, wrong)
    ranked = fails(capsys, *validate, "--model=RankChoice")
    assert "for texts that a model writes, give --model TextGenerator" in ranked


CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.mark.slow
def test_conversations_and_plain_texts_are_scored_and_priced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rich.get_console(), "width", 200)  # a table that folds no name
    tokenizer = tiny.text_tokenizer("$A")
    tokenizer.chat_template = CHAT
    model = tiny.language_model(tiny.gpt2_config())
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    talks = [
        [
            {"role": "user", "content": one["prompt"]},
            {"role": "assistant", "content": one["reply"]},
        ]
        for one in examples(5, 4)
    ]
    rows = [json.dumps({"messages": talk}) for talk in talks]
    (tmp_path / "talks.jsonl").write_text("\n".join(rows))
    texts = tiny.sentences(5, 9)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    config = {
        "model": {"class_path": "TextGenerator"},
        "data": {
            "tasks": {
                "talks": {
                    "class_path": "Chats",
                    "init_args": {"validation": str(tmp_path / "talks.jsonl")},
                },
                "texts": {
                    "class_path": "PlainText",
                    "init_args": {"validation": str(tmp_path / "texts.txt")},
                },
            }
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", str(tmp_path / "data.yaml")]
    capsys.readouterr()
    main(["validate", *given, f"--model.path={tmp_path / 'base'}"])
    found = scores(capsys.readouterr().out)
    model.eval()
    for task, cases in (("talks", talks), ("texts", texts)):
        total, count = 0.0, 0
        for case in cases:
            if task == "talks":
                whole = f"user {case[0]['content']} [EOS] assistant {case[1]['content']} [EOS]"
                prompt = len(tokenizer(whole.partition("assistant")[0])["input_ids"]) + 1
            else:
                whole, prompt = case, 1
            ids = tokenizer(whole, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(1)
            total += float(log_p[:-1].gather(1, ids[0, 1:, None])[prompt - 1 :].sum())
            count += ids.shape[1] - prompt
        assert found[f"{task}/inverse_perplexity"] == pytest.approx(math.exp(total / count), 1e-4)
    main([
        *["fisher", *given, "--task=texts", f"--expert={tmp_path / 'base'}", "--dry_run=true"],
        *["--estimator=sampled", "--split=validation", f"--output={tmp_path / 'f.safetensors'}"],
        "--model.max_new_tokens=4",
    ])
    shown = capsys.readouterr().out
    assert "Dry run: all checks of headers passed" in shown and "sampled" in shown
