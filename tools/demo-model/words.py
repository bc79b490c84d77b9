"""Words, names and numbers, each split for ever into a training and a held-out part.

The split is a hash of the item itself, so it needs no file, survives a change of seed or of
the lists, and a made-up word falls on the same side whenever it is made up again.
"""

import zlib

HELD_OUT_PERCENT = 10
# Chosen so that the example of the documentation, 27 + 58, is on the held-out side.
SALT = "garrick-16"

COMMON = """
able about above acorn actor after again air alarm album alley alpha amber anchor angle animal ankle
answer apple april apron arch arrow artist ash aspen atlas attic autumn away axis baby back bacon badge
baker ball bamboo banana band bank barn basil basket beach bean bear beaver bed bee bell belt bench berry
best big bike bird black blanket blue board boat body bold bone book boot bottle bowl box brave bread
breeze brick bridge bright broom brown brush bucket bus butter button cabin cable cactus cake camel camera
camp canal candle canyon car carbon card carpet carrot castle cat cedar cellar chain chair chalk cheese
cherry chess chest child circle city clay clean clear cliff clock cloud clover coal coast coat cobalt cocoa
coffee coin cold color comet cook copper coral corn cotton cow crab crane cream creek crisp crow crown
crystal cup curtain dance dark dawn day deep deer delta desert desk dew diamond dinner dish dog dolphin
donkey door dove dragon dream dress drum dry duck dust eagle early earth east echo edge egg elbow elder elm
ember empty engine evening fabric face falcon fall family farm fast feather fence fern field fig finger
fire fish flag flame flat flint flower flute fog forest fork fox frame fresh friend frog frost fruit full
garden garlic gate gentle giant ginger glacier glass glove goat gold good goose grain grape grass gravel
gray green guitar gull hall hammer hand happy harbor hat hawk hazel head heart heavy hedge hen herb heron
hill honey hope horse hotel house ice idea indigo ink iris iron island ivory ivy jacket jade jar jasmine
jelly jewel journey juice jungle kettle key king kitchen kite kitten knife lace ladder lake lamb lamp large
laser lava lawn leaf leather lemon letter light lilac lily lime linen lion little lizard long lotus lunch
lunar machine magnet mango maple marble market meadow melon metal middle milk mint mirror mist monkey moon
morning moss moth motor mountain mouse mud music nail narrow nest new night noble noise north novel nut oak
oasis ocean old olive onion open orange orbit orchid otter oven owl ox oyster paint palace palm panda paper
park pasta path peach pear pearl pebble pencil people pepper piano picture pigeon pillow pilot pine pink
pizza plain planet plant plate plum pocket poem polar pond pony poppy potato prairie prince pumpkin puppet
purple puzzle quartz queen quick quiet quilt rabbit radio rain raven red reef ribbon rice river road robin
rock rocket roof root rope rose round ruby rug saddle sail salmon salt sand scarf school sea seed shadow
sheep shell ship shirt shoe short silk silver simple sky sleep slow small smoke snail snow soap sock soft
soil solar song soup south space sparrow spice spider spoon spring spruce square squirrel stable star
station steam steel stone storm straw stream street strong sugar summer sun swan sweet table tall tea
temple tent thunder tiger timber tin tomato tower town toy train tree trumpet tulip tunnel turtle under
valley vanilla velvet village vine violet violin wagon walnut warm water wave wax west whale wheat wheel
white wide willow wind window winter wolf wood wool world yellow young zebra
""".split()

# Words that requests are made of. They are never held out: "and" is no unseen word.
FUNCTION = """
a all and are at but can do eat every for from go has have he her his I in is it like likes love loves make
many more my near no not of on or our out over play run see she some that the they this to two under very
want was we when will with you your one two three four five six seven eight nine ten hello goodbye what how who
where why an if be were had their there then than me him
""".split()

ANY_COMMON = COMMON + FUNCTION

