"""Language modelling: a text-to-text or causal model writes answers, or reads plain texts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torchmetrics import Metric

from fmerge.errors import UserError, check_within
from fmerge.fisher import Estimator
from fmerge.modules.answers import ABSENT, target_tokens, token_distributions
from fmerge.modules.choices import named
from fmerge.modules.generation import drawn, likeliest
from fmerge.modules.language_model import LanguageModule
from fmerge.modules.optimization import Scheduler
from fmerge.modules.text_metrics import AnswerMetric, Written, answer_metric
from fmerge.modules.truncation import max_input_length
from fmerge.modules.turns import Turn, causal_tokens, check_prompts, cut, turn_of

_SEEDS = 2**53
"""As many as a uniform number in float64 has values."""


@final
class TextGenerator(LanguageModule):
    """Language modelling: one text-to-text or causal language model for all tasks, no heads.

    An example is a prompt, ``text``, with its ``answer`` (or with ``choices`` and the true one's
    ``label``); a conversation, ``messages``, whose last message is the answer; or a plain
    ``text``. Prompts are masked: training, loss and Fisher are of the answers' tokens, the end of
    the sequence included.

    A causal model is scored by inverse_perplexity unless the data name other metrics. Metrics of
    written answers have each prompt of the split answered, one likeliest token at a time.

    The Fisher of ℓ = Σₛ log p(yₛ | y₍<ₛ₎, x) is ``sampled``, y drawn from the model, or
    ``empirical``, y the given text. ``exact`` and ``rademacher`` are sums over all texts, and are
    refused.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens of a prompt and its answer, together in a causal model and each in a
            text-to-text model, if the model takes as many; what is longer is truncated.
        max_new_tokens: Tokens that a written or drawn answer may have.
        chat: Render prompts and answers by the tokenizer's chat template too, as a user's message
            and the assistant's; conversations always are.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        scheduler: Scheduler = "constant",
        warmup_fraction: float = 0.0,
        max_length: int = 512,
        max_new_tokens: int = 64,
        chat: bool = False,
    ) -> None:
        super().__init__(
            path=path,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            scheduler=scheduler,
            warmup_fraction=warmup_fraction,
            max_length=max_length,
        )
        check_within("--model.max_new_tokens", max_new_tokens, "[1, inf)")
        self.max_new_tokens = max_new_tokens
        self.chat = chat

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells that answers are never listed: there are as many as texts.

        Args:
            task: The task's name.
            estimator: How a Fisher is estimated.

        Returns:
            False.
        """
        return False

    def check_estimator(self, task: str, estimator: Estimator) -> None:
        """Refuses estimators that weigh all texts; see the base class.

        Args:
            task: The task's name.
            estimator: How a Fisher is to be estimated.

        Raises:
            UserError: If it is ``exact`` or ``rademacher``.
        """
        if estimator in {"exact", "rademacher"}:
            raise UserError(
                f"estimator: is {estimator}, a sum over all answers, but those of task '{task}' "
                "(TextGenerator) are all texts; use sampled (answers drawn from the model) or "
                "empirical (the given ones)"
            )

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ[n,c] = Σₛ log p(yₛ | y₍<ₛ₎, x) of the given or drawn answers.

        Args:
            batch: What ``collate`` made, with ``answers`` (n, c, s) where they were drawn.

        Returns:
            ℓ (n, c), at least float32; c is 1 where none were drawn.
        """
        return self._sums(batch, batch.get("answers", batch["choice_ids"]))[0]

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Draws answers from the model, or takes the given ones.

        Args:
            batch: What ``collate`` made.
            estimator: ``sampled`` or ``empirical``.
            uniforms: Random numbers in [0, 1) (n, samples, 2), of which the first seeds those of
                an answer's tokens.

        Returns:
            Token ids (n, c, s), −100 after the end. A drawn answer that reaches
            ``max_new_tokens`` ends there: its ℓ is that of its first tokens.
        """
        given: Tensor = batch["choice_ids"]
        if estimator == "empirical":
            return given
        n, samples = uniforms.shape[:2]
        numbers = torch.stack([
            torch.rand(
                self.max_new_tokens,
                generator=torch.Generator().manual_seed(int(one * _SEEDS)),
                dtype=torch.float64,
            )
            for one in uniforms[..., 0].flatten().tolist()
        ])
        found = drawn(
            self._ready,
            self.tokenizer_of(batch["task"]),
            batch["input_ids"].repeat_interleave(samples, 0),
            batch["attention_mask"].repeat_interleave(samples, 0),
            numbers,
        )
        return found.view(n, samples, -1)

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the cross-entropy of the answers' tokens.

        Args:
            batch: One task's batch.

        Returns:
            The mean over all those tokens of the batch, a scalar.
        """
        sums, lengths = self._sums(batch, batch["choice_ids"])
        return -sums.sum() / lengths.sum()

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes the mean cross-entropy of each answer's tokens.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses (n,), and the number of the one listed answer (n,), which is 0.
        """
        sums, lengths = self._sums(batch, batch["choice_ids"])
        return (-sums / lengths)[:, 0], torch.zeros_like(batch["labels"])

    def token_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes log q(· | y₍<ₛ₎, x) at each token of the given answers; see the base class.

        Args:
            batch: What ``collate`` made.

        Returns:
            log q (n, s, v), at least float32, −∞ where there is no token.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return token_distributions(self._ready, ids, mask, batch["choice_ids"][:, 0])

    def write(self, batch: Mapping[str, Any]) -> list[str]:
        """Writes an answer to each prompt, the likeliest token at each step.

        Args:
            batch: What ``collate`` made, on this module's device.

        Returns:
            The answers (n,), without special tokens and white space at both ends.
        """
        tokenizer = self.tokenizer_of(batch["task"])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        rows = likeliest(self._ready, tokenizer, ids, mask, self.max_new_tokens)
        kept = [[one for one in row if one != ABSENT] for row in rows.tolist()]
        return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in kept]

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes n prompts and their answers, and pads them on the right.

        Args:
            examples: Mappings with ``messages``; or with ``text`` and ``answer``, or ``choices``
                and ``label``; or with a plain ``text`` alone.
            task: The task's name.

        Returns:
            ``input_ids`` and ``attention_mask`` (n, t), ``choice_ids`` (n, 1, s) with −100 where
            there is no token, ``references`` (n texts), ``labels`` (n,), all 0, and ``task``.

        Raises:
            UserError: If an example has no prompt or answer, or ``max_length`` leaves it none.
        """
        tokenizer = self.tokenizer_of(task)
        turns = [turn_of(one, tokenizer, self.chat, task) for one in examples]
        limit = max_input_length(self.max_length, tokenizer, [self._ready])
        tokens = self._encoder_tokens if self._ready.config.is_encoder_decoder else self._tokens
        prompts, answers = tokens(turns, limit, task)
        for ids, answer, one in zip(prompts, answers, examples, strict=True):
            if not ids or not answer:
                raise UserError(f"{named(one, task)} has a prompt or answer without any token")
        together = not self._ready.config.is_encoder_decoder
        kept = [
            cut(ids if together else (), answer, limit, named(one, task))
            for ids, answer, one in zip(prompts, answers, examples, strict=True)
        ]
        shorter = sum(len(a) < len(b) for a, b in zip(kept, answers, strict=True))
        self.truncation.add(task, shorter, len(kept), limit, "answers")
        batch = self._batch(prompts, [[one] for one in kept], [0] * len(kept), task)
        return {**batch, "references": [turn.reference for turn in turns]}

    def default_metrics(self, labels: Sequence[str]) -> Sequence[str]:
        """Names the metrics of data that name none.

        Args:
            labels: Names of classes, which texts do not have.

        Returns:
            The inverse of the perplexity.
        """
        return ("inverse_perplexity",)

    def metric_of(self, name: str, labels: Sequence[str]) -> Metric:
        """Makes a metric; see ``answer_metric``.

        Args:
            name: Its name, or the path of a function of the user's own.
            labels: Names of classes, which texts do not have.

        Returns:
            The metric.
        """
        return answer_metric(name)

    def _log_scores(self, stage: str) -> None:
        perplexity = self.val_loss.compute().exp()  # which the base class sets to zero
        super()._log_scores(stage)
        self.log(f"{stage}/perplexity", perplexity)

    def _tokens(
        self, turns: Sequence[Turn], limit: int, task: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        pairs = [causal_tokens(self.tokenizer_of(task), turn) for turn in turns]
        return [prompt for prompt, _ in pairs], [answer for _, answer in pairs]

    def _encoder_tokens(
        self, turns: Sequence[Turn], limit: int, task: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        check_prompts(turns, type(self._ready).__name__, task)
        prompts = self._prompt_tokens([turn.prompt for turn in turns], [limit] * len(turns), task)
        answers = target_tokens(self.tokenizer_of(task), [[turn.answer] for turn in turns])
        return prompts, [answer for [answer] in answers]

    def _score(self, batch: Mapping[str, Any]) -> Tensor:
        task = batch["task"]
        own = cast("Sequence[AnswerMetric]", list(self.metrics[task].values()))  # type: ignore[operator]
        sums, lengths = (one[:, 0] for one in self._sums(batch, batch["choice_ids"]))
        self.val_loss.update(-sums / lengths, weight=lengths)  # a mean over tokens, as in training
        answers: Sequence[str] = ()
        if any(metric.written for metric in own):
            if not all(batch["references"]):
                raise UserError(
                    f"task '{task}': its metrics compare written answers, but it has plain texts, "
                    "which have none; use inverse_perplexity, or give prompts with answers"
                )
            answers = self.write(batch)
        found = Written(sums, lengths, answers, batch["references"])
        parts = [metric.statistics(found) for metric in own]
        for metric, statistics in zip(own, parts, strict=True):
            metric.update(statistics)
        return torch.cat([one.to(self.device, torch.float32) for one in parts], dim=1)
