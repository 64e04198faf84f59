"""A prompt that stands once before its responses gives the log-probs and gradients of separate sequences."""

import logging

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from models import shared_rows
from models.backbone import Backbone
from models.layouts import MOST, padded, shared
from models.pair import PolicyReference
from models.reference import Checkpoint
from tests.models.conftest import CONFIGS, _pack, _random_model
from tests.models.test_trunk import WINDOWED, assert_same, policy, windowed

PAIRS = [
    ([5, 6, 7], [8, 0, 9, 0]),
    ([5, 6, 7], [8, 11]),
    ([1], [2]),
    ([3] * 9, [4, 3, 3, 4, 90, 0, 0]),
    ([3] * 9, [4] * 12),
]


def model_of(name: str) -> transformers.PreTrainedModel:
    return (_random_model(name) if name in CONFIGS else windowed(name)).eval()


def alone(backbone: Backbone, pack, rows) -> torch.Tensor:
    """The definition: each sequence by itself."""
    backbone.layout = "packed"
    logp_N = torch.cat([backbone(pack(row)) for row in rows])
    backbone.layout = "shared"
    return logp_N


@pytest.mark.parametrize("name", [*CONFIGS, *WINDOWED])
def test_in_float64_log_probs_are_those_of_separate_sequences(name, pack):
    backbone = Backbone(model_of(name).double(), layout="shared")
    backbone.verify()
    # the library's eager attention has its softmax in fp32
    close = 1e-5 if backbone.causal_lm.config._attn_implementation == "eager" else 1e-9
    with torch.no_grad():
        torch.testing.assert_close(backbone(pack(*PAIRS)), alone(backbone, pack, PAIRS), rtol=0, atol=close)


@pytest.mark.parametrize("name", ["llama", "qwen2 tied", "gemma2", "gemma3", "mistral", "llama-tied"])
def test_in_fp32_log_probs_and_gradients_are_those_of_separate_sequences(name, pack):
    backbone, batch = Backbone(model_of(name), layout="shared"), pack(*PAIRS)
    tokens = sum(len(response) for _, response in PAIRS)
    plain_N = alone(backbone, pack, PAIRS)
    wanted = torch.autograd.grad(plain_N.sum(), list(backbone.parameters()))
    logp_N = backbone(batch)
    got = torch.autograd.grad(logp_N.sum(), list(backbone.parameters()))
    torch.testing.assert_close(logp_N, plain_N, rtol=1e-6, atol=1e-5 * tokens)
    apart = torch.cat([(a - b).flatten() for a, b in zip(got, wanted, strict=True)]).norm()
    assert apart <= 1e-4 * torch.cat([part.flatten() for part in wanted]).norm()


def test_each_prompt_stands_once_and_every_token_has_the_position_of_its_sequence(pack):
    batch = pack(*PAIRS)
    rows = shared(batch)
    assert rows.ids_KS[0, :9].tolist() == [5, 6, 7, 8, 0, 9, 0, 8, 11]
    assert rows.position_KS[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4]
    assert rows.branch_KS[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2] + [-1] * 19
    assert [(row >= 0).sum().item() for row in rows.branch_KS] == [9, 2, 28]
    assert torch.equal(rows.ids_KS[rows.row_T, rows.column_T], batch.input_ids)
    many = shared(pack(*[([1, 2], [3])] * (2 * MOST)))
    assert many.branch_KS.max(1).values.tolist() == [MOST, MOST]


def test_a_row_of_many_responses_does_not_make_the_others_wide(pack):
    alike, others = [([1] * 20, [2] * 10)] * 4, [([3] * 20, [4] * 10), ([6] * 20, [4] * 10)]
    assert shared(pack(*alike)).ids_KS.shape == (1, 20 + 4 * 10), "alone, they share a row"
    assert shared(pack(*alike, *others)).ids_KS.shape == (4, 40), "three rows of 60 would take more"


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), min_size=1, max_size=8), st.integers(1, 9))
def test_shared_rows_never_take_more_positions_than_padded_ones(drawn, size):
    batch = _pack(*[([prompt] * size, [5] * length) for prompt, length in drawn])
    assert shared(batch).ids_KS.numel() <= padded(batch).ids_KS.numel()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_no_bit_of_a_response_depends_on_the_other(name, pack):
    backbone = Backbone(model_of(name), layout="shared")
    with torch.no_grad():
        before = backbone(pack(([5, 6, 7], [8, 1, 9, 2]), ([5, 6, 7], [8, 11, 4])))
        first = backbone(pack(([5, 6, 7], [70, 71, 72, 73]), ([5, 6, 7], [8, 11, 4])))
        second = backbone(pack(([5, 6, 7], [8, 1, 9, 2]), ([5, 6, 7], [70, 71, 72])))
    assert torch.equal(first[1], before[1])
    assert torch.equal(second[0], before[0])
    assert first[0] != before[0]
    assert second[1] != before[1]


