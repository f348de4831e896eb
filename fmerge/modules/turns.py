"""What an example asks and what answers it: as texts, and as tokens of a causal model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fmerge.errors import UserError
from fmerge.modules.answers import bare, continuation_tokens, ends_texts
from fmerge.modules.choices import named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
"""A conversation: each message has a ``role`` and its ``content``."""


@dataclass(frozen=True)
class Turn:
    """A prompt and what follows it.

    Attributes:
        prompt: The prompt; empty for a plain text.
        answer: What follows: an answer, a rendered message, or the whole plain text.
        reference: The answer alone, with which a generated one is compared; empty for a plain
            text.
        form: ``prompt``: an answer to a prompt; ``chat``: rendered by a chat template, whose own
            tokens start and end it; ``text``: a text without prompt.
    """

    prompt: str
    answer: str
    reference: str
    form: Literal["prompt", "chat", "text"]


def turn_of(
    example: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", chat: bool, task: str
) -> Turn:
    """Reads an example.

    Args:
        example: ``messages``, of which the last is the answer; or ``text`` with ``answer``, or
            with ``choices`` and ``label``, the true one's number; or ``text`` alone, without a
            prompt.
        tokenizer: The task's, whose chat template renders messages.
        chat: Whether a prompt and its answer are rendered as messages too.
        task: The task's name.

    Returns:
        Its prompt and answer.

    Raises:
        UserError: If it has no answer, or its messages cannot be rendered.
    """
    if "messages" in example:
        return _rendered(example["messages"], tokenizer, named(example, task), task)
    text, answer = example.get("text"), example.get("answer")
    if answer is None and "choices" in example:
        answer = example["choices"][example["label"]]
    if not isinstance(text, str) or not isinstance(answer, str | None):
        raise UserError(
            f"{named(example, task)} has neither a text nor messages, which TextGenerator reads; "
            "give data such as Prompted with an answer, Chats or PlainText"
        )
    if answer is None:
        return Turn("", text, "", "text")
    if not answer.strip():
        raise UserError(f"{named(example, task)} has an empty answer; give it one, or remove it")
    if chat:
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
        return _rendered(messages, tokenizer, named(example, task), task)
    return Turn(text, answer, answer.strip(), "prompt")


def causal_tokens(tokenizer: "PreTrainedTokenizerBase", turn: Turn) -> tuple[list[int], list[int]]:
    """Tokenizes a turn for a causal model, the answer as the continuation of its prompt.

    The first token of a plain text, which is the start of a sequence where the tokenizer adds
    one, is its prompt: nothing predicts it.

    Args:
        tokenizer: The model's.
        turn: What to tokenize.

    Returns:
        The prompt's and the answer's token ids.
    """
    if turn.form == "text":
        whole: list[int] = tokenizer(turn.answer, verbose=False)["input_ids"]
        return whole[:1], whole[1:]
    rendered = turn.form == "chat"
    prompt = turn.prompt if rendered else bare(turn.prompt)
    ids: list[int] = tokenizer(prompt, add_special_tokens=not rendered, verbose=False)["input_ids"]
    if not rendered and ends_texts(tokenizer):
        ids = ids[:-1]
    [[answer]] = continuation_tokens(tokenizer, [prompt], [[turn.answer]], literal=rendered)
    return ids, answer


def check_prompts(turns: Sequence[Turn], model: str, task: str) -> None:
    """Checks that an encoder-decoder can read turns.

    Args:
        turns: The turns.
        model: The model's class.
        task: The task's name.

    Raises:
        UserError: If one is no answer to a prompt.
    """
    other = next((turn.form for turn in turns if turn.form != "prompt"), None)
    if other is not None:
        kind = {"text": "plain texts", "chat": "conversations"}[other]
        raise UserError(
            f"task '{task}': has {kind}, which a causal model continues, but {model} reads a "
            "prompt and writes an answer; give prompts with answers, such as Prompted"
        )


def cut(prompt: Sequence[int], answer: Sequence[int], limit: int, where: str) -> Sequence[int]:
    """Cuts an answer to the tokens that its prompt leaves it.

    Args:
        prompt: The tokens before it.
        answer: The answer's.
        limit: Tokens of both together.
        where: The example's name, for errors.

    Returns:
        The answer's first tokens, one at least.

    Raises:
        UserError: If the prompt leaves it none.
    """
    if len(prompt) >= limit:
        raise UserError(
            f"{where} has a prompt of {len(prompt)} tokens, so that nothing of its answer is left "
            f"of {limit} (--model.max_length, or what the model takes); raise it, or shorten the "
            "prompt"
        )
    return answer[: limit - len(prompt)]


def _rendered(
    messages: Messages, tokenizer: "PreTrainedTokenizerBase", where: str, task: str
) -> Turn:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"task '{task}': its examples are messages, but the tokenizer of the model has no "
            "chat template; give a model that has one, or prompts with answers, such as Prompted"
        )
    last = messages[-1] if messages else {}
    if len(messages) < 2 or last.get("role") != "assistant" or not last.get("content", "").strip():
        raise UserError(
            f"{where} has {len(messages)} message(s), of which the last must be the assistant's "
            "answer to those before it"
        )
    turns = [dict(one) for one in messages]
    try:
        prompt, whole = (
            str(tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=asked))
            for some, asked in ((turns[:-1], True), (turns, False))
        )
    except Exception as error:  # a template raises errors of jinja and of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{where} does not fit the chat template: {reason}") from error
    if not whole.startswith(prompt):
        raise UserError(
            f"{where} is rendered by the chat template so that the answer does not continue its "
            "prompt; give a tokenizer whose template has the same beginning with and without the "
            "answer"
        )
    # what stands after the end of the answer is never generated
    return Turn(prompt, whole[len(prompt) :].rstrip(), messages[-1]["content"].strip(), "chat")
