"""Scores, and what they are worth: metrics by their exact names, intervals over patients, tests between arms.

One concept a file:

    text, text_registry, text_papers    scores of texts; which metric is which; which paper prints which
    text_metrics, text_libraries, …     the libraries that compute them
    blind_text                          texts of readers without an image
    pairs                               predictions and references, matched by id
    answers, choice                     reading closed answers; accuracy with an unread bucket
    labels, abnormalities, radbert      many labels at once; labels from reports, by rules and by a classifier
    retrieval                           recall of reports and images
    overlap                             Dice, surface and Hausdorff distance
    intervals, paired                   bootstrap over patients; differences on the same questions, tests, power
    calibration, abstention             how sure a model may be, and when it had better say nothing
"""

from ctvlm_lib.evaluate.text import text_scores, text_scores_per_pair, text_statistics

__all__ = ["text_scores", "text_scores_per_pair", "text_statistics"]
