import gc
import json
import os

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_safe.protocols.pair import PairModel
from models.adaptation import Full, LastLayers, LoRA
from models.backbone import Backbone
from models.pair import PolicyReference
from models.reference import AdapterOff, Checkpoint, FrozenCopy
from models.sources import HuggingFace, TinyLlama

KINDS = {
    "full": (Full(), FrozenCopy()),
    "last": (LastLayers(1), FrozenCopy()),
    "lora-copy": (LoRA(r=2), FrozenCopy()),
    "lora-off": (LoRA(r=2), AdapterOff()),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def load(source, adaptation=KINDS["full"][0], reference=KINDS["full"][1], **options) -> PolicyReference:
    pair = PolicyReference(source, adaptation, reference, **options)
    pair.load()
    return pair


def train(pair, sequences, steps=3) -> None:
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (-pair.policy_logp(sequences).mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_untrained_policy_and_reference_agree_to_the_bit(kind, layout, architecture, random_source, pack, sequences):
    pair = load(random_source(architecture), *kind, layout=layout)
    policy, reference = pair.policy_logp(pack(*sequences)), pair.reference_logp(pack(*sequences))
    assert torch.equal(policy, reference)
    # through one head in one product: a processor may round a row by its place in it
    torch.testing.assert_close(*pair.both_logp(pack(*sequences)), rtol=2e-6, atol=2e-6)
    assert policy.requires_grad
    assert not reference.requires_grad
    stats = pair.sequence_stats(pack(*sequences))
    assert stats.kl.tolist() == [0.0] * len(sequences)
    assert torch.equal(stats.policy_logp, stats.reference_logp)


class HeadCalls(TorchDispatchMode):
    """Rows of each call of the log-prob operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.sequence_logratio.chunked.default:
            self.rows = [*getattr(self, "rows", []), len(args[0])]
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("name", ["llama-tied", "gemma2-softcap", "phi-bias"])
def test_scored_together_both_models_give_what_they_give_apart(kind, name, autocast, random_source, pack, sequences):
    batch, scored = pack(*sequences), sum(len(response) for _, response in sequences)
    pair = load(random_source(name), *kind, backend="chunked")
    train(pair, batch)
    together, apart = pair.both_logp, lambda batch: (pair.policy_logp(batch), pair.reference_logp(batch))
    found = []
    for score in together, apart:
        pair.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), HeadCalls() as calls:
            policy_N, reference_N = score(batch)
        assert not reference_N.requires_grad
        (policy_N - reference_N).square().sum().backward()
        found.append((policy_N.detach(), reference_N, [p.grad for p in pair.parameters() if p.requires_grad]))
        head_learns = pair.policy.head.weight_VD.requires_grad
        assert calls.rows == ([2 * scored] if score is together and not head_learns else [scored] * 2)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


def test_training_moves_the_policy_and_leaves_the_reference(kind, random_source, pack, sequences):
    pair = load(random_source(), *kind)
    batch = pack(*sequences)
    before = pair.reference_logp(batch)
    train(pair, batch)
    assert (pair.policy_logp(batch) - before).abs().min() > 0.01
    assert torch.equal(pair.reference_logp(batch), before)


def test_the_reference_is_in_no_parameter_list_and_no_checkpoint(kind, random_source):
    pair = load(random_source(), *kind)
    base = sum(p.numel() for p in random_source().load_model().parameters())
    added = sum(p.numel() for n, p in pair.named_parameters() if "lora_" in n)
    assert sum(p.numel() for p in pair.parameters()) == base + added
    assert {n for n in pair.state_dict() if n != "_extra_state"} == {
        n for n, p in pair.named_parameters() if p.requires_grad
    }


def test_a_frozen_copy_shares_the_memory_of_what_does_not_train(random_source):
    pair = load(random_source(), LastLayers(1))
    with pair._open_reference() as reference:
        theirs = dict(reference.named_parameters())
    for name, mine in pair.policy.named_parameters():
        assert (mine.data_ptr() == theirs[name].data_ptr()) == (not mine.requires_grad)
    assert pair.memory_estimate(8, 4).reference == pair.memory_estimate(8, 4).gradients


def test_a_frozen_copy_in_another_type_shares_nothing_and_leaves_the_policy_as_it_was(random_source, pack, sequences):
    pair = load(random_source(), LastLayers(1), FrozenCopy(dtype="bfloat16"))
    assert {p.dtype for p in pair.parameters()} == {torch.float32}
    logratio = pair.policy_logp(pack(*sequences)) - pair.reference_logp(pack(*sequences))
    assert 0 < logratio.abs().max() < 3


def test_a_smaller_copy_keeps_the_frequencies_of_positions(random_source):
    pair = load(random_source(), Full(), FrozenCopy(dtype="bfloat16"))
    with pair._open_reference() as reference:
        kinds = {name.rpartition(".")[2]: buffer.dtype for name, buffer in reference.named_buffers()}
    assert kinds["inv_freq"] == torch.float32


def test_the_copy_follows_a_policy_that_is_cast_after_loading(random_source, pack, sequences):
    pair = load(random_source(), LastLayers(1)).bfloat16()
    assert torch.equal(pair.policy_logp(pack(*sequences)), pair.reference_logp(pack(*sequences)))


def test_another_checkpoint_can_be_the_reference(random_source, pack, sequences):
    pair = load(random_source(seed=0), reference=Checkpoint(random_source(seed=1)))
    other = load(random_source(seed=1))
    assert torch.equal(pair.reference_logp(pack(*sequences)), other.policy_logp(pack(*sequences)))


def test_a_reference_of_another_vocabulary_is_refused(random_source):
    with pytest.raises(ValueError, match="a vocabulary of 259 tokens, the policy one of 97"):
        load(random_source(), reference=Checkpoint(TinyLlama()))


def test_switching_off_an_adapter_that_is_not_there_is_an_error(random_source):
    with pytest.raises(ValueError, match=r"AdapterOff needs an adapter.*LoRA"):
        load(random_source(), Full(), AdapterOff())


def test_more_layers_than_there_are_is_an_error_with_the_count(random_source):
    with pytest.raises(ValueError, match="k must be 1 to 3, the layers of LlamaForCausalLM; got 4"):
        load(random_source(), LastLayers(4))


def test_an_adapter_on_the_head_is_refused(random_source):
    with pytest.raises(ValueError, match="the head of LlamaForCausalLM is a Linear"):
        load(random_source(), LoRA(target_modules=["lm_head"]), AdapterOff())


def test_adapters_are_drawn_from_their_seed_and_from_nothing_else(random_source):
    first = load(random_source(), LoRA(r=2), AdapterOff()).state_dict()
    torch.rand(1)
    again = load(random_source(), LoRA(r=2), AdapterOff()).state_dict()
    other = load(random_source(), LoRA(r=2, seed=1), AdapterOff()).state_dict()
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_one_pass_of_each_model_gives_log_probs_and_statistics(
    kind, layout, autocast, random_source, pack, sequences, monkeypatch
):
    batch = pack(*sequences)
    pair = load(random_source("llama-tied"), *kind, layout=layout)
    train(pair, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = pair.policy_logp(batch).detach(), pair.reference_logp(batch)
        passes, decode = [], Backbone.response_hidden
        monkeypatch.setattr(Backbone, "response_hidden", lambda *given: passes.append(1) or decode(*given))
        stats = pair.sequence_stats(batch)
    assert len(passes) == 2
    torch.testing.assert_close((stats.policy_logp, stats.reference_logp), logps, rtol=1e-5, atol=1e-4)
    assert (stats.kl > 0).all()
    assert not any(value_N.requires_grad for value_N in stats)


def test_kl_and_entropy_are_those_of_the_full_distributions(random_source, pack, sequences):
    pair = load(random_source("gemma2-softcap"), reference=Checkpoint(random_source("gemma2-softcap", seed=1)))
    prompt, response = sequences[0]
    ids = torch.tensor([prompt + response])
    p, q = (s.load_model().eval()(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).detach()
            for s in (pair.source, pair.reference.source))  # fmt: skip
    stats = pair.sequence_stats(pack(*sequences))
    torch.testing.assert_close(stats.kl[0].double(), (p.exp() * (p - q)).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.entropy[0].double(), -(p.exp() * p).sum(), rtol=1e-4, atol=1e-4)


def test_support_is_the_mass_on_what_the_reference_finds_plausible(random_source, pack, sequences):
    pair = load(random_source("gemma2-softcap"), reference=Checkpoint(random_source("gemma2-softcap", seed=1)))
    prompt, response = sequences[3]
    ids = torch.tensor([prompt + response])
    p, q = (s.load_model().eval()(ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1).detach()
            for s in (pair.source, pair.reference.source))  # fmt: skip
    plausible = q >= 0.01
    want = ((p * plausible).sum(-1) / (q * plausible).sum(-1)).log().clamp(max=0).sum()
    got = pair.support_logratio(pack(*sequences), 0.01)[3]
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert want < -0.1


def test_support_is_kept_by_the_reference_itself_and_lost_by_a_policy_that_leaves(kind, random_source, pack, sequences):
    pair = load(random_source(), *kind)
    assert pair.support_logratio(pack(*sequences), 0.02).abs().max() < 1e-5
    train(pair, pack(*sequences[1:2]), steps=30)
    lost = pair.support_logratio(pack(*sequences), 0.02)
    assert lost.sum() < -0.1
    lost.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in pair.parameters() if p.requires_grad)


def test_support_keeps_no_distribution_for_its_backward_pass(random_source, pack, sequences):
    pair = load(random_source(), LastLayers(1))
    lost_N = pair.support_logratio(pack(*sequences), 0.02)
    vocabulary = pair.policy.head.weight_VD.shape[0]
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim and x.shape[-1] == vocabulary]
    lost_N.sum().backward()


def test_the_reference_answers_where_it_is_asked_to(random_source, sequences):
    pair = load(random_source(), reference=Checkpoint(random_source(seed=1)))
    prompts, numbers = [prompt for prompt, _ in sequences], torch.rand(len(sequences), 6)
    other = load(random_source(seed=1))
    assert pair.generate(prompts, numbers, reference=True) == other.generate(prompts, numbers)
    assert pair.generate(prompts, numbers) != other.generate(prompts, numbers)


def test_a_checkpoint_brings_back_the_policy_and_loads_as_weights_only(kind, random_source, pack, sequences, tmp_path):
    batch = pack(*sequences)
    pair = load(random_source("llama-tied"), *kind)
    train(pair, batch)
    torch.save(pair.state_dict(), tmp_path / "state.ckpt")
    again = load(random_source("llama-tied"), *kind)
    again.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(again.policy_logp(batch), pair.policy_logp(batch))
    assert torch.equal(again.reference_logp(batch), pair.reference_logp(batch))


def test_as_a_submodule_the_pair_keeps_its_small_state(random_source):
    outer = nn.ModuleDict({"pair": load(random_source(), LastLayers(1))})
    outer.load_state_dict(outer.state_dict())
    assert all(name.startswith("pair.") for name in outer.state_dict())
    assert len(outer.state_dict()) < len(list(outer.parameters()))


def test_missing_unknown_and_frozen_keys_are_refused(random_source):
    pair = load(random_source(), LastLayers(1))
    state = pair.state_dict()
    name, weight = next((n, w) for n, w in state.items() if n != "_extra_state")
    frozen = next(n for n, p in pair.named_parameters() if not p.requires_grad)
    for wrong, message in (
        ({n: w for n, w in state.items() if n != name}, "Missing key"),
        (state | {"policy.stray": weight}, "Unexpected key"),
        (state | {frozen: pair.get_parameter(frozen).detach()}, f'Unexpected key.*"{frozen}"'),
    ):
        with pytest.raises(RuntimeError, match=message):
            pair.load_state_dict(wrong)


def test_a_checkpoint_on_another_base_model_is_refused(random_source):
    state = load(random_source(seed=0), LoRA(r=2), AdapterOff()).state_dict()
    with pytest.raises(ValueError, match="trained from other weights"):
        load(random_source(seed=1), LoRA(r=2), AdapterOff()).load_state_dict(state)


def test_the_fingerprint_is_of_the_weights_as_read_and_training_does_not_move_it(kind, random_source, pack, sequences):
    pair = load(random_source(), *kind)
    before = pair.base_fingerprint()
    train(pair, pack(*sequences), steps=1)
    assert pair.base_fingerprint() == before == load(random_source()).base_fingerprint()
    assert before != load(random_source(seed=1)).base_fingerprint()


def test_gradient_checkpointing_runs_layers_twice_and_changes_no_gradient(kind, random_source, pack, sequences):
    def gradients(gradient_checkpointing):
        pair = load(random_source(), *kind, gradient_checkpointing=gradient_checkpointing)
        calls = []
        layer = pair.policy.causal_lm.base_model.layers[-1].self_attn
        layer.register_forward_hook(lambda *_: calls.append(1))
        pair.policy_logp(pack(*sequences)).sum().backward()
        return len(calls), [p.grad for p in pair.parameters() if p.requires_grad]

    calls, grads = gradients(True)
    plain_calls, plain_grads = gradients(False)
    assert (calls, plain_calls) == (2, 1)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain_grads, strict=True))


def test_a_reference_that_shares_the_policys_layers_draws_nothing_where_dropout_is_kept(random_source, pack, sequences):
    pair = load(random_source("gpt2-positions"), LoRA(r=2, dropout=0.5), AdapterOff(), disable_dropout=False)
    batch = pack(*sequences)
    assert torch.equal(pair.reference_logp(batch), pair.reference_logp(batch))
    assert pair.policy.training
    assert not torch.equal(pair.policy_logp(batch), pair.policy_logp(batch))
    pair.eval()
    pair.reference_logp(batch)
    assert not any(module.training for module in pair.modules())


@pytest.mark.parametrize("reference", [FrozenCopy(), Checkpoint], ids=["copy", "checkpoint"])
def test_a_new_layout_is_checked_and_the_reference_goes_with_it(reference, random_source, pack, sequences):
    reference = reference if reference == FrozenCopy() else reference(random_source())
    pair, packed = load(random_source(), reference=reference), load(random_source(), layout="packed")
    pair.layout = "packed"
    assert pair.layout == pair.policy.layout == "packed"
    assert torch.equal(pair.reference_logp(pack(*sequences)), packed.policy_logp(pack(*sequences)))
    with pair._open_reference() as opened:
        assert opened.layout == "packed"


def test_a_layout_that_the_model_cannot_tell_sequences_apart_in_is_refused_and_not_taken(pack, sequences):
    pair = load(TinyBloom())
    before = pair.policy_logp(pack(*sequences))
    with pytest.raises(ValueError, match="BloomForCausalLM"):
        pair.layout = "packed"
    assert pair.layout == pair.policy.layout == "padded"
    assert torch.equal(pair.policy_logp(pack(*sequences)), before)
    with pytest.raises(ValueError, match="layout must be one of"):
        pair.layout = "ragged"


class TinyBloom(TinyLlama):
    def load_model(self):
        config = transformers.BloomConfig(vocab_size=97, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return transformers.BloomForCausalLM(config)


def test_dropout_can_be_kept(random_source, pack, sequences):
    pair = load(random_source("gpt2-positions"), disable_dropout=False)
    assert not torch.equal(pair.policy_logp(pack(*sequences)), pair.policy_logp(pack(*sequences)))


def test_loading_twice_keeps_the_first_models(random_source):
    pair = load(random_source())
    policy = pair.policy
    pair.load()
    assert pair.policy is policy


def test_what_needs_models_says_that_they_are_not_loaded(random_source, pack, sequences):
    with pytest.raises(RuntimeError, match=r"call load\(\)"):
        PolicyReference(random_source()).policy_logp(pack(*sequences))


def test_it_is_a_pair_model_and_names_its_facts(random_source):
    pair = load(random_source("llama"), LastLayers(1))
    assert isinstance(pair, PairModel)
    facts = pair.facts()
    assert (facts.source, facts.dtype, facts.own_reference) == ("llama", "float32", True)
    assert not load(random_source("llama"), reference=Checkpoint(random_source("llama"))).facts().own_reference
    assert 0 < facts.trainable < facts.parameters


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2-positions"])
def test_an_exported_folder_has_the_log_probs_of_the_policy(kind, name, random_source, pack, sequences, tmp_path):
    batch = pack(*sequences)
    pair = load(random_source(name), *kind)
    train(pair, batch)
    want = pair.policy_logp(batch)
    pair.save_pretrained(str(tmp_path / "export"))
    assert torch.equal(pair.policy_logp(batch), want), "writing must not touch the policy"
    again = load(HuggingFace(str(tmp_path / "export")))
    torch.testing.assert_close(again.policy_logp(batch), want, rtol=1e-5, atol=1e-5)
    assert again.load_tokenizer().chat_template == pair.load_tokenizer().chat_template
    assert {"model.safetensors", "generation_config.json"} <= set(os.listdir(tmp_path / "export"))


def test_an_adapter_alone_is_small_and_loads_on_its_base(random_source, pack, sequences, tmp_path):
    random_source().load_model().save_pretrained(tmp_path / "base")
    TinyLlama().load_tokenizer().save_pretrained(tmp_path / "base")
    pair = load(HuggingFace(str(tmp_path / "base")), LoRA(r=2), AdapterOff())
    train(pair, pack(*sequences))
    pair.save_pretrained(str(tmp_path / "adapter"), adapter_only=True)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    again = load(HuggingFace(str(tmp_path / "adapter")))
    torch.testing.assert_close(
        again.policy_logp(pack(*sequences)), pair.policy_logp(pack(*sequences)), rtol=1e-5, atol=1e-5
    )


def test_an_adapter_that_is_not_there_cannot_be_exported(random_source, tmp_path):
    with pytest.raises(ValueError, match="adapter_only needs an adapter"):
        load(random_source()).save_pretrained(str(tmp_path), adapter_only=True)


def test_the_digest_names_the_reference_whatever_the_policy_learns(kind, random_source, pack, sequences):
    pair = load(random_source(), *kind)
    before = pair.reference_digest()
    train(pair, pack(*sequences))
    assert pair.reference_digest() == before == load(random_source(), *kind).reference_digest()
    assert before != load(random_source(seed=1), *kind).reference_digest()


def test_one_changed_bit_of_the_reference_is_another_digest(random_source):
    source = random_source()
    pair = load(source, reference=Checkpoint(source))
    before = pair.reference_digest()
    with pair._open_reference() as reference, torch.no_grad():
        next(reference.parameters())[-1, -1].nextafter_(torch.tensor(torch.inf))
    assert pair.reference_digest() != before


def test_a_loaded_pair_says_what_it_can_read():
    source = TinyLlama(positions=77)
    pair = PolicyReference(source)
    assert pair.limits() is None
    pair.load()
    assert pair.limits() == (len(source.load_tokenizer()), 77)
