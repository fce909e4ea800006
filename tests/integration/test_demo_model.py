"""The demo model, as a client of the server meets it."""

from demo.evaluate import accuracies, evaluate_served
from demo.tokenizer import load_tokenizer
from orcinus.config.settings import demo_model_path
from tests.server_process import ServerProcess


def test_most_held_out_questions_are_answered_right_through_the_server(server: ServerProcess) -> None:
    results = evaluate_served(f"{server.url}/v1", load_tokenizer(demo_model_path()), per_kind=2)
    assert sum(result.right for result in results) / len(results) > 0.85
    assert accuracies(results)["capital"] == 1
