"""Everything that touches the disk: checkpoints, Fisher files, atomic writing."""

from fmerge.store.atomic import (
    append_line,
    check_new_file,
    check_new_folder,
    replacing_file,
    write_text,
)
from fmerge.store.checkpoints import load_classifier
from fmerge.store.fishers import check_fisher_path, read_fisher, write_fisher
from fmerge.store.language_models import load_language_model
from fmerge.store.partial import read_partial, write_partial
from fmerge.store.sources import load_lightning, load_tokenizer, save_models

__all__ = [
    "append_line",
    "check_fisher_path",
    "check_new_file",
    "check_new_folder",
    "load_classifier",
    "load_language_model",
    "load_lightning",
    "load_tokenizer",
    "read_fisher",
    "read_partial",
    "replacing_file",
    "save_models",
    "write_fisher",
    "write_partial",
    "write_text",
]
