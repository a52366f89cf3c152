"""`benchmarks.work_app` under the sampler, in the worker that imports it."""

from __future__ import annotations

from benchmarks import sampler
from benchmarks.work_app import app as app

sampler.install()
