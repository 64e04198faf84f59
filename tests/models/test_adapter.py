"""Policy under its adapter, merged policy and exported folder are one policy, or the choice is refused at load."""

import logging
import warnings
from contextlib import nullcontext

import peft
import pytest
import torch
import transformers

from lit_safe.types import IGNORE
from models.adaptation import LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, FrozenCopy
from models.sources import HuggingFace
from tests.models.adapter_world import Own, Small, nudge

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
DENSE = ("llama", "llama-tied", "qwen2-tied", "gpt2")
SPARSE = ("mixtral", "qwen3-moe", "gpt-oss")


def attention(name: str) -> list[str]:
    return ["c_attn"] if name == "gpt2" else ["q_proj"]


def embedding(name: str) -> list[str]:
    return ["wte"] if name == "gpt2" else ["embed_tokens"]


def final_norm(name: str) -> list[str]:
    return ["ln_f"] if name == "gpt2" else ["norm"]


def router(name: str) -> str:
    return "router" if name == "gpt-oss" else "gate"


KEPT = {  # (names of models, what is asked of each)
    "all linear layers": (DENSE + SPARSE[:2], lambda name: LoRA(r=2)),
    "all but experts": (("gpt-oss",), lambda name: LoRA(r=2, target_modules=[*attention(name), "o_proj"])),
    "input embedding, untied": (("llama", *SPARSE), lambda name: LoRA(r=2, target_modules=["q_proj", "embed_tokens"])),
    "embedding, whole": (
        DENSE + SPARSE,
        lambda name: LoRA(r=2, target_modules=attention(name), modules_to_save=embedding(name)),
    ),
    "norms, whole": (
        DENSE + SPARSE,
        lambda name: LoRA(r=2, target_modules=attention(name), modules_to_save=final_norm(name)),
    ),
    "routers": (
        SPARSE,
        lambda name: LoRA(r=2, target_modules=attention(name), target_parameters=[f"mlp.{router(name)}.weight"]),
    ),
    "routers, whole": (
        SPARSE,
        lambda name: LoRA(r=2, target_modules=attention(name), modules_to_save=[router(name)]),
    ),
    "experts": (SPARSE, lambda name: LoRA(r=2, target_modules=attention(name), target_parameters=EXPERTS)),
    "all with experts": (("gpt-oss",), lambda name: LoRA(r=2, target_parameters=EXPERTS)),
    "rslora": (DENSE + SPARSE[:2], lambda name: LoRA(r=2, rslora=True)),
    "dora": (DENSE + SPARSE, lambda name: LoRA(r=2, target_modules=attention(name), dora=True)),
    "biases of adapted layers": (
        ("qwen2-tied", "gpt2", "gpt-oss"),
        lambda name: Own(
            peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=2,
                target_modules=attention(name),
                bias="lora_only",
                fan_in_fan_out=name == "gpt2",
            )
        ),
    ),
}
CASES = [(what, name) for what, (names, _) in KEPT.items() for name in names]


def loaded(source, adaptation=None, reference=None) -> PolicyReference:
    pair = PolicyReference(source, adaptation, reference or FrozenCopy())
    pair.load()
    return pair


