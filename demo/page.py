# SPDX-License-Identifier: Apache-2.0
"""What the demo's report says: which runs belong to which method, and the words around the numbers."""

from __future__ import annotations

import json
from pathlib import Path

from llamafactory_tpaw.report.collect import Method, Scores, read_part
from llamafactory_tpaw.report.page import blocks_of
from llamafactory_tpaw.report.render import write_page

from .steps import ITERATIONS, Layout


METHODS = {
    "TPAW": tuple(f"tpaw_iter{t}" for t in ITERATIONS),
    "SPIN": tuple(f"spin_iter{t}" for t in ITERATIONS),
    "continued SFT": ("sft_more",),
}
LABELS = {
    "sft": "theta_0, supervised fine-tuning",
    **{f"tpaw_iter{t}": f"TPAW, iteration {t}" for t in ITERATIONS},
    **{f"spin_iter{t}": f"SPIN, iteration {t}" for t in ITERATIONS},
    "sft_more": "continued SFT",
}
NOTES = {
    "TPAW": (
        "Self-play against a team: in iteration t, θₜ answers the training problems, and is trained on these and the "
        "earlier rounds of answers against up to three past checkpoints, with target weights (eta 6) and player "
        "weights."
    ),
    "SPIN": (
        "Self-play against the newest checkpoint and its answers alone, without weights, at a learning rate of its "
        "own that was chosen on validation problems. It has one round of triplets an iteration, so it takes fewer "
        "steps."
    ),
    "continued SFT": (
        "Plain supervised fine-tuning of θ₀ on the same training problems for as many optimizer steps as TPAW takes; "
        "no generated answers. Its checkpoints on the way were taken before its learning rate had come down."
    ),
}
INTRODUCTION = (
    "A Qwen2-architecture model of 0.37 million parameters with random weights learned to solve word problems by "
    "supervised fine-tuning on 1,000 worked answers (θ₀, stopped at middling accuracy), and then went on in three "
    "ways from the same θ₀ on the same 1,000 problems. Every training is a plain “llamafactory-cli train” of a file "
    "in yaml/.",
    "A problem: “{question}” Its worked answer: “{answer}”. Accuracy is the share of held-out problems whose final "
    "number is right when the model answers greedily. No calculation of a test problem appears in training. Settings "
    "were chosen on a separate validation set.",
)
NOISE = (
    "The intervals hold the noise of drawing {n:,} problems, not that of the training seed, which is larger: in this "
    "demo θ₀ alone varies by many points from seed to seed. docs/demo.md has two further seeds. One tiny model on "
    "one synthetic task, where every problem has one right wording, shows that the machinery works; it does not rank "
    "methods.",
    "θ₀ was stopped before supervised fine-tuning had given all it can, so further passes over the targets still "
    "help, and all methods train on the targets. Compare at equal optimizer steps; a step of self-play costs about "
    "twice one of SFT, because it also passes the generated answers through the model, and its answers have to be "
    "sampled first.",
)


def build_report(place: Layout, split: str, accuracy_file: Path) -> Path:
    """Write the report of a finished demo and return the path of its page."""
    from .evaluate import read_problems

    rows = read_problems(place.problems / f"{split}.jsonl")
    what = f"right answers to {len(rows):,} {'held-out' if split == 'test' else split} problems"
    measured = {
        Path(row["checkpoint"]): {what: {"value": row["accuracy"], "n": row["n"], "items": row["hits"]}}
        for row in json.loads(accuracy_file.read_text(encoding="utf-8"))
    }

    def read_scores(folder: Path) -> Scores:
        return measured.get(folder, {})

    def method(label: str, runs: tuple[str, ...]) -> Method:
        part = read_part(label, place.seed, place.output("sft"), [place.output(run) for run in runs], read_scores)
        return Method(label, (part,))

    blocks = blocks_of(
        [method(label, runs) for label, runs in METHODS.items()],
        [*(text.format(**rows[0]) for text in INTRODUCTION), *(f"{label}: {note}" for label, note in NOTES.items())],
        [text.format(n=len(rows)) for text in NOISE],
    )
    return write_page("Self-play of a tiny model on word problems", blocks, place.report)
