"""Prefix sharing, packing, candidate scoring, batched generation and the OpenVINO scorer."""

import sys

# OpenVINO sends usage data by this package from its import on, without asking; where it is missing, it sends none.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
