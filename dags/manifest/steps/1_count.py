"""Count the words of a file that have at least so many letters, and upload them."""


def do_action(engine, name, shortest):
    with open(name) as source:
        words = [word for word in source.read().split() if len(word) >= int(shortest)]
    with open("words.txt", "w") as target:
        target.write("\n".join(words))
    engine.add_file_to_upload("words.txt")
    return {name: len(words)}
