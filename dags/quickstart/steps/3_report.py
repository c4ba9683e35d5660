"""Rank the sensors from the steadiest to the least steady, and upload the report."""

import json


def do_action(engine, result):
    ranking = sorted(result["scores"], key=lambda sensor: result["scores"][sensor]["swing"])
    report = {"steadiest": ranking[0], "ranking": ranking, **result}
    with open("report.json", "w") as target:
        json.dump(report, target, indent=2)
    engine.add_file_to_upload("report.json")
    return {"steadiest": ranking[0], "ranking": ranking, "dropped": result["dropped"]}
