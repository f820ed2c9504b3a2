"""The same experiment on a GPU; skipped where there is none."""

import pytest
import torch
from torch.nn import functional as F

from gnexp.data.loader import DeviceImages
from gnexp.data.sources import load_images
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS, build_norm
from gnexp.seeding import generator
from gnexp.training.loop import Recipe, train_epochs
from gnexp.training.step import EagerStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

FLOAT32 = 1e-4  # relative, of a whole gradient: other kernels sum in another order


def net(norm):
    model = build_model("resnet8", lambda c: build_norm(norm, c), num_classes=10)
    initialize(model, generator(0, "test"))
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_gradient_on_a_gpu_is_that_of_the_cpu(norm):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8)
    gradients = []
    for device in ("cpu", "cuda"):
        model = net(norm).train().to(device)
        F.cross_entropy(model(x.to(device)), y.to(device)).backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    cpu, cuda = gradients
    assert (cuda - cpu).norm() <= FLOAT32 * cpu.norm()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_on_a_gpu_learns_what_it_learns_on_the_cpu(precision):
    images = load_images("shapes10", train_limit=1280, test_limit=500)
    recipe = Recipe(batch=16, update_batch=16, epochs=3, lr=0.2, precision=precision)
    final = {}
    for device in ("cpu", "cuda"):
        if device == "cpu" and precision == "tf32":
            continue
        step = EagerStep(net("gn").to(device), 16, 0.9, 5e-4, precision)
        *_, last = train_epochs(step, DeviceImages(images, device), recipe, seed=0)
        final[device] = last
    assert final["cuda"].train_loss < 2.25, "better than guessing, ln 10 = 2.30"
    if "cpu" in final:
        assert abs(final["cuda"].train_loss - final["cpu"].train_loss) < 0.15


def test_a_run_on_a_gpu_is_stored_and_measured(gnexp):
    words = ("model=resnet8", "data.train_limit=200", "data.test_limit=40", "epochs=2")
    answer = gnexp("train", *words, "batch=10", "gradients=8", "gradients_at=[1,5]", "device=cuda")
    assert answer.code == 0, answer.err
    assert "test accuracy" in answer.out
