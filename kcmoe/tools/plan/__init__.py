# SPDX-License-Identifier: Apache-2.0
"""What a run needs before it starts: memory per device, time, device-hours. Nothing is allocated."""
