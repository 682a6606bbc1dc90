"""Models by their names and flat parameters, as settings write them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Literal

from river import optim

from udfs.compiled import CompiledRanker, is_compiled
from udfs.models import ModelError, RowModel
from udfs.plain import PlainBiasedMF, is_plain
from udfs.rivermodels import KINDS, RiverRanker

BLEND: Final = "blend"
STACK: Final = "stack"
# Of a blend: what its constructor takes, by name; the others are of udfs.blend.Settings.
OF_BLEND: Final = {
    "n_factors": "n_factors",
    "neighbours": "neighbours",
    "history": "seen",
    "tops": "tops",
    "seed": "seed",
}
_AT_LEAST_ONE: Final = ("n_factors", "neighbours", "history", "teach_first", "teach_every")
# Parameters that are freshet's own, for every model.
DEFAULT_SEED: Final = 0
DEFAULT_MAX_WEIGHT: Final = 1e6

# Of models that are freshet's own: parameters and their defaults, all of them numbers.
FILTERS: Final[Mapping[str, Mapping[str, float]]] = {
    STACK: {"n_factors": 16, "noise": 1.0, "forget": 0.9999, "prior": 0.02, "seed": DEFAULT_SEED},
    "kalman_mf": {
        "n_factors": 8,
        "observation": 0.75,
        "user_bias_prior": 0.18,
        "user_prior": 0.4,
        "item_bias_prior": 0.4,
        "item_prior": 0.135,
        "user_bias_noise": 0.005,
        "user_noise": 3e-5,
        "item_bias_noise": 6e-5,
        "item_noise": 3e-5,
        "spread": 0.035,
        "seed": DEFAULT_SEED,
    },
}
_ABOVE_ZERO: Final = ("observation", "forget", "prior", "user_bias_prior", "item_bias_prior")


def build(
    name: str,
    params: Mapping[str, Any],
    max_weight: float = DEFAULT_MAX_WEIGHT,
    engine: Literal["compiled", "river"] = "compiled",
) -> RowModel:
    """A model by its name and its flat parameters.

    Parameters
    ----------
    name
        A key of :data:`KINDS` or of :data:`FILTERS`, or ``blend``.
    params
        Of :data:`FILTERS` as they are there; of a blend those of :class:`udfs.blend.Blend` and
        :class:`udfs.blend.Settings`; else River's own. Optimisers, initialisers and losses by class name, their own
        parameters after a dot: ``{"latent_optimizer": "SGD", "latent_optimizer.lr": 0.05}``. ``seed`` is 0 unless
        given, and initialisers that draw use it too, so that a job can be repeated.

    engine
        What learns: River itself; or compiled code where there is some for the model, its optimisers and its loss, and
        River elsewhere. Rows and header are the same.

    Raises
    ------
    ModelError
        For an unknown model or parameter, with the known ones.

    Examples
    --------
    >>> model = build("biased_mf", {"n_factors": 2, "latent_optimizer": "SGD", "latent_optimizer.lr": 0.05})
    >>> model.step("alice", "heat", 4.0) == build("biased_mf", {"n_factors": 2}).step("alice", "heat", 4.0)
    True
    >>> build("biased_mf", {"factors": 2})
    Traceback (most recent call last):
    ...
    udfs.models.ModelError: model.factors: biased_mf has no such parameter; it has n_factors, bias_optimizer, \
