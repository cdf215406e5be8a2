# SPDX-License-Identifier: Apache-2.0
"""T5X's beam search within transformers' (t5x@cc342d4:t5x/decoding.py::beam_search).

This file is copied beside the weights of an exported model; for a dense twin, which is plain T5, as
`custom_generate/generate.py`, which transformers uses if it was loaded with trust_remote_code=True.

Two steps of the search are replaced: how ended beams are scored and kept, and what a running beam can still
reach. Greedy search is the same with one beam, but for a `streamer`, to whom no token can be taken back.
Behind the end stands padding, where transformers repeats the end if the padding's id is 0. All else is
transformers'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerationMixin

for _name in ("_beam_search", "_update_finished_beams", "_check_early_stop_heuristic"):
    getattr(GenerationMixin, _name)  # AttributeError where transformers has another search
ALPHA = 0.6  # of the brevity penalty, where no `length_penalty` is asked for


class BrevityPenalty(GenerationMixin):
    """Scores beams by log-probability / ((5 + tokens) / 6)^`length_penalty` (arXiv:1609.08144, eq. 14)."""

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("length_penalty", getattr(generation_config, "length_penalty", None))
        found, others = super()._prepare_generation_config(generation_config, **kwargs)
        if wanted is None:
            found.length_penalty = self.generation_config.length_penalty or ALPHA
        return found, others

    def _sample(self, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
        """Without sampling T5X's search with one beam, which may also end where the end is the runner-up."""
        if generation_config.do_sample or kwargs.get("streamer") is not None:
            return super()._sample(*args, generation_config=generation_config, **kwargs)
        return self._beam_search(*args, generation_config=generation_config, **kwargs)

    def _beam_search(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        found, config = (
            super()._beam_search(input_ids, *args, **kwargs),
            kwargs["generation_config"],
        )
        sequences = found if isinstance(found, Tensor) else found.sequences
        answers = sequences[:, input_ids.shape[1] :]
        ended = torch.isin(answers, _ends(config, answers)).int()
        answers[ended.cumsum(dim=1) > ended] = config.pad_token_id
        return found

    def _update_finished_beams(self, **kwargs: Any) -> Any:
        """T5X's: all ended beams compete, and one cut off at the longest length only where none ended."""
        tokens = kwargs["cur_len"] + 1 - kwargs["decoder_prompt_len"]
        log_probs = kwargs["topk_log_probs"] / _brevity(tokens, kwargs.pop("length_penalty"))
        last = kwargs["topk_running_sequences"][:, :, kwargs["cur_len"]]
        ended = torch.isin(last, _ends(self.generation_config, last))
        any_ended = kwargs["is_sent_finished"].any(dim=1) | ended.any(dim=1)
        log_probs = log_probs.masked_fill(~ended & any_ended[:, None], -1e9)
        kwargs["topk_log_probs"] = log_probs
        kwargs["top_num_beam_mask"] = torch.ones_like(kwargs["top_num_beam_mask"])
        return super()._update_finished_beams(length_penalty=0.0, **kwargs)

    @staticmethod
    def _check_early_stop_heuristic(**kwargs: Any) -> Any:
        """T5X's: the best that a running beam can still become is its score at the longest length."""
        longest = kwargs["max_length"] - kwargs["decoder_prompt_len"]
        penalty = _brevity(longest, kwargs.pop("length_penalty"))
        kwargs["running_beam_scores"] = kwargs["running_beam_scores"] / penalty
        return GenerationMixin._check_early_stop_heuristic(length_penalty=0.0, **kwargs)


def generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """transformers' `generate` for a model of theirs, whose beams are scored as T5X does meanwhile."""
    plain = type(model)
    model.__class__ = type(plain.__name__, (BrevityPenalty, plain), {})
    try:
        return plain.generate(model, *args, **kwargs)
    finally:
        model.__class__ = plain


def _ends(config: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(config.eos_token_id, device=like.device)


def _brevity(tokens: int, alpha: float) -> float:
    return float(((5.0 + tokens) / 6.0) ** alpha)
