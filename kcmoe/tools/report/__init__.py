# SPDX-License-Identifier: Apache-2.0
"""`kcmoe report`: what happened in one run or several, as one HTML file."""
