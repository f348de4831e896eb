"""The masks of a batch of two examples, one with two choices and one with three."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.modules.token_masks import token_masks, with_distinct_lengths

PROMPTS = torch.tensor([[1, 1, 1], [1, 1, 0]])
ANSWERS = torch.tensor([
    [[7, 8], [7, -100], [-100, -100]],  # the third choice is absent
    [[5, -100], [5, 6], [6, -100]],
])
BATCH = {"attention_mask": PROMPTS, "choice_ids": ANSWERS, "task": "a"}


def as_numbers(mask):
    return mask.long().tolist()


def test_a_text_has_its_attention_mask():
    (mask,) = token_masks({"attention_mask": PROMPTS}, has_decoder=False)
    assert mask.dtype == torch.bool and as_numbers(mask) == PROMPTS.tolist()


def test_an_encoder_decoder_has_prompts_answers_and_prompts_by_answer():
    prompts, answers, attended = token_masks(BATCH, has_decoder=True)
    assert as_numbers(prompts) == PROMPTS.tolist()
    assert as_numbers(answers) == [[1, 1], [1, 0], [0, 0], [1, 0], [1, 1], [1, 0]]
    assert as_numbers(attended) == [
        [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0],
    ]  # fmt: skip


def test_a_decoder_has_each_answer_behind_its_prompt():
    (mask,) = token_masks(BATCH, has_decoder=False)
    assert as_numbers(mask) == [
        [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(("tokens", "has_decoder", "padded"), [
    (2, True, True), (3, True, False), (2, False, False),
])  # fmt: skip
def test_answers_as_long_as_prompts_are_padded(tokens, has_decoder, padded):
    batch = {"input_ids": torch.ones(2, tokens), "choice_ids": ANSWERS}
    found = with_distinct_lengths(batch, has_decoder)
    assert found["choice_ids"].shape == (2, 3, 2 + padded)
    assert torch.equal(found["choice_ids"][..., :2], ANSWERS)
    assert (found["choice_ids"][..., 2:] == -100).all()
    assert batch["choice_ids"] is ANSWERS, "the batch itself was changed"


def test_without_choices_nothing_is_padded():
    batch = {"input_ids": torch.ones(2, 3)}
    assert with_distinct_lengths(batch, True) == batch


def test_a_batch_without_an_attention_mask_is_refused():
    with pytest.raises(UserError, match="batches of 'a' have no attention_mask"):
        token_masks({"task": "a"}, has_decoder=False)
