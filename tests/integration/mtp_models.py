"""Adds heads for multi-token prediction to tiny models, as checkpoints have them; computes them by formula alone."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.tiny_models import VOCAB_SIZE, build_model, make_lively
from tests.models_table.shrink import tiny_config, tiny_model

QWENS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
_PREFIX = re.compile(r"model\.layers\.\d+\.")


def build_mtp_model(family: str, directory: Path, *, is_good: bool = False, **overrides: Any) -> Path:
    """Write a model with a random head, or one in which each token leads to one other, which the head knows, too."""
    build_model(family, directory, **overrides)
    weights = load_file(directory / "model.safetensors")
    model = load(directory)
    head = _head_weights(model)
    weights |= _in_qwens_names(head) if family in QWENS else head
    if is_good:
        _make_good(weights, model.config.num_hidden_layers, zero_centred=family in QWENS)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def build_multimodal_mtp_model(directory: Path) -> Path:
    """Write a multimodal Qwen3.5 with a random head beside its language model."""
    import transformers

    whole = tiny_model(transformers.Qwen3_5ForConditionalGeneration, tiny_config("qwen3_5"), "float32")
    whole.save_pretrained(directory)
    text_half = SimpleNamespace(
        config=whole.config.text_config, model=whole.model.language_model, lm_head=whole.lm_head
    )
    weights = load_file(directory / "model.safetensors") | _in_qwens_names(_head_weights(text_half))
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def _in_qwens_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a head's weights as Qwen3-Next names them, whose norms add 1 to theirs."""
    names = {
        "eh_proj.weight": "mtp.fc.weight",
        "enorm.weight": "mtp.pre_fc_norm_embedding.weight",
        "hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
        "shared_head.norm.weight": "mtp.norm.weight",
    }
    renamed = {}
    for name, weight in weights.items():
        short = _PREFIX.sub("", name)
        if short not in ("embed_tokens.weight", "shared_head.head.weight"):
            own = names.get(short, f"mtp.layers.0.{short}")
            renamed[own] = weight - 1 if own in names.values() and weight.dim() == 1 else weight
    return renamed


def load(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def _head_weights(model: Any) -> dict[str, Tensor]:
    """Return random weights by the names of a checkpoint, with experts one by one."""
    config = model.config
    like = config.layer_types.index("full_attention") if hasattr(config, "layer_types") else len(model.model.layers) - 1
    layer = type(model.model.layers[like])(config, like)
    make_lively(layer, seed=31)
    weights: dict[str, Tensor] = {}
    for name, weight in layer.state_dict().items():
        if config.model_type == "qwen3_5_moe_text" and ".experts." in name:
            weights[name] = weight  # together, as in its checkpoints
        elif name == "mlp.experts.gate_up_proj":
            for i, expert in enumerate(weight):
                gate, up = expert.chunk(2)
                weights |= {f"mlp.experts.{i}.gate_proj.weight": gate, f"mlp.experts.{i}.up_proj.weight": up}
        elif name == "mlp.experts.down_proj":
            weights |= {f"mlp.experts.{i}.down_proj.weight": expert for i, expert in enumerate(weight)}
        else:
            weights[name] = weight
    size, generator = config.hidden_size, torch.Generator().manual_seed(32)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=generator)
    weights["eh_proj.weight"] = torch.randn(size, 2 * size, generator=generator) / size**0.5
    weights["embed_tokens.weight"] = model.model.embed_tokens.weight
    weights["shared_head.head.weight"] = model.lm_head.weight
    prefix = f"model.layers.{config.num_hidden_layers}."
    return {prefix + name: weight.detach().clone().contiguous() for name, weight in weights.items()}


