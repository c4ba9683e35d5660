"""Say it louder."""


def do_action(engine, *words):
    return " ".join(words).upper()
