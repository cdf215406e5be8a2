# SPDX-License-Identifier: Apache-2.0
"""The processes of a run on many hosts: how they find, ask and watch one another.

`group` is what the rest of the package sees, `joining` begins it, `watching` ends it when one is lost,
`agreeing` compares what they were told. JAX moves all arrays; here are only small texts, through the
key-value store of JAX's own coordination service, which process 0 runs.
"""
