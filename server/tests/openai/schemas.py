"""Random JSON schemas, the same for the same seed."""

import random

NAMES = ["name", "age", "is_open", "größe", "two words", 'a "quoted" one', "back\\slash", "日付", "x", "$ref_like", "items"]
PATTERNS = ["^[a-z]{2,6}$", "^(red|green|blue)$", "^[A-Z][a-z]+-[0-9]{3}$", "^\\d{4}$", "^[^0-9 ]{1,5}$"]
# Those that the validator can check without packages of its own.
FORMATS = ["date", "uuid", "ipv4", "ipv6"]
VALUES = ["bear", "", "a\nline", "ä€𝄞", 0, -7, 2.5, True, False, None, [1, "two"], {"k": None}]


def schema(seed):
    """An object with up to four levels of anything."""
    chance = random.Random(f"schema {seed}")
    top = an_object(chance, 3)
    if seed % 4 == 0:
        # A list that refers to itself, and may end at any length.
        top["$defs"] = {
            "link": {
                "type": "object",
                "properties": {"value": anything(chance, 0), "next": {"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}},
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        }
        top["properties"]["chain"] = {"$ref": "#/$defs/link"}
        top["required"] = [*top["required"], "chain"]
    return top


def anything(chance, depth):
    kinds = [a_text, a_text, a_whole_number, a_number, a_boolean, a_choice, a_constant, nothing, one_of_types]
    if depth > 0:
        kinds += [an_object, an_object, a_list, a_list, any_of]
    return chance.choice(kinds)(chance, depth - 1)


def an_object(chance, depth):
    names = chance.sample(NAMES, chance.randint(1, 4))
    made = {
        "type": "object",
        "properties": {name: anything(chance, depth) for name in names},
        "required": [name for name in names if chance.random() < 0.7],
    }
    if chance.random() < 0.8:
        made["additionalProperties"] = False
    return made


def a_list(chance, depth):
    low = chance.randint(0, 2)
    made = {"type": "array", "items": anything(chance, depth), "minItems": low, "maxItems": low + chance.randint(0, 3)}
    if chance.random() < 0.2:
        made["prefixItems"] = [anything(chance, 0)]
    return made


def a_text(chance, depth):
    kind = chance.random()
    if kind < 0.25:
        return {"type": "string", "pattern": chance.choice(PATTERNS)}
    if kind < 0.5:
        return {"type": "string", "format": chance.choice(FORMATS)}
    low = chance.randint(0, 5)
    return {"type": "string", "minLength": low, "maxLength": low + chance.randint(0, 20)}


def a_whole_number(chance, depth):
    low = chance.randint(-1000, 1000)
    made = {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 500)}
    if chance.random() < 0.3:
        made = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 50, "multipleOf": 5}
    return made


def a_number(chance, depth):
    low = chance.uniform(-10, 10)
    return {"type": "number", "minimum": round(low, 3), "maximum": round(low + chance.uniform(0.5, 10), 3)}


def a_boolean(chance, depth):
    return {"type": "boolean"}


def nothing(chance, depth):
    return {"type": "null"}


def a_choice(chance, depth):
    return {"enum": chance.sample(VALUES, chance.randint(1, 5))}


def a_constant(chance, depth):
    return {"const": chance.choice(VALUES)}


def one_of_types(chance, depth):
    return {"type": chance.sample(["boolean", "null", "integer"], 2), "maximum": 99, "minimum": -99}


def any_of(chance, depth):
    return {"anyOf": [anything(chance, depth) for _ in range(chance.randint(2, 3))]}
