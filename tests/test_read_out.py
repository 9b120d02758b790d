"""The cross-attention read-out: one look over frozen tokens, asked by the same code as every reader. About 12 s."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_finetune import school, small_cohort
from helpers_vlm import SIZE

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.answers import parse
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, read_out, scores
from ctvlm_lib.experiments.pointing import ANSWERS, NAMES
from ctvlm_lib.experiments.read_out import ARMS, Recipe, fit, label_of, lessons_of, recipe_of
from ctvlm_lib.experiments.read_out_model import MARKED, VOCABULARY, Coded, Questions, ReadOut, attend
from ctvlm_lib.experiments.read_out_reader import Reader, Seen
from ctvlm_lib.records import committed
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.vlm.feature_cache import FeatureCache, _in_16_bits
from ctvlm_lib.vlm.features import Features

LOW, HIGH = (64, 8), (4, 12)  # tokens and channels of the tiny encoder


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def asked(kinds=ANSWERS, form="closed"):
    """The small cohort's questions, those about each picture together."""
    groups: dict[tuple, list] = {}
    for record in small_cohort().questions("validation", kinds=kinds, form=form):
        groups.setdefault((record.patient, record.region), []).append(record)
    return list(groups.values())


def features(count: int, seed: int = 0) -> Features:
    draw = torch.Generator().manual_seed(seed)
    return Features(*(torch.randn(count, *size, generator=draw) for size in (LOW, HIGH)))


def small_network(**options) -> ReadOut:
    return ReadOut(LOW, HIGH, width=16, heads=4, hidden=24, **options).eval()


def test_attention_equals_a_plain_loop_and_torch():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 12, generator=draw) for n in (3, 7, 7))
    found, weights = attend(query, key, value, heads=4)
    plain = torch.zeros(2, 3, 12)
    for b in range(2):
        for h in range(4):
            part = slice(3 * h, 3 * h + 3)
            for q in range(3):
                score = torch.stack([(query[b, q, part] * key[b, t, part]).sum() / 3**0.5 for t in range(7)]).exp()
                plain[b, q, part] = sum(score[t] / score.sum() * value[b, t, part] for t in range(7))
    torch.testing.assert_close(found, plain)
    heads = [x.unflatten(-1, (4, 3)).transpose(1, 2) for x in (query, key, value)]
    library = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, library)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 3))


def test_hidden_tokens_are_as_if_they_were_not_there():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, 12, generator=draw) for n in (3, 7, 7))
    hidden = torch.tensor([[True, False, False, True, False, False, False]])
    found, weights = attend(query, key, value, 4, hidden)
    torch.testing.assert_close(found, attend(query, key[:, ~hidden[0]], value[:, ~hidden[0]], 4)[0])
    assert not weights[..., hidden[0]].any()


def test_tokens_are_hidden_in_training_alone():
    questions, network = Questions.of([[Coded.of(r) for r in asked()[0]]]), small_network(hide=0.5, dropout=0.0)
    calm = [network(features(1), questions) for _ in range(2)]
    assert torch.equal(*calm)
    torch.manual_seed(0)
    network.train()
    assert not torch.allclose(network(features(1), questions), calm[0])


def test_questions_become_numbers_that_say_what_the_words_say():
    for record in (record for group in asked() for record in group):
        code = Coded.of(record)
        assert VOCABULARY[code.answer] == record.answer
        assert tuple(VOCABULARY[k] for k in code.offered) == (record.choices or ("Yes", "No"))
        assert ANSWERS[code.kind] == record.kind
        assert (code.region == MARKED) is not record.names_region
        assert code.region == MARKED or REGIONS[code.region] in record.question
        if record.kind == "presence":
            assert (NAMES[code.finding] if code.finding else "focal finding") in record.question


def test_a_question_has_the_same_numbers_in_the_words_of_every_condition():
    for record in (group[0] for group in asked()):
        assert len({Coded.of(record.worded(style)) for style in ("plain", "blue-suffix", "box", "dual")}) == 1


def test_questions_that_it_does_not_answer_have_no_numbers():
    assert {Coded.of(record) for group in asked((), "open") for record in group} == {None}
    assert {Coded.of(record) for group in asked(("size", "location", "phase")) for record in group} == {None}