latent_optimizer, loss, l2_bias, l2_latent, weight_initializer, latent_initializer, clip_gradient, seed
    """
    if name == BLEND:
        return _blend(params)
    if name in FILTERS:
        return _filters(name, params, max_weight)
    kind = KINDS.get(name)
    if kind is None:
        raise ModelError(f"model.name: {name!r} is not a model; there are {', '.join([*KINDS, *FILTERS, BLEND])}")
    known = [p for p in inspect.signature(kind.estimator).parameters if p != "self"]
    _check_known(name, [key.split(".")[0] for key in params], known)

    def create() -> Any:
        values: dict[str, Any] = {"seed": params.get("seed", DEFAULT_SEED)}
        for key in known:
            if key in params or any(other.startswith(f"{key}.") for other in params):
                values[key] = _parameter(key, params, values["seed"])
        return kind.estimator(**values)

    model = create()
    ranker = RiverRanker
    if engine == "compiled" and is_compiled(model, kind):
        ranker = CompiledRanker
    elif is_plain(model):
        ranker = PlainBiasedMF
    return ranker(name, kind, create, max_weight)


def _check_known(name: str, keys: Iterable[str], known: Collection[str]) -> None:
    for key in keys:
        if key not in known:
            raise ModelError(f"model.{key}: {name} has no such parameter; it has {', '.join(known)}")


def _filters(name: str, params: Mapping[str, Any], max_weight: float) -> RowModel:
    from udfs.filtermodel import FilterModel  # here, as numba takes half a second to import
    from udfs.ratings import KalmanMF
    from udfs.stack import default_raters

    _check_known(name, params, FILTERS[name])
    of = {**FILTERS[name], **{key: _parameter(key, params, DEFAULT_SEED) for key in params}}
    for key, value in of.items():
        if value < 0 or (value == 0 and key in _ABOVE_ZERO):
            raise ModelError(f"model.{key}: {value!r} is not {'above' if key in _ABOVE_ZERO else 'at least'} 0")
    if name == STACK:
        if of["forget"] > 1:
            raise ModelError(f"model.forget: {of['forget']!r} is above 1")
        raters = default_raters(int(of["n_factors"]), of["noise"], int(of["seed"]))
        return FilterModel(name, raters, max_weight, of["forget"], of["prior"])
    priors = of["user_bias_prior"], of["user_prior"], of["item_bias_prior"], of["item_prior"]
    noise = of["user_bias_noise"], of["user_noise"], of["item_bias_noise"], of["item_noise"]
    rater = KalmanMF(int(of["n_factors"]), of["observation"], priors, noise, of["spread"], int(of["seed"]))
    return FilterModel(name, [rater], max_weight)


def _blend(params: Mapping[str, Any]) -> RowModel:
    # Here, as numba takes half a second to import.
    from udfs.blend import Blend, Settings
    from udfs.blendmodel import BlendModel

    defaults = Settings()
    known = [*OF_BLEND, *defaults._fields]
    own: dict[str, Any] = {}
    _check_known(BLEND, params, known)
    for key, value in params.items():
        is_whole = key in OF_BLEND or isinstance(getattr(defaults, key), int)
        least = 1 if key in _AT_LEAST_ONE else 0
        if (
            isinstance(value, bool)
            or not isinstance(value, int if is_whole else int | float)
            or not least <= value < 1e9
        ):
            raise ModelError(
                f"model.{key}: {value!r} is not a {'whole ' if is_whole else ''}number of at least {least}"
            )
        own[OF_BLEND.get(key, key)] = value
    settings = defaults._replace(**{key: own.pop(key) for key in defaults._fields if key in own})
    return BlendModel(Blend(settings, **own))


def _parameter(key: str, params: Mapping[str, Any], seed: int) -> Any:
    modules = {"optimizer": optim, "initializer": optim.initializers, "loss": optim.losses}
    module = next((m for suffix, m in modules.items() if key.endswith(suffix)), None)
    options = {k.partition(".")[2]: v for k, v in params.items() if k.startswith(f"{key}.")}
    if module is None:
        if options:
            raise ModelError(f"model.{key}.{next(iter(options))}: {key} is a number and has no parameters")
        value = params[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"model.{key}: {value!r} is not a number")
        if key in ("n_factors", "seed") and (not isinstance(value, int) or value < (key == "n_factors")):
            raise ModelError(f"model.{key}: {value!r} is not a whole number of at least {int(key == 'n_factors')}")
        return value
    names = [
        n for n, c in vars(module).items() if inspect.isclass(c) and n != "Optimizer" and not inspect.isabstract(c)
    ]
    chosen: Any = params.get(key)
    if chosen not in names:
        raise ModelError(f"model.{key}: {chosen!r} is not one of {', '.join(sorted(names))}")
    factory = getattr(module, chosen)
    known = [p for p in inspect.signature(factory).parameters if p != "self"]
    for option in options:
        if option not in known:
            raise ModelError(f"model.{key}.{option}: {chosen} has no such parameter; it has {', '.join(known)}")
    if "seed" in known:
        options.setdefault("seed", seed)
    try:
        return factory(**options)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"model.{key}: {chosen} can't be made: {error}") from error
