"""The methods by name: how each learns and how it is read, all from the same feature vectors.

``hrn`` goes through the product's own training. The others get the same vectors, the same loop, the
same number of passes and of members, so that only the method differs.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.errors import ExperimentError
from evaluation.features import Features
from evaluation.protocols import Protocol
from hierarchy import LabelTree
from hierarchy.baselines.base import Baseline
from hierarchy.baselines.chang import Chang
from hierarchy.baselines.chmcnn import Chmcnn
from hierarchy.baselines.hmcn import Hmcn, HmcnOutputs
from hierarchy.baselines.lmlp import Lmlp
from hierarchy.baselines.losses import LOSSES, WithLoss, leaves_only
from hierarchy.baselines.published import Published, PublishedOutputs
from hierarchy.baselines.tree_ops import leaf_log_marginals
from hierarchy.heads import HRNHead
from worker import trainer
from worker.fitting import Rows, fit
from worker.training_config import TrainingConfig

Floats = NDArray[np.float64]

#: HRN's published block sizes, halved: F, and the width before its classifiers. Its 2048 channels
#: were as many as two of our networks have; the whole size takes 50 s more per training.
INNER, WIDTH = 512, 256

#: Images read at once.
BATCH = 1024


@dataclass(frozen=True)
class Learnt:
    """A method after training.

    Attributes:
        log_probability: ``(n, N)`` for each judged set.
        seconds: of one CPU thread, for training alone.
    """

    log_probability: Mapping[str, Floats]
    seconds: float


class Standardise(nn.Module):
    """Standardisation by the mean and deviation of some vectors."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        std = vectors.std(0, correction=0)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("std", std + 1e-3 * std.mean())  # a dead channel stays at zero

    def forward(self, vectors: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, C)``."""
        return (vectors - self.mean) / self.std


class HeadOnLeaves(Baseline[Tensor]):
    """The HRN head trained by the cross-entropy of leaf labels alone: what the tree loss adds."""

    def __init__(self, head: HRNHead) -> None:
        super().__init__(head.tree)
        self.head = head
        self._leaves = list(head.tree.leaves)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C)`` -> ``(M, B, K)`` scores of each member."""
        return self.head.each(features)[:, :, self._leaves]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over members."""
        return leaves_only(outputs.flatten(0, 1), targets.repeat(len(outputs)), self.tree)

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Return the log of each node's share of the softmax over leaves, ``(B, N)``."""
        return leaf_log_marginals(outputs.mean(0), self.tree)


#: Builds a baseline from the tree, the plain vectors ``(P, C)`` that it learns and the config.
Build = Callable[[LabelTree, Tensor, TrainingConfig], Baseline[Any]]


def _on_trunk(build: Callable[[LabelTree, nn.Module, int], Baseline[Any]]) -> Build:
    """Put a baseline on one hidden layer as wide as all blocks of a member of ours together."""

    def built(tree: LabelTree, plain: Tensor, config: TrainingConfig) -> Baseline[Any]:
        width = config.hidden * tree.depth
        trunk = nn.Sequential(
            Standardise(plain),
            nn.Linear(plain.shape[1], width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        return build(tree, trunk, width)

    return built


def _with_loss(name: str) -> Build:
    return _on_trunk(lambda tree, trunk, width: WithLoss(tree, trunk, width, name))


def _published(**switches: Any) -> Build:  # noqa: ANN401 - the class names and checks them
    def built(tree: LabelTree, plain: Tensor, config: TrainingConfig) -> Baseline[Any]:
        del config
        channels = plain.shape[1]
        return Published(tree, channels, maps=False, inner=INNER, features=WIDTH, **switches)

    return built


def _on_leaves(tree: LabelTree, plain: Tensor, config: TrainingConfig) -> Baseline[Any]:
    return HeadOnLeaves(trainer.new_head(tree, plain[:, None], config))


#: The product's head, and its parts taken away: what is changed in the config.
HRN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "hrn": {},
        "hrn, one block": {"shared": True},
        "hrn, levels added up": {"side_by_side": False},
        "hrn, no residual": {"residual": False},
        "hrn, one member": {"members": 1},
        "hrn, members see all networks": {"networks": ()},
        "hrn, no offset": {"delta": 0.0},
        "hrn, sigmoid scores": {"sigmoid": True},
    }
)

BASELINES: Mapping[str, Build] = MappingProxyType(
    {
        "published": _published(),
        **{name: _with_loss(name) for name in LOSSES},
        "chang": _on_trunk(Chang),
        "lmlp": _on_trunk(Lmlp),
        "chmcnn": _on_trunk(Chmcnn),
        "hmcn": _on_trunk(Hmcn),
        "hrn, no tree loss": _on_leaves,
        "published, one block": _published(blocks="shared", combine=False, relu=False),
        "published, own blocks": _published(combine=False, relu=False),
        "published, + linear combination": _published(relu=False),
        "published, tree loss only": _published(parts="tree"),
        "published, leaf loss only": _published(parts="leaf"),
        "published, raw scores": _published(scores="raw"),
        "published, raw scores, read from the tree": _published(scores="raw", read="tree"),
        "published, raw, tree loss only, read from the tree": _published(
            scores="raw", parts="tree", read="tree"
        ),
    }
)

METHODS: tuple[str, ...] = (*HRN, *BASELINES)

#: Names for several methods at once.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "baselines": ("published", "marginal", "flat", "chang", "lmlp", "chmcnn", "hmcn"),
        "losses": ("marginal", "level-ce", "soft", "hxe", "flat"),
        "ablations": tuple(name for name in METHODS if "," in name),
        "all": METHODS,
    }
)

