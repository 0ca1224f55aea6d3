"""Embeds what it is told on standard input with torch and transformers, in one process: the reference's side of `peers.py`.

In: one JSON object a line, `{"texts": [text, ...]}` (no template) or `{"parts": [{"image": PNG} | {"video": [PNG, ...]} |
{"text": text}, ...]}` (the model's template), pictures as base64. Out: first `{"ready": true, "versions": ...}`, then for each line
`{"seconds", "tokens", "vectors": [base64 of little-endian float32, ...]}`. The time runs from the decoded JSON to the normalised
vectors: decoding and resizing pictures and tokenising count, as they do in a server. Needs torch, transformers (4.57 or later) and
qwen-vl-utils; the steps are those of the model's official script.
"""

import argparse
import base64
import inspect
import io
import json
import os
import sys
import time

import torch
import transformers
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

# The official script's defaults: least and most pixels of a picture, and its default instruction.
PIXELS = {"min_pixels": 4096, "max_pixels": 1843200}
INSTRUCTION = "Represent the user's input."


def picture(text):
    """The picture in base64 `text`."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def part_of(part):
    """One part of a request in the words of qwen-vl-utils."""
    if "image" in part:
        return {"type": "image", "image": picture(part["image"]), **PIXELS}
    if "video" in part:
        return {"type": "video", "video": [picture(frame) for frame in part["video"]]}
    return {"type": "text", "text": part["text"]}


def encoded(processor, request):
    """The model's tensors for one request."""
    if "texts" in request:
        return dict(processor.tokenizer(request["texts"], padding=True, return_tensors="pt"))
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
        {"role": "user", "content": [part_of(part) for part in request["parts"]]},
    ]
    prompt = processor.apply_chat_template([conversation], add_generation_prompt=True, tokenize=False)
    images, videos, options = process_vision_info(
        [conversation], image_patch_size=16, return_video_kwargs=True, return_video_metadata=True
    )
    metadata = None
    if videos is not None:
        videos, metadata = (list(column) for column in zip(*videos))
    return dict(
        processor(text=prompt, images=images, videos=videos, video_metadata=metadata, padding=True, do_resize=False,
                  return_tensors="pt", **options)
    )


def embed(model, tensors):
    """The normalised vectors at each row's last token."""
    known = inspect.signature(model.forward).parameters
    if "mm_token_type_ids" not in known:
        tensors.pop("mm_token_type_ids", None)
    with torch.inference_mode():
        hidden = model(**tensors, use_cache=False).last_hidden_state
        last = tensors["attention_mask"].sum(1) - 1
        return torch.nn.functional.normalize(hidden[torch.arange(hidden.shape[0]), last].float(), dim=-1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--threads", type=int, required=True)
    options = arguments.parse_args()
    # Libraries print to standard output; the answers go to a copy of it, and everything else to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    processor = Qwen3VLProcessor.from_pretrained(options.model, padding_side="right")
    model = Qwen3VLForConditionalGeneration.from_pretrained(options.model, dtype=torch.bfloat16).eval().model
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"ready": True, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        tensors = encoded(processor, request)
        vectors = embed(model, tensors)
        seconds = time.perf_counter() - start
        rows = [base64.b64encode(row.numpy().tobytes()).decode() for row in vectors]
        tokens = int(tensors["attention_mask"].sum())
        print(json.dumps({"seconds": seconds, "tokens": tokens, "vectors": rows}), file=answers, flush=True)


if __name__ == "__main__":
    main()
