"""DSpark draft model in plain PyTorch: parallel backbone, Markov heads, confidence head (DeepSpec's key names).

Shapes: B sequences, A anchors (blocks) a sequence, g = gamma, H hidden size, V vocabulary, r Markov rank, m captured
target layers, S context length. A block is the anchor (the last committed token, whose successor is unknown) followed
by g - 1 mask tokens; position k of the block predicts the token after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm, Qwen3RotaryEmbedding, rotate_half

KeyValue = tuple[Tensor, Tensor]
HEADS = ("vanilla", "gated", "rnn")


def target_features(hidden_states: tuple[Tensor, ...], layer_ids: list[int]) -> Tensor:
    """Outputs of the target layers `layer_ids`, concatenated: [B, S, m * H]. `hidden_states[0]` is the embedding."""
    return torch.cat([hidden_states[k + 1] for k in layer_ids], -1)


class BlockAttention(nn.Module):
    """Queries from the block; keys and values from the context and the block; no causal order inside the block."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.head_dim, hidden = config.head_dim, config.hidden_size
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    @staticmethod
    def _rotate(x: Tensor, rope: KeyValue) -> Tensor:
        cos, sin = rope[0][:, None], rope[1][:, None]
        return x * cos + rotate_half(x) * sin

    def keys_values(self, x: Tensor, rope: KeyValue) -> KeyValue:
        """Keys and values [B, kv heads, S, head_dim] of x [B, S, H] at the positions of `rope`."""
        keys = self._rotate(self.k_norm(self._split(self.k_proj(x))).transpose(1, 2), rope)
        return keys, self._split(self.v_proj(x)).transpose(1, 2)

    def forward(self, x: Tensor, rope: KeyValue, context: KeyValue, mask: Tensor | None) -> Tensor:
        own = self.keys_values(x, rope)
        keys, values = (torch.cat(pair, 2) for pair in zip(context, own, strict=True))
        queries = self._rotate(self.q_norm(self._split(self.q_proj(x))).transpose(1, 2), rope)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class DraftLayer(nn.Module):
    """One pre-norm transformer layer over the block."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = BlockAttention(config), Qwen3MLP(config)
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: KeyValue, context: KeyValue, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, context, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class MarkovHead(nn.Module):
    """Bias on the base logits from the token before: W2 W1[x], of low rank r ("vanilla")."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, config.markov_rank)
        self.markov_w2 = nn.Linear(config.markov_rank, config.vocab_size, bias=False)

    def initial_state(self, hidden: Tensor) -> Tensor:
        """State before the first position of a block, for hidden states [..., H]; only "rnn" carries one."""
        return hidden.new_zeros(*hidden.shape[:-1], self.markov_w1.embedding_dim)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Bias [..., V] and next state [..., r], from previous tokens [...], hidden states [..., H] and the state."""
        return self.markov_w2(self.markov_w1(previous)), state


class GatedMarkovHead(MarkovHead):
    """The vanilla bias with its latent gated by the position's hidden state and the previous token."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size + config.markov_rank, config.markov_rank)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.markov_w1(previous)
        gate = torch.sigmoid(self.gate_proj(torch.cat([hidden, latent], -1)))
        return self.markov_w2(gate * latent), state


class RnnMarkovHead(MarkovHead):
    """A gated recurrence over the block's tokens, so that the bias depends on all of them."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        rank = config.markov_rank
        self.joint_proj = nn.Linear(2 * rank + config.hidden_size, 3 * rank)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.joint_proj(torch.cat([state, self.markov_w1(previous), hidden], -1))
        gate, candidate, output = joint.chunk(3, -1)
        gate = torch.sigmoid(gate)
        state = gate * state + (1 - gate) * torch.tanh(candidate)
        return self.markov_w2(torch.tanh(output)), state


_MARKOV_HEADS = dict(zip(HEADS, (MarkovHead, GatedMarkovHead, RnnMarkovHead), strict=True))


class ConfidenceHead(nn.Module):
    """Logit of "the draft token survives verification, given that its predecessors did", before the token is drawn."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_size + config.markov_rank, 1)

    def forward(self, hidden: Tensor, latent: Tensor) -> Tensor:
        return self.proj(torch.cat([hidden, latent], -1)).squeeze(-1)


class DSparkDraft(nn.Module):
    """The draft model; `config` is the target's Qwen3 config with DeepSpec's draft fields (`pair.draft_config`)."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config, self.gamma = config, config.block_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.fc = nn.Linear(len(config.target_layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        self.markov_head = _MARKOV_HEADS[config.markov_head_type](config)
        self.confidence_head = ConfidenceHead(config)
        self.rotary_emb = Qwen3RotaryEmbedding(config)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every matrix from a normal law with the config's standard deviation; biases start at zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=self.config.initializer_range, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def share(self, target: Qwen3ForCausalLM) -> None:
        """Use the target's embedding and head, frozen (SGLang attaches the target's own in the same way)."""
        self.embed_tokens.weight, self.lm_head.weight = target.model.embed_tokens.weight, target.lm_head.weight
        for module in (self.embed_tokens, self.lm_head):
            module.requires_grad_(False)

    def context(self, features: Tensor, positions: Tensor) -> list[KeyValue]:
        """Per layer, keys and values of committed tokens from target features [B, S, m * H] at positions [B, S]."""
        x = self.hidden_norm(self.fc(features))
        rope = self.rotary_emb(x, positions)
        return [layer.self_attn.keys_values(x, rope) for layer in self.layers]

    def backbone(
        self, anchors: Tensor, positions: Tensor, context: list[KeyValue], mask: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, A, g, H] of the blocks of anchor tokens [B, A], whose positions are [B, A * g]."""
        ids = torch.full((*anchors.shape, self.gamma), self.config.mask_token_id)
        ids[..., 0] = anchors
        x = self.embed_tokens(ids.flatten(1))
        rope = self.rotary_emb(x, positions)
        for layer, keys_values in zip(self.layers, context, strict=True):
            x = layer(x, rope, keys_values, mask)
        return self.norm(x).unflatten(1, (-1, self.gamma))

    def confidence_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Confidence logits [..., g] from hidden states [..., g, H] and the tokens before each position [..., g]."""
        return self.confidence_head(hidden, self.markov_head.markov_w1(previous))

    def forced_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Draft logits [..., g, V] of blocks whose tokens before each position [..., g] are given (teacher forcing)."""
        state, biases = self.markov_head.initial_state(hidden[..., 0, :]), []
        for k in range(self.gamma):
            bias, state = self.markov_head.step(previous[..., k], hidden[..., k, :], state)
            biases.append(bias)
        return self.lm_head(hidden) + torch.stack(biases, -2)
