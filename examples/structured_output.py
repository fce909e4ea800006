"""Get an answer as an object of a class: the output matches its JSON schema, whatever the model would rather write.

python examples/structured_output.py "Describe Japan in JSON with the keys country and capital."
"""

import argparse
import os

from openai import OpenAI
from pydantic import BaseModel, Field


class Country(BaseModel):
    country: str = Field(max_length=40)
    capital: str = Field(max_length=40)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("question", nargs="?", default="Describe France in JSON with the keys country and capital.")
parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
arguments = parser.parse_args()

client = OpenAI(base_url=arguments.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": arguments.question}],
    response_format=Country,
    temperature=0,
)
country = answer.choices[0].message.parsed
assert country is not None
print(f"The capital of {country.country} is {country.capital}.")
