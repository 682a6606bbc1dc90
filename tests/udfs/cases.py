"""Models under all the optimisers that have rows, and ratings to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from river import optim, reco

from udfs.building import FILTERS, build
from udfs.models import RowModel
from udfs.rivermodels import KINDS, RiverRanker

OPTIMIZERS: Mapping[str, tuple[Any, dict[str, float]]] = {
    "SGD": (optim.SGD, {"lr": 0.05}),
    "AdaGrad": (optim.AdaGrad, {"lr": 0.03}),
    "Adam": (optim.Adam, {"lr": 0.02, "beta_1": 0.8}),
    "RMSProp": (optim.RMSProp, {"lr": 0.01}),
    "Momentum": (optim.Momentum, {"lr": 0.005}),
}
COMPILED = [(kind, optimizer) for kind in KINDS for optimizer in OPTIMIZERS]
RIVER = [(kind, f"{optimizer}/river") for kind, optimizer in COMPILED]  # by River's own code
CASES = COMPILED + RIVER
MATRIX = {"baseline": 0, "funk_mf": 4, "biased_mf": 4}


def parameters(kind: str, optimizer: str) -> dict[str, Any]:
    """freshet's parameters of a case; of filters, which have no optimiser, none."""
    if kind in FILTERS:
        return {}
    optimizer = optimizer.removesuffix("/river")
    prefixes = ("bias_", "latent_") if kind == "biased_mf" else ("",)
    params: dict[str, Any] = {"n_factors": MATRIX[kind]} if MATRIX[kind] else {}
    for prefix in prefixes:
        params[f"{prefix}optimizer"] = optimizer
        params |= {f"{prefix}optimizer.{name}": value for name, value in OPTIMIZERS[optimizer][1].items()}
    return params


def made(kind: str, optimizer: str, max_weight: float = 1e6) -> Any:
    """freshet's model of a case."""
    engine: Any = "river" if optimizer.endswith("/river") else "compiled"
    return build(kind, parameters(kind, optimizer), max_weight, engine)


def river(kind: str, optimizer: str) -> Any:
    """The same in River's own words."""
    create, options = OPTIMIZERS[optimizer.removesuffix("/river")]
    if kind == "baseline":
        return reco.Baseline(optimizer=create(**options), seed=0)
    if kind == "funk_mf":
        return reco.FunkMF(n_factors=4, optimizer=create(**options), seed=0)
    return reco.BiasedMF(n_factors=4, bias_optimizer=create(**options), latent_optimizer=create(**options), seed=0)


def rows_of(model: RowModel, family: str, *row_ids: str) -> Any:
    """What a model keeps of some rows."""
    return model.encode_rows(family, row_ids, model.ids[family].find(row_ids))


def ratings(n: int, seed: int = 0, users: int = 12, items: int = 9) -> list[tuple[str, str, float]]:
    """Random ratings of few users and items, so that rows are met again and new ones still come."""
    rng = np.random.default_rng(seed)
    return [
        (f"u{int(users * u * u)}", f"i{int(items * i * i)}", float(y) / 2)
        for u, i, y in zip(rng.random(n), rng.random(n), rng.integers(1, 11, n), strict=True)
    ]


TABLES = {
    "baseline": ("u_biases", "i_biases"),
    "funk_mf": ("u_latents", "i_latents"),
    "biased_mf": ("u_biases", "i_biases", "u_latents", "i_latents"),
}


def weights(kind: str, model: Any) -> dict[str, dict[str, bytes]]:
    """All weights of a River model, as bytes: equal only if equal bit for bit."""
    return {
        name: {row_id: np.asarray(value, dtype="f8").tobytes() for row_id, value in getattr(model, name).items()}
        for name in TABLES[kind]
    }


def stored(model: RowModel) -> tuple[bytes, dict[tuple[str, str], bytes]]:
    """All that a model keeps: its header and its rows."""
    rows = {
        (family, row_id): row.tobytes()
        for family, ids in model.ids.items()
        for row_id, row in zip(ids, rows_of(model, family, *ids), strict=True)
    }
    return model.header(), rows


def rebuilt(
    kind: str, optimizer: str, header: bytes, rows: Mapping[tuple[str, str], bytes], max_weight: float = 1e6
) -> RiverRanker:
    """A model in another process, from what was stored."""
    model: RiverRanker = made(kind, optimizer, max_weight)
    model.restore_header(header)
    for (family, row_id), blob in rows.items():
        model.decode_rows(family, [row_id], [blob])
    return model
