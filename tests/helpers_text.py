"""Two hundred pairs of prediction and reference in the phantom cohort's words, the same on any machine."""

from functools import lru_cache
from itertools import permutations

from ctvlm_lib.records.phantom import cohort
from ctvlm_lib.records.report import report

SPECIAL = (
    ("", "No focal abnormality is seen in the liver."),
    (" \n", "The spleen is unremarkable."),
    ("Yes", "Yes"),
    ("No", "Yes"),
    ("liver", "spleen"),
    ("The heart is enlarged.", "The heart is enlarged."),
    ("There is a pleural effusion on either side.", "There is no pleural effusion on either side."),
    ("A mass of 3.5 cm is seen in the liver.", "A mass of 35 mm is seen in the liver."),
    ("Measuring 12 mm x 4.", "Measuring 12 mm × 4 mm."),
    ("Ödem der Milz – 3 µm, Läsion über 5 °", "Ödem der Leber – 3 µm, Läsion unter 5 °"),
    ("肝臓に腫瘤があります", "肝臓に腫瘤があります"),
    ('The "mass" lies\nin the upper  part & shrinks .', 'The "lesion" lies\nin the lower  part &amp; grows.'),
    ("hepatic enlargement with masses", "the liver is enlarged, with a mass"),
    ("cyst cyst cyst cyst cyst", "There is a cyst. No cyst of the kidney."),
)


@lru_cache(maxsize=1)
def pairs() -> tuple[list[str], list[str]]:
    """Predictions and references: sentences, impressions and reports of five patients against each other's."""
    reports = [report(patient) for patient in cohort(5, 11)]
    sentences = [
        (reports[a].regions[region], reports[b].regions[region])
        for region in reports[0].regions
        for a, b in permutations(range(len(reports)), 2)
        if region in reports[a].regions and region in reports[b].regions
    ]
    whole = [(reports[a].text, reports[b].text) for a, b in permutations(range(len(reports)), 2)]
    short = [(reports[a].impression, reports[b].impression) for a, b in permutations(range(len(reports)), 2)]
    kept = [*SPECIAL, *whole[:16], *short, *sentences][:200]
    return [said for said, _ in kept], [true for _, true in kept]