def test_a_choice_that_the_cohort_does_not_have_is_refused():
    one = next(record for group in asked(("organ",)) for record in group)
    strange = replace(one, choices=(one.answer, "appendix"))
    with pytest.raises(BadInput, match="'appendix'"):
        Coded.of(strange)
    with pytest.raises(BadInput, match="'stomach'"):
        Coded.of(replace(one, region="stomach"))


def test_answers_do_not_depend_on_what_is_asked_beside_them():
    groups, network = [[Coded.of(r) for r in group] for group in asked()[:4]], small_network()
    seen = features(len(groups))
    together = network(seen, Questions.of(groups))
    for k, group in enumerate(groups):
        for q, one in enumerate(group):
            alone = network(Features(seen.low[k : k + 1], seen.high[k : k + 1]), Questions.of([[one]]))
            torch.testing.assert_close(together[k, q], alone[0, 0], rtol=1e-4, atol=1e-5)  # another order of sums


def test_the_loss_is_that_of_a_plain_loop_over_the_offered_answers():
    groups, network, total = [[Coded.of(r) for r in group] for group in asked()[:3]], small_network(), []
    logits = network(features(3), Questions.of(groups))
    for k, group in enumerate(groups):
        for q, one in enumerate(group):
            offered = {place: float(logits[k, q, place].detach().exp()) for place in one.offered}
            assert set(torch.isfinite(logits[k, q]).nonzero().flatten().tolist()) == set(one.offered)
            total.append(-np.log(offered[one.answer] / sum(offered.values())))
    assert len({len(group) for group in groups}) > 1  # so that some places are padding
    assert float(network.loss(features(3), Questions.of(groups)).detach()) == pytest.approx(np.mean(total), rel=1e-5)


def test_weights_tell_where_it_looked():
    groups = [[Coded.of(r) for r in group] for group in asked()[:2]]
    _, weights = small_network().look(features(2), Questions.of(groups))
    assert weights.shape == (2, 4, max(map(len, groups)) + 1, LOW[0] + HIGH[0])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def planted(pictures: int, marks: bool, seed: int) -> tuple[dict[str, list[Coded]], FeatureCache]:
    """Tokens that say their region and its finding, one of two; where ``marks``, also which of them is marked.

    Asked are all regions by name, and the marked one without.
    """
    rng, tokens = np.random.default_rng(seed), len(REGIONS)
    found, marked = rng.integers(1, 3, (pictures, tokens)), rng.integers(0, tokens, pictures)
    low = np.zeros((pictures, tokens, tokens + 3), np.float32)
    low[:, np.arange(tokens), np.arange(tokens)] = 1
    low[np.arange(pictures)[:, None], np.arange(tokens), tokens + found - 1] = 1
    low[np.arange(pictures), marked, -1] = marks
    low, high = (_in_16_bits(torch.from_numpy(x)) for x in (low, np.zeros((pictures, 2, 2), np.float32)))
    kept = FeatureCache(tuple(map(str, range(pictures))), *low, *high, "planted")
    kind = ANSWERS.index("abnormality")
    about = [[*enumerate(found[k].tolist()), (MARKED, int(found[k, marked[k]]))] for k in range(pictures)]
    taught = {str(k): [Coded(region, 0, kind, (1, 2), it) for region, it in here] for k, here in enumerate(about)}
    return taught, kept


@pytest.mark.parametrize("marks", [False, True])
def test_it_reads_what_is_in_the_tokens_and_guesses_what_is_not(marks):
    recipe = Recipe(steps=80, pictures=16, lr=1e-2, width=32, heads=4, hidden=32, dropout=0.0, hide=0.0)
    network, _ = fit(*planted(600, marks, seed=0), recipe, progress=False)
    taught, kept = planted(200, marks, seed=1)
    groups = list(taught.values())
    best = network(kept.take(list(taught)), Questions.of(groups)).argmax(dim=-1)
    right = best == torch.tensor([[one.answer for one in group] for group in groups])
    named, unnamed = right[:, :-1].float().mean(), right[:, -1].float().mean()
    assert named > 0.9
    # the best guess without a mark is the picture's more frequent finding; 200 guesses, four standard errors
    guess = np.mean([max(np.bincount([one.answer for one in group[:-1]])) / len(REGIONS) for group in groups])
    assert (unnamed > 0.9) if marks else (unnamed == pytest.approx(guess, abs=4 * (guess * (1 - guess) / 200) ** 0.5))


