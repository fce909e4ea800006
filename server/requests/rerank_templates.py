"""The prompts that rerankers were trained on, by family: texts and tokens that are part of each model's interface.

A reranker here is a language model that judges one document at a time: its score is how likely one label is as the next
token, among the labels. Knows nothing of tokens, and of how a served model was recognized.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.engine.errors import InvalidRequestError

DEFAULT_LABELS = ("yes", "no")
_FIELDS = re.compile(r"\{(instruction|query|document)\}")
_IM_START, _IM_END = "<|im_start|>", "<|im_end|>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankTemplate:
    """A family's prompt, as the text that is tokenized.

    `model_names` are what names of its checkpoints have in them, in lower case. `instruction` is how one is written
    where one is given, and `default_instruction` what stands there otherwise; without either it takes none.
    """

    model_names: tuple[str, ...]
    text: str
    labels: tuple[str, ...]
    instruction: str = ""
    default_instruction: str = ""
    add_special_tokens: bool = False

    def render(self, query: str, document: str, instruction: str | None) -> str:
        """Return the prompt. What stands in a text is never taken for a field."""
        if instruction is not None and not self.instruction:
            raise no_instructions()
        written = self.default_instruction if instruction is None else self.instruction.format(instruction)
        texts = {"instruction": written, "query": query, "document": document}
        return _FIELDS.sub(lambda field: texts[field[1]], self.text)


# The names are those of `--rerank-template`.
RERANK_TEMPLATES = {
    # https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
    "qwen3": RerankTemplate(
        model_names=("qwen3-reranker",),
        text=f"{_IM_START}system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
        f' provided. Note that the answer can only be "yes" or "no".{_IM_END}{_IM_START}user\n'
        f"<Instruct>: {{instruction}}\n<Query>: {{query}}\n<Document>: {{document}}{_IM_END}"
        f"{_IM_START}assistant\n<think>\n\n</think>\n\n",
        labels=("yes", "no"),
        instruction="{}",
        default_instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    # https://github.com/mixedbread-ai/mxbai-rerank
    "mxbai-v2": RerankTemplate(
        model_names=("mxbai-rerank-base-v2", "mxbai-rerank-large-v2"),
        text=f"{_IM_START}system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.{_IM_END}"
        f"{_IM_START}user\n{{instruction}}query: {{query}}\ndocument: {{document}}\n"
        "You are a search relevance expert who evaluates how well documents match search queries. For each"
        " query-document pair, carefully analyze the semantic relationship between them, then provide your binary"
        f" relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:{_IM_END}{_IM_START}assistant\n",
        labels=("1", "0"),
        instruction="instruction: {}\n",
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma
    "bge-gemma": RerankTemplate(
        model_names=("bge-reranker-v2-gemma",),
        text="A: {query}\nB: {document}\nGiven a query A and a passage B, determine whether the passage contains an"
        " answer to the query by providing a prediction of either 'Yes' or 'No'.",
        labels=("Yes",),
        add_special_tokens=True,
    ),
}


def template_of(model: str) -> RerankTemplate | None:
    """Return the template of the family that a model's name or path tells."""
    name = model.lower()
    return next(
        (template for template in RERANK_TEMPLATES.values() if any(part in name for part in template.model_names)), None
    )


def question(query: str, document: str, instruction: str | None, labels: Sequence[str]) -> str:
    """Return what a model is asked that was not trained to judge; the query comes first, so that prefixes are alike."""
    before = "" if instruction is None else f"{instruction}\n"
    answers = " or ".join(labels)
    return (
        f"{before}Query: {query}\nDocument: {document}\nDoes the document answer the query? Answer with {answers} only."
    )


def no_instructions() -> InvalidRequestError:
    return InvalidRequestError("the prompt of this model has no place for an instruction", "instruction")
