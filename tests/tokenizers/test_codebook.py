"""The codebook: search, usage, revival, moving averages."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.errors import ConfigError
from unimm.tokenizers import Codebook, VQTokenizer, VQTokenizerConfig, codebook

SMALL = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_residual_blocks": 1,
    "encoder_channels": 16,
    "num_norm_groups": 4,
    "usage_window": 64,
}
sizes = {"size": st.integers(1, 40), "channels": st.integers(1, 6), "seed": st.integers(0, 10_000)}


def make(size: int = 16, channels: int = 4, seed: int = 0, **options: object) -> Codebook:
    torch.manual_seed(seed)
    options = {"unit_codes": False, "usage_window": 0, **options}
    book = Codebook(VQTokenizerConfig(codebook_size=size, code_channels=channels, **options))
    torch.nn.init.normal_(book.weight)
    return book


@settings(max_examples=25, deadline=None)
@given(**sizes)
def test_no_code_is_nearer_than_the_chosen_one(size: int, channels: int, seed: int) -> None:
    book = make(size, channels, seed)
    vectors = torch.randn(30, channels)
    distances = torch.cdist(vectors.double(), book.rows().double())
    chosen = distances.gather(1, book.nearest(vectors)[:, None])[:, 0]
    assert (chosen <= distances.min(1).values + 1e-5).all()


@settings(max_examples=25, deadline=None)
@given(**sizes)
def test_cosine_similarity_chooses_the_smallest_angle(size: int, channels: int, seed: int) -> None:
    book = make(size, channels, seed, similarity="cosine")
    vectors = torch.randn(30, channels)
    cosines = F.normalize(vectors.double(), dim=-1) @ F.normalize(book.weight.detach().double(), dim=-1).T
    chosen = cosines.gather(1, book.nearest(vectors)[:, None])[:, 0]
    assert (chosen >= cosines.max(1).values - 1e-6).all()
    assert torch.equal(book.lookup(book.nearest(vectors)), book.weight[book.nearest(vectors)])


@settings(max_examples=25, deadline=None)
@given(unit_codes=st.booleans(), **sizes)
def test_every_code_is_nearest_to_itself(size: int, channels: int, seed: int, unit_codes: bool) -> None:
    book = make(size, channels + 1, seed, unit_codes=unit_codes)
    found = book.nearest(book.rows())
    assert torch.allclose(book.rows()[found], book.rows(), atol=1e-5)


def test_of_equal_codes_the_first_is_chosen() -> None:
    book = make(4, 2)
    book.weight.data.copy_(torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert book.nearest(torch.tensor([[0.9, 0.1]])).tolist() == [1]


def test_scaling_unit_codes_changes_nothing() -> None:
    book, vectors = make(unit_codes=True), F.normalize(torch.randn(50, 4), dim=-1)
    ids, codes = book.nearest(vectors), book.rows()
    book.weight.data.mul_(torch.rand(16, 1) + 0.5)
    assert torch.equal(book.nearest(vectors), ids)
    assert torch.allclose(book.rows(), codes, atol=1e-6)
    assert torch.allclose(book.lookup(ids).norm(dim=-1), torch.ones(50), atol=1e-6)


def test_searching_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    book, vectors = make(), torch.randn(100, 4)
    whole = book.nearest(vectors)
    monkeypatch.setattr(codebook, "_MAX_SCORES", 16 * 7)
    assert torch.equal(book.nearest(vectors), whole)


def test_ids_do_not_depend_on_autocast() -> None:
    book, vectors = make(size=200), torch.randn(500, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = book.nearest(vectors)
    assert torch.equal(inside, book.nearest(vectors))


def test_usage_counts_the_ids_of_the_window_in_training() -> None:
    book = make(size=10, usage_window=6).train()
    vectors = torch.zeros(4, 4)
    book.observe(vectors, torch.tensor([1, 2, 3, 4]))
    assert book.recent_ids.tolist() == [0, 0, 1, 2, 3, 4]
    book.observe(vectors, torch.tensor([9, 9, 9, 8]))
    assert book.recent_ids.tolist() == [3, 4, 9, 9, 9, 8]
    assert book.usage(torch.tensor([0])).item() == pytest.approx(0.4)
    assert book.eval().usage(torch.tensor([[0, 1], [1, 0]])).item() == pytest.approx(0.2)


def test_a_batch_longer_than_the_window_leaves_its_end() -> None:
    book = make(size=10, usage_window=3)
    book.observe(torch.zeros(5, 4), torch.tensor([5, 6, 7, 8, 9]))
    assert book.recent_ids.tolist() == [7, 8, 9]


def test_a_code_is_revived_after_exactly_the_given_number_of_idle_steps() -> None:
    book = make(size=3, revive_after=3)
    book.weight.data.copy_(torch.tensor([[0.0] * 4, [10.0] * 4, [-10.0] * 4]))
    vectors = torch.cat([torch.zeros(3, 4), torch.full((1, 4), 2.0)])
    for step in range(3):
        assert book.weight[1, 0] == 10.0, f"revived in step {step}"
        book.observe(vectors, book.nearest(vectors))
    assert torch.equal(book.weight[0], torch.zeros(4)), "a code in use must stay"
    assert torch.equal(book.weight[1], torch.full((4,), 2.0)), "a dead code goes where the error is largest"
    assert book.idle_steps.tolist() == [0.0, 0.0, 0.0]


def test_revival_leaves_a_code_alone_that_this_step_chose() -> None:
    book = make(size=2, revive_after=2)
    book.weight.data.copy_(torch.tensor([[0.0] * 4, [10.0] * 4]))
    for vectors in (torch.zeros(2, 4), torch.full((2, 4), 9.0), torch.zeros(2, 4)):
        book.observe(vectors, book.nearest(vectors))
    assert book.weight[:, 0].tolist() == [0.0, 10.0]


def test_the_first_batch_fills_the_codebook_when_asked_to() -> None:
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        codebook_size=64, code_channels=4, revive_after=50, initialize_from_data=True, unit_codes=False
    )
    book, vectors = Codebook(config), torch.randn(512, 4) + 5.0
    before = len(book.nearest(vectors).unique())
    book.observe(vectors, book.nearest(vectors))
    assert before < 8
    assert len(book.nearest(vectors).unique()) > 50
    filled = book.weight.detach().clone()
    book.observe(vectors, book.nearest(vectors))
    assert torch.equal(book.weight, filled), "only the first batch fills"


def test_moving_averages_converge_to_the_means_of_their_clusters() -> None:
    book = make(size=2, channels=2, ema_decay=0.5)
    assert not book.weight.requires_grad
    book.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    book.ema_sums.copy_(book.weight)
    vectors = torch.tensor([[2.0, 1.0], [4.0, 3.0], [-3.0, 0.0]])
    for _ in range(30):
        book.observe(vectors, book.nearest(vectors))
    assert torch.allclose(book.weight, torch.tensor([[3.0, 2.0], [-3.0, 0.0]]), atol=1e-3)


def test_the_entropy_term_is_its_formula() -> None:
    book, vectors = make(entropy_weight=1.0, entropy_temperature=0.5), torch.randn(20, 4)
    distances = torch.cdist(vectors, book.rows()).square()
    probabilities = (-distances / 0.5).softmax(-1)
    each = -(probabilities * probabilities.log()).sum(-1).mean()
    mean = probabilities.mean(0)
    expected = each + (mean * (mean + 1e-5).log()).sum()
    assert torch.allclose(book.entropy_loss(vectors), expected, atol=1e-4)


def test_the_entropy_term_prefers_certain_and_even_choices() -> None:
    book = make(size=4, channels=4, entropy_temperature=0.1)
    book.weight.data.copy_(torch.eye(4))
    even, collapsed, unsure = torch.eye(4), torch.eye(4)[:1].expand(4, 4), torch.full((4, 4), 0.25)
    assert book.entropy_loss(even) < book.entropy_loss(collapsed)
    assert book.entropy_loss(even) < book.entropy_loss(unsure)


@pytest.mark.parametrize(
    "options", [{"revive_after": 2}, {"ema_decay": 0.9, "revive_after": 2}], ids=["gradient", "ema"]
)
def test_a_resumed_training_run_equals_an_undisturbed_one(options: dict[str, object], tmp_path) -> None:
    config = VQTokenizerConfig(**SMALL, code_channels=4, codebook_size=24, initialize_from_data=True, **options)
    model = VQTokenizer(config).train()
    batches = torch.rand(6, 2, 3, 8, 8) * 2 - 1

    def run(model: VQTokenizer, batches: torch.Tensor) -> list[float]:
        losses = []
        for batch in batches:
            loss = model(batch).loss
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.05 * parameter.grad
                        parameter.grad = None
            losses.append(loss.item())
        return losses

    run(model, batches[:3])
    model.save_pretrained(tmp_path)
    undisturbed = copy.deepcopy(model)
    expected = run(undisturbed, batches[3:])
    resumed = VQTokenizer.from_pretrained(tmp_path).train()
    assert run(resumed, batches[3:]) == expected
    ours, theirs = resumed.state_dict(), undisturbed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _observe_in_a_group(rank: int, folder: str, options: dict[str, object]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    book = make(size=12, revive_after=2, initialize_from_data=True, **options)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        vectors = torch.randn(9, 4, generator=generator)
        book.observe(vectors, book.nearest(vectors))
    torch.save(book.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.8}], ids=["gradient", "ema"])
def test_processes_that_see_different_data_keep_one_codebook(options: dict[str, object], tmp_path) -> None:
    # Forked, not spawned: a new interpreter would spend seconds on imports.
    torch.multiprocessing.start_processes(_observe_in_a_group, (str(tmp_path), options), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_changes_no_statistics() -> None:
    config = VQTokenizerConfig(**SMALL, code_channels=4, codebook_size=24, revive_after=1, ema_decay=0.5)
    model = VQTokenizer(config).eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.rand(2, 3, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initialize_from_data": True}, "needs revive_after"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
        ({"codebook_size": 0}, "must be positive"),
        ({"entropy_weight": 0.1, "entropy_temperature": 0.0}, "entropy_temperature must be positive"),
        ({"codebook_sizes": 3}, "did you mean 'codebook_size'"),
        ({"base_channels": 24}, "divisor of 24"),
        ({"quantization_kernel_size": 2}, "must be odd"),
        (
            {"channel_multipliers": (1, 2), "decoder_channel_multipliers": (1,)},
            "same positive number of levels",
        ),
        ({"num_residual_blocks": 0}, "must be positive"),
    ],
)
def test_an_impossible_config_is_refused_in_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQTokenizerConfig(**options)