def _make_good(weights: dict[str, Tensor], num_layers: int, *, zero_centred: bool) -> None:
    """Let layers add little to the embedding of a token, by which the output head finds the one that it leads to."""
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    leads_to = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(33))
    head[leads_to] = embedding
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj", "out_proj.weight")):
            weight.mul_(0.02)
        elif "linear_attn" not in name and "norm" in name.split(".")[-2] and weight.dim() == 1:
            weight.fill_(0.0 if zero_centred else 1.0)
    size = embedding.shape[1]
    joined = weights["mtp.fc.weight" if zero_centred else f"model.layers.{num_layers}.eh_proj.weight"]
    joined[:, :size] = torch.eye(size)
    joined[:, size:] *= 0.02


def reference_logits(directory: Path, token_ids: list[int]) -> Tensor:
    """Return the head's logits (num_tokens - 1, vocab_size) over a whole sequence: row i is of the token i + 2.

    By the formula of DeepSeek-V3's report (2.2), in float32 and without a cache; the model's own hidden states, behind
    its last norm, are transformers'.
    """
    model, weights = load(directory), load_file(directory / "model.safetensors")
    config = model.config
    own = _own_weights(weights, config)
    ids = torch.tensor(token_ids)
    with torch.inference_mode():
        hidden = model.model(ids[None], use_cache=False).last_hidden_state[0]
    embedded = weights["model.embed_tokens.weight"][ids[1:]]

    def norm(x: Tensor, name: str, eps: float = config.rms_norm_eps) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * own[f"{name}.weight"]

    x = torch.cat([norm(embedded, "enorm"), norm(hidden[:-1], "hnorm")], dim=-1) @ own["eh_proj.weight"].T
    attend = _latent_attention if "self_attn.kv_b_proj.weight" in own else _grouped_attention
    mix = _experts if "mlp.gate.e_score_correction_bias" in own else _mlp_of_qwen
    x = x + attend(norm(x, "input_layernorm"), own, config)
    x = x + mix(norm(x, "post_attention_layernorm"), own, config)
    return norm(x, "shared_head.norm") @ weights["lm_head.weight"].T


def _own_weights(weights: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return the head's weights by the names of DeepSeek-V3, and norms as what they multiply with."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    if f"{prefix}eh_proj.weight" in weights:
        return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    names = {
        "mtp.fc.weight": "eh_proj.weight",
        "mtp.pre_fc_norm_embedding.weight": "enorm.weight",
        "mtp.pre_fc_norm_hidden.weight": "hnorm.weight",
        "mtp.norm.weight": "shared_head.norm.weight",
    }
    own = {
        names.get(name, name.removeprefix("mtp.layers.0.")): weight
        for name, weight in weights.items()
        if name.startswith("mtp.")
    }
    return {name: 1 + weight if "norm" in name else weight for name, weight in own.items()}


def _rotated(x: Tensor, dim: int, theta: float, *, is_interleaved: bool) -> Tensor:
    """Turn the first `dim` numbers of (num_tokens, num_heads, ...): pairs side by side, or half of them apart."""
    angles = torch.arange(len(x))[:, None] * theta ** (-torch.arange(0, dim, 2) / dim)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if is_interleaved:
        a, b = x[..., 0:dim:2], x[..., 1:dim:2]
    else:
        a, b = x[..., : dim // 2], x[..., dim // 2 : dim]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., dim:]], dim=-1)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend causally with (num_tokens, num_heads, dim) each; returns (num_tokens, num_heads * value_dim)."""
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)


def _grouped_attention(x: Tensor, own: dict[str, Tensor], config: Any) -> Tensor:
    gates = None

    def heads(name: str) -> Tensor:
        nonlocal gates
        states = (x @ own[f"self_attn.{name}_proj.weight"].T).view(len(x), -1, config.head_dim)
        if name == "q" and states.shape[1] == 2 * config.num_attention_heads:  # each query before its gate
            states, gates = states.view(len(x), -1, 2, config.head_dim).unbind(2)
        gain = own.get(f"self_attn.{name}_norm.weight")
        if gain is None:
            return states
        return states / (states.pow(2).mean(-1, keepdim=True) + float(config.rms_norm_eps)).sqrt() * gain

    theta = config.rope_parameters["rope_theta"]
    dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 0.5))
    query, key = (_rotated(heads(name), dim, theta, is_interleaved=False) for name in ("q", "k"))
    groups = config.num_attention_heads // config.num_key_value_heads
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, heads("v")))
    attended = _attended(query, key, value)
    if gates is not None:
        attended = attended * gates.flatten(1).sigmoid()
    return attended @ own["self_attn.o_proj.weight"].T


