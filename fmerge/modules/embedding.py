"""Embeddings of texts, as of sentence-transformers: similarity and retrieval of pairs.

Letters: n example, a pair of texts; t token; d embedding dimension.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fmerge.errors import UserError, check_within
from fmerge.fisher import Estimator
from fmerge.modules.label_answers import LabelAnswers
from fmerge.modules.one_model import OneModel
from fmerge.modules.optimization import Scheduler
from fmerge.modules.tokenized import model_inputs
from fmerge.modules.truncation import max_input_length
from fmerge.store import LabelNames, kind_of, load_embedder, pooling_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
class TextEmbedder(OneModel, LabelAnswers):
    r"""One embedding model for all tasks; a folder of sentence-transformers, or a body alone.

    Pairs with a score, such as STS-B's: the answer y is the score divided by ``score_scale``, and
    the cosine μ of the two embeddings is the mean of a normal distribution of variance one,
    ℓ = −(y − μ)²/2, sentence-transformers' CosineSimilarityLoss. Its exact Fisher is (∂μ/∂θ)².

    Pairs without a score, a query and its answer: the loss is the cross-entropy of the own answer
    among all answers of the batch,

    .. math::
        -\log \mathrm{softmax}_m(s \cos(u_n, v_m))_n

    with s = ``similarity_scale`` (van den Oord et al. 2018; MultipleNegativesRankingLoss). It
    mixes the examples of a batch, so that no Fisher is estimated on such pairs.

    Args:
        path: Where the weights are: a folder, a hub id, or ``package:name/folder`` inside an
            installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens to which a text is truncated, if the model takes as many.
        score_scale: What scores are divided by: 5 for STS-B.
        similarity_scale: s, the inverse temperature of retrieval.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        scheduler: Scheduler = "linear",
        warmup_fraction: float = 0.1,
        max_length: int = 128,
        score_scale: float = 1.0,
        similarity_scale: float = 20.0,
    ) -> None:
        super().__init__(
            path, learning_rate, weight_decay, scheduler, warmup_fraction, max_length=max_length
        )
        check_within("--model.score_scale", score_scale, "(0, inf)")
        check_within("--model.similarity_scale", similarity_scale, "(0, inf)")
        self.score_scale = score_scale
        self.similarity_scale = similarity_scale
        self._names: dict[str, Sequence[str]] = {}

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads an embedding model.

        Args:
            source: A folder, a hub id, ``package:name/folder``, or a Lightning ``.ckpt`` of a fit.
            task: The task's name; the model is the same for every task.
            labels: Names of classes, which embeddings do not have; ignored.
            fresh_head: Whether to start a new head; ignored, as there are no heads.

        Returns:
            The network, in float32 on the CPU.
        """
        return load_embedder(source)

    def adopt(self, models: Mapping[str, "PreTrainedModel"], tokenizer: Any) -> None:
        """Adopts the first of some networks, for all tasks.

        Args:
            models: Task name to network.
            tokenizer: The tokenizer they share, or task name to the tokenizer of each.

        Raises:
            UserError: If the networks pool differently.
        """
        (first, network), *others = models.items()
        for name, other in others:
            if pooling_of(other).mode != pooling_of(network).mode:
                raise UserError(
                    f"task '{name}': its model pools tokens by {pooling_of(other).mode}, but that "
                    f"of '{first}' by {pooling_of(network).mode}; merge models of one pooling"
                )
        super().adopt(models, tokenizer)

    def add_metrics(
        self, labels: Mapping[str, Sequence[str]], metrics: Mapping[str, Sequence[str]]
    ) -> None:
        """Makes the metrics of each task.

        Args:
            labels: Task name to what its answers are: a number, or matches.
            metrics: Task name to names of metrics.

        Raises:
            UserError: If the answers of a task are something else.
        """
        # before the data are known, answers are taken for numbers
        known = {task: names or _SCORE for task, names in labels.items()}
        known |= {task: names for task, names in labels.items() if kind_of(names) == "matches"}
        for task, names in known.items():
            if kind_of(names) not in {"number", "matches"}:
                raise UserError(
                    f"task '{task}': its answers are {kind_of(names)}, but TextEmbedder needs "
                    "pairs of texts with numbers (TextFiles with text_pair and labels: number), "
                    "or pairs that match (PairFiles)"
                )
        self._names = known
        super().add_metrics(known, metrics)

    def label_names(self, task: str) -> Sequence[str]:
        """Names a task's output.

        Args:
            task: The task's name.

        Returns:
            The name of a number, or none, of the kind ``matches``.
        """
        return self._names.get(task, _SCORE)

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes both texts of n pairs and pads all to the longest.

        Args:
            examples: Mappings with ``text`` and ``text_pair``, and ``label`` where there is a
                score.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, 2, t), ``labels`` (n,) and ``task``.

        Raises:
            UserError: If an example is no pair.
        """
        if not all("text_pair" in one for one in examples):
            raise UserError(f"task '{task}': TextEmbedder needs pairs of texts; set text_pair")
        texts = [[one[key]] for one in examples for key in ("text", "text_pair")]
        limit = max_input_length(self.max_length, self.tokenizer_of(task), [self._ready])
        encoded = self.encode(texts, min(limit, pooling_of(self._ready).max_length or limit), task)
        scores = [one.get("label", 0.0) / self.score_scale for one in examples]
        pairs = {key: one.view(len(examples), 2, -1) for key, one in encoded.items()}
        return {**pairs, "labels": torch.tensor(scores), "task": task}

    def embeddings(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the embeddings of both texts of each pair.

        Args:
            batch: What ``collate`` made.

        Returns:
            Vectors of length one (n, 2, d), at least float32.
        """
        model = self._ready
        inputs = {key: one.flatten(0, 1) for key, one in model_inputs(model, batch).items()}
        hidden: Tensor = model(**inputs).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        mask = batch["attention_mask"].flatten(0, 1)[..., None]
        mode = pooling_of(model).mode
        if mode == "cls":
            pooled = hidden[:, 0]
        elif mode == "max":
            pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
        else:
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return normalize(pooled, dim=1).view(-1, 2, pooled.shape[1])

    def outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the cosine of each pair's embeddings.

        Args:
            batch: What ``collate`` made.

        Returns:
            Cosines (n, 1).
        """
        first, second = self.embeddings(batch).unbind(dim=1)
        return (first * second).sum(dim=1, keepdim=True)

    def check_estimator(self, task: str, estimator: Estimator) -> None:
        """Refuses Fishers of pairs without scores.

        Args:
            task: The task's name.
            estimator: How; it makes no difference here.

        Raises:
            UserError: If the task's pairs have no scores.
        """
        if self.kind(task) == "matches":
            raise UserError(
                f"task '{task}': its loss compares the pairs of a batch with each other, so that "
                "an example has no Fisher of its own; give pairs with scores, or a method without "
                "Fishers, such as TIES"
            )

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses, and cosines or embeddings.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses (n,), and cosines (n,); of pairs without scores both embeddings (n, 2d).
        """
        if self.kind(batch["task"]) != "matches":
            return super().outcome(batch)
        both = self.embeddings(batch)
        similarities = self.similarity_scale * both[:, 0] @ both[:, 1].T
        own = torch.arange(len(both), device=both.device)
        return cross_entropy(similarities, own, reduction="none"), both.flatten(1)


_SCORE = LabelNames(["score"], "number")
