"""The names of the text metrics: which library and paper stand behind each; what is refused, and with which advice."""

import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

from ctvlm_lib import assets
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text import text_scores, text_scores_per_pair, text_statistics
from ctvlm_lib.evaluate.text_metrics import FAMILIES
from ctvlm_lib.evaluate.text_papers import PAPERS, variant_for, variants
from ctvlm_lib.evaluate.text_registry import METRICS, MINILM, ROBERTA, metric_table

PAIR = (["a mass"], ["a cyst"])


def test_every_metric_is_computed_by_its_family_and_by_no_other():
    given = {name: family for family, one in FAMILIES.items() for name in one.means}
    for name, metric in METRICS.items():
        if metric.level == "corpus":
            assert name not in given
        else:
            assert given.pop(name) == metric.family
    assert not given


def test_the_table_shows_library_version_words_level_and_papers():
    table = metric_table().set_index("metric")
    assert list(table.index) == list(METRICS)
    assert table.loc["BLEU-4", "library"] == f"sacrebleu {version('sacrebleu')}"
    assert table.loc["BLEU-4", "level"] == "corpus" and "13a" in table.loc["BLEU-4", "words"]
    assert "contour: BLEU (text)" in table.loc["BLEU-4", "printed by"]
    assert table.loc["METEOR", "needs"] == "asset wordnet"
    assert table.loc["CIDEr", "scale"] == "0–10"
    assert (table.drop(columns=["needs", "printed by", "detail"]) != "").all(axis=None)


def test_the_papers_columns_mean_different_metrics_of_the_same_name():
    assert variant_for("contour") == {"BLEU": "BLEU-4", "ROUGE": "ROUGE-L", "METEOR": "METEOR"}
    assert variant_for("dualbox") == {"B-4": "BLEU-4", "R-L": "ROUGE-L", "MET": "METEOR"}
    assert variant_for("med3dvlm")["BLEU"] == "BLEU-1 (sentence mean)"
    assert variant_for("med3dvlm")["ROUGE"] == "ROUGE-1" and variant_for("med3dvlm")["BERTScore"] == ROBERTA
    assert variant_for("uvlm")["BLEU-mean"] == "BLEU-mean"
    assert variant_for("medvista3d")["CIDER"] == "CIDEr"
    assert {one.metric for columns in PAPERS.values() for one in columns} <= set(METRICS)
    assert {one.known_by for columns in PAPERS.values() for one in columns} == {"code", "text", "nearest"}


def test_a_meteor_in_java_is_not_called_the_same():
    [meteor] = [one for one in variants("ct-chat") if one.column == "METEOR"]
    assert meteor.known_by == "nearest" and "Java" in meteor.note


def test_an_unknown_paper_or_metric_is_refused_with_what_there_is():
    with pytest.raises(BadInput, match="there are: contour, dualbox"):
        variants("chexpert")
    with pytest.raises(BadInput, match="no text metric is called 'BERTScore'; there are: BLEU-1, BLEU-2"):
        text_scores(*PAIR, metrics=["BLEU-1", "BERTScore"])
    with pytest.raises(BadInput, match="no metric was named"):
        text_scores(*PAIR, metrics=[])


def test_a_missing_asset_is_named_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path))
    monkeypatch.setenv("CTVLM_OFFLINE", "1")
    for metric, asset in (("METEOR", "wordnet"), (MINILM, "minilm")):
        with pytest.raises(BadInput, match=f"needs the asset {asset}, fetched with: ctvlm assets {asset}; or leave"):
            text_scores(*PAIR, metrics=[metric])
    with pytest.raises(BadInput, match="ctvlm assets wordnet"):
        text_scores(*PAIR)
    assert set(text_scores(*PAIR, metrics=["BLEU-1", "CIDEr"])) == {"BLEU-1", "CIDEr"}


def test_a_model_hub_is_asked_only_in_profile_paper():
    with pytest.raises(BadInput, match="only in profile paper; take .MiniLM similarity"):
        text_scores(*PAIR, metrics=ROBERTA)
    with pytest.raises(BadInput, match="unknown profile"):
        text_scores(*PAIR, metrics="BLEU-1", profile="best")


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_an_impossible_number_of_processes_is_refused(workers):
    with pytest.raises(BadInput, match="workers must be a whole number"):
        text_scores(*PAIR, metrics="BLEU-1", workers=workers)


def test_what_a_corpus_metric_has_not_is_refused():
    with pytest.raises(BadInput, match="of the whole corpus and has no value for a pair"):
        text_scores_per_pair(*PAIR, metrics="BLEU-4")
    statistics = text_statistics(*PAIR, metrics="ROUGE-L")
    with pytest.raises(BadInput, match="wasn't computed; there are: ROUGE-L"):
        statistics.values("METEOR")
    for draw in ([], [1], [-1], [0.5], 3):
        with pytest.raises(BadInput, match="places from 0 to 0"):
            statistics.scores(draw)


def test_problems_of_the_pairs_reach_the_caller():
    with pytest.raises(BadInput, match="1 predictions for 2 references"):
        text_scores(["a"], ["a", "b"], metrics="BLEU-1")
    by_id = text_scores({"p": "a cyst", "q": "a mass"}, {"q": "a mass", "p": "a cyst"}, metrics="ROUGE-1")
    assert by_id == {"ROUGE-1": pytest.approx(100)}


def test_the_names_can_be_read_without_loading_a_library():
    code = "import sys; import ctvlm_lib.evaluate.text_registry, ctvlm_lib.evaluate.text_metrics;"
    code += "print([m for m in ('torch', 'nltk', 'sacrebleu', 'rouge_score', 'bert_score') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_all_three_take_the_same_options():
    options = [list(inspect.signature(f).parameters) for f in (text_scores, text_scores_per_pair, text_statistics)]
    assert options[0] == options[1] == options[2]
    assert options[0][:6] == ["predictions", "references", "metrics", "ids", "workers", "progress"]


def test_the_assets_that_metrics_need_are_in_the_manifest():
    for metric in METRICS.values():
        if metric.needs.startswith("asset "):
            assert assets.about(metric.needs.removeprefix("asset "))
