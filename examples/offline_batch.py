"""Complete several prompts in this process, each with parameters of its own, and leave another one early.

No server is needed: the engine runs right here and batches what it is given.

python examples/offline_batch.py            # the demo model
python examples/offline_batch.py MODEL      # a directory, a hub id or a GGUF file
"""

import argparse
from contextlib import closing

from orcinus import LLM, SamplingParams

BATCH = [
    ("The capital of France is", SamplingParams(max_tokens=8, temperature=0)),
    ("Once upon a time", SamplingParams(max_tokens=40, seed=7)),
    ("The sea is", SamplingParams(max_tokens=40, temperature=0.5, seed=1, stop=(".",))),
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?")
arguments = parser.parse_args()

llm = LLM(arguments.model)
for result in llm.generate([prompt for prompt, _ in BATCH], [sampling for _, sampling in BATCH]):
    output = result.outputs[0]
    print(f"{result.prompt!r} -> {output.text!r} ({output.finish_reason})")

# A stream that is closed ends its request: the rest of the 500 tokens is never computed.
num_tokens = 0
with closing(llm.stream("Once upon a time", SamplingParams(max_tokens=500, seed=7, ignore_eos=True))) as stream:
    for piece in stream:
        print(piece.text, end="", flush=True)
        num_tokens += len(piece.token_ids)
        if num_tokens >= 30:
            break
print(f"\n[left after {num_tokens} tokens]")
