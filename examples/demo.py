"""`make demo`: start everything on a broker of its own, ask a real model one question, show the answer, end."""

import asyncio
import os
import sys
import tempfile

QUESTION = "Why is water important for a community? Answer in two sentences."


async def main() -> int:
    with tempfile.TemporaryDirectory() as data:
        environment = os.environ | {"SIDECAR_DATA_DIR": data, "LOG_LEVEL": "WARNING"}
        environment |= {"NATS_PORT": "0", "SIDECAR_PORT": "0"}  # any that are free
        environment.pop("NATS_URL", None)
        print("Starting a NATS broker with JetStream, the sidecar, and a local model (no API key needed) …", flush=True)
        sidecar = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "processor.cli", "up", env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            url = await ready(sidecar)
            print(f'\nPublishing to llm.request.high on {url}:\n  "{QUESTION}"\n', flush=True)
            ask = ["-m", "processor.cli", "ask", QUESTION, "--model", "local", "--max-tokens", "120", "--timeout", "90"]
            asking = await asyncio.create_subprocess_exec(
                sys.executable, *ask, env=environment | {"NATS_URL": url}, stdin=asyncio.subprocess.DEVNULL
            )
            code = await asking.wait()
        finally:
            if sidecar.returncode is None:
                sidecar.terminate()
            await sidecar.communicate()
    if code == 0:
        print(NEXT)
    return code


async def ready(sidecar: asyncio.subprocess.Process) -> str:
    """The broker's URL, once the sidecar says that it is ready."""
    assert sidecar.stderr is not None
    async for line in sidecar.stderr:
        text = line.decode()
        if "ready on" in text:
            return text.split()[-1]
        print(text, end="", file=sys.stderr)
    raise SystemExit("the sidecar did not start")


NEXT = """
That answer came over NATS: request, JetStream lane, model, stored reply, inbox.
SmolLM2 (135 million parameters) is a demo; for real models, put a key into .env (see .env.example).

  make up                                   start it and keep it running
  .venv/bin/sidecar ask "Why is the sky blue?"
  .venv/bin/sidecar check                   every dependency, one line each
  nats/README.md                            requests from Python, Node, or plain text
"""

if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
