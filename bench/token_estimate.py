"""How far off the token estimate is, before and after a model has corrected it: `python -m bench.token_estimate`.

The truth is a real tokenizer, the demo model's, on real texts: the documents and sources of this repository, and
paragraphs in six languages. Every prompt is a few paragraphs, as requests are.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson
from rich.console import Console
from rich.progress import track
from rich.table import Table

from processor.estimate import Learned, base_tokens
from processor.messages import Request, decode_request
from providers.embedded_model import EmbeddedModel

ROOT = Path(__file__).resolve().parent.parent
PROMPTS_OF_A_KIND = 40
PARAGRAPHS = {
    "German": [
        "Der Pegel des Sees ist seit April um zwei Meter gefallen, und die Gemeinden am Nordufer haben das "
        "Bewässern am Tage verboten.",
        "Wer einen Garten hat, soll morgens vor sechs Uhr gießen; für Rasen gibt es in diesem Sommer kein Wasser.",
        "Fassen Sie die drei Berichte zusammen und nennen Sie die Orte, an denen die Brunnen zuerst trocken werden.",
    ],
    "French": [
        "Le niveau de la nappe a baissé de près de trois mètres depuis l'hiver, et les maires de la vallée demandent "
        "une réunion d'urgence.",
        "Expliquez aux habitants, en phrases simples, pourquoi l'eau est coupée la nuit et quand elle reviendra.",
        "Les agriculteurs de la plaine proposent de semer plus tard et de partager les réservoirs entre voisins.",
    ],
    "Chinese": [
        "今年春天以来,水库的水位下降了两米多,北岸的村庄已经开始限制白天用水。",
        "请用简单的话向居民说明为什么夜间停水,以及什么时候可以恢复供水。",
        "根据三份报告,列出最先缺水的地点,并给出每个地点的人口和水井数量。",
    ],
    "Arabic": [
        "انخفض منسوب البحيرة أكثر من مترين منذ الربيع، وقررت القرى الواقعة في الشمال منع الري خلال النهار.",
        "اشرح للسكان بجمل بسيطة لماذا تنقطع المياه ليلا ومتى ستعود إلى بيوتهم.",
        "اذكر الأماكن التي ستجف آبارها أولا، مع عدد السكان في كل مكان.",
    ],
}


def kinds() -> dict[str, list[str]]:
    """Paragraphs of each kind of text."""
    prose = _paragraphs(ROOT.glob("*.md"), ROOT.glob("nats/*.md"))
    python = _paragraphs(ROOT.glob("processor/*.py"), ROOT.glob("providers/*.py"))
    json = [orjson.dumps(orjson.loads(p.read_bytes())).decode() for p in sorted(ROOT.glob("nats/*/*.json"))]
    return {"English": prose, "Python": python, "JSON": json, **PARAGRAPHS}


def _paragraphs(*files: Iterator[Path]) -> list[str]:
    texts = [path.read_text("utf-8") for found in files for path in sorted(found)]
    return [piece for text in texts for piece in text.split("\n\n") if len(piece) > 80]


def prompts(texts: list[str], rng: random.Random) -> list[str]:
    return ["\n\n".join(rng.choices(texts, k=rng.randint(1, 8))) for _ in range(PROMPTS_OF_A_KIND)]


def request(text: str) -> Request:
    return decode_request(orjson.dumps({"messages": [{"role": "user", "content": text}]}))


async def measure() -> Table:
    """Estimates against the tokenizer, for each kind of text as a model's only diet, and for a mix of all."""
    rng = random.Random(7)
    asked = {kind: prompts(texts, rng) for kind, texts in kinds().items()}
    asked["mixed"] = [rng.choice(asked[rng.choice(list(asked))]) for _ in range(PROMPTS_OF_A_KIND * 3)]
    model = EmbeddedModel()
    url = (await model.start()).removesuffix("/v1")
    table = Table("prompts", "tokens", "characters / 4", "before (bytes / 4)", "after", box=None, pad_edge=False)
    async with aiohttp.ClientSession() as session:
        for kind, texts in track(asked.items(), "tokenizing", console=Console(stderr=True), transient=True):
            truth = [await _tokens(session, url, text) for text in texts]
            table.add_row(kind, f"{statistics.median(truth):.0f}", *_errors(texts, truth))
    await model.stop()
    return table


async def _tokens(session: aiohttp.ClientSession, url: str, text: str) -> int:
    async with session.post(f"{url}/tokenize", json={"content": text}) as answer:
        answer.raise_for_status()
        return len(orjson.loads(await answer.read())["tokens"])


def _errors(texts: list[str], truth: list[int]) -> tuple[str, str, str]:
    """Mean absolute errors in percent of the truth; `after` is over the second half of the prompts."""
    by_chars = [abs(len(text) / 4 - tokens) / tokens for text, tokens in zip(texts, truth, strict=True)]
    before, after, learned = [], [], Learned()
    for n, (text, tokens) in enumerate(zip(texts, truth, strict=True)):
        base = base_tokens(request(text))
        before.append(abs(base - tokens) / tokens)
        if n >= len(texts) // 2:
            after.append(abs(learned.need("m", base, 1)[0] - tokens) / tokens)
        learned.observe("m", base, tokens, 1, None)
    by_chars_mean, before_mean, after_mean = (statistics.mean(errors) for errors in (by_chars, before, after))
    return f"{by_chars_mean:.0%}", f"{before_mean:.0%}", f"{after_mean:.0%}"


if __name__ == "__main__":
    Console().print(asyncio.run(measure()))
