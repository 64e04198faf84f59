import pytest
import torch

from lit_safe.hashing import uniforms
from models.pair import PolicyReference
from models.sampling import InverseCDF, generate
from models.sources import TinyLlama

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [30, 31, 32]]


@pytest.fixture(scope="module")
def model():
    return TinyLlama(spread=0.5).load_model().train()


def draws(count, steps, *parts):
    return uniforms(count * steps, *parts).reshape(count, steps)


def sample(model, prompts=PROMPTS, steps=12, temperature=1.0, stop_ids=(258,), numbers=None):
    numbers = draws(len(prompts), steps, "test") if numbers is None else numbers
    return generate(model, prompts, numbers, temperature=temperature, stop_ids=stop_ids)


def one_by_one(model, prompt, numbers, temperature):
    """The definition: run the whole sequence again for every token."""
    ids = list(prompt)
    for number in numbers.tolist():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        below = (logits / temperature).softmax(-1).cumsum(-1) <= number
        ids.append(int(below.sum()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_each_token_is_the_inverse_cdf_of_its_own_number_alone_or_in_a_batch(model, temperature):
    numbers = draws(3, 12, temperature)
    together = sample(model, temperature=temperature, stop_ids=(), numbers=numbers)
    for i, prompt in enumerate(PROMPTS):
        assert together[i] == one_by_one(model, prompt, numbers[i], temperature)
        assert (
            together[i] == sample(model, [prompt], temperature=temperature, stop_ids=(), numbers=numbers[i : i + 1])[0]
        )


@pytest.mark.parametrize("name", ["gpt2-positions", "gemma2-softcap", "qwen2", "gpt-neox"])
def test_padding_on_the_left_moves_no_position_in_any_architecture(name, random_model):
    model = random_model(name).eval()
    numbers = draws(3, 8, "architectures")
    together = sample(model, stop_ids=(), numbers=numbers)
    assert together == [one_by_one(model, p, numbers[i], 1.0) for i, p in enumerate(PROMPTS)]


def test_the_frequency_of_a_token_is_its_probability(model):
    count = 4000
    with torch.no_grad():
        probability_V = model.eval()(input_ids=torch.tensor([[5, 6]])).logits[0, -1].double().softmax(-1)
    drawn = torch.tensor(sample(model, [[5, 6]] * count, steps=1, stop_ids=(), numbers=draws(count, 1, "chi")))[:, 0]
    seen_V = torch.bincount(drawn, minlength=len(probability_V)).double()
    common_V = probability_V * count >= 5
    chi2 = ((seen_V - count * probability_V).square() / (count * probability_V))[common_V].sum().item()
    degrees = int(common_V.sum())
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5


def test_numbers_at_the_ends_draw_the_first_and_last_possible_token():
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for number, token in ((0.0, 1), (1 - 2**-53, 2)):
        left = InverseCDF(torch.tensor([[number]], dtype=torch.float64), 1.0, begin=1)(torch.zeros(1, 1), scores)
        assert left.isfinite().nonzero().tolist() == [[0, token]]


def test_a_response_ends_with_the_first_stop_token_and_no_other_response_ends_early(model):
    free = sample(model, stop_ids=())
    stop = free[0][4]
    for response, whole in zip(sample(model, stop_ids=(258, stop)), free, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in (258, stop)), len(whole))
        assert response == whole[:end]
    assert len(sample(model, stop_ids=(stop,))[0]) <= 5


def test_the_models_shipped_generation_settings_change_nothing(model):
    want = sample(model)
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=3)
    try:
        assert sample(model) == want
    finally:
        model.generation_config.update(repetition_penalty=None, no_repeat_ngram_size=None, max_length=None)


def test_sampling_draws_from_no_global_generator_and_leaves_the_mode(model):
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        sample(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert {module.training for module in model.modules()} == {training}


def test_nothing_to_sample_gives_nothing(model):
    assert generate(model, [], torch.zeros(0, 4), temperature=1.0, stop_ids=()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"numbers": torch.zeros(2, 4)}, r"uniforms \[3, max_new_tokens >= 1\], got \(2, 4\)"),
        ({"numbers": torch.ones(3, 4)}, r"must lie in \[0, 1\)"),
        ({"temperature": -1.0}, "temperature must be >= 0, got -1.0"),
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[1] * 4090]}, "may take 4102 tokens; LlamaForCausalLM has 4096 positions"),
    ],
)
def test_input_that_makes_no_sense_is_named(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(model, **wrong)


def test_a_pair_stops_at_its_tokenizers_end_and_checkpointing_does_not_matter():
    pair = PolicyReference(TinyLlama(spread=0.5), gradient_checkpointing=True)
    pair.load()
    ids = pair.load_tokenizer()("hello", add_special_tokens=False).input_ids
    numbers = draws(40, 60, "stop")  # at this temperature every 259th token stops, or so
    responses = pair.generate([ids] * 40, numbers, temperature=9.0)
    stopped = [r for r in responses if len(r) < 60]
    assert stopped
    assert all(r[-1] == 258 and 258 not in r[:-1] for r in stopped)
    assert responses == generate(pair.policy.causal_lm, [ids] * 40, numbers, temperature=9.0, stop_ids=[258])


def test_temperature_zero_is_the_limit_of_small_temperatures_and_reads_no_number(model):
    greedy = sample(model, temperature=0.0, stop_ids=())
    assert greedy == sample(model, temperature=1e-9, stop_ids=())
    assert greedy == sample(model, temperature=0.0, stop_ids=(), numbers=draws(3, 12, "other"))
    assert greedy != sample(model, stop_ids=())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_prompt(wrong, temperature, random_model):
    model = random_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = wrong  # only the second prompt has this token
    with pytest.raises(ValueError, match=r"not finite \(prompt 1 of 3\)"):
        sample(model, steps=1, temperature=temperature)
