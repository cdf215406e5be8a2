# SPDX-License-Identifier: Apache-2.0
"""`kcmoe prune`: a smaller model with the experts that are used most, or with none."""
