"""A tiny language model that spells letters, and a task of lm-evaluation-harness that needs no network."""

import json

import torch
from tests.unit.llm import tiny

TASK = """
task: local_pairs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WORDS = "abcdefgh"


def speller(folder):
    """A model with a tokenizer of single letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tiny.build("llama").save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({"<s>": 0, "<unk>": 1, " ": 2, **{w: i + 3 for i, w in enumerate(WORDS)}}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    return folder


def questions(place):
    """Twelve questions of four letters with three answers of one; the folder of the task, and the questions."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(WORDS), (12, 4), generator=rng).tolist()
    asked = [
        {"question": "".join(WORDS[i] for i in row), "choices": ["a", "d", "g"], "answer": n % 3}
        for n, row in enumerate(drawn)
    ]
    (place / "asked.json").write_text("\n".join(map(json.dumps, asked)))
    (place / "tasks").mkdir()
    (place / "tasks" / "local.yaml").write_text(TASK.format(file=place / "asked.json"))
    return place / "tasks", asked
