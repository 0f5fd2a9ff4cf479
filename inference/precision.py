"""Detection of bfloat16 that is computed, not emulated at many times the cost of float32."""

import torch


def cpu_has_bf16() -> bool:
    """Tell whether the processors multiply bfloat16; emulated, it takes 15 times as long."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_bf16(device: str) -> bool:
    """Tell whether the device (``cpu`` or ``cuda``) multiplies bfloat16."""
    if device == "cpu":
        return cpu_has_bf16()
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
