"""Short common English words for the pictures of text."""

_LIST = """
air apple arm baby back bag ball bank bed bird blue boat body book box boy bread bus cake camp car
card cat chair city clock cloud coat coffee cold cow cup day desk dog door dress duck ear east egg
eye face farm fire fish floor food foot fruit garden girl glass gold grass green hair hand hat head
heart hill home horse house ice island key king kitten lake lamp leaf letter light lion map market
milk moon mouse music name night north nose ocean orange page paper park pen phone plane plant
queen rain red ring river road rock room rose salt school sea ship shoe shop silver sky snow song
south spoon star stone street sugar summer sun table tea ten train tree water west wind window
winter wood yellow zoo
"""
WORDS: tuple[str, ...] = tuple(_LIST.split())
"""All of three to six lower-case letters; the order is part of what makes a data set repeatable."""
