"""Damaged and hostile Hugging Face folders, and what is said of each."""

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import tiny


class Payload:
    """A pickle that makes a file when it is read by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


CODE = "open({!r}, 'w')\nclass Model: pass\n"


def ran(folder: Path) -> Path:
    """Where the payloads of a test leave their mark."""
    return folder.parent / "ran"


def config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def octets(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def header(entries, data=b""):
    written = json.dumps(entries).encode()
    return octets("model.safetensors", len(written).to_bytes(8, "little") + written + data)


def index(content):
    def damage(folder):
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        made = content(names, folder) if callable(content) else content
        (folder / "model.safetensors.index.json").write_text(json.dumps(made))

    return damage


def shard(name):
    return index(
        lambda names, folder: {
            "metadata": {},
            "weight_map": dict.fromkeys(names, name.format(root=folder.parent)),
        }
    )


def weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def pickled(make):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        make(folder / "pytorch_model.bin", Payload(ran(folder)))

    return damage


def code(name, entry, **more):
    def damage(folder):
        (folder / "evil.py").write_text(CODE.format(str(ran(folder))))
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entry} | more))

    return damage


def more_tokens(folder):
    words = tiny.tokenizer()
    words.add_tokens(["new"])
    words.save_pretrained(folder)


def several(folder):
    for name in ("a", "b"):
        shutil.copytree(folder, folder / name)
    (folder / "config.json").unlink()


def pipe(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)  # a reader would wait for ever

    return damage


def one_layer_less(folder):
    config(num_hidden_layers=1)(folder)


def set_to(name, value):
    return weights(lambda tensors: tensors[name].__setitem__(0, value))


def integers(tensors):
    return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}


def one(name, change):
    return weights(lambda tensors: tensors | {name: change(tensors[name])})


def more(*names):
    return weights(lambda tensors: tensors | {name: torch.ones(4, 16) for name in names})


def adapter(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def gguf(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(20))


def sentence_transformers(folder):
    (folder / "modules.json").write_text("[]")
    (folder / "0_Transformer").mkdir()
    (folder / "config.json").rename(folder / "0_Transformer" / "config.json")


QUERY = "bert.encoder.layer.0.attention.self.query.weight"

# what is wrong with it, what the line says, and how to damage a good folder so
FOLDERS = [
    ("config.json is no JSON", "config.json: is no JSON", text("config.json", "{")),
    ("config.json is empty", "config.json: is no JSON", text("config.json", "")),
    ("config.json is a list", "config.json: holds list, but a JSON", text("config.json", "[]")),
    ("config.json is null", "config.json: holds NoneType, but a JSON", text("config.json", "null")),
    ("config.json is not UTF-8", "config.json: is no JSON", octets("config.json", b"\xff\xfe{}")),
    ("config.json nests deeply", "config.json: is no JSON", text("config.json", "[" * 100_000)),
    ("config.json is a pipe", "holds no config.json", pipe("config.json")),
    ("config.json of 65 MB", "bytes, but 67108864 at most are read",
     octets("config.json", b" " * (65 << 20))),
    ("no architecture in the config", "cannot read its config", text("config.json", "{}")),
    ("unknown architecture", "model type `zzz`", config(model_type="zzz")),
    ("architecture that is no name", "cannot read its config", config(model_type=[1])),
    ("size that is no number", "hidden_size is big, but must be a pos", config(hidden_size="big")),
    ("no attention heads", "num_attention_heads is 0, but must be", config(num_attention_heads=0)),
    ("heads that do not divide", "not a multiple of the number", config(num_attention_heads=3)),
    ("unknown activation", "cannot read its config (KeyError: 'zzz')", config(hidden_act="zzz")),
    ("a size that needs petabytes", "weights, but the files beside it hold",
     config(hidden_size=10**7)),
    ("ten thousand layers", "num_hidden_layers is 10000, but the weights hold",
     config(num_hidden_layers=10**4)),
    ("fewer layers than weights", "is of a layer that its config does not have", one_layer_less),
    ("quantized model", "is of a quantized model",
     config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})),
    ("code for the model", "config.json: asks for code of its own (auto_map)",
     code("config.json", {"AutoConfig": "evil.Model"}, model_type="evil")),
    ("code beside a known architecture", "trust_remote_code is not supported",
     code("config.json", {"AutoModelForSequenceClassification": "evil.Model"})),
    ("code for the tokenizer", "tokenizer_config.json: asks for code of its own",
     code("tokenizer_config.json", {"AutoTokenizer": ["evil.Model", None]})),
    ("tokenizer.json is cut off", "cannot read its tokenizer", text("tokenizer.json", "{")),
    ("tokenizer.json is noise", "cannot read its tokenizer", octets("tokenizer.json", b"\xff")),
    ("tokenizer_config.json is a list", "tokenizer_config.json: holds list",
     text("tokenizer_config.json", "[]")),
    ("more tokens than embeddings", "the token 'new' the id 18, but its model has embeddings for",
     more_tokens),
    ("a folder of several models", "but it holds models inside: give", several),
    ("no weights", "cannot read its weights: it holds no",
     lambda folder: (folder / "model.safetensors").unlink()),
    ("weights are a pipe", "cannot read its weights: it holds no", pipe("model.safetensors")),
    ("weights are empty", "not a readable safetensors file", octets("model.safetensors", b"")),
    ("weights are noise", "not a readable safetensors file",
     octets("model.safetensors", bytes(range(256)) * 9)),
    ("weights are cut off", "not a readable safetensors file",
     lambda folder: os.truncate(folder / "model.safetensors", 3000)),
    ("a header of 2⁶³ bytes", "header too large",
     octets("model.safetensors", (2**63).to_bytes(8, "little") + b"{}")),
    ("a length in the other byte order", "header too large",
     octets("model.safetensors", (40).to_bytes(8, "big") + b" " * 40)),
    ("a tensor that claims petabytes", "not a readable safetensors file",
     header({"w": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}})),
    ("a negative shape", "invalid value: integer `-1`",
     header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000")),
    ("tensors that overlap", "not a readable safetensors file",
     header({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, b"0" * 8)),
    ("unknown kind of numbers", "not a readable safetensors file",
     header({"w": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"0000")),
    ("weights of whole numbers", "is of kind I32, but weights are floating-point",
     weights(integers)),
    ("a tensor of another shape", f"body tensor '{QUERY}' is (16, 8) where its config says",
     one(QUERY, lambda tensor: tensor[:, :8].contiguous())),
    ("a tensor is missing", "is missing",
     weights(lambda tensors: {n: t for n, t in tensors.items() if n != QUERY})),
    ("a missing shard", "names the shard 'model-1.safetensors', which is missing",
     shard("model-1.safetensors")),
    ("a shard outside of the folder", "but a shard is a .safetensors file in the same folder",
     shard("../other/model.safetensors")),
    ("a shard by its absolute path", "but a shard is a .safetensors file in the same folder",
     shard("{root}/other/model.safetensors")),
    ("a pickle as a shard", "but a shard is a .safetensors file in the", shard("evil.bin")),
    ("a shard that is no file name", "names the shard '1'", shard("1")),
    ("an index that is a list", "index.json: holds list", index([])),
    ("an index of nothing", "lacks 'weight_map' or 'metadata'", index({})),
    ("a .bin that would run code", "pytorch_model.bin: refused, as it is damaged or holds more",
     pickled(lambda path, payload: torch.save({"a": payload}, path))),
    ("a bare pickle that would run code", "pytorch_model.bin: refused, as it is damaged or holds",
     pickled(lambda path, payload: path.write_bytes(pickle.dumps(payload)))),
    ("a .bin that is a list", "pytorch_model.bin: holds a list, but tensors by name",
     pickled(lambda path, payload: torch.save([1], path))),
    ("a .bin of numbers", "pytorch_model.bin: 'a' is no tensor",
     pickled(lambda path, payload: torch.save({"a": 1}, path))),
    ("a .bin that is noise", "pytorch_model.bin: refused, as it is damaged",
     pickled(lambda path, payload: path.write_bytes(b"\x80\x02}q\x00" + b"\xff" * 50))),
    ("a NaN", "holds 1 NaN or infinite entries",
     set_to("bert.pooler.dense.bias", torch.nan)),
    ("an infinity", "holds 1 NaN or infinite entries", set_to("bert.pooler.dense.bias", torch.inf)),
    ("another activation than the base's", "hidden_act relu, but", config(hidden_act="relu")),
    ("another number of heads", "num_attention_heads 4, but", config(num_attention_heads=4)),
    ("another layer norm", "layer_norm_eps 0.1, but", config(layer_norm_eps=0.1)),
    ("another entry inside an entry", "rope.theta 2.0, but", config(rope={"theta": 2.0})),
    ("an adapter among the weights", "BertForSequenceClassification does not use; it is of an ada",
     more("bert.encoder.layer.0.output.adapters.a.adapter_up.weight")),
    ("a token classifier (NER)",
     "has no token classification head: it is a text classifier (BertForSequenceC",
     config(architectures=["BertForTokenClassification"])),
    ("an architecture of another family",
     "names the architecture RobertaForSequenceClassification, but its model_type is bert",
     config(architectures=["RobertaForSequenceClassification"])),
    ("a vision model's config", "which ViTForImageClassification does not use; give the model as",
     config(model_type="vit", architectures=["ViTForImageClassification"])),
    ("an adapter of PEFT that is no LoRA", "is an adapter of type IA3, but fmerge reads", adapter),
    ("a GGUF model", "is a GGUF model, the quantized format of llama.cpp", gguf),
    ("an embedding model", "is an embedding model of sentence-transformers", sentence_transformers),
    ("an expert of another base", "as far as an unrelated model",
     lambda folder: tiny.save(
         tiny.classifier(tiny.bert_config(tiny.LABELS["colour"]), seed=77), folder)),
]  # fmt: skip


def folder_arguments(damage):
    """A merge of a damaged expert with a good one, on their base."""

    def arguments(zoo, tmp_path):
        folder = tmp_path / "expert"
        shutil.copytree(zoo.experts["colour"], folder)
        shutil.copytree(zoo.experts["animal"], tmp_path / "other")
        damage(folder)
        return [
            *["merge", f"--experts.colour={folder}", f"--experts.animal={zoo.experts['animal']}"],
            *["--base", zoo.base, "--method", "Average", "--output", tmp_path / "out"],
        ]

    return arguments