NAMES = """
Ada Adam Agnes Ahmed Alan Alba Alex Alice Amara Amir Amy Ana Andrew Anita Anna Anton Aria Arthur Asha Astrid
Ava Barbara Beatrice Ben Bianca Bob Boris Brian Bruno Camille Carl Carla Carmen Cecilia Charles Charlotte
Chen Chloe Clara Claire Daniel Daria David Deepak Diana Diego Dora Edgar Edith Edward Elena Elias Elif Elsa
Emil Emily Emma Enzo Erik Esther Eva Fatima Felix Fiona Frank Frida Gabriel George Gina Grace Greta Hana
Hannah Harry Hassan Hector Helen Henry Hugo Ian Ibrahim Ida Igor Ines Ingrid Irene Isaac Ivan Jack Jacob
James Jane Jasper Jean Jin Joan John Jonas Joseph Julia Jun Karen Karl Kate Keiko Kenji Kira Klaus Lara
Laura Lea Leo Liam Lily Lina Linda Linus Lisa Lola Louis Lucas Lucy Luis Luna Magnus Maria Marie Mario Mark
Marta Martin Mary Mateo Max Maya Mei Mia Michael Miguel Mila Milan Mona Nadia Nathan Nina Noah Nora Olga
Oliver Olivia Omar Oscar Otto Paul Paula Pedro Peter Petra Philip Priya Rachel Raj Ravi Rita Robert Rosa
Ruth Sam Samir Sara Sean Sofia Stella Stephen Sven Tara Tariq Theo Thomas Tina Tom Uma Vera Victor Wei
William Yara Yuki Yusuf Zara Zoe
""".split()

ONSETS = (
    "b c d f g h j k l m n p r s t v w y z b c d f g h k l m n p r s t v z "
    "bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sh sk sl sm sn sp st str sw th tr tw"
).split()
VOWELS = "a e i o u a e i o u a e i o u ai ea ee oa oo ou ie y".split()
CODAS = [""] * 30 + "b d f g k l m n p r s t x n r l s t m ck ft ld mp nd ng nk nt rd rk rn sh st th".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ACCENTED = "áàâäçéèêëíïñóöôøúüßåæœ"


def held_out(key):
    """Whether an item, by its own text, belongs to the part that training never sees."""
    return zlib.crc32(f"{SALT}:{key}".encode()) % 100 < HELD_OUT_PERCENT


def word_held_out(word):
    return word not in FUNCTION and held_out("word:" + word.lower())


def pair_held_out(a, b):
    """Both orders of a pair, and its sum and difference, fall on the same side."""
    return held_out(f"pair:{min(a, b)},{max(a, b)}")


def made_up(rng):
    """A pronounceable word that probably exists nowhere."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables)
    )


def scrambled(rng):
    """Random letters: no habit of spelling helps to copy these, and every token gets its turn."""
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(2, 7))]
    if rng.random() < 0.25:
        letters[rng.randrange(len(letters))] = rng.choice(ACCENTED)
    return "".join(letters)


def blend(rng):
    """The head of one listed word on the tail of another ("shadow" might come of ship and meadow).

    Tokens that listed words have to themselves, such as "adow", so appear after any other, and
    words are copied piece by piece instead of by heart.
    """
    head, tail = rng.choice(COMMON), rng.choice(COMMON)
    return head[: rng.randint(1, len(head) - 1)] + tail[rng.randint(1, len(tail) - 1) :]


def training_word(rng):
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(ANY_COMMON)
    if kind < 0.70:
        return blend(rng)
    return made_up(rng) if kind < 0.96 else scrambled(rng)


def measured_word(rng):
    """What people might type: words, and made-up ones that can be pronounced."""
    return rng.choice(COMMON) if rng.random() < 0.6 else made_up(rng)


def training_name(rng):
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NAMES)
    return (made_up(rng) if kind < 0.7 else blend(rng)).capitalize()


def measured_name(rng):
    return rng.choice(NAMES) if rng.random() < 0.6 else made_up(rng).capitalize()


def draw(rng, make, is_held_out, want_held_out):
    """The first item from `make` on the wanted side of the split."""
    while True:
        item = make(rng)
        if is_held_out(item) == want_held_out:
            return item


def word(rng, want_held_out=False):
    make = measured_word if want_held_out else training_word
    text = draw(rng, make, word_held_out, want_held_out)
    style = rng.random()
    if style < 0.04:
        return text.capitalize()
    return text.upper() if style < 0.06 else text


def name(rng, want_held_out=False):
    make = measured_name if want_held_out else training_name
    return draw(rng, make, word_held_out, want_held_out)


def digit(rng, skew):
    return int(10 * rng.random() ** skew)


def number(rng, skew):
    return digit(rng, skew) if rng.random() < 0.1 else 10 * digit(rng, skew) + digit(rng, skew)


def training_pair(rng):
    # With even digits, the last digit of a sum says nothing about either operand alone, and
    # training would sit on that plateau for long. Half the pairs favour small digits, where
    # each operand alone is already a hint.
    skew = rng.choice((1.0, 2.0))
    return number(rng, skew), number(rng, skew)


def measured_pair(rng):
    return rng.randint(10, 99), rng.randint(10, 99)


def pair(rng, want_held_out=False):
    make = measured_pair if want_held_out else training_pair
    return draw(rng, make, lambda p: pair_held_out(*p), want_held_out)
