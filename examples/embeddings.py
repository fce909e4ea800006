"""Compare sentences by the cosine similarity of their embeddings.

The vectors have length 1, so the similarity of two is the sum of their products.

python examples/embeddings.py "The cat sleeps." "A cat is asleep." "Seven times nine."
"""

import argparse
import os

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sentences", nargs="*", default=["The cat sleeps.", "The cat is asleep.", "Seven times nine."])
parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
arguments = parser.parse_args()

client = OpenAI(base_url=arguments.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
answer = client.embeddings.create(model=client.models.list().data[0].id, input=arguments.sentences)
vectors = [entry.embedding for entry in answer.data]
for sentence, vector in zip(arguments.sentences, vectors, strict=True):
    similarities = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in vectors]
    print("  ".join(f"{similarity:5.2f}" for similarity in similarities), "", sentence)
