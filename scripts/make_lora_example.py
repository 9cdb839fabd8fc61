"""Makes the adapter that docs/lora.md and the README show: all-MiniLM-L6-v2, fine-tuned with LoRA by
PEFT to tell good reviews from bad (SST-2 of GLUE, or any file of `label<TAB>sentence` lines).

    ./run python scripts/make_lora_example.py --base MODEL --train train.tsv --dev dev.tsv \\
        --targets qkvo --out DIR

--targets names the adapted matrices (q, k, v, o); with --fused, q, k and v of a layer share one A, as
they would in storage where the three are one matrix. A few minutes on two cores. Needs PEFT (pip
install peft). Writes DIR/adapter_config.json, DIR/adapter_model.safetensors and DIR/training.json.
"""

import argparse
import json
import time
from pathlib import Path

import peft
import torch
import transformers

NAMES = {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"}
LONGEST = 48


def read_rows(path):
    """Lines `label<TAB>sentence`, with a header or without; quotes are characters like any other."""
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        cells = line.split("\t")
        if number == 1 and not any(cell.strip().isdigit() for cell in cells):
            continue
        if len(cells) != 2:
            raise SystemExit(f"{path}:{number}: {len(cells)} cells; expected label<TAB>sentence")
        label, sentence = cells if cells[0].strip().isdigit() else reversed(cells)
        rows.append((sentence, int(label)))
    return rows


def batches(rows, tokenizer, size, generator=None):
    """Batches of sentences of like length, which saves padding; with a generator in random order."""
    order = list(range(len(rows)))
    if generator is not None:
        order = torch.randperm(len(rows), generator=generator).tolist()
    pool = 32 * size
    for begin in range(0, len(rows), pool):
        here = sorted(order[begin : begin + pool], key=lambda i: len(rows[i][0]))
        starts = list(range(0, len(here), size))
        if generator is not None:
            starts = [starts[i] for i in torch.randperm(len(starts), generator=generator)]
        for start in starts:
            chosen = [rows[i] for i in here[start : start + size]]
            tokens = tokenizer(
                [sentence for sentence, _ in chosen], padding=True, truncation=True,
                max_length=LONGEST, return_tensors="pt",
            )
            yield tokens, torch.tensor([label for _, label in chosen])


@torch.no_grad()
def accuracy(model, rows, tokenizer):
    model.eval()
    right = sum(
        int((model(**tokens).logits.argmax(-1) == labels).sum())
        for tokens, labels in batches(rows, tokenizer, 128)
    )
    return right / len(rows)


def adapted(arguments):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        arguments.base, num_labels=2
    )
    model = peft.get_peft_model(base, peft.LoraConfig(
        task_type="SEQ_CLS", r=arguments.rank, lora_alpha=2 * arguments.rank,
        target_modules=[NAMES[letter] for letter in arguments.targets],
    ))
    if arguments.fused:
        # One A for what one stored matrix would hold.
        for layer in model.base_model.model.bert.encoder.layer:
            parts = [getattr(layer.attention.self, NAMES[x]) for x in "qkv" if x in arguments.targets]
            for part in parts[1:]:
                part.lora_A["default"].weight = parts[0].lora_A["default"].weight
    return model


def train(model, rows, tokenizer, arguments):
    trained = list({id(p): p for p in model.parameters() if p.requires_grad}.values())
    optimizer = torch.optim.AdamW(trained, lr=arguments.lr, weight_decay=0)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, arguments.steps // 20, arguments.steps
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    step, mean = 0, None
    while step < arguments.steps:
        for tokens, labels in batches(rows, tokenizer, arguments.batch, generator):
            model.train()
            loss = model(**tokens, labels=labels).loss
            loss.backward()
            value = float(loss.detach())
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            mean = value if mean is None else 0.95 * mean + 0.05 * value
            step += 1
            if step % 25 == 0:
                print(f"step {step} of {arguments.steps}: loss {mean:.4f}", flush=True)
            if step == arguments.steps:
                break
    return mean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--targets", default="qkvo")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.targets or set(arguments.targets) - set(NAMES):
        parser.error(f"--targets {arguments.targets}: expected letters of qkvo")
    torch.manual_seed(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.base)
    train_rows, dev_rows = read_rows(arguments.train), read_rows(arguments.dev)
    model = adapted(arguments)
    start = time.monotonic()
    loss = train(model, train_rows, tokenizer, arguments)
    found = accuracy(model, dev_rows, tokenizer)
    model.save_pretrained(arguments.out)
    record = {
        "targets": arguments.targets, "fused": arguments.fused, "rank": arguments.rank,
        "alpha": 2 * arguments.rank, "steps": arguments.steps, "batch": arguments.batch,
        "lr": arguments.lr, "seed": arguments.seed, "train_loss": loss, "dev_accuracy": found,
        "dev_sentences": len(dev_rows), "seconds": round(time.monotonic() - start, 1),
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"accuracy on {len(dev_rows)} held-out sentences: {found:.4f}")


if __name__ == "__main__":
    main()
