"""From an idea's sweep file to runs: every arm of the plan, at a scale, with every seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from evals.experiments.scales import WRITTEN_FOR, Scale
from train import settings, sweep
from train.config import RunConfig
from train.variants import VARIANTS, Request, sections_of

SWEEPS: Final = Path(__file__).parent / "sweeps"
_IN_STEPS: Final = ("tau_steps", "schedule_steps")
"""Settings that count the optimiser's steps from the start to the end of a run."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of a table: a variant with its settings, whatever the seed."""

    label: str
    request: Request

    @property
    def window(self) -> int:
        """W of its batches: as the sweep file says, or as the variant has it."""
        return int(self.request.settings.get("window", VARIANTS[self.request.variant].settings.get("window", 1)))


def arms(name: str) -> list[Arm]:
    """The arms of a sweep file, in its order; the same arm named twice is one.

    Raises:
        TrainError: a file that is no sweep.
    """
    found = [Arm(label=_label(request), request=request) for request in sweep.from_file(SWEEPS / f"{name}.toml", ())]
    return list({arm.label: arm for arm in found}.values())


def baselines(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """What each arm is held against: the arm that is the same run but for the penalty, as both were resolved.

    An arm without a penalty, or with its coefficient at 0, is a baseline itself. Group biases are no penalty: those
    with a penalty are held against those without one, and those against the architecture that has none.

    Args:
        configs: label → the arm as a run; all of one seed.

    Returns:
        Label → label of the baseline, its own where it is one; an arm without a true baseline is left out.
    """
    plain = {label: config for label, config in configs.items() if not _penalised(config)}
    held = {label: _held_against(label, config, plain) for label, config in configs.items()}
    return {label: other for label, other in held.items() if other}


def _held_against(label: str, config: RunConfig, plain: Mapping[str, RunConfig]) -> str:
    wanted, own = config, label if label in plain else ""
    if own and not config.sae.group_biases:
        return own
    if own:
        wanted = replace(config, penalties={}, sae=replace(config.sae, group_biases=0))
    return next((one for one, other in plain.items() if _setting(other) == _setting(wanted)), own)


def _penalised(config: RunConfig) -> bool:
    return any(one.coeff for one in config.penalties.values())


def _setting(config: RunConfig) -> tuple[object, ...]:
    """Everything that trains an SAE but its penalties."""
    return config.sae, config.architecture, config.training, config.feed, config.cache, config.sequences, config.layer


def at_scale(arm: Arm, scale: Scale, seed: int, extra: Mapping[str, Any]) -> Request:
    """An arm as a run: the scale's sizes, the seed, and what else is set for all arms that have such a setting.

    The arm's own settings win over the scale's; what they count in steps of a full run is counted in this one's.
    """
    sections = sections_of(arm.request.variant, arm.request.base)
    sizes = {"sae.d_sae": scale.d_sae, "k": scale.k, "batch": scale.batch, "steps": scale.steps, **extra}
    known = {key: value for key, value in sizes.items() if settings.has(sections, key)}
    own = {
        key: max(1, round(int(value) * scale.steps / WRITTEN_FOR)) if key.rpartition(".")[2] in _IN_STEPS else value
        for key, value in arm.request.settings.items()
    }
    return replace(arm.request, settings={**known, **own, "sae.seed": seed})


def seeds(text: str) -> tuple[int, ...]:
    """`3` is seeds 0, 1, 2; `0,7` is just these.

    Raises:
        ValueError: neither.
    """
    numbers = [int(part) for part in text.split(",")]
    chosen: Sequence[int] = range(numbers[0]) if len(numbers) == 1 and "," not in text else numbers
    if not chosen or min(chosen) < 0 or len(set(chosen)) != len(chosen):
        raise ValueError(f"seeds must be how many, such as 3, or which, such as 0,1,2, got {text!r}")
    return tuple(chosen)


def _label(request: Request) -> str:
    """`ortho_pairs share=0.01 tau=0.5`; what the scale changes is left out."""
    own = ((key, value) for key, value in request.settings.items() if key.rpartition(".")[2] not in _IN_STEPS)
    return " ".join([request.variant, *_shown(own)])


def _shown(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"{key.rpartition('.')[2]}={_value(value)}" for key, value in pairs]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
