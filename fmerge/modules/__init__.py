"""LightningModules: task modules, and the passes around one.

Examples:
    >>> from fmerge.modules import TextClassifier
    >>> module = TextClassifier(max_length=48)
    >>> network = module.read("path/to/model_a", "a")
    >>> network.config.num_labels
    3
"""

from fmerge.modules.base import TaskModule
from fmerge.modules.calibration_pass import CalibrationPass
from fmerge.modules.classification import Classifier, TextClassifier
from fmerge.modules.clip import ClipClassifier
from fmerge.modules.embedding import TextEmbedder
from fmerge.modules.feature_pass import FeaturePass
from fmerge.modules.fisher_pass import FisherPass
from fmerge.modules.fitted_layers import batch_norms
from fmerge.modules.generator import TextGenerator
from fmerge.modules.gram_pass import GramPass, linear_weights
from fmerge.modules.heads import HeadedModule, SharedBody
from fmerge.modules.images import ImageClassifier, ImageModule
from fmerge.modules.level_fits import Bodies
from fmerge.modules.logistic import fit_linear
from fmerge.modules.losses import Loss
from fmerge.modules.own import OwnModule
from fmerge.modules.prediction_recorder import Predictions, record_predictions
from fmerge.modules.preprocessed import PreprocessedModule
from fmerge.modules.rank_choice import RankChoice
from fmerge.modules.reading import read_network
from fmerge.modules.saving import Saving
from fmerge.modules.spans import SpanAnswers
from fmerge.modules.tagging import TokenClassifier
from fmerge.modules.tokenized import TokenizedModule

__all__ = [
    "Bodies",
    "CalibrationPass",
    "Classifier",
    "ClipClassifier",
    "FisherPass",
    "GramPass",
    "FeaturePass",
    "HeadedModule",
    "ImageClassifier",
    "ImageModule",
    "Loss",
    "OwnModule",
    "Predictions",
    "PreprocessedModule",
    "RankChoice",
    "Saving",
    "SharedBody",
    "SpanAnswers",
    "TaskModule",
    "TextClassifier",
    "TextEmbedder",
    "TextGenerator",
    "TokenClassifier",
    "TokenizedModule",
    "batch_norms",
    "fit_linear",
    "linear_weights",
    "read_network",
    "record_predictions",
]
