"""Facts about GPUs: peak arithmetic, memory, and the assumed share of the peak that training reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitp.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: On the command line.
        bf16_tflops: Peak of dense bf16 matrix products that are summed in fp32, as the data sheet states it; of a card
            without bf16, that of fp16.
        memory_gib: Its memory.
        utilisation: Share of the peak that we assume training of a ViT-L and a small language model to reach, written
            in plain PyTorch. Cards with little bandwidth for their arithmetic reach less. An assumption, not a
            measurement: replace it by what `vitp bench` says on yours.
        dollars_per_hour: Assumed rent; prices differ by a factor of three between providers.
        bf16: Whether it has bf16; without, half precision is `train.precision: fp16`.
    """

    name: str
    bf16_tflops: float
    memory_gib: float
    utilisation: float
    dollars_per_hour: float
    bf16: bool = True


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("T4", 65.0, 16, 0.25, 0.35, bf16=False),
        Device("V100", 125.0, 32, 0.30, 0.60, bf16=False),
        Device("A10", 125.0, 24, 0.30, 0.75),
        Device("A40", 149.7, 48, 0.30, 0.60),
        Device("A6000", 154.8, 48, 0.30, 0.60),
        Device("A100-40", 312.0, 40, 0.40, 1.30),
        Device("A100", 312.0, 80, 0.40, 1.70),
        Device("L4", 121.0, 24, 0.25, 0.70),
        Device("L40S", 362.0, 48, 0.25, 1.10),
        Device("RTX3090", 71.0, 24, 0.40, 0.30),
        Device("RTX4090", 165.2, 24, 0.35, 0.45),
        Device("RTX5090", 209.5, 32, 0.35, 0.70),
        Device("H100", 989.4, 80, 0.35, 2.50),
        Device("H100-PCIe", 756.0, 80, 0.30, 2.20),
        Device("H200", 989.4, 141, 0.38, 3.20),
        Device("B200", 2250.0, 180, 0.35, 5.00),
    )
}
"""Name → card."""


@dataclass(frozen=True)
class Machine:
    """Some GPUs of one kind.

    Attributes:
        device: The kind.
        count: Number of devices.
    """

    device: Device
    count: int

    def __str__(self) -> str:
        return f"{self.count} × {self.device.name}"


def machine_of(text: str) -> Machine:
    """Return the machine that "H100", "H100:8" or "8xH100" names.

    Raises:
        ConfigError: There is no such device, or no such number of them.
    """
    counted = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\S+)\s*", text, re.IGNORECASE)
    name, count = (counted[2], counted[1]) if counted else text.strip().rpartition(":")[::2]
    if not counted and ":" not in text:
        name, count = text.strip(), "1"
    by_lower = {known.lower(): known for known in DEVICES}
    if name.lower() not in by_lower:
        raise ConfigError(
            f"unknown GPU {name!r}",
            where="--gpu",
            fix=did_you_mean(name, DEVICES) or f"known are {', '.join(DEVICES)}",
        )
    if not count.isdigit() or int(count) < 1:
        raise ConfigError(f"{count!r} is no number of GPUs", where="--gpu", fix="write it like H100:8")
    return Machine(DEVICES[by_lower[name.lower()]], int(count))
