# SPDX-License-Identifier: Apache-2.0
"""What people run beside training: plan, bench and parity. Nothing above imports them."""
