"""The last layers, run on stored states of the frozen layers, compute what the whole model computes."""

import pytest
import torch
import transformers

from models.adaptation import Full, LastLayers, LoRA
from models.backbone import Backbone
from models.pair import PolicyReference
from models.reference import Checkpoint, FrozenCopy
from models.trunk_check import find_trunk
from tests.models.conftest import ROPE

WINDOWED = {
    "mistral": lambda: transformers.MistralConfig(**ROPE, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(
        **ROPE, head_dim=8, sliding_window=4, final_logit_softcapping=2.0, attn_implementation="eager"
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **ROPE, head_dim=8, sliding_window=4, layer_types=["full_attention", "sliding_attention", "full_attention"]
    ),
    "qwen2 tied": lambda: transformers.Qwen2Config(**ROPE, tie_word_embeddings=True),
}


def policy(model: transformers.PreTrainedModel, layout: str = "padded", k: int = 1) -> Backbone:
    """The model with its last layers training."""
    backbone = Backbone(LastLayers(k).apply(model), layout=layout)
    find_trunk(backbone, asked=True)
    return backbone


def windowed(name: str) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(WINDOWED[name]())
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def gradients(backbone: Backbone, sequences) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    backbone.zero_grad()
    logp_N = backbone(sequences)
    logp_N.sum().backward()
    return logp_N.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


def assert_same(backbone: Backbone, sequences) -> None:
    """Log-probs and gradients with states are those without, though the frozen layers are broken by then."""
    known = sequences._replace(trunk=backbone.trunk_states(sequences))
    logp_N, gradient = gradients(backbone, sequences)
    with torch.no_grad():
        for parameter in backbone.causal_lm.parameters():
            if not parameter.requires_grad and parameter.ndim == 2 and parameter.shape[0] != 97:
                parameter.fill_(torch.nan)
    got_N, got = gradients(backbone, known)
    torch.testing.assert_close(got_N, logp_N, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_states_replace_the_frozen_layers_of_every_architecture(architecture, layout, random_model, pack, sequences):
    backbone = policy(random_model(architecture).eval(), layout)
    assert backbone.trunk.depth == 2
    assert_same(backbone, pack(*sequences))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("k", [1, 2])
def test_the_last_layers_keep_their_windows(name, layout, k, pack, sequences):
    assert_same(policy(windowed(name), layout, k), pack(*sequences))


def test_recomputed_activations_change_nothing(random_model, pack, sequences):
    backbone = policy(random_model("llama").train(), k=2)
    backbone.checkpoint_activations()
    assert_same(backbone, pack(*sequences))


def test_states_in_bf16_round_each_number_once(random_model, pack, sequences):
    backbone, batch = policy(random_model("llama").eval()), pack(*sequences)
    states = backbone.trunk_states(batch)
    rounded = backbone(batch._replace(trunk=states.bfloat16()))
    assert torch.equal(rounded, backbone(batch._replace(trunk=states.bfloat16().float())))
    assert 0 < (rounded - backbone(batch)).abs().max() < 0.5


class Whispering(transformers.LlamaForCausalLM):
    """Its last layer reads what the first one left for it."""

    def __init__(self, config):
        super().__init__(config)
        self.first = None
        self.model.layers[0].mlp.register_forward_hook(self.keep)
        self.model.layers[-1].register_forward_hook(lambda module, given, out: out + self.first)

    def keep(self, module, given, out):
        self.first = out


def test_an_architecture_that_passes_more_than_hidden_states_is_refused_in_a_sentence(random_model):
    backbone = Backbone(LastLayers(1).apply(Whispering(random_model("llama").config)))
    find_trunk(backbone, asked=False)
    assert backbone.trunk is None
    with pytest.raises(ValueError, match=r"Whispering: its last layers cannot run.*cache_trunk to false"):
        find_trunk(backbone, asked=True)


@pytest.mark.parametrize(
    ("name", "adaptation"),
    [
        ("llama", Full()),
        ("llama", LoRA(r=2)),
        ("llama", LastLayers(3)),
        ("llama-tied", LastLayers(1, head=True)),
    ],
    ids=["all", "adapter", "all layers", "tied embedding"],
)
def test_where_the_first_layers_input_or_weights_train_there_is_no_trunk(name, adaptation, random_model):
    backbone = Backbone(adaptation.apply(random_model(name)))
    find_trunk(backbone, asked=False)
    assert backbone.trunk is None
    with pytest.raises(ValueError, match="no layer below the last ones is frozen"):
        find_trunk(backbone, asked=True)


def test_an_untied_head_that_trains_is_above_the_trunk(random_model, pack, sequences):
    backbone = Backbone(LastLayers(1, head=True).apply(random_model("llama").eval()))
    find_trunk(backbone, asked=True)
    assert_same(backbone, pack(*sequences))


@pytest.mark.parametrize("which", ["shared", "own type", "other weights"])
def test_a_reference_reads_the_policys_states_only_if_its_layers_are_the_same(which, random_source, pack, sequences):
    reference = {
        "shared": FrozenCopy(),
        "own type": FrozenCopy(dtype="bfloat16"),
        "other weights": Checkpoint(random_source("llama", seed=1)),
    }[which]
    pair, batch = PolicyReference(random_source("llama"), LastLayers(1), reference), pack(*sequences)
    pair.load()
    known = batch._replace(trunk=pair.trunk_states(batch))
    policy, reference = pair.policy_logp(batch), pair.reference_logp(batch)
    for given in (batch, known):
        torch.testing.assert_close(pair.both_logp(given), (policy, reference), rtol=1e-6, atol=1e-5)
    broken = known._replace(trunk=torch.zeros_like(known.trunk))
    assert torch.equal(pair.reference_logp(broken), reference) == (which != "shared")


def test_policy_and_reference_run_their_shared_layers_once(random_source, pack, sequences):
    pair = PolicyReference(random_source("llama"), LastLayers(1))
    pair.load()
    passes = []
    for backbone in (pair.policy, pair._open_reference().__enter__()):
        layers = backbone.causal_lm.model.layers
        for number, layer in enumerate(layers):
            layer.self_attn.register_forward_hook(lambda *_, number=number: passes.append(number))
    pair.both_logp(pack(*sequences))
    assert sorted(passes) == [0, 1, 2, 2]


def test_dropout_and_a_trunk_exclude_each_other(random_source):
    with pytest.raises(ValueError, match="disable_dropout"):
        PolicyReference(random_source("llama"), LastLayers(1, cache_trunk=True), disable_dropout=False)


def test_the_hash_of_the_trunk_leaves_out_what_trains_and_holds_the_depth(random_source):
    def found(k: int, head: bool = False, seed: int = 0, step: bool = False) -> str:
        pair = PolicyReference(random_source("llama", seed), LastLayers(k, head=head))
        pair.load()
        if step:
            with torch.no_grad():
                [p.add_(1) for p in pair.parameters() if p.requires_grad]
        return pair.trunk_digest()

    assert found(1) == found(1, head=True) == found(1, step=True)
    assert len({found(1), found(2), found(1, seed=1)}) == 3
