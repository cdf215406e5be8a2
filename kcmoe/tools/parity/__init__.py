# SPDX-License-Identifier: Apache-2.0
"""Compares this engine, number by number, with what T5X + Flaxformer computed for the same model.

`case` reads the numbers, `quantities` computes ours, `compare` sets them side by side.
"""
