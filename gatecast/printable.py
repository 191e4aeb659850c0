"""Text of others, made safe for a terminal: it can neither control it nor look like more lines than it is."""


def printable(text: str) -> str:
    r"""The text with escapes, such as `\x1b`, in place of everything that is not printable.

    These are control characters, line and paragraph separators, marks that change the direction of writing, invisible
    characters, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
