"""Print each benchmark's promise beside what was measured, and how many times faster it is than the plain way."""


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section("promised speed")
    for bench in session.benchmarks:
        info = bench.extra_info
        line = f"{bench.name}: {bench.stats.min:.3f} s"
        if "limit_s" in info:
            line += f", promised {info['limit_s']} s ({'kept' if bench.stats.min <= info['limit_s'] else 'NOT KEPT'})"
        if "times_faster" in info:
            line += f", {info['times_faster']} times faster than the plain way ({info['plain_s']} s), same result"
        terminalreporter.write_line(line)
