"""The command safe_patch: from two fine-tuned copies of a tiny model to a folder that holds the formula's weights."""

import itertools
import json

import pytest
import torch
import transformers

from lit_safe.commands.loading import make_ready
from lit_safe.commands.safe_patch import safe_patch
from lit_safe.errors.message import SettingError
from lit_safe.merging.safe_patching import Patch, patched, retained, snip, top
from lit_safe.token_objectives.clipped_ascent import ClippedAscent
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import IGNORE
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import pairs, talk, trainer
from tests.lit_safe.token_world import tuned

PREFIX = "policy.model."


def data():
    return talk(rows_per_step=13, micro_batch_rows=5)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Checkpoints of the two trainings, and the second as an exported folder, too."""
    folder, found = tmp_path_factory.mktemp("copies"), {}
    for name, objective in (("ascent", ClippedAscent(clip=8.0)), ("descent", None)):
        module = SupervisedFineTuning(
            PolicyReference(TinyLlama()), lambda p: torch.optim.SGD(p, lr=0.3), token_objective=objective
        )
        run = trainer(folder / name, max_epochs=1)
        run.fit(module, data())
        run.save_checkpoint(folder / f"{name}.ckpt")
        found[name] = str(folder / f"{name}.ckpt")
        if name == "descent":
            module.pair.save_pretrained(str(folder / "exported"))
            found["exported"] = str(folder / "exported")
    return found


def policy_weights(path):
    state = torch.load(path, weights_only=False)["state_dict"]
    return {name.removeprefix("pair." + PREFIX): value for name, value in state.items() if PREFIX in name}


def gradients(weights, rows):
    """dL/dweight of the sum of NLLs of the first steps' rows, with plain transformers."""
    model = TinyLlama().load_model().eval()
    model.load_state_dict(weights, strict=False)
    responses = data()
    responses.setup()
    loss, seen = 0.0, 0
    for step in responses.train_dataloader():
        for batch in step:
            if seen >= rows:
                break
            bounds = batch.sequences.cu_seqlens.tolist()
            for a, b in itertools.pairwise(bounds):
                logp = model(input_ids=batch.sequences.input_ids[a:b][None]).logits[0].log_softmax(-1)
                target = batch.sequences.target[a:b]
                scored = target != IGNORE
                loss = loss - logp[scored].gather(-1, target[scored][:, None]).sum()
            seen += len(bounds) - 1
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_the_folder_holds_the_formulas_weights(copies, tmp_path):
    options = {"keep": 0.5, "safety_share": 0.2, "over_safety_share": 0.3, "alpha": 0.7, "beta": 0.4, "rows": 10}
    places = {"ascent": copies["ascent"], "descent": copies["descent"]}
    status = safe_patch(tuned(), data(), **places, out=str(tmp_path / "out"), seed=3, device="cpu", **options)
    assert status == 0
    base = {name: weight.detach() for name, weight in TinyLlama().load_model().named_parameters()}
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    sides = {}
    for kind, path, share in (("safety", copies["ascent"], 0.2), ("over-safety", copies["descent"], 0.3)):
        weights, sides[kind] = policy_weights(path), {}
        slopes = gradients(weights, 10)
        for name, own in weights.items():
            change = retained(own - base[name], 0.5, 3, kind, PREFIX + name)
            sides[kind][name] = Patch(change, top(snip(own, slopes[name]), share))
    changed = 0
    for name, weight in found.named_parameters():
        expected = patched(base[name], sides["safety"][name], sides["over-safety"][name], 0.7, 0.4)
        # the rounding of a gradient may exchange two weights of nearly equal importance
        assert (weight != expected).float().mean() < 0.002, name
        changed += int((weight != base[name]).sum())
    facts = json.loads((tmp_path / "out" / "safe_patch.json").read_text(encoding="utf-8"))
    assert facts["changed"] == changed > 0
    assert "It was not evaluated." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_an_exported_folder_serves_like_its_checkpoint(copies, tmp_path):
    for name in ("descent", "exported"):
        places = {"ascent": copies["ascent"], "descent": copies[name]}
        assert safe_patch(tuned(), data(), **places, out=str(tmp_path / name), rows=5, device="cpu") == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("descent", "exported"))
    assert one == other


def test_patches_without_a_share_leave_the_model(copies, tmp_path):
    shares = {"safety_share": 0.0, "over_safety_share": 0.0}
    places = {"ascent": copies["ascent"], "descent": copies["descent"]}
    module = tuned()
    assert safe_patch(module, data(), **places, out=str(tmp_path / "out"), rows=5, device="cpu", **shares) == 0
    for name, weight in TinyLlama().load_model().named_parameters():
        assert torch.equal(weight, dict(module.pair.named_parameters())[PREFIX + name]), name


def test_ascent_and_descent_move_apart(copies):
    module = tuned()
    make_ready(module, data(), "cpu")
    start = dict(TinyLlama().load_model().named_parameters())
    one, other = (policy_weights(copies[name]) for name in ("ascent", "descent"))
    product = sum(((one[n] - start[n]) * (other[n] - start[n])).sum() for n in one)
    assert product < 0


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.5}, {"safety_share": -0.1}, {"over_safety_share": 2.0}])
def test_shares_out_of_range_are_refused_before_anything_is_read(wrong, tmp_path):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        safe_patch(None, None, ascent="a", descent="b", out=str(tmp_path / "out"), **wrong)


def test_pairs_are_refused(copies, tmp_path):
    places = {"ascent": copies["ascent"], "descent": copies["descent"]}
    with pytest.raises(SettingError, match=r"fine-tuning data of harmful responses: use data\.sft\.SftData"):
        safe_patch(tuned(), pairs(), **places, out=str(tmp_path / "out"), device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_stays(copies, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not empty"):
        safe_patch(tuned(), data(), ascent="a", descent="b", out=str(tmp_path))
