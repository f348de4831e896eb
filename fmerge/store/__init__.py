"""Everything that touches the disk: checkpoints, Fisher files, atomic writing."""

from fmerge.store.adam_moments import read_second_moments
from fmerge.store.adapter_saving import SavedAdapter
from fmerge.store.adapter_weights import hash_of, merged_weight, outputs_last
from fmerge.store.adapters import Adapter, adapters_on, is_adapter, read_adapter
from fmerge.store.atomic import (
    LOCK,
    append_line,
    check_new_file,
    check_new_folder,
    check_place,
    disk_trouble,
    explaining,
    recover_folder,
    remove_leftovers,
    replacing_file,
    write_text,
)
from fmerge.store.candidates import candidate_trial, read_candidate, write_candidate
from fmerge.store.checkpoints import Head, load_classifier, new_pooler
from fmerge.store.clip import fitted_tower, is_tower, load_clip, load_clip_processor, load_tower
from fmerge.store.embedders import load_embedder, pooling_of
from fmerge.store.fisher_cache import FisherCache
from fmerge.store.fisher_files import (
    check_fisher,
    check_fisher_path,
    read_fisher,
    read_fisher_header,
    stored_fisher,
    write_fisher,
)
from fmerge.store.image_processors import IMAGE_PROCESSORS
from fmerge.store.images import ImageFile, StoredImage, image_digest, is_image, open_image
from fmerge.store.label_kinds import (
    USUAL_METRICS,
    Kind,
    LabelNames,
    kind_of,
    labels_of_config,
)
from fmerge.store.labels import checkpoint_order, in_checkpoint_order
from fmerge.store.language_models import load_language_model
from fmerge.store.lock import lock_of, only_run
from fmerge.store.module_kinds import first_class_path
from fmerge.store.partial import begun_with, read_partial, remove_partial, write_partial
from fmerge.store.preprocessors import NO_PREPROCESSORS, TOKENIZERS, Preprocessors
from fmerge.store.run_folder import PARTS, RunFolder
from fmerge.store.saved_form import (
    Dtype,
    SavedForm,
    check_dtype,
    form_of,
    merged_dtypes,
    parse_size,
)
from fmerge.store.saving import save_models
from fmerge.store.shards import ShardPlan, ShardWriter, plan_shards
from fmerge.store.sources import check_resume, is_lightning, load_lightning
from fmerge.store.state_saving import save_states
from fmerge.store.states import fill, outputs_in, read_state
from fmerge.store.tensor_files import StoredParams, StoredTensor, tensors_of
from fmerge.store.tokenizer_match import check_tokenizer, give_padding
from fmerge.store.tokenizer_parts import tokenizer_differences, vocabulary_difference
from fmerge.store.tokenizers import find_tokenizer, load_tokenizer
from fmerge.store.trial_log import note_time, read_times
from fmerge.store.weight_places import places_in, stored_folder
from fmerge.store.weights import reading_headers

__all__ = [
    "IMAGE_PROCESSORS",
    "LOCK",
    "NO_PREPROCESSORS",
    "Adapter",
    "TOKENIZERS",
    "USUAL_METRICS",
    "Dtype",
    "Head",
    "Kind",
    "LabelNames",
    "ImageFile",
    "Preprocessors",
    "PARTS",
    "RunFolder",
    "SavedAdapter",
    "SavedForm",
    "StoredImage",
    "FisherCache",
    "check_dtype",
    "form_of",
    "merged_dtypes",
    "merged_weight",
    "parse_size",
    "adapters_on",
    "append_line",
    "begun_with",
    "explaining",
    "candidate_trial",
    "check_fisher",
    "check_fisher_path",
    "stored_fisher",
    "check_new_file",
    "check_new_folder",
    "check_place",
    "check_resume",
    "check_tokenizer",
    "checkpoint_order",
    "disk_trouble",
    "find_tokenizer",
    "first_class_path",
    "fill",
    "fitted_tower",
    "give_padding",
    "hash_of",
    "image_digest",
    "in_checkpoint_order",
    "is_adapter",
    "kind_of",
    "labels_of_config",
    "is_image",
    "is_lightning",
    "is_tower",
    "load_classifier",
    "load_embedder",
    "pooling_of",
    "load_clip",
    "load_clip_processor",
    "load_language_model",
    "load_lightning",
    "load_tokenizer",
    "load_tower",
    "lock_of",
    "new_pooler",
    "note_time",
    "only_run",
    "outputs_in",
    "outputs_last",
    "read_adapter",
    "open_image",
    "read_fisher",
    "read_fisher_header",
    "read_candidate",
    "read_partial",
    "read_second_moments",
    "read_state",
    "places_in",
    "plan_shards",
    "reading_headers",
    "stored_folder",
    "tensors_of",
    "ShardPlan",
    "ShardWriter",
    "StoredParams",
    "StoredTensor",
    "read_times",
    "recover_folder",
    "remove_leftovers",
    "remove_partial",
    "replacing_file",
    "save_models",
    "save_states",
    "tokenizer_differences",
    "vocabulary_difference",
    "write_fisher",
    "write_candidate",
    "write_partial",
    "write_text",
]
