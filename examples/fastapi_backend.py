"""A FastAPI backend that asks the sidecar: `uvicorn examples.fastapi_backend:app`, then POST /analyze-drought."""

import os

import httpx
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

KEY = os.environ.get("SIDECAR_KEY", "")  # not needed while the bridge has no keys
app = FastAPI()
sidecar = httpx.AsyncClient(
    base_url=os.environ.get("SIDECAR_URL", "http://127.0.0.1:8001"),
    headers={"Authorization": f"Bearer {KEY}"} if KEY else {},
    timeout=60,
)


class Region(BaseModel):
    name: str
    rainfall_mm: list[float]


@app.post("/analyze-drought")
async def analyze_drought(region: Region) -> dict[str, str]:
    """What a model says of the rain; an error keeps the sidecar's status and message."""
    months = ", ".join(f"{mm:g} mm" for mm in region.rainfall_mm)
    question = f"Rain in {region.name}, month by month: {months}. How severe is the drought? Two sentences."
    body = {"messages": [{"role": "user", "content": question}], "task_type": "analysis", "priority": "high"}
    try:
        answer = await sidecar.post("/api/chat", json=body)
    except httpx.HTTPError as error:
        raise HTTPException(502, f"the sidecar cannot be reached: {error}") from error
    if answer.is_error:
        raise HTTPException(answer.status_code, answer.json()["error"]["message"])
    return {"region": region.name, "analysis": answer.json()["response"]}