#: What differs from our config for methods whose loss asks for it: many sigmoids, most of them
#: answered 0 in every image, learn slowly. Chosen on Grocery's validation images, nothing
#: relabelled, from rates of 0.001, 0.003 and 0.01, decays of 1, 0.1 and 0.01 and dropouts of 0.5
#: and 0.2.
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lmlp": {"rate": 3e-3, "decay": 0.1},
        "hmcn": {"rate": 1e-2, "decay": 0.01, "dropout": 0.2},
        "chmcnn": {"rate": 1e-2, "decay": 0.01, "dropout": 0.2},
    }
)


def check_methods(names: list[str]) -> list[str]:
    """Resolve names of methods and of groups.

    Raises:
        ExperimentError: one is neither; the message lists what there is.
    """
    found = [name for one in names for name in GROUPS.get(one, (one,))]
    unknown = sorted(set(found) - set(METHODS))
    if unknown:
        raise ExperimentError(
            f"no method {', '.join(unknown)}: expected some of {'; '.join(METHODS)}; "
            f"or {', '.join(GROUPS)}"
        )
    return list(dict.fromkeys(found))


def learn(method: str, features: Features, protocol: Protocol, seed: int) -> Learnt:
    """Train a method on the labels that a protocol gives, and read it on every judged set.

    Args:
        method: one of ``METHODS``.
        features: vectors and tree, the protocol's small tree if it asks for one.
        protocol: which labels.
        seed: of the labels drawn, and of training.

    Raises:
        ExperimentError: there is no such method.
    """
    check_methods([method])
    images, targets = protocol.labels(features.targets, features.tree, seed)
    vectors = torch.from_numpy(features.train[images])
    if protocol.low_res and features.poor is not None:
        relabelled = targets != features.targets[images]
        vectors[relabelled] = torch.from_numpy(features.poor[images][relabelled])
    config = TrainingConfig.for_networks(features.networks, seed=seed)
    return fit_method(method, features, (vectors, targets), config)


def fit_method(
    method: str,
    features: Features,
    labelled: tuple[Tensor, NDArray[np.int64]],
    config: TrainingConfig,
) -> Learnt:
    """Train a method on ``(n, V, C)`` vectors and their ``(n,)`` nodes, and read it."""
    vectors, targets = labelled
    rows = Rows(torch.arange(len(targets)), torch.from_numpy(targets), torch.ones(len(targets)))
    started = time.thread_time()
    if method in HRN:
        own = replace(config, **HRN[method])
        if own.shared:  # as many units as all levels' blocks together
            own = replace(own, hidden=own.hidden * features.tree.depth)
        read: Callable[[NDArray[np.float16]], Floats] = fit_hrn(
            features.tree, vectors, rows, own
        ).log_probabilities
    else:
        own = replace(config, **SETTINGS.get(method, {}))
        read = _fit_baseline(method, features.tree, vectors, rows, own)
    seconds = time.thread_time() - started
    return Learnt({name: read(one.vectors) for name, one in features.judged.items()}, seconds)


def fit_hrn(tree: LabelTree, vectors: Tensor, rows: Rows, config: TrainingConfig) -> HRNHead:
    """Train the product's head as the product does."""
    head = trainer.new_head(tree, vectors, config)
    trainer.learn(head, trainer.TrainingSet(tree, vectors, rows), config, silent)
    return head.eval()


def _fit_baseline(
    method: str, tree: LabelTree, vectors: Tensor, rows: Rows, config: TrainingConfig
) -> Callable[[NDArray[np.float16]], Floats]:
    """Train as many members as the product's head has, each alone; their mean outputs answer.

    As with ours each member sees one network's vectors, if there are several. What is one network
    by its paper, and our own head under another loss, has one member that sees everything.
    """
    alone = method.startswith(("published", "hrn"))
    ends = np.cumsum([0, *(config.networks or (vectors.shape[2],))]).tolist()
    parts = (
        [slice(0, None)] if alone else [slice(*ends[at : at + 2]) for at in range(len(ends) - 1)]
    )
    seen = parts * (1 if alone else config.members)
    members = []
    for number, part in enumerate(seen):
        own = replace(config, seed=config.seed + 1000 * number)
        torch.manual_seed(own.seed)
        mine = vectors[:, :, part]
        member = BASELINES[method](tree, mine[:, 0].float(), own)

        def objective(
            some: Tensor, targets: Tensor, weights: Tensor, member: Baseline[Any] = member
        ) -> Tensor:
            del weights  # all alike
            return member.loss(member(some), targets)

        fit(member, objective, mine, rows, own, silent)
        members.append(member)

    def read(judged: NDArray[np.float16]) -> Floats:
        found = []
        with torch.inference_mode():
            for some in torch.from_numpy(judged).float().split(BATCH):
                outputs = [
                    member(some[:, part]) for member, part in zip(members, seen, strict=True)
                ]
                found.append(members[0].log_probability(_mean(outputs)).double())
        log_p: Floats = torch.cat(found).numpy() if found else np.empty((0, len(tree)))
        return log_p

    return read


def _mean(outputs: list[Any]) -> Any:  # noqa: ANN401 - each method has its own
    """Average the outputs of members of one method."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(outputs).mean(0)
    if isinstance(first, HmcnOutputs | PublishedOutputs):
        return type(first)(*(_mean([vars(one)[name] for one in outputs]) for name in vars(first)))
    raise TypeError(f"no mean of {type(first).__name__}")


def silent(*stage: object, **figures: float) -> None:
    """Take progress and say nothing."""
