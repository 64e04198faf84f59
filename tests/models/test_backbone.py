import pytest
import torch
import transformers

from models.backbone import Backbone, no_dropout

pytestmark = pytest.mark.parametrize("layout", ["padded", "packed"])


def test_sequence_logps_are_those_of_the_models_own_logits(
    architecture, layout, random_model, pack, plain_logp, sequences
):
    model = random_model(architecture).eval()
    logp_N = Backbone(model, layout=layout)(pack(*sequences))
    assert logp_N.dtype == torch.float32
    torch.testing.assert_close(logp_N, torch.stack([plain_logp(model, *s) for s in sequences]), rtol=1e-5, atol=1e-4)


def test_every_known_architecture_passes_verification(architecture, layout, random_model):
    backbone = Backbone(random_model(architecture), layout=layout).train()
    backbone.verify()
    assert backbone.training


class Reshaped(transformers.LlamaForCausalLM):
    """Does something between head and logits that no config says."""

    def forward(self, **given):
        out = super().forward(**given)
        out.logits = out.logits * 0.9
        return out


def test_an_architecture_whose_logits_are_made_otherwise_is_refused_by_name(layout, random_model):
    model = Reshaped(random_model("llama").config)
    with pytest.raises(ValueError, match=r"Reshaped.*models/backbone\.py"):
        Backbone(model, layout=layout).verify()


class Otherwise(transformers.LlamaForCausalLM):
    """Its logits go through ``turn``."""

    def forward(self, **given):
        out = super().forward(**given)
        out.logits = self.turn(out.logits)
        return out


@pytest.mark.parametrize("turn", [lambda z: 0.97 * z, lambda z: 30 * (z / 30).tanh()], ids=["factor 0.97", "cap 30"])
def test_in_bf16_too_what_is_done_to_logits_is_found(turn, layout, random_model):
    plain = random_model("llama")
    with torch.no_grad():
        plain.lm_head.weight *= 4  # logits up to about 20, as of trained models
    model = Otherwise(plain.config).bfloat16()
    model.load_state_dict(plain.state_dict())
    model.turn = lambda z: z
    Backbone(model, layout=layout).verify(training=True)
    model.turn = turn
    with pytest.raises(ValueError, match=r"Otherwise.* alone, in layout"):
        Backbone(model, layout=layout).verify()


class Restless(transformers.LlamaForCausalLM):
    """Draws in training mode, as routers with jitter do; no dropout probability says so."""

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda m, _, out: out + 0.5 * torch.rand_like(out) if m.training else out)


def test_a_model_that_computes_otherwise_in_training_mode_is_refused(layout, random_model):
    backbone = Backbone(Restless(random_model("llama").config), layout=layout).eval()
    backbone.verify()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"Restless.*in training mode"):
        backbone.verify(training=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.training


def test_an_architecture_that_cannot_tell_packed_sequences_apart_is_refused_when_packed(layout):
    config = transformers.BloomConfig(vocab_size=97, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
    backbone = Backbone(transformers.BloomForCausalLM(config), layout=layout)
    if layout == "padded":
        return backbone.verify()
    with pytest.raises(ValueError, match=r"BloomForCausalLM.*layout 'padded' may work"):
        backbone.verify()


def test_a_response_of_no_scored_token_has_logp_zero_and_the_backward_pass_runs(layout, random_model, pack):
    backbone = Backbone(random_model("llama"), layout=layout)
    logp_N = backbone(pack(([1, 2], []), ([3], [])))
    logp_N.sum().backward()
    assert logp_N.tolist() == [0.0, 0.0]


def test_dropout_is_off_in_training_mode_wherever_a_model_keeps_its_probability(
    architecture, layout, random_model, pack, sequences
):
    model = random_model(architecture)
    no_dropout(model)
    backbone = Backbone(model, layout=layout)
    assert torch.equal(backbone.train()(pack(*sequences)), backbone.eval()(pack(*sequences)))


def test_autocast_rounds_the_layers_and_leaves_the_log_probs_in_fp32(layout, random_model, pack, sequences):
    backbone = Backbone(random_model("llama").eval(), layout=layout)
    exact = backbone(pack(*sequences))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = backbone(pack(*sequences))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_under_autocast_the_head_is_not_copied_and_its_gradient_is_not_rounded(
    layout, backend, random_model, pack, sequences, monkeypatch
):
    backbone = Backbone(random_model("llama").eval(), layout=layout, backend=backend)
    weight_VD = backbone.head.weight_VD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone.at_head(backbone.response_hidden(pack(*sequences)).hidden_RD).weight_VD is weight_VD
        logp = backbone(pack(*sequences)).sum()
    logp.backward()
    rounded = weight_VD.grad.bfloat16().float() == weight_VD.grad
    assert rounded.float().mean() < 0.1, "a gradient made in bf16 has only numbers that bf16 holds"


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_tokens_and_distributions_have_the_head_of_sequences(architecture, layout, autocast, random_model, pack):
    backbone, batch = Backbone(random_model(architecture).eval(), layout=layout), pack(([1, 2], list(range(3, 40))))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        hidden_RD, target_R, _ = backbone.response_hidden(batch)
        of_tokens = backbone.token_logp(hidden_RD, target_R).sum()
        of_all = backbone.log_softmax(hidden_RD).gather(1, target_R[:, None]).sum()
        torch.testing.assert_close((of_tokens, of_all), (backbone(batch)[0],) * 2, rtol=1e-6, atol=1e-4)


def test_a_sequence_longer_than_the_positions_is_an_error_naming_both(layout, random_model, pack):
    with pytest.raises(ValueError, match="130 tokens exceeds the 128 positions of LlamaForCausalLM"):
        Backbone(random_model("llama"), layout=layout)(pack(([1] * 100, [2] * 30)))


def test_a_text_model_that_names_no_base_is_read_all_the_same(layout, pack, plain_logp, sequences):
    config = transformers.Llama4TextConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32, intermediate_size_mlp=32, num_local_experts=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    backbone = Backbone(model, layout=layout)
    backbone.verify(training=True)
    want_N = torch.stack([plain_logp(model, *s) for s in sequences])
    torch.testing.assert_close(backbone(pack(*sequences)), want_N, rtol=1e-5, atol=1e-4)


def test_a_routers_jitter_is_off_like_dropout(layout, pack, sequences):
    config = transformers.PhimoeConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, num_local_experts=4, router_jitter_noise=0.1, input_jitter_noise=0.1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone = Backbone(model, layout=layout)
    assert not torch.equal(backbone.train()(pack(*sequences)), backbone.eval()(pack(*sequences)))
    no_dropout(model)
    assert torch.equal(backbone.train()(pack(*sequences)), backbone.eval()(pack(*sequences)))
    backbone.verify(training=True)


def test_fp16_on_a_cpu_is_refused(layout, random_model, pack):
    with pytest.raises(ValueError, match="float16 weights on a CPU"):
        Backbone(random_model("llama").half(), layout=layout)(pack(([1], [2])))


def test_an_unknown_layout_is_refused(layout, random_model):
    with pytest.raises(ValueError, match="layout must be"):
        Backbone(random_model("llama"), layout=layout + "!")
