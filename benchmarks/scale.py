"""Merges of large models: peak memory, processor time, wall time and bytes, beside ``cp``.

    python benchmarks/scale.py [--billions 1.1] [--methods Average TIES FisherMerge]
        [--folder /tmp/scale] [--mergekit /path/to/mergekit-yaml] [--keep]

Makes a base and two experts of random bf16 weights in the layout of Llama, merges them by
``fmerge merge`` without data, each method in a process of its own, and by mergekit's recipes of
the same kind where its program is given. Memory is the process's own, without the pages of files
that the system caches or maps for it: the largest ``RssAnon`` of ``/proc/PID/status``, sampled 20
times a second. Every reading finds the files in the system's cache if memory has room for them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

SHARD = 1 << 30
SECONDS = 0.05
WEIGHTS = {"Average": "linear", "TIES": "ties", "TaskArithmetic": "task_arithmetic"}
"""Methods of fmerge to those of mergekit."""


class Run(NamedTuple):
    """What one program took."""

    memory: float
    processor: float
    wall: float
    read: float
    written: float


def config_of(billions: float) -> LlamaConfig:
    """A Llama of about so many parameters; with 1.1, TinyLlama's shape."""
    width = 2048 if billions < 3 else 4096
    inner = 5632 if billions < 3 else 11008
    heads, groups = width // 64, 4 if billions < 3 else width // 64
    layer = 2 * width * width + 2 * width * width * groups // heads + 3 * width * inner
    layers = max(1, round((billions * 1e9 - 2 * 32000 * width) / layer))
    return LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=False,
        dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def shapes_of(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a model, without making it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return {name: tuple(one.shape) for name, one in model.named_parameters()}


def make(folder: Path, config: LlamaConfig, seed: int, base: Path | None, fisher: bool) -> None:
    """Writes random weights, near those of a base, shard by shard; and a Fisher of that layout."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokens = {f"<{n}>": n for n in range(config.vocab_size)}
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel(tokens, unk_token="<0>"))
    kind: Any = PreTrainedTokenizerFast
    made = kind(tokenizer_object=tokenizer, unk_token="<0>", eos_token="<1>")
    made.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes_of(config)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        bytes_ = 2 * torch.Size(shape).numel()
        if size + bytes_ > SHARD and shards[-1]:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += bytes_
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            noise = torch.randn(shapes[name], generator=generator) * 0.02
            if base is not None:
                noise = 0.1 * noise + read(base, name, file).float()
            tensors[name] = noise.bfloat16()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    whole = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    if fisher:
        write_fisher(folder, shapes, generator)


def read(folder: Path, name: str, file: str) -> torch.Tensor:
    """Reads one tensor of a shard."""
    from safetensors import safe_open

    with safe_open(folder / file, framework="pt") as found:
        tensor: torch.Tensor = found.get_tensor(name)
    return tensor


def write_fisher(
    folder: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator
) -> None:
    """Writes a Fisher in bf16, with the hash of the folder's weights."""
    import hashlib

    from fmerge.store.tensor_files import stored_tensors

    places = stored_tensors(folder)
    digest = hashlib.sha256()
    for name in sorted(places):
        digest.update(f"{name}|torch.float32|{places[name].shape}|".encode())
        digest.update(memoryview(places[name].read().float().numpy()))  # type: ignore[arg-type]
    values = {
        name: torch.rand(shape, generator=generator).square_().bfloat16()
        for name, shape in shapes.items()
    }
    provenance = {"model_sha256": digest.hexdigest(), "examples": 1, "split": "train"}
    save_file(
        values, f"{folder}.fisher.safetensors",
        metadata={"fmerge.fisher": json.dumps(provenance), "format": "pt"},
    )  # fmt: skip


def measure(command: list[str]) -> Run:
    """Runs a program and measures it; its children count in processor time alone."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, most = time.time(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    read = written = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, *(int(x.split()[1]) for x in status.split("\n") if "RssAnon" in x))
            counts = dict(
                x.split(": ") for x in Path(f"/proc/{process.pid}/io").read_text().split("\n") if x
            )
            read, written = int(counts["rchar"]), int(counts["wchar"])
        except (OSError, TypeError, ValueError):
            pass  # it has just ended
        time.sleep(SECONDS)
    if process.returncode:
        said = process.stderr.read() if process.stderr else b""
        raise SystemExit(said.decode()[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(most / 1e6, used, time.time() - began, read / 1e9, written / 1e9)


def fmerge_command(method: str, folder: Path) -> list[str]:
    """The command of a merge without data."""
    command = [
        sys.executable, str(Path(__file__).parents[1] / "cli.py"), "merge", "--model", "RankChoice",
        "--method", method, "--output", str(folder / "out"), "--overwrite", "true",
    ]  # fmt: skip
    for name in ("a", "b"):
        command += [f"--experts.{name}.path", str(folder / name)]
        if method == "FisherMerge":
            command += [f"--experts.{name}.fisher", str(folder / f"{name}.fisher.safetensors")]
    return [
        *command,
        *(["--base", str(folder / "base")] if method in {"TIES", "TaskArithmetic"} else []),
    ]


def recipe(method: str, folder: Path) -> Path:
    """A recipe of mergekit for the same kind of merge."""
    lines = [f"merge_method: {WEIGHTS[method]}", "dtype: bfloat16", "models:"]
    for name in ("a", "b"):
        lines += [f"  - model: {folder / name}", "    parameters: {weight: 0.5, density: 0.2}"]
    if method != "Average":
        lines.append(f"base_model: {folder / 'base'}")
    path = folder / f"{method}.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--billions", type=float, default=1.1)
    parser.add_argument("--methods", nargs="*", default=["Average", "TIES", "FisherMerge"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale"))
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"))
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    folder, config = given.folder, config_of(given.billions)
    if not (folder / "b").exists():
        fisher = "FisherMerge" in given.methods
        make(folder / "base", config, 0, None, False)
        for seed, name in enumerate(("a", "b"), 1):
            make(folder / name, config, seed, folder / "base", fisher)
    numbers = sum(torch.Size(one).numel() for one in shapes_of(config).values())
    shards = len(list((folder / "a").glob("*.safetensors")))
    print(f"{numbers / 1e9:.2f} billion bf16 parameters in {shards} shards")
    units = "memory, GB | processor, s | wall, s | read, GB | written, GB"
    print(f"| program | method | {units} | times cp |")
    print("|---|---|---|---|---|---|---|---|")
    copied = measure(["cp", "-r", str(folder / "a"), str(folder / "copy")])
    copied_two = measure(["cp", "-r", str(folder / "b"), str(folder / "copy two")])
    for name in ("copy", "copy two"):
        shutil.rmtree(folder / name)
    unit = copied.wall + copied_two.wall
    print(
        row(
            "cp", "two models", Run(*(a + b for a, b in zip(copied, copied_two, strict=True))), unit
        )
    )
    for method in given.methods:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        print(row("fmerge", method, measure(fmerge_command(method, folder)), unit), flush=True)
        shutil.rmtree(folder / "out")
        if given.mergekit and method in WEIGHTS:
            command = [given.mergekit, str(recipe(method, folder)), str(folder / "out")]
            print(row("mergekit", WEIGHTS[method], measure(command), unit), flush=True)
            shutil.rmtree(folder / "out")
    if not given.keep:
        shutil.rmtree(folder)


def row(program: str, method: str, run: Run, unit: float) -> str:
    """A row of the table."""
    numbers = " | ".join(f"{one:.1f}" for one in [*run, run.wall / unit])
    return f"| {program} | {method} | {numbers} |"


if __name__ == "__main__":
    main()