def _latent_attention(x: Tensor, own: dict[str, Tensor], config: Any) -> Tensor:
    def norm(y: Tensor, name: str) -> Tensor:
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * own[f"self_attn.{name}.weight"]

    def project(y: Tensor, name: str) -> Tensor:
        return y @ own[f"self_attn.{name}.weight"].T

    theta, num_heads = config.rope_parameters["rope_theta"], config.num_attention_heads
    plain_dim, rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
    query = project(norm(project(x, "q_a_proj"), "q_a_layernorm"), "q_b_proj").view(len(x), num_heads, -1)
    latent, rotary = torch.split(project(x, "kv_a_proj_with_mqa"), [config.kv_lora_rank, rope_dim], dim=-1)
    both = project(norm(latent, "kv_a_layernorm"), "kv_b_proj").view(len(x), num_heads, -1)
    key, value = torch.split(both, [plain_dim, config.v_head_dim], dim=-1)
    turned = _rotated(query[..., plain_dim:], rope_dim, theta, is_interleaved=True)
    shared = _rotated(rotary[:, None], rope_dim, theta, is_interleaved=True).expand(-1, num_heads, -1)
    query, key = torch.cat([query[..., :plain_dim], turned], -1), torch.cat([key, shared], -1)
    return project(_attended(query, key, value), "o_proj")


def _mlp_of_qwen(x: Tensor, own: dict[str, Tensor], config: Any) -> Tensor:
    """Return what an MLP makes of each token, or the likeliest experts by their shares, and one for all by its gate."""

    def run(y: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.nn.functional.silu(y @ gate.T) * (y @ up.T) @ down.T

    def named(y: Tensor, name: str) -> Tensor:
        return run(y, *(own[f"mlp.{name}{part}_proj.weight"] for part in ("gate", "up", "down")))

    if "mlp.gate.weight" not in own:
        return named(x, "")
    best = (x @ own["mlp.gate.weight"].T).softmax(-1).topk(config.num_experts_per_tok)
    out = named(x, "shared_expert.") * (x @ own["mlp.shared_expert_gate.weight"].T).sigmoid()
    for i, (values, row) in enumerate(zip(best.values, best.indices.tolist(), strict=True)):
        for share, e in zip(values / values.sum(), row, strict=True):
            if "mlp.experts.gate_up_proj" in own:
                gate, up = own["mlp.experts.gate_up_proj"][e].chunk(2)
                out[i] += share * run(x[i], gate, up, own["mlp.experts.down_proj"][e])
            else:
                out[i] += share * named(x[i], f"experts.{e}.")
    return out


def _experts(x: Tensor, own: dict[str, Tensor], config: Any) -> Tensor:
    """Add what the chosen experts make of each token, by their shares, and what the shared one does."""

    def expert(y: Tensor, name: str) -> Tensor:
        gate, up = (y @ own[f"mlp.{name}.{part}_proj.weight"].T for part in ("gate", "up"))
        return torch.nn.functional.silu(gate) * up @ own[f"mlp.{name}.down_proj.weight"].T

    scores = (x @ own["mlp.gate.weight"].T).sigmoid()
    chosen = (scores + own["mlp.gate.e_score_correction_bias"]).topk(config.num_experts_per_tok).indices
    out = expert(x, "shared_experts")
    for i, row in enumerate(chosen):
        shares = scores[i, row] / scores[i, row].sum() * config.routed_scaling_factor
        out[i] += sum(share * expert(x[i], f"experts.{int(e)}") for share, e in zip(shares, row, strict=True))
    return out