def test_a_seed_gives_the_same_network_and_another_seed_another():
    recipe = Recipe(steps=3, pictures=4, width=16, heads=4, hidden=24)
    seeds = [replace(recipe, seed=seed) for seed in (1, 1, 2)]
    made = [fit(*planted(20, True, 0), one, progress=False)[0].state_dict() for one in seeds]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["marker"], made[2]["marker"])


def test_nothing_to_learn_from_and_sizes_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="nothing to learn from"):
        fit({}, planted(2, True, 0)[1], Recipe())
    with pytest.raises(BadInput, match="5 heads don't divide a width of 16"):
        ReadOut(LOW, HIGH, width=16, heads=5)
    with pytest.raises(BadInput, match="hide is a share"):
        ReadOut(LOW, HIGH, hide=1.0)


def tiny_reader(condition: str = "contour") -> Reader:
    model, *_ = school()
    return Reader(small_network(), Seen(model), condition)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, *SIZE)).astype(np.float32)


def test_answers_are_offered_ones_that_can_be_read():
    groups = asked()[:5]
    said = tiny_reader().answer(noise(5), groups, "contour")
    for group, pairs in zip(groups, said, strict=True):
        for record, (text, confidence) in zip(group, pairs, strict=True):
            offered = record.choices or ("Yes", "No")
            assert parse(text, record.choices).choice in offered
            assert 1 / len(offered) - 1e-6 <= confidence <= 1


def test_what_it_does_not_answer_is_left_empty_in_its_place():
    closed, opened, reader = asked()[0][0], asked(("size", "abnormality"), "open")[0][0], tiny_reader()
    [[none, some, last]] = reader.answer(noise(1), [[opened, closed, opened]], "contour")
    assert none[0] == last[0] == "" and np.isnan([none[1], last[1]]).all()
    assert some == reader.answer(noise(1), [[closed]], "contour")[0][0]
    assert reader.answer(noise(1), [[opened]], "contour")[0][0][0] == ""


def test_it_is_not_asked_under_a_condition_that_it_did_not_learn():
    with pytest.raises(BadInput, match="learnt from pictures with 'box'"):
        tiny_reader("box").answer(noise(1), [asked()[0]], "none")


def test_a_picture_is_encoded_once_and_kept(tmp_path, monkeypatch):
    model, *_ = school()
    shown = noise(3)
    path = tmp_path / "seen.safetensors"
    first = Seen(model, path)
    found = first.features(shown[[0, 1, 1, 0]])
    assert len(first) == 2
    direct = FeatureCache.of(model, ["0", "1"], lambda key: shown[int(key)]).take(["0", "1", "1", "0"])
    assert torch.equal(found.low, direct.low) and torch.equal(found.high, direct.high)
    first.features(shown)
    first.save()
    monkeypatch.setattr(FeatureCache, "of", None)  # nothing is encoded twice
    again = Seen(model, path)
    assert len(again) == 3
    assert torch.equal(again.features(shown[::-1]).low, first.features(shown).low.flip(0))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An arm after two steps on the small cohort: its folder and what it said."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("read-out")
    said = read_out.run(
        "readout-B-contour", "quick", 3, cohort=small_cohort(), splits=("validation",), results=home / "results",
        patients=4, changes={"steps": 2, "pictures": 4}, store=home / "store", progress=False,
    )["validation"]  # fmt: skip
    return home, said


def test_an_arm_is_trained_asked_and_stored(finished):
    home, said = finished
    folder = home / "results" / "readout-B-contour-patients4-seed3"
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "validation.npz"]
    stored = answers.load(folder / "validation.npz", small_cohort().records["validation"])
    assert stored["answer"].tolist() == said["answer"].tolist()
    assert set(stored["control"]) == {"as asked", "removed", "moved"}
    assert stored["confidence"].notna().equals(stored["control"] == answers.AS_ASKED)
    assert set(stored["seed"]) == {3}
    everything = small_cohort().questions("validation", kinds=ANSWERS, form="closed")
    for _, rows in stored.groupby("control"):
        assert sorted(rows["id"]) == sorted(record.id for record in everything)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert Recipe(**record["config"]) == recipe_of("readout-B-contour", 3, 4, {"steps": 2, "pictures": 4})
    assert record["learnt"]["pictures"] <= 4 * 4  # four regions of each patient
    assert set(record["minutes"]) == {"features", "training", "validation"}


