"""A server under two roles, and whether the report on its audit log says what its clients have counted.

    python benchmarks/serving_operations.py FOLDER

The model is the embedded one at sixteen times its window, by interpolation alone, started by `skipwise serve`. Six
clients of the role `analyst` send prompts of 60 to 2,500 tokens, four of the role `reader`, which may ask for 256
tokens, of 60 and now and then of 300. FOLDER gets the model, the log and the page.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

from skipwise.model import load_model, save_model
from skipwise.rope import INTERPOLATIONS
from skipwise.serve.keys import change_role, create_key
from skipwise.window import Window

LENGTHS = {"analyst": (60, 60, 150, 600, 2500), "reader": (60, 60, 60, 200, 300)}
CLIENTS = {"analyst": 6, "reader": 4}


def ask(client: openai.OpenAI, role: str, seed: int) -> Counter[tuple[str, ...]]:
    """A client's requests, one after the other, and what it has counted."""
    rng, counted = random.Random(seed), Counter[tuple[str, ...]]()
    for _ in range(8):
        prompt = [rng.randrange(4, 400) for _ in range(rng.choice(LENGTHS[role]))]
        try:
            done: Any = client.completions.create(model="long", prompt=prompt, max_tokens=8)
        except openai.PermissionDeniedError:
            counted[role, "refused"] += 1
            continue
        counted[role, "answered"] += 1
        for name in (role, done.skipwise["mode"]):
            counted[name, "prompt_tokens"] += done.usage.prompt_tokens
            counted[name, "completion_tokens"] += done.usage.completion_tokens
    return counted


def main(folder: Path) -> None:
    """Serves, asks, and compares."""
    model, tokenizer = load_model(
        "embedded", interpolation=INTERPOLATIONS["yarn"](), window=Window(train=256, original=256, target=4096)
    )
    save_model(model, tokenizer, folder / "long")
    keys, log = folder / "keys.json", folder / "audit.jsonl"
    change_role(keys, "analyst", {})
    change_role(keys, "reader", {"max_context": 256})
    holders = [(role, f"{role}{place}") for role, number in CLIENTS.items() for place in range(number)]
    owned = [(role, create_key(keys, name, role=role)) for role, name in holders]
    command = [sys.executable, "-m", "skipwise", "serve", str(folder / "long"), "--base", "embedded", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--keys", str(keys), "--audit", str(log)], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    told = ""
    while not (found := re.search(r"at (http://\S+) ", told)):
        line = process.stderr.readline()
        print(line, end="", flush=True)
        if not line:
            sys.exit("the server did not start")
        told += line
    counted = Counter[tuple[str, ...]]()
    with ThreadPoolExecutor(16) as pool:
        asked = []
        for role, key in owned:
            client = openai.OpenAI(base_url=found[1] + "/v1", api_key=key, max_retries=0, timeout=600)
            asked.append(pool.submit(ask, client, role, len(asked)))
        for one in asked:
            counted.update(one.result())
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    command = [sys.executable, "-m", "skipwise", "report", "--operations", str(log), "--out", str(folder / "page.html")]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    report = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    same = True
    for (name, kind), number in sorted(counted.items()):
        group = report["modes" if name in ("short", "long") else "roles"][name]
        outcomes = {"answered": "answered", "refused": "context_length_not_allowed"}
        said = group["outcomes"][outcomes[kind]] if kind in outcomes else group[kind]
        print(f"{name} {kind}: clients {number}, report {said}")
        same = same and said == number
    print("equal" if same else "DIFFERENT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
