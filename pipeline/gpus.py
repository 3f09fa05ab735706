"""GPUs by name: how fast they multiply in bf16 and how much memory they have."""

from __future__ import annotations

import re

PEAK_FLOPS_BF16 = {
    # Dense bf16 peaks from the vendors' data sheets, FLOP/s for a device as torch counts them (MI250: one of its dies).
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2450e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A10G": 70e12,
    "MI250X": 191e12,
    "MI300X": 1307e12,
}
MEMORY_GIB = {
    # The vendors' sizes, for one device as torch counts them; of several that are sold, one has a name of its own.
    "A100": 80,
    "A100 40GB": 40,
    "H100 PCIe": 80,
    "H100": 80,
    "H200": 141,
    "GH200": 96,
    "B200": 180,
    "GB200": 186,
    "L40S": 48,
    "A10": 24,
    "A10G": 24,
    "MI250X": 64,
    "MI300X": 192,
}


def peak_of(device_name: str) -> float | None:
    """The peak of the chip that stands as a word of its own in a device's name ("NVIDIA A100-SXM4-80GB")."""
    known = [chip for chip in PEAK_FLOPS_BF16 if re.search(rf"\b{chip}\b", device_name)]
    return PEAK_FLOPS_BF16[max(known, key=len)] if known else None
