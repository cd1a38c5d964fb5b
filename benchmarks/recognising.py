"""Why `harm` leaves refusals in the demo model: what can be told where it reads, layer by layer.

    python benchmarks/recognising.py

AUC of validation prompts' projections on the direction that training prompts give: at the
instruction's own last token (`harm`) and at the prompt's last token (`projected`), and the cosine
between the two directions.
"""

from __future__ import annotations

from abl_hub.demo.corpus import prompts
from abl_hub.demo.train import demo_model
from abl_hub.directions.contrast import make_contrast
from abl_hub.directions.evidence import activations
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.evaluation.detector import auc
from abl_hub.model.chat import load_chat_model


def main() -> None:
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive], [prompt for prompt, _ in asked.negative]
    )
    chat = load_chat_model(demo_model())
    positions = len(chat.post_instruction_tokens) + 1
    train, held_out = (
        [
            activations(chat, getattr(side, part), positions=positions).double()
            for side in (contrast.positive, contrast.negative)
        ]
        for part in ("train", "validation")
    )
    print("| layer | AUC, `harm` | AUC, `projected` | cosine |\n|---:|---:|---:|---:|")
    for layer in range(len(chat.layers)):
        cells, directions = [], []
        for position in (-positions, -1):
            vector = projected_mean_difference(*(side[:, layer, position] for side in train))
            directions.append(vector / vector.norm())
            scores = [(side[:, layer, position] @ directions[-1]).tolist() for side in held_out]
            cells.append(f"{auc(*scores).value:.2f}")
        print(f"| {layer} | {' | '.join(cells)} | {float(directions[0] @ directions[1]):.2f} |")


if __name__ == "__main__":
    main()
