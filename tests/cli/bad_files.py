"""Damaged and hostile files that are no model folders, and what is said of each."""

import json
import shutil

import h5py
import numpy
import torch
from safetensors.torch import save_file

from tests.cli.bad_folders import Payload
from tests.cli.run import data_config, experts

_PROVENANCE = json.dumps({"model": "x", "model_sha256": "y"})


def fisher(ending, write):
    """A FisherMerge of two experts whose Fishers are one bad file."""

    def arguments(zoo, tmp_path):
        path = tmp_path / f"fisher.{ending}"
        write(path)
        return [
            "merge",
            *[
                f"--experts.{task}=" + json.dumps({"path": source, "fisher": str(path)})
                for task, source in zoo.experts.items()
            ],
            *["--method", "FisherMerge", "--output", tmp_path / "out"],
        ]

    return arguments


def h5(fill, provenance=_PROVENANCE):
    def write(path):
        other = path.with_name("other.h5")
        with h5py.File(other, "w") as file:
            file["w"] = numpy.ones(4, "f4")
        with h5py.File(path, "w") as file:
            if provenance is not None:
                file.attrs["fmerge.fisher"] = provenance
            fill(file)

    return fisher("h5", write)


def tensors(values, provenance=_PROVENANCE):
    metadata = {} if provenance is None else {"fmerge.fisher": provenance}
    return fisher("safetensors", lambda path: save_file(values, path, metadata))


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
    file.create_virtual_dataset("w", layout)


def link(kind, *to):
    return lambda file: file.__setitem__("w", kind(*to))


def data(name, **options):
    return lambda file: file.create_dataset(name, **options)


def claim(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((2**48,))
    h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, plist)


_ONES = {"w": torch.ones(4)}
_NOT_PLAIN = "but a Fisher holds plain floating-point tensors"

FISHERS = [
    ("an HDF5 file that is noise", "not a readable HDF5 file",
     fisher("h5", lambda path: path.write_bytes(b"\xff" * 999))),
    ("an HDF5 file that is empty", "not a readable HDF5 file",
     fisher("h5", lambda path: path.write_bytes(b""))),
    ("an external link", f"'w' is a ExternalLink, {_NOT_PLAIN}",
     h5(link(h5py.ExternalLink, "other.h5", "w"))),
    ("a soft link", f"'w' is a SoftLink, {_NOT_PLAIN}", h5(link(h5py.SoftLink, "/elsewhere"))),
    ("a virtual dataset", f"'w' takes its values from other files, {_NOT_PLAIN}", h5(virtual)),
    ("a dataset in another file", f"'w' takes its values from other files, {_NOT_PLAIN}",
     h5(data("w", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)]))),
    ("a group", f"'g' is a Group, {_NOT_PLAIN}", h5(data("g/w", data=numpy.ones(4, "f4")))),
    ("whole numbers in HDF5", f"'w' is of kind int64, {_NOT_PLAIN}",
     h5(data("w", data=numpy.ones(4, "i8")))),
    ("text in HDF5", "'w' is of kind object", h5(data("w", data="text"))),
    ("the other byte order", "'w' is of the other byte order (>f4)",
     h5(data("w", data=numpy.ones(4, ">f4")))),
    ("a compressed dataset", f"'w' is chunked or compressed, {_NOT_PLAIN}",
     h5(data("w", data=numpy.zeros(10**6, "f4"), compression="gzip"))),
    ("a dataset that claims a petabyte", "claims 1125899906842624 bytes", h5(claim)),
    ("HDF5 without provenance", "its provenance is missing",
     h5(data("w", data=numpy.ones(4, "f4")), None)),
    ("provenance that is no JSON", "its provenance is no JSON", tensors(_ONES, "{")),
    ("provenance that is a list", "its provenance is no JSON object", tensors(_ONES, "[]")),
    ("weights as a Fisher", "was not written by 'fmerge fisher'", tensors(_ONES, None)),
    ("whole numbers", f"'w' is of kind I64, {_NOT_PLAIN}", tensors({"w": torch.ones(4).long()})),
    ("negative entries", "is no such tensor", tensors({"w": -torch.ones(4)})),
    ("nothing but zeros", "is no such tensor", tensors({"w": torch.zeros(4)})),
    ("no tensors", "is no such tensor", tensors({})),
    ("a NaN in a Fisher", "is no such tensor",
     tensors({"w": torch.tensor([1.0, torch.nan])})),
    ("a Fisher of another model", "is no such tensor, but (18, 16) in", tensors(_ONES)),
]  # fmt: skip


def checkpoint(content, command="merge"):
    """A command on a Lightning checkpoint."""

    def arguments(zoo, tmp_path):
        path = tmp_path / "bad.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content(tmp_path) if callable(content) else content, path)
        if command == "merge":
            others = f"--experts.animal={zoo.experts['animal']}"
            return ["merge", f"--experts.colour={path}", others, "--output", tmp_path / "out"]
        given = [command, "--config", data_config(zoo, tmp_path, "colour"), "--ckpt_path", path]
        output = ["--output", tmp_path / "out"] if command == "fit" else []
        return [*given, "--model.path", zoo.base, *output]

    return arguments


def evil(tmp_path):
    return {"state_dict": {}, "callbacks": Payload(tmp_path / "ran")}


