"""Two models answer the same prompts, and somebody who does not know which is which says whose answer is better.

    python -m zamba_lm.eval.side_by_side ask PROMPTS.jsonl OUT FIRST SECOND [--n 100] [--seed 0]
    python -m zamba_lm.eval.side_by_side count OUT

``ask`` writes OUT/pairs.jsonl (prompt, answers "A" and "B" in a random order) for the judge and OUT/key.json (which model is A)
for nobody until the verdicts are in. The judge, a person or a model, writes OUT/verdicts.jsonl: a line {"id", "better"} for each
pair, "A", "B" or "tie". ``count`` joins the three. The rule is in ``RULE``.
"""

import argparse
import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.llm import LLM, SamplingParams
from zamba_lm.train.data.files import lines

RULE = """For each prompt say which answer would serve the person who asked better: A, B or tie.
1. An answer to the question asked beats one about something else, whatever its style.
2. Between two that answer it: fewer false statements first, then fewer repetitions and broken sentences, then completeness.
3. Between two that do not: the one that stays nearer to the topic, is grammatical and ends by itself.
4. Length is no merit. If you would not care which one you got: tie."""

VERDICTS = ("A", "B", "tie")


def records(path: Path) -> Iterator[dict]:
    """Objects of a JSONL file, compressed or not."""
    for number, line in lines(path):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ZambaError(f"{path} line {number} is not JSON: {error}") from error


def prompts(path: Path, n: int, seed: int) -> list[str]:
    """n instructions (with their context, when they have one) of a JSONL file of {"instruction", "context"}, drawn by seed."""
    found = ["\n\n".join(filter(None, (r["instruction"].strip(), r.get("context", "").strip()))) for r in records(path)]
    if len(found) < n:
        raise ZambaError(f"{path} has {len(found)} prompts, fewer than the {n} asked for")
    return random.Random(seed).sample(found, n)


def answers(name: str, asked: list[str], params: SamplingParams) -> list[str]:
    """One answer a prompt, by the model ``name``."""
    conversations = [[{"role": "user", "content": prompt}] for prompt in asked]
    return [answer.text.strip() for answer in LLM(name).chat(conversations, params, progress=True)]


def blind(asked: list[str], first: list[str], second: list[str], seed: int) -> tuple[list[dict], dict[str, str]]:
    """Pairs as the judge sees them, and the key: by pair's id, which of the two models ("first", "second") is A."""
    order = random.Random(seed + 1)
    pairs, key = [], {}
    for i, (prompt, *two) in enumerate(zip(asked, first, second)):
        swapped = order.random() < 0.5
        pairs.append({"id": i, "prompt": prompt, "A": two[swapped], "B": two[not swapped]})
        key[str(i)] = "second" if swapped else "first"
    return pairs, key


def tally(key: dict[str, str], verdicts: Iterable[dict]) -> dict:
    """Wins of each, ties, and the chance of so uneven a split between equals (two-sided sign test)."""
    wins = {"first": 0, "second": 0, "tie": 0}
    said = {str(v["id"]): v["better"] for v in verdicts}
    for id, a in key.items():
        if said.get(id) not in VERDICTS:
            raise ZambaError(f"pair {id} has the verdict {said.get(id)!r}, expected one of {', '.join(VERDICTS)}")
        b = "second" if a == "first" else "first"
        wins[{"A": a, "B": b, "tie": "tie"}[said[id]]] += 1
    n, most = wins["first"] + wins["second"], max(wins["first"], wins["second"])
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    return {**wins, "p": min(1.0, 2 * tail)}


def ask(args: argparse.Namespace) -> None:
    asked = prompts(args.prompts, args.n, args.seed)
    params = SamplingParams(max_tokens=args.max_tokens)
    first, second = (answers(name, asked, params) for name in (args.first, args.second))
    pairs, key = blind(asked, first, second, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pairs.jsonl").write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs), encoding="utf-8")
    names = {"first": str(args.first), "second": str(args.second)}
    (args.out / "key.json").write_text(json.dumps({"models": names, "A": key}, indent=1))
    (args.out / "RULE.txt").write_text(RULE + "\n")


def count(args: argparse.Namespace) -> None:
    key = json.loads((args.out / "key.json").read_text())
    result = tally(key["A"], records(args.out / "verdicts.jsonl"))
    print(json.dumps({**key["models"], **{f"wins_{k}" if k in key["models"] else k: v for k, v in result.items()}}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True)
    asking = jobs.add_parser("ask", help="let both models answer")
    asking.add_argument("prompts", type=Path, help='JSONL of {"instruction", "context"}')
    asking.add_argument("out", type=Path, help="folder for the pairs and their key")
    asking.add_argument("first", help="a model: folder or name")
    asking.add_argument("second", help="the other one")
    for name, default in (("n", 100), ("seed", 0), ("max-tokens", 160)):
        asking.add_argument("--" + name, type=int, default=default, help=f"default {default}")
    asking.set_defaults(job=ask)
    counting = jobs.add_parser("count", help="join verdicts and key")
    counting.add_argument("out", type=Path)
    counting.set_defaults(job=count)
    args = parser.parse_args(argv)
    try:
        args.job(args)
    except ZambaError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