def test_a_read_out_of_lines_out_of_the_window_is_shown_them_when_it_is_asked(tmp_path, monkeypatch):
    largest, answer = [], Reader.answer

    def watched(self, pictures, questions, condition):
        largest.append(pictures.max())
        return answer(self, pictures, questions, condition)

    monkeypatch.setattr(Reader, "answer", watched)
    read_out.run(
        "readout-A-box-out-of-window", "quick", cohort=small_cohort(), splits=("validation",), patients=2,
        results=tmp_path / "results", changes={"steps": 1, "pictures": 4}, store=tmp_path / "store", progress=False,
    )  # fmt: skip
    record = json.loads(next(tmp_path.glob("results/*/record.json")).read_text(encoding="utf-8"))
    assert record["config"]["colour"] == "out of window"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["readout-A-box-out-of-window-patients2"]
    assert max(largest) > 1 >= min(largest)  # with the prompt removed nothing is drawn
    kept = [path.name for path in (tmp_path / "store").iterdir()]
    assert kept and all("-box-out-of-window-" in name for name in kept)


def test_its_answers_are_scored_as_every_readers(finished):
    table = scores.accuracies(score_closed(finished[1]), ["kind", "condition", "control", "stratum", "seed"])
    assert (table["unparsed"] == 0).all()
    assert set(table["stratum"]) == {"named", "unnamed"}


def test_fewer_patients_are_the_first_and_share_the_kept_features(finished):
    home, _ = finished
    model, cohort = read_out.finetune.build(read_out.vlm_config(Recipe()))[0], small_cohort()
    files = set((home / "store").iterdir())
    few, kept = lessons_of(cohort, Recipe(patients=2), model, home / "store")
    whole, _ = lessons_of(cohort, Recipe(), model, home / "store")
    assert set((home / "store").iterdir()) == files
    assert {key.split("/")[0] for key in few} == set(cohort.scans["train"].names[:2])
    assert few == {key: value for key, value in whole.items() if key in few}
    assert all(key in kept for key in whole)


def test_without_a_prompt_one_picture_has_the_questions_of_all_its_regions(finished):
    home, _ = finished
    model = read_out.finetune.build(read_out.vlm_config(Recipe(condition="none")))[0]
    plain, _ = lessons_of(small_cohort(), Recipe(condition="none"), model, home / "store")
    marked, _ = lessons_of(small_cohort(), Recipe(), model, home / "store")
    assert len(plain) == len(small_cohort().scans["train"]) < len(marked)
    assert sorted(one for group in plain.values() for one in group) == sorted(
        one for group in marked.values() for one in group
    )


def test_arms_are_encoder_and_condition_and_folders_tell_patients_and_seed():
    assert len(ARMS) == 2 * (4 + 3)
    assert label_of(recipe_of("readout-A-contour-out-of-window", 1)) == "readout-A-contour-out-of-window-seed1"
    assert recipe_of("readout-A-contour-out-of-window").colour == "out of window"
    assert label_of(recipe_of("readout-A-dual")) == "readout-A-dual"
    assert label_of(recipe_of("readout-B-none", 1, 200)) == "readout-B-none-patients200-seed1"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [("readout-C-none", {}, "readout-B-contour"), ("readout-B-none", {"changes": {"step": 3}}, "'step'"),
     ("readout-B-none", {"patients": 9}, "there are 8"), ("readout-B-none", {"patients": -1}, "there are 8")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(tmp_path, name, options, told):
    with pytest.raises(BadInput, match=told):
        read_out.run(name, cohort=small_cohort(), splits=("validation",), results=tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_the_test_split_is_not_asked_without_a_committed_protocol(monkeypatch):
    def refuse(files):
        raise BadInput("protocol.toml differs from the last commit")

    monkeypatch.setattr(committed, "check_committed", refuse)
    with pytest.raises(BadInput, match="differs from the last commit"):
        read_out.run("readout-B-none", cohort=small_cohort())
