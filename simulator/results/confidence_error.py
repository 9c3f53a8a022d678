"""How far the simulated confidences are off, measured: the calibration error of the survivals that policies see."""

from __future__ import annotations

import numpy as np

from sglang_dspark.calibration import expected_calibration_error
from sglang_dspark.cost import Assumption
from sglang_dspark.policies import SCALE
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.confidence import Confidence
from simulator.blocks.online import PRIOR, WINDOW
from simulator.engine.run import Setting

_REQUESTS, _OUTPUT = 512, 200

_HOW = {
    "sts": "err as after STS, the default (fitted to the paper's Figure 6)",
    "raw": "err as the raw head's (the middle of the paper's ECE of 3 to 8 %)",
    "calibrated": "are the true conditionals",
    "set by the user": "err as set by the user",
}


def survival_error(setting: Setting) -> float:
    """ECE of the reported survivals as `dspark eval` prints it, mean over positions, on 100,000 blocks drawn."""
    domain = np.resize(setting.domains(setting.trace, setting.seed), _REQUESTS)
    output = np.full(_REQUESTS, _OUTPUT)
    source = StatisticalAcceptance(setting.drafter, setting.confidence, domain, output, setting.seed)
    blocks = BlockTable.empty(_REQUESTS * _OUTPUT, source.gamma, confidence=False)
    for request in range(_REQUESTS):
        source.fill(request, 1, blocks.rows(request * _OUTPUT, (request + 1) * _OUTPUT))
    said = blocks.units / SCALE
    errors = [
        expected_calibration_error(said[:, j], (blocks.depth > j).astype(np.float64)) for j in range(source.gamma)
    ]
    return float(np.mean(errors))


def stated_confidences(setting: Setting) -> list[Assumption]:
    """Where confidences come from, how far they spread and how far they are off."""
    model = setting.confidence
    if model.online:
        said = (
            f"confidences are learned online: acceptance by position over about {WINDOW} steps, {PRIOR:g} before the "
            "first, the same for all requests"
        )
        why = "vLLM's estimator (#52228) reads the draft's own probabilities too, of which nothing is published"
        return [*_spread(model), Assumption("confidence_error", None, "", why, said)]
    if not setting.drafter.has_confidence:
        said = f"{setting.drafter.name} has no confidence head: every block reports the mean acceptance of its domain"
        return [Assumption("confidence_error", None, "", "as if it were known; --confidence online learns it", said)]
    error = survival_error(setting)
    parts = f"temperature {model.temperature:g}, bias {model.bias:g}, noise {model.noise:g}"
    said = f"confidences {_HOW[model.calibration]}: ECE of survivals {error:.1%} ({parts})"
    return [*_spread(model), Assumption("confidence_error", error, "ECE of survivals", "", said)]


def _spread(model: Confidence) -> list[Assumption]:
    spread = (
        f"{model.spread_request:g} between requests, {model.spread_block:g} between blocks, "
        f"{model.spread_position:g} between positions"
    )
    fitted = "fitted to the paper's Figure 5; the split between requests and blocks is assumed"
    return [Assumption("confidence_spread", spread, "logits", fitted, f"confidence logits spread {spread}")]
