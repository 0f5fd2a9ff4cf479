"""Where bfloat16 is computed, and not emulated at many times the cost of float32."""

import torch


def cpu_has_bf16() -> bool:
    """Do this machine's processors multiply bfloat16? Without it PyTorch takes 15 times as long."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_bf16(device: str) -> bool:
    """Does the device (``cpu`` or ``cuda``) multiply bfloat16?"""
    if device == "cpu":
        return cpu_has_bf16()
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
