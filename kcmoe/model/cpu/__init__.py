# SPDX-License-Identifier: Apache-2.0
"""What is in this program because of how XLA computes on CPUs. A reader of the model may skip this room.

Nothing of the model's mathematics is decided here: the tricks make a step faster or smaller, and all but
`halves` can be switched off. Gains are of a training step on two CPU cores, in CPU seconds if nothing else is
said, from "What was tried for the training step at tiny" in benchmarks/README.md.

`memory`, called by `cli` and the train loop; imports JAX inside functions only, as the second start of the
process comes before JAX:
- huge pages, by a second start of the process: tiny 2.02 -> 1.55. KCMOE_HUGE_PAGES=0.
- memory kept from step to step: mini 2.2 -> 1.8 s of wall time. KCMOE_KEEP_MEMORY=0.

`halves`, by a step of decoding and the router: sums that no number of rows changes, so that few lines may be
computed in few rows. Answers rest on it, so it has no switch; it costs nothing that was seen.

`gradients`, by the decorator `with_gradient` on the formulas of the model. KCMOE_OWN_GRADIENTS=0 for all:
- head_cross_entropy: tiny 1.57 -> 1.41; without the logits' gradient, a part of 1.16 -> 1.0. The logits of a
  whole batch never exist.
- matmul: tiny 1.28 -> 1.23 (kernel gradients as x^T dy), later 0.456 -> 0.445 (narrow factor transposed).
- gated_gelu: a part of tiny 1.41 -> 1.28, then 1.23 -> 1.16 (from its inputs), later 0.439 -> 0.437.
- rms_norm, and column_sums in place of sums: a part of tiny 1.16 -> 1.0. `column_sums` itself has no switch.
- softmax_attention: no faster; temporary arrays 0.79 -> 0.61 GB at tiny, 2.2 -> 1.9 GB at mini.
- to_slots, from_slots: gathers where JAX would scatter. There since the first version, not measured alone.
- grouped_dot: JAX's own gradient would keep the matrix of every block. Not measured alone.
"""
