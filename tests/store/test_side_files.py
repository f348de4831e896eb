"""What a merged or fine-tuned model takes over from a model's folder beside its weights."""

import os

from fmerge.store.side_files import copy_side_files, hub_folder, side_files

COPIED = [
    *("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "added_tokens.json", "bpe.codes"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt"),
    *("preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model"),
    *("special_tokens_map.json", "spiece.model", "source.spm", "tokenizer.json"),
    *("tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json", "vocab.json", "vocab.txt"),
]
LEFT = [
    *(".gitattributes", "README.md", "config.json", "model.safetensors", "pytorch_model.bin"),
    *("model.safetensors.index.json", "tf_model.h5", "flax_model.msgpack", "model.onnx"),
    *("model.gguf", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"),
    *("trainer_state.json", "modeling_own.py", "tokenizer.py", "train.csv", "train.parquet"),
    *("adapter_config.json", "all_results.json", "events.out.tfevents.1", "figure.png"),
]


def filled(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"the content of {name}")
    return folder


def test_side_files_are_told_from_weights_and_training(tmp_path):
    folder = filled(tmp_path / "model", COPIED + LEFT)
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "tokenizer.model").write_text("of another step")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    os.mkfifo(folder / "vocab.pipe.txt")  # never opened
    assert sorted(map(str, side_files(folder))) == sorted([
        *COPIED,
        "additional_chat_templates/tool.jinja",
    ])


def test_files_are_copied_byte_by_byte_and_never_over_others(tmp_path):
    source = filled(tmp_path / "source", ["tokenizer.model", "vocab.txt", "generation_config.json"])
    (source / "tokenizer.model").write_bytes(bytes(range(256)))
    (source / "linked.json").symlink_to(source / "vocab.txt")  # as the hub's cache does
    target = tmp_path / "target"
    target.mkdir()
    for name in ("vocab.txt", "generation_config.json"):
        (target / name).write_text("own")
    copy_side_files(source, target, replacing=("generation_config.json",))
    assert (target / "tokenizer.model").read_bytes() == bytes(range(256))
    assert (target / "vocab.txt").read_text() == "own"
    assert (target / "generation_config.json").read_text() == (
        "the content of generation_config.json"
    )
    linked = target / "linked.json"
    assert not linked.is_symlink() and linked.read_text() == "the content of vocab.txt"


def test_what_is_not_in_the_hubs_cache_is_not_asked_for(tmp_path, monkeypatch):
    # the network is closed in tests: a request would raise
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source in ("owner/absent", "a/b/c", "model.pt", ""):
        assert hub_folder(source) is None


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    place = tmp_path / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    folder = filled(place / "snapshots" / commit, ["config.json", "tokenizer.model"])
    assert hub_folder("owner/name") == folder
    assert list(map(str, side_files(folder))) == ["tokenizer.model"]


def test_modules_of_sentence_transformers_travel_with_their_configs(tmp_path):
    folder = filled(tmp_path / "model", ["modules.json", "config.json"])
    for name in ("1_Pooling/config.json", "2_Dense/model.safetensors", "checkpoint-7/config.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    assert list(map(str, side_files(folder))) == ["1_Pooling/config.json", "modules.json"]
    (folder / "modules.json").unlink()
    assert side_files(folder) == []
