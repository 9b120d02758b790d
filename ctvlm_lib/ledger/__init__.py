"""Every published number beside ours: the contrasts to be judged, and their verdicts."""
