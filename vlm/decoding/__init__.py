"""Prefix sharing, packing, candidate scoring, batched generation and the OpenVINO scorer."""
