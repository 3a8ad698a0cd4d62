"""The process of `gpu_check.py` that measures PyTorch: timm's networks, trained as ours are. Needs torch and timm only.

An update does the work of one of ours without augmentation: pictures, uint8 on the device, are gathered by index, made
float and normalized; forward, cross-entropy with label smoothing, backward, clipping by the norm, Lion with decay of
kernels only, average of weights. As PyTorch is fast: channels_last, bfloat16 by autocast, cudnn.benchmark, TF32, and
torch.compile of everything up to the loss, in fixed shapes; the rest by foreach, as timm does it. Weights are drawn.

Where it differs: its BatchNorm moves its running statistics, which ours leaves to an epoch's end; and nothing is
recorded for the epoch's metrics, which ours does.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from gpu_common import WARM_UP, as_rates, calls_per_round, first_line, take_turns, tell

NETWORKS = {
    "mobilenetv3small": "tf_mobilenetv3_small_100",
    "efficientnetb0": "tf_efficientnet_b0",
    "efficientnetv2s": "tf_efficientnetv2_s",
    "efficientnetv2m": "tf_efficientnetv2_m",
    "convnextbase": "convnext_base",
}
"""timm's; those that begin with tf pad as Keras does. timm has no plain CNN: it is built anew here."""

CLASSES, EXAMPLES = 8, 600
# The package's defaults.
RATE, DECAY, CLIP, AVERAGE, SMOOTHING, DROPOUT = 3e-4, 0.1, 1.0, 0.998, 0.05, 0.2


def probe() -> dict[str, Any]:
    """Versions and the device, or what is missing."""
    missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        return {"missing": missing}
    import timm
    import torch

    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": torch.cuda.get_device_name(0) if cuda else "CPU",
        "sees_gpu": cuda,
    }


def work(plan: dict[str, Any]) -> None:
    """Measure cases; stops after one that failed.

    Args:
        plan: cases; device, gpu or cpu; size, pixels; steps, per round; until, the time after which nothing begins,
            or None.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    until = math.inf if plan["until"] is None else plan["until"]
    for case in plan["cases"]:
        if time.time() >= until:
            return
        tell(case=case)
        try:
            found = measure(case, plan)
        except Exception as error:
            tell(case=case, found={"reason": first_line(error)})
            return
        tell(case=case, found=found)
        torch.compiler.reset()
        gc.collect()
        if plan["device"] == "gpu":
            torch.cuda.empty_cache()


def measure(case: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Build, compile, warm up, time."""
    import torch

    on_gpu = plan["device"] == "gpu"
    held = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    training = Training(case, plan["size"], torch.device("cuda" if on_gpu else "cpu"))
    built = time.perf_counter() - begun
    first = training.seconds_of(1)
    warm = training.seconds_of(WARM_UP) / WARM_UP
    updates = calls_per_round(plan["steps"], warm)
    [seconds] = take_turns([lambda: training.seconds_of(updates)])
    return as_rates(seconds, updates=updates, examples=case["batch"]) | {
        "model": NETWORKS.get(case["backbone"], "ours, rebuilt"),
        "first_update_s": round(first, 2),
        "build_s": round(built, 2),
        "peak_memory_mib": round((torch.cuda.max_memory_allocated() - held) / 2**20, 1) if on_gpu else None,
        "weights": sum(weight.numel() for weight in training.weights),
        "precision": "bfloat16",
        "loss": round(float(training.loss), 4),
    }


class Training:
    """A network, the pictures and all that trains it."""

    def __init__(self, case: dict[str, Any], size: int, device: Any) -> None:
        import torch
        from timm.optim import create_optimizer_v2
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        torch.manual_seed(0)
        batch = case["batch"]
        network = build(case["backbone"]).to(device, memory_format=torch.channels_last).train()
        self.weights = list(network.parameters())
        self._averages = [weight.detach().clone() for weight in self.weights]
        self._average = get_ema_multi_avg_fn(AVERAGE)
        self._optimizer = create_optimizer_v2(network, opt="lion", lr=RATE, weight_decay=DECAY)  # kernels only
        self._images = torch.randint(256, (EXAMPLES, size, size, 3), dtype=torch.uint8, device=device)
        self._labels = torch.randint(CLASSES, (EXAMPLES,), device=device)
        self._batches = itertools.cycle(torch.randint(EXAMPLES, (32, batch), device=device))
        self._device = device
        self._loss_of = compiled(loss_function(network, device), case["mode"])

    def seconds_of(self, updates: int) -> float:
        """Of so many updates, until the device is done."""
        self._wait()
        begun = time.perf_counter()
        for _ in range(updates):
            self._update()
        self._wait()
        return time.perf_counter() - begun

    def _update(self) -> None:
        import torch

        loss = self._loss_of(self._images, self._labels, next(self._batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self._average(self._averages, self.weights, None)
        self.loss = loss.detach()

    def _wait(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize()


def build(backbone: str) -> Any:
    """A network of float [B, 3, H, W] to logits [B, 8], its weights drawn."""
    import timm
    from torch import nn

    if backbone == "cnn":
        return plain_cnn()
    network = timm.create_model(NETWORKS[backbone], pretrained=False, num_classes=CLASSES, drop_rate=DROPOUT)
    if backbone == "mobilenetv3small":  # without the convolution after its pooling, which Keras' has only with its top
        return nn.Sequential(network.conv_stem, network.bn1, network.blocks, *head(network.num_features))
    return network


def plain_cnn() -> Any:
    """`bloodcell_dist.models.cnn`."""
    from torch import nn

    layers: list[Any] = []
    for before, width in itertools.pairwise((3, 32, 64, 128, 256)):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, *head(256))


def head(width: int) -> list[Any]:
    """Pooling, dropout, logits."""
    from torch import nn

    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(width, CLASSES)]


def loss_function(network: Any, device: Any) -> Callable[..., Any]:
    """(images uint8 [N, H, W, 3], labels int64 [N], indices int64 [B]) to the mean loss of a batch."""
    import torch

    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    def loss(images: Any, labels: Any, indices: Any) -> Any:
        # The set lies channels last, so this view of it is what memory_format=channels_last asks for.
        pictures = (images[indices].permute(0, 3, 1, 2).float() / 255 - mean) / deviation
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(pictures)
        return torch.nn.functional.cross_entropy(logits.float(), labels[indices], label_smoothing=SMOOTHING)

    return loss


def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """By torch.compile in this mode; eager: as it is."""
    import torch

    return function if mode == "eager" else torch.compile(function, mode=mode, dynamic=False)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if "probe" in asked:
        tell(pytorch=probe())
    else:
        work(asked)