@pytest.mark.parametrize("broken", ["causal", "branch below", "no window"])
def test_a_broken_mask_is_found(broken, pack, monkeypatch):
    whole = shared_rows.mask_of

    def leaking(branch_KS, position_KS, seen_PP):
        if broken == "no window":
            return whole(branch_KS, position_KS, torch.ones_like(seen_PP).tril())
        below = branch_KS[:, :, None] >= branch_KS[:, None, :]
        if broken == "branch below":
            return (below & (branch_KS >= 0)[:, None, :])[:, None] & whole(branch_KS * 0, position_KS, seen_PP)
        return torch.ones_like(below).tril()[:, None]

    backbone = Backbone(model_of("mistral"), layout="shared")
    plain_N = alone(backbone, pack, PAIRS)
    torch.testing.assert_close(backbone(pack(*PAIRS)), plain_N, rtol=1e-6, atol=1e-4)
    monkeypatch.setattr(shared_rows, "mask_of", leaking)
    assert (backbone(pack(*PAIRS)) - plain_N).abs().max() > 1e-2
    if broken != "no window":  # the few tokens of a check are within the window
        with pytest.raises(ValueError, match="laid out, in layout 'shared'"):
            backbone.verify()


def test_recomputed_activations_change_nothing(pack, random_model):
    backbone, batch = Backbone(random_model("llama").train(), layout="shared"), pack(*PAIRS)
    wanted = torch.autograd.grad(backbone(batch).sum(), list(backbone.parameters()))
    backbone.checkpoint_activations()
    got = torch.autograd.grad(backbone(batch).sum(), list(backbone.parameters()))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rounds", [False, True])
def test_all_layers_keep_one_mask_for_the_backward_pass(rounds, pack, random_model):
    backbone, batch = Backbone(random_model("llama"), layout="shared"), pack(*PAIRS)
    size, kept = backbone.laid_out(batch).ids_KS.shape[1], set()

    def note(tensor):
        if tensor.shape[-2:] == (size, size):
            kept.add(tensor.untyped_storage()._cdata)
        return tensor.detach()  # an output that is given back holds its own graph forever

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=rounds):
        logp_N = backbone(batch)  # it holds what is kept
    assert len(kept) == 1
    assert logp_N.isfinite().all()


def test_rows_of_one_response_each_need_no_mask(pack):
    batch = pack(*PAIRS[1:4])
    assert shared(batch).branch_KS is None
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(shared(batch)[:4], padded(batch)[:4], strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_the_last_layers_run_on_stored_states_of_rows_with_shared_prompts(name, pack):
    assert_same(policy(model_of(name), "shared"), pack(*PAIRS))
    # a row of a new length, for which the masks are asked anew while only the frozen layers run
    assert_same(policy(model_of(name), "shared"), pack(([1] * 60, [2] * 20), ([1] * 60, [3] * 30)))


def bloom(**options) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BloomConfig(vocab_size=97, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
        return transformers.AutoModelForCausalLM.from_config(config, **options)


def test_an_architecture_that_cannot_share_computes_every_prompt_and_says_so_once(random_source, caplog, pack):
    class Bloom(random_source):
        def load_model(self):
            return bloom()

    pair = PolicyReference(Bloom(), reference=Checkpoint(Bloom()), layout="shared")
    pair.load()
    assert pair.layout == pair.policy.layout == "padded"
    assert len([r for r in caplog.records if "layout 'shared' is not possible" in r.message]) == 1
    assert torch.equal(*pair.both_logp(pack(*PAIRS)))


def test_a_layout_that_nobody_asked_for_changes_without_a_warning(random_source, caplog):
    class Bloom(random_source):
        def load_model(self):
            return bloom()

    caplog.set_level(logging.INFO)
    pair = PolicyReference(Bloom())
    pair.load()
    assert pair.layout == "padded"
    (said,) = (r for r in caplog.records if "layout 'shared' is not possible" in r.message)
    assert said.levelno == logging.INFO


def test_a_sharded_model_is_refused_with_the_reason(random_source, monkeypatch):
    pair = PolicyReference(random_source(), layout="padded")
    monkeypatch.setattr(PolicyReference, "sharded", True)
    with pytest.raises(ValueError, match="'shared' is not possible: the ranks that share a model's layers"):
        pair.layout = "shared"


def test_attention_that_takes_no_mask_is_refused_by_name(random_model):
    backbone = Backbone(random_model("llama"), layout="shared")
    backbone.causal_lm.config._attn_implementation = "flash_attention_2"
    plain, zeros = shared_rows.PlainMasks(), torch.zeros(1, 2, dtype=torch.int64)
    refused = pytest.raises(ValueError, match="attention 'flash_attention_2' cannot read any mask, sdpa")
    with refused, shared_rows.separated(backbone.causal_lm, plain, zeros, zeros, 2):
        pass


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # no kernel is wanted here
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_flex_attention_gets_the_same_mask_in_its_own_form(name, pack, monkeypatch):
    """Forward only: its backward pass and its kernels need a GPU."""
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.compile_friendly_flex_attention",
        lambda q, k, v, training=False, **named: flex_attention(q, k, v, **named),
    )
    backbone, batch = Backbone(model_of(name), layout="shared"), pack(*PAIRS)
    with torch.no_grad():
        logp_N = backbone(batch)
        backbone.causal_lm.config._attn_implementation = "flex_attention"
        torch.testing.assert_close(backbone(batch), logp_N, rtol=1e-5, atol=1e-4)
    assert backbone.causal_lm.config._attn_implementation == "flex_attention"