def stock_logp(folder, batch, dtype) -> torch.Tensor:
    """[N] of the exported folder, by stock transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).to(dtype).eval()
    sums = []
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids[start:end][None]).logits[0].double()
        target = batch.target[start:end]
        scored = target != IGNORE
        sums.append(logits[scored].log_softmax(-1).gather(-1, target[scored][:, None]).sum())
    return torch.stack(sums).float()


@pytest.mark.parametrize(("what", "name"), CASES, ids=[f"{what}, {name}" for what, name in CASES])
def test_policy_and_exported_folder_are_one_in_fp32(what, name, pack, sequences, tmp_path):
    batch, tokens = pack(*sequences), torch.tensor([len(response) for _, response in sequences])
    pair = loaded(Small(name), KEPT[what][1](name))
    before = pair.policy_logp(batch).detach()
    assert torch.equal(before, pair.reference_logp(batch))
    nudge(pair)
    want = pair.policy_logp(batch).detach()
    assert (want - before).abs().max() > 1e-3
    pair.save_pretrained(str(tmp_path))
    assert ((stock_logp(tmp_path, batch, torch.float32) - want).abs() / tokens).max() <= 1e-5


@pytest.mark.parametrize("what", ["all linear layers", "norms, whole", "dora"])
@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
def test_over_a_bf16_base_nothing_of_the_adapter_is_rounded_away(what, name, pack, sequences, tmp_path):
    batch, tokens = pack(*sequences), torch.tensor([len(response) for _, response in sequences])
    pair = loaded(Small(name, "bfloat16"), KEPT[what][1](name))
    with torch.no_grad():
        for key, parameter in pair.named_parameters():
            if parameter.requires_grad and "lora_A" not in key:
                parameter.add_(2e-4 * torch.sign(torch.sin(torch.arange(parameter.numel()))).view_as(parameter))
    in_bf16 = pair.policy_logp(batch).detach()
    pair.save_pretrained(str(tmp_path))
    exported = stock_logp(tmp_path, batch, torch.float32)
    pair.float()  # exact for every weight: what is left is the rounding of products
    want = pair.policy_logp(batch).detach()
    assert (want - pair.reference_logp(batch)).abs().max() > 1e-4
    assert ((exported - want).abs() / tokens).max() <= 1e-5
    assert ((in_bf16 - want).abs() / tokens).max() <= 0.25  # bf16 products round; two layers, logits up to about 5


ADAPTER_ALONE = [
    "all linear layers",
    "input embedding, untied",
    "embedding, whole",
    "experts",
    "dora",
    "biases of adapted layers",
]


@pytest.mark.parametrize("what", ADAPTER_ALONE)
def test_the_adapter_alone_on_its_base_is_the_same_policy(what, pack, sequences, tmp_path):
    name = KEPT[what][0][0]
    batch = pack(*sequences)
    pair = loaded(Small(name), KEPT[what][1](name))
    nudge(pair)
    pair.save_pretrained(str(tmp_path), adapter_only=True)
    again = loaded(Small(name), Read(str(tmp_path)))
    torch.testing.assert_close(again.policy_logp(batch), pair.policy_logp(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_a_small_update_over_a_bf16_base_survives_its_export(merged, pack, sequences, tmp_path):
    batch = pack(*sequences)
    Small("llama", "bfloat16").load_model().save_pretrained(tmp_path / "base")
    Small("llama").load_tokenizer().save_pretrained(tmp_path / "base")
    pair = loaded(HuggingFace(str(tmp_path / "base")), LoRA(r=2))
    with torch.no_grad():
        for key, parameter in pair.named_parameters():
            if "lora_B" in key:
                parameter.add_(1e-4 * torch.sign(torch.sin(torch.arange(parameter.numel()))).view_as(parameter))
    pair.save_pretrained(str(tmp_path / "out"), adapter_only=not merged)
    pair.float()
    moved = pair.policy_logp(batch) - pair.reference_logp(batch)
    found = loaded(HuggingFace(str(tmp_path / "out"))).policy_logp(batch) - pair.reference_logp(batch)
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(found, moved, rtol=0.1, atol=2e-5)


def test_a_stored_adapter_that_would_be_merged_into_two_weights_is_refused(tmp_path):
    Small("llama-tied").load_model().save_pretrained(tmp_path / "base")
    adapted = Own(peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"])).apply(
        HuggingFace(str(tmp_path / "base")).load_model()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of what the next lines ask us to refuse
        adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="embed_tokens of LlamaForCausalLM is tied to lm_head"):
        HuggingFace(str(tmp_path / "adapter")).load_model()


class Read:
    """A stored adapter."""

    def __init__(self, folder):
        self.folder = folder

    def apply(self, model):
        return peft.PeftModel.from_pretrained(model, self.folder, is_trainable=True)


def own(**options):
    return lambda name: Own(peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options))


REFUSED = {
    "embedding tied to the head": (
        ("llama-tied", "qwen2-tied"),
        lambda name: LoRA(r=2, target_modules=["q_proj", "embed_tokens"]),
        "embed_tokens of .* is tied to lm_head.*leave it out of target_modules",
    ),
    "GPT-2's embedding": (
        ("gpt2",),
        lambda name: LoRA(r=2, target_modules=["c_attn", "wte"]),
        "wte of GPT2LMHeadModel is tied to lm_head",
    ),
    "head tied to the embedding": (
        ("llama-tied", "qwen2-tied"),
        lambda name: LoRA(r=2, target_modules=["q_proj", "lm_head"]),
        "lm_head of .* is tied to model.embed_tokens",
    ),
    "head": (
        ("llama", "mixtral"),
        lambda name: LoRA(target_modules=["q_proj", "lm_head"]),
        "the head of .*leave the head out",
    ),
    "head, whole": (
        ("llama",),
        lambda name: LoRA(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "the head of LlamaForCausalLM is a ModulesToSaveWrapper",
    ),
    "tied adapters": (
        ("llama-tied",),
        own(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
        "tied to lm_head",
    ),
    "new rows of a tied embedding": (
        ("llama-tied",),
        own(target_modules=["q_proj"], trainable_token_indices=[5]),
        "embed_tokens of LlamaForCausalLM is tied to lm_head,",
    ),
    "norms": (DENSE[:1], lambda name: LoRA(target_modules=["q_proj", "norm"]), "no low-rank form: .*modules_to_save"),
    "experts as a layer": (
        SPARSE,
        lambda name: LoRA(target_modules=["q_proj", "experts"]),
        "Experts of .* no low-rank form: .*target_parameters",
    ),
    "all linear layers without experts": (
        ("gpt-oss",),
        lambda name: LoRA(),
        r"all-linear reaches no expert of GptOss.*target_parameters: \[mlp.experts.down_proj, mlp.experts.gate_up_proj",
    ),
    "experts with dropout": (
        ("mixtral",),
        lambda name: LoRA(dropout=0.1),
        r"fused parameters of MixtralForCausalLM \(experts, routers\) needs dropout 0",
    ),
    "experts with dora": (("mixtral",), lambda name: LoRA(dora=True), "needs dora: false"),
    "a name of nothing": (
        ("llama", "gpt-oss"),
        lambda name: LoRA(target_modules=["q_proj", "gate_proj_"]),
        "target_modules names 'gate_proj_', which .* does not have",
    ),
    "no name of anything": (
        ("gpt2",),
        lambda name: LoRA(target_modules=["q_proj"]),
        "target_modules fits nothing in GPT2LMHeadModel",
    ),
    "a copy of nothing": (
        ("llama",),
        lambda name: LoRA(target_modules=["q_proj"], modules_to_save=["ln_f"]),
        "modules_to_save names 'ln_f'",
    ),
    "a parameter of nothing": (
        ("llama",),
        lambda name: LoRA(target_modules=["q_proj"], target_parameters=EXPERTS),
        "target_parameters names 'mlp.experts.down_proj'",
    ),
    "biases that cannot be merged": (
        ("llama",),
        own(target_modules=["q_proj"], lora_bias=True),
        "q_proj of LlamaForCausalLM cannot be merged",
    ),
    "prompts": (
        ("llama",),
        lambda name: Own(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "PROMPT_TUNING puts states before the sequence",
    ),
}
WRONG = [(what, name) for what, (names, *_) in REFUSED.items() for name in names]


@pytest.mark.parametrize(("what", "name"), WRONG, ids=[f"{what}, {name}" for what, name in WRONG])
def test_what_no_merged_model_would_hold_is_refused_in_one_line(what, name):
    _, adaptation, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as caught:
        loaded(Small(name), adaptation(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_reference_by_switching_off_is_refused_where_something_stays_on(bias):
    adaptation = Own(peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], bias=bias))
    with pytest.raises(ValueError, match=r"AdapterOff: .*q_proj\..*bias trains and stays.*FrozenCopy"):
        loaded(Small("qwen2-tied"), adaptation, AdapterOff())


@pytest.mark.parametrize("what", ["all linear layers", "embedding, whole", "norms, whole", "dora", "rslora"])
def test_switched_off_a_trained_adapter_is_the_base(what, pack, sequences):
    for name in KEPT[what][0]:
        pair = loaded(Small(name), KEPT[what][1](name), AdapterOff())
        before = pair.policy_logp(pack(*sequences)).detach()
        nudge(pair)
        assert torch.equal(pair.reference_logp(pack(*sequences)), before)


@pytest.mark.parametrize("autocast", [False, True], ids=["weights' own types", "autocast"])
@pytest.mark.parametrize("what", ["embedding, whole", "norms, whole", "routers, whole", "biases of adapted layers"])
def test_what_trains_whole_in_fp32_meets_a_bf16_base(what, autocast, pack, sequences):
    for name in set(KEPT[what][0]) - {"gpt2"}:
        pair = loaded(Small(name, "bfloat16"), KEPT[what][1](name))
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            assert torch.equal(*(side.detach() for side in pair.both_logp(pack(*sequences))))
            pair.policy_logp(pack(*sequences)).sum().backward()
        assert {p.dtype for p in pair.parameters() if p.requires_grad} == {torch.float32}


def test_types_that_do_not_compute_together_are_refused_by_name():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel.*bfloat16, float32.*dtype: float32") as caught:
        loaded(Small("gpt2", "bfloat16"), KEPT["embedding, whole"][1]("gpt2"))
    assert "\n" not in str(caught.value)


def test_the_log_says_what_carries_an_adapter(caplog):
    with caplog.at_level(logging.INFO, logger="models.adaptation"):
        LoRA(r=2).apply(Small("mixtral").load_model())
    assert "adapter on mlp.experts, mlp.gate, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj" in caplog.text
