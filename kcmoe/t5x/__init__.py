# SPDX-License-Identifier: Apache-2.0
"""Kc-MoE on T5X, Flaxformer and SeqIO: the only place that imports them.

`tasks` registers our tasks with SeqIO and needs the extra [seqio]; `bindings` is what the gin files in
`configs/t5x` call and needs T5X and Flaxformer too. Importing either says what to install where
something is missing. Nothing is registered, read or started by importing.
"""

from __future__ import annotations

from kcmoe.t5x import requirements

requirements.check_seqio()
