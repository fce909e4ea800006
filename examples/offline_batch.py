"""Complete several prompts in this process, each with parameters of its own.

No server is needed: the engine runs right here and batches what it is given.

python examples/offline_batch.py            # the demo model
python examples/offline_batch.py MODEL      # a directory, a hub id or a GGUF file
"""

import argparse

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
