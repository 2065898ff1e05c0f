"""Train ResNet-20 on the long-tailed Fashion-MNIST with plain cross-entropy, by the field's standard recipe.

The recipe is LDAM-DRW's (Cao et al. 2019, 1906.07413): SGD at 0.1, momentum 0.9, weight decay 2e-4, batches of 128,
200 epochs, five of warm-up, the rate cut to 1/100 after epoch 160 and again after 180; random crop and flip. It was
fixed beforehand: nothing here is chosen on val or test.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resnet import ResNet, resnet20
from torch import Tensor
from torch.nn import functional as F

BATCH = 128
PADDING = 4


def load_split(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return the images (N, 1, 28, 28) in 0..1, the labels (N,) and the class names of one split."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).glob("*.png")):
            images.append(np.array(Image.open(path)))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).unsqueeze(1).float() / 255, torch.tensor(labels), names


def normalise(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.5


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Crop each image at its own place in a black border, and flip every second one or so."""
    n, _, height, width = x.shape
    padded = F.pad(x, [PADDING] * 4)
    top = torch.randint(2 * PADDING + 1, (n, 1), generator=rng)
    left = torch.randint(2 * PADDING + 1, (n, 1), generator=rng)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    flip = torch.rand(n, 1, generator=rng) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def learning_rate(epoch: int) -> float:
    """Return the rate of an epoch, counted from 1."""
    if epoch <= 5:
        return 0.1 * epoch / 5
    return 0.1 if epoch <= 160 else 1e-3 if epoch <= 180 else 1e-5


def train_epoch(
    model: ResNet, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, rng: torch.Generator
) -> tuple[float, float]:
    """Run one epoch and return its mean loss and accuracy, on augmented images."""
    model.train()
    loss_sum, right = 0.0, 0
    for batch in torch.split(torch.randperm(len(x), generator=rng), BATCH):
        logits = model(normalise(augment(x[batch], rng)))
        loss = F.cross_entropy(logits, y[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        loss_sum += float(loss.detach()) * len(batch)
        right += int((logits.argmax(1) == y[batch]).sum())
    return loss_sum / len(x), right / len(x)


@torch.no_grad()
def class_accuracies(model: ResNet, x: Tensor, y: Tensor) -> list[float]:
    model.eval()
    right = torch.cat([model(normalise(part)) for part in torch.split(x, 500)]).argmax(1) == y
    return [float(right[y == label].float().mean()) for label in range(int(y.max()) + 1)]


def report(model: ResNet, data: Path) -> None:
    """Print the accuracy of train and test, overall and by class."""
    for split in ("train", "test"):
        x, y, names = load_split(data / split)
        accuracies = class_accuracies(model, x, y)
        counts = torch.bincount(y).tolist()
        overall = sum(a * n for a, n in zip(accuracies, counts, strict=True)) / len(y)
        print(f"{split} accuracy {overall:.2%}, balanced {sum(accuracies) / len(accuracies):.2%}")
        for name, count, accuracy in zip(names, counts, accuracies, strict=True):
            print(f"  {name:14} {count:4} images {accuracy:7.2%}")


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=root / "build/fashion_lt", help="what make_data.py wrote")
    parser.add_argument("--out", type=Path, default=root / "posthoc_lt/demo/model.pt")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # Sums are ordered by thread: without a fixed number of them the weights would differ from machine to machine.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)

    x, y, names = load_split(args.data / "train")
    model = resnet20(num_classes=len(names), in_channels=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        optimiser.param_groups[0]["lr"] = learning_rate(epoch)
        loss, accuracy = train_epoch(model, optimiser, x, y, rng)
        if epoch % 10 == 0 or epoch in (1, args.epochs):
            seconds = time.perf_counter() - start
            print(f"epoch {epoch:3} loss {loss:.4f} accuracy {accuracy:.2%} ({seconds:.0f} s)", flush=True)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "epoch": args.epochs}, args.out)
    report(model, args.data)


if __name__ == "__main__":
    main()
