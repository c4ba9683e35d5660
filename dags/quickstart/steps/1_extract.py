"""Read the input file, drop readings that no thermometer can have measured, and upload what is left."""

import csv


def do_action(engine, name, lowest, highest):
    sensors = {}
    dropped = 0
    with open(name, newline="") as source, open("clean.csv", "w", newline="") as target:
        rows = csv.DictReader(source)
        out = csv.DictWriter(target, rows.fieldnames)
        out.writeheader()
        for row in rows:
            celsius = float(row["celsius"])
            if not float(lowest) <= celsius <= float(highest):
                dropped += 1
                continue
            out.writerow(row)
            sensors.setdefault(row["sensor"], []).append(celsius)
    engine.add_file_to_upload("clean.csv")
    print(f"kept {sum(map(len, sensors.values()))} readings of {len(sensors)} sensors, dropped {dropped}")
    return {"dropped": dropped, "sensors": sensors}
