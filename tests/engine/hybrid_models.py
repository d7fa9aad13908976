"""Small models with random weights of hybrid architectures: Mamba 2 and gated delta networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.engine.engine_models import finish, with_vocabulary

WIDTH, HEADS, HEAD_SIZE, FEED_FORWARD = 64, 4, 16, 128
KERNEL, STATE, GROUPS, RANK = 4, 16, 2, 4  # of the recurrent layers; RANK: their heads
INNER = 2 * WIDTH


class _Model:
    """A model that is being written: its metadata and tensors as the architectures share them."""

    def __init__(self, vocabulary: Path, target: Path, arch: str) -> None:
        self.writer, self._tokens = with_vocabulary(vocabulary, target, arch)
        self._rng = np.random.default_rng(0)
        writer = self.writer
        writer.add_context_length(1024)
        writer.add_embedding_length(WIDTH)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_ssm_conv_kernel(KERNEL)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_group_count(GROUPS)
        writer.add_ssm_time_step_rank(RANK)
        self.add("token_embd.weight", self._tokens, WIDTH)
        self.add("output_norm.weight", WIDTH)

    def add(self, name: str, *shape: int) -> None:
        values = (self._rng.standard_normal(shape) * 0.5).astype(np.float32)
        self.writer.add_tensor(name, values)

    def mamba2(self, layer: str) -> None:
        convolved = INNER + 2 * GROUPS * STATE
        self.add(f"{layer}.ssm_in.weight", INNER + convolved + RANK, WIDTH)
        self.add(f"{layer}.ssm_conv1d.weight", convolved, KERNEL)
        self.add(f"{layer}.ssm_conv1d.bias", convolved)
        self.add(f"{layer}.ssm_dt.bias", RANK)
        self._decay(layer, RANK, 1)
        self.add(f"{layer}.ssm_d", RANK, 1)
        self.add(f"{layer}.ssm_norm.weight", GROUPS, INNER // GROUPS)
        self.add(f"{layer}.ssm_out.weight", WIDTH, INNER)

    def delta(self, layer: str) -> None:
        keys, values = GROUPS * STATE, RANK * STATE
        self.add(f"{layer}.attn_qkv.weight", 2 * keys + values, WIDTH)
        self.add(f"{layer}.attn_gate.weight", values, WIDTH)
        self.add(f"{layer}.ssm_conv1d.weight", 2 * keys + values, KERNEL)
        self.add(f"{layer}.ssm_dt.bias", RANK)
        self._decay(layer, RANK)
        self.add(f"{layer}.ssm_ba.weight", 2 * RANK, WIDTH)
        self.add(f"{layer}.ssm_norm.weight", STATE)
        self.add(f"{layer}.ssm_out.weight", WIDTH, values)

    def _decay(self, layer: str, *shape: int) -> None:
        rates = -np.linspace(0.05, 1.0, RANK, dtype=np.float32)  # some heads forget slowly
        self.writer.add_tensor(f"{layer}.ssm_a", rates.reshape(shape))

    def attention(self, layer: str, gated: bool = False) -> None:
        queries = HEADS * HEAD_SIZE
        self.add(f"{layer}.attn_q.weight", queries * (2 if gated else 1), WIDTH)
        self.add(f"{layer}.attn_k.weight", queries, WIDTH)
        self.add(f"{layer}.attn_v.weight", queries, WIDTH)
        self.add(f"{layer}.attn_output.weight", WIDTH, queries)

    def feed_forward(self, layer: str, gate: bool = True) -> None:
        if gate:
            self.add(f"{layer}.ffn_gate.weight", FEED_FORWARD, WIDTH)
        self.add(f"{layer}.ffn_up.weight", FEED_FORWARD, WIDTH)
        self.add(f"{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)

    def experts(self, layer: str, count: int, size: int) -> None:
        """Experts, and a shared one."""
        self.add(f"{layer}.ffn_gate_inp.weight", count, WIDTH)
        self.add(f"{layer}.ffn_gate_exps.weight", count, size, WIDTH)
        self.add(f"{layer}.ffn_up_exps.weight", count, size, WIDTH)
        self.add(f"{layer}.ffn_down_exps.weight", count, WIDTH, size)
        self.add(f"{layer}.ffn_gate_inp_shexp.weight", WIDTH)
        self.add(f"{layer}.ffn_gate_shexp.weight", size, WIDTH)
        self.add(f"{layer}.ffn_up_shexp.weight", size, WIDTH)
        self.add(f"{layer}.ffn_down_shexp.weight", WIDTH, size)


def write_mamba2(vocabulary: Path, target: Path) -> None:
    """Mamba 2: two recurrent layers, no attention."""
    model = _Model(vocabulary, target, "mamba2")
    model.writer.add_block_count(2)
    model.writer.add_feed_forward_length(0)
    model.writer.add_head_count(0)
    model.writer.add_ssm_inner_size(INNER)
    for layer in ("blk.0", "blk.1"):
        model.add(f"{layer}.attn_norm.weight", WIDTH)
        model.mamba2(layer)
    finish(model.writer)


def write_granite_hybrid(vocabulary: Path, target: Path) -> None:
    """Granite 4 H: a layer of Mamba 2 and one of attention, with its scales and without RoPE."""
    model = _Model(vocabulary, target, "granitehybrid")
    writer = model.writer
    writer.add_block_count(2)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, HEADS])
    writer.add_ssm_inner_size(INNER)
    writer.add_rope_scaling_finetuned(False)
    writer.add_embedding_scale(2.0)
    writer.add_residual_scale(0.5)
    writer.add_attention_scale(0.25)
    writer.add_logit_scale(2.0)
    for layer in ("blk.0", "blk.1"):
        model.add(f"{layer}.attn_norm.weight", WIDTH)
        model.add(f"{layer}.ffn_norm.weight", WIDTH)
        model.feed_forward(layer)
    model.mamba2("blk.0")
    model.attention("blk.1")
    finish(writer)


def write_nemotron_h(vocabulary: Path, target: Path) -> None:
    """Nemotron H: a layer of Mamba 2, one of feed-forward and one of attention."""
    model = _Model(vocabulary, target, "nemotron_h")
    writer = model.writer
    writer.add_block_count(3)
    writer.add_feed_forward_length([0, FEED_FORWARD, 0])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, 0, HEADS])
    writer.add_layer_norm_eps(1e-5)
    writer.add_ssm_inner_size(INNER)
    for layer in ("blk.0", "blk.1", "blk.2"):
        model.add(f"{layer}.attn_norm.weight", WIDTH)
    model.mamba2("blk.0")
    model.feed_forward("blk.1", gate=False)
    model.attention("blk.2")
    finish(writer)


def write_qwen3next(vocabulary: Path, target: Path) -> None:
    """Qwen3-Next: a gated delta network, gated attention, experts in both layers."""
    model = _Model(vocabulary, target, "qwen3next")
    writer, count, size = model.writer, 4, 32
    writer.add_block_count(2)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE // 2)
    writer.add_rope_freq_base(1e4)
    writer.add_full_attention_interval(2)
    writer.add_ssm_inner_size(RANK * STATE)
    writer.add_expert_count(count)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(size)
    writer.add_expert_shared_feed_forward_length(size)
    for layer in ("blk.0", "blk.1"):
        model.add(f"{layer}.attn_norm.weight", WIDTH)
        model.add(f"{layer}.post_attention_norm.weight", WIDTH)
        model.experts(layer, count, size)
    model.delta("blk.0")
    model.attention("blk.1", gated=True)
    model.add("blk.1.attn_q_norm.weight", HEAD_SIZE)
    model.add("blk.1.attn_k_norm.weight", HEAD_SIZE)
    finish(writer)
