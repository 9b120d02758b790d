"""How long a phantom patient takes on one core: at 32×64×64 at most an eighth of a second each."""

from ctvlm_lib.records.phantom import cohort, patient

N = 24


def test_small_patients(benchmark):
    """Reported per patient; the parts that depend on the findings vary, so that 24 of them are drawn."""
    indices = iter(range(10_000))
    benchmark.pedantic(lambda: patient(next(indices)), rounds=N, warmup_rounds=2)
    each = benchmark.stats.stats.mean
    benchmark.extra_info |= {"limit_s": 0.125, "patients_per_s": round(1 / each, 1)}
    print(f"\n{1 / each:.1f} patients/s at 32×64×64")


def test_patients_from_the_cache(benchmark, tmp_path):
    list(cohort(N, cache=tmp_path))
    benchmark.pedantic(lambda: list(cohort(N, cache=tmp_path)), rounds=3)
    each = benchmark.stats.stats.min / N
    benchmark.extra_info |= {"limit_s": 0.05 * N, "patients_per_s": round(1 / each, 1)}
    print(f"\n{1 / each:.1f} patients/s read from the cache")


def test_a_large_patient(benchmark):
    benchmark.pedantic(patient, args=(2,), kwargs={"shape": (96, 192, 192)}, rounds=2)
    benchmark.extra_info["limit_s"] = 6.0