CHECKPOINTS = [
    ("a .ckpt that would run code", "bad.ckpt: refused, as it is damaged or", checkpoint(evil)),
    ("a .ckpt that is noise", "bad.ckpt: refused, as it is damaged", checkpoint(b"\xff" * 99)),
    ("a .ckpt of something else", "is no Lightning checkpoint", checkpoint([1])),
    ("a state that is no dictionary", "is no dictionary", checkpoint({"state_dict": [1]})),
    ("a state of numbers", "'a' is no tensor", checkpoint({"state_dict": {"a": 1}})),
    ("a .ckpt without a model's name", "its hyper-parameters are missing",
     checkpoint({"state_dict": {}, "hyper_parameters": {"path": 3}})),
    ("tasks that are no lists", "its 'tasks' are no lists of labels by task",
     checkpoint({"state_dict": {}, "hyper_parameters": {"path": "x", "tasks": {"colour": 1}}})),
    ("resuming from a .ckpt that would run code", "bad.ckpt: refused", checkpoint(evil, "fit")),
    ("resuming from a missing .ckpt", "--ckpt_path", checkpoint(None, "fit")),
    ("testing a .ckpt that would run code", "bad.ckpt: refused", checkpoint(evil, "test")),
    ("a .ckpt that names a class", "was made with os.Evil, but --model is", checkpoint(
        {"state_dict": {}, "hyper_parameters": {"_class_path": "os.Evil"}}, "test")),
    ("a .ckpt on the web", "nothing is downloaded",
     lambda zoo, tmp_path: ["test", "--ckpt_path", "https://example.org/x.ckpt"]),
]  # fmt: skip


def run_folder(name, content):
    """A merge into the folder of a run whose state is damaged."""

    def arguments(zoo, tmp_path):
        output = tmp_path / "run"
        output.mkdir()
        (output / "trials.jsonl").write_text("")
        (output / name).write_bytes(content)
        return ["merge", *experts(zoo), "--output", output]

    return arguments


def option(*options):
    return lambda zoo, tmp_path: ["merge", *experts(zoo), "--output", tmp_path / "out", *options]


def config_file(content):
    def arguments(zoo, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content)
        return ["merge", "--config", path, "--output", tmp_path / "out"]

    return arguments


def examples(name, content, every=False):
    def arguments(zoo, tmp_path):
        bad = tmp_path / name
        bad.write_bytes(content)
        files = {**zoo.tasks["colour"], "train": str(bad)}
        if every:
            files = dict.fromkeys(files, str(bad))
        task = {"class_path": "TextFiles", "init_args": files}
        tasks = ["--data.tasks", json.dumps({"colour": task})]
        return ["fit", "--model.path", zoo.base, "--output", tmp_path / "out", *tasks]

    return arguments


def output_is_a_file(zoo, tmp_path):
    shutil.copy(zoo.tasks["colour"]["test"], tmp_path / "out")
    return option()(zoo, tmp_path)


def without_tokenizer(zoo, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(zoo.base, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    tasks = json.dumps({"colour": {"class_path": "TextFiles", "init_args": zoo.tasks["colour"]}})
    return ["fit", "--model.path", folder, "--output", tmp_path / "out", "--data.tasks", tasks]


OTHERS = [
    ("no tokenizer", "holds no tokenizer, such as tokenizer.json", without_tokenizer),
    ("config.yaml of a run is damaged", "config.yaml: is damaged",
     run_folder("config.yaml", b"{a: [")),
    ("config.yaml of a run is a list", "config.yaml: is damaged (it holds list)",
     run_folder("config.yaml", b"[1, 2]")),
    ("config.yaml of a run is noise", "config.yaml: is damaged",
     run_folder("config.yaml", b"\xff\x00")),
    ("the output is a file", "is a file, but a folder is needed", output_is_a_file),
    ("a config file that is no YAML", "mine.yaml: is no YAML", config_file(b"a: [")),
    ("a config file that is a list", "mine.yaml: holds list, but options", config_file(b"[1]")),
    ("a config file of Python objects", "mine.yaml: is no YAML (could not determine a constructor",
     config_file(b"method: !!python/object/apply:os.system [ls]")),
    ("a misspelt option", "did you mean --method?", option("--metod", "Average")),
    ("an unknown method", "unknown class 'Mean'", option("--method", "Mean")),
    ("an unknown device", "--trainer: ", option("--trainer.accelerator", "abacus")),
    ("data that are noise", "bad.parquet: cannot read its", examples("bad.parquet", b"\xff" * 99)),
    ("data of another kind", "bad.jsonl: cannot read its", examples("bad.jsonl", b"\x00 no JSON")),
    ("data with an unknown ending", "bad.exe: has an unknown ending", examples("bad.exe", b"")),
    ("data without rows", "bad.csv", examples("bad.csv", b"text,label\n")),
    ("a row without a label", "bad.csv, row 3, column 'label': has no label",
     examples("bad.csv", b"text,label\nred,pet\ncat,\n")),
    ("a row without a text", "bad.csv, row 3, column 'text': is empty",
     examples("bad.csv", b"text,label\nred,pet\n,wild\n")),
    ("scores as labels", "column 'label': holds 0.5, a number that is not whole",
     examples("bad.jsonl", b'{"text": "red", "label": 0.5}', every=True)),
    ("another encoding", "bad.csv, row 2: is not UTF-8 (byte 0xe9); save the file as UTF-8",
     examples("bad.csv", "text,label\nr\u00e9d,pet\n".encode("latin1"))),
    ("a cell too many", "row 2: has 3 cells, but the header has 2; quote texts that hold ','",
     examples("bad.csv", b"text,label\nred, blue,pet\n")),
]  # fmt: skip
