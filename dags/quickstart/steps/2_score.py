"""Compute, for each sensor, how warm it is and how much that varies within a day."""

import statistics


def do_action(engine, readings):
    scores = {}
    for sensor, values in sorted(readings["sensors"].items()):
        days = [values[start : start + 24] for start in range(0, len(values), 24)]
        swings = [max(day) - min(day) for day in days]
        scores[sensor] = {
            "readings": len(values),
            "mean": round(statistics.fmean(values), 2),
            "deviation": round(statistics.stdev(values), 2),
            "swing": round(statistics.fmean(swings), 2),
        }
        print(f"{sensor}: {scores[sensor]}")
    return {"dropped": readings["dropped"], "scores": scores}
