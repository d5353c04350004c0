r"""Brace patterns, both ways: `train-{000..146}.tar` is 147 shard names, and 147 shard names are that pattern again.

The syntax is that of webdataset 1.0.2, which is `braceexpand`: `{a,b}` lists, `{000..146}` and `{a..c}` ranges with
an optional `..step`, nesting; a backslash takes the meaning from the character after it. `::` separates patterns and
`${NAME}` is the environment's `WDS_NAME`, everywhere, also inside a `pipe:` command, as there: write `:\:`, `\{` and
`\,` (or call `escape`) where the characters themselves are meant.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod
from typing import NamedTuple

from wdstools.errors import UrlError

MAX_NAMES = 10_000_000
"""No call of `expand` gives more names than this: a slip in a range is an error, not a full memory."""

_MAX_DEPTH = 100  # braces inside braces; far below Python's recursion limit
_MAX_DIGITS = 18  # bash counts in 64 bits: longer numbers do not vary in a pattern

# Both expressions are braceexpand's own, so that what counts as a range is the same to the letter.
_INT_RANGE = re.compile(r"^(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_CHAR_RANGE = re.compile(r"^([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?$")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN = re.compile(r"\\.|[{},]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")

# What bash or brace expansion would act on, outside of braces. A newline is missing on purpose: a backslash before it
# means nothing to braceexpand and deletes it in bash, so it is left as it is.
_SPECIAL = re.compile(r"""[\\{}$`"'*?\[()<>|&;!#~ \t]|(?<=:):""")
_DIGITS = re.compile("([0-9]+)")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def expand(urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The URLs that `urls` stands for, in order, as `webdataset.shardlists.expand_urls` gives them.

    An iterable is expanded element by element, paths too; put names that come from a listing through `escape` first.
    Reads `os.environ` for `${NAME}` and does no other I/O. UrlError: unbalanced braces, a variable that is not set,
    braces more than 100 deep, more than MAX_NAMES names in all.
    """
    result: list[str] = []
    for element in (urls,) if isinstance(urls, str | os.PathLike) else urls:
        text = os.fspath(element)
        if not isinstance(text, str):
            raise UrlError(f"{element!r} is no URL: bytes paths are not taken, use os.fsdecode")
        if "{" not in text and "}" not in text and "\\" not in text and "::" not in text:
            result.append(text)
            continue
        for url in text.split("::"):
            result.extend(_pattern(_substitute(url), 0))
            _check_count(len(result))
    return result


def escape(name: str) -> str:
    r"""`name` as a pattern that stands for exactly itself: in `expand`, in webdataset, and typed at a bash prompt.

    Backslashes go before braces, `$`, blanks, quotes and what else bash acts on, and into `::`. A newline stays bare,
    so a name with one holds in `expand` and webdataset but not in bash; so does the empty name.
    """
    return _SPECIAL.sub(r"\\\g<0>", name) if _SPECIAL.search(name) else name  # most names have none, and sub is slow


def collapse(names: Iterable[str]) -> list[str]:
    """The fewest brace patterns, one per run of consecutive numbers, that expand to exactly the given names.

    Names that differ in one run of digits form a series; where several runs vary, the one that gives the fewest
    patterns does, the last of them on a tie, and the others split the series. Padding is kept, unpadded 1 to 12 is
    `{1..12}`, numbers of more than 18 digits do not vary. A lone name stays as it is. Special characters come out
    as `escape` writes them, so every pattern holds in `expand`, webdataset and bash. A name given twice counts once,
    see `duplicates`. Ordered by prefix, then number. `names` are names, never patterns. UrlError: a bare string.
    """
    return [pattern for series in _sorted_series(names) for pattern in series.patterns(series.spans())]


def missing(names: Iterable[str]) -> list[str]:
    """Patterns of the numbers missing between the smallest and the largest of each series that `collapse` would find.

    Nothing is known about what lies beyond the ends: shards 0 to 9 of an intended 12 are not reported.
    """
    result: list[str] = []
    for series in _sorted_series(names):
        result.extend(series.patterns((before + 1, after - 1) for (_, before), (after, _) in pairwise(series.spans())))
    return result


def duplicates(names: Iterable[str]) -> list[str]:
    """The names, not patterns, that come more than once, each given once, in the order of their first appearance."""
    return [name for name, count in Counter(names).items() if count > 1]


def _check_count(count: int) -> None:
    if count > MAX_NAMES:
        raise UrlError(f"the pattern stands for more than {MAX_NAMES} names; is a range wrong?")


def _substitute(url: str) -> str:
    """`url` with every `${NAME}` replaced, also inside replacements; ten rounds, as webdataset does."""
    for _ in range(10):
        before = url
        url = _VARIABLE.sub(_variable, url)
        if url == before:
            return url
        if len(url) > MAX_NAMES:
            break
    raise UrlError(f"{url[:80]!r}: the WDS_ variables refer to each other in a circle")


def _variable(match: re.Match[str]) -> str:
    name = "WDS_" + match[1]
    if name not in os.environ:
        raise UrlError(f"{match[0]}: the environment variable {name} is not set; write $\\{{ for a literal ${{")
    return os.environ[name]


def _pattern(text: str, depth: int) -> list[str]:
    """All strings that a pattern without `::` and variables stands for, unescaped."""
    if depth > _MAX_DEPTH:
        raise UrlError(f"braces are nested more than {_MAX_DEPTH} deep")
    parts: list[list[str]] = []
    start = level = 0
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            if level == 0:
                parts.append([_ESCAPED.sub(r"\1", text[start : token.start()])])
                start = token.start()
            level += 1
        elif token[0] == "}":
            level -= 1
            if level == 0:
                parts.extend(_braces(text[start + 1 : token.start()], depth + 1))
                start = token.end()
    if level:
        raise UrlError(f"unbalanced braces in {text[:200]!r}; write \\{{ or \\}} for a literal brace")
    parts.append([_ESCAPED.sub(r"\1", text[start:])])
    _check_count(prod(map(len, parts)))
    result = [""]
    for part in parts:
        result = [head + tail for head in result for tail in part]
    return result


def _braces(inside: str, depth: int) -> list[list[str]]:
    """What `{inside}` stands for, as factors of a product: a range, a list, or itself in literal braces."""
    if match := _INT_RANGE.match(inside):
        return [_int_range(*match.groups())]
    if match := _CHAR_RANGE.match(inside):
        first, last = _ALPHABET.index(match[1]), _ALPHABET.index(match[2])
        return [[_ALPHABET[i] for i in _steps(first, last, match[3])]]
    items: list[str] = []
    start = level = 0
    for token in _TOKEN.finditer(inside):
        if token[0] == "," and level == 0:
            items += _pattern(inside[start : token.start()], depth)
            _check_count(len(items))
            start = token.end()
        level += (token[0] == "{") - (token[0] == "}")
    if start == 0:
        return [["{"], _pattern(inside, depth), ["}"]]
    return [items + _pattern(inside[start:], depth)]


def _int_range(first: str, last: str, step: str | None) -> list[str]:
    padded = any(end.startswith(("0", "-0")) and end not in ("0", "-0") for end in (first, last))
    try:
        ends = int(first), int(last)
    except ValueError:  # more digits than int() takes from a string
        raise UrlError(f"a range with a number of {max(len(first), len(last))} digits") from None
    form = f"%0{max(len(first), len(last)) if padded else 0}d"
    return [form % number for number in _steps(*ends, step)]


def _steps(first: int, last: int, step: str | None) -> range:
    stride = int(step or 1) or 1
    _check_count(abs(last - first) // stride + 1)
    return range(first, last + 1, stride) if first < last else range(first, last - 1, -stride)


class _Series(NamedTuple):
    """Names equal but for one number, which is written with at least `width` digits."""

    prefix: str
    suffix: str
    width: int
    numbers: list[int]  # sorted; empty: the prefix is a name of its own

    def spans(self) -> list[tuple[int, int]]:
        """Runs of consecutive numbers, both ends inclusive; (-1, -1) for a name without a number."""
        numbers = self.numbers
        if not numbers:
            return [(-1, -1)]
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            return [(numbers[0], numbers[-1])]
        breaks = [i for i in range(1, len(numbers)) if numbers[i] - numbers[i - 1] != 1]
        return [(numbers[a], numbers[b - 1]) for a, b in zip([0, *breaks], [*breaks, len(numbers)], strict=True)]

    def patterns(self, spans: Iterable[tuple[int, int]]) -> Iterator[str]:
        """The patterns of the given runs of numbers, both ends inclusive."""
        head, tail, width = escape(self.prefix), escape(self.suffix), self.width
        padded, full = 10 ** (width - 1), 10**width
        for first, last in spans:
            if first < 0:
                yield head
                continue
            # {098..1000} would pad all to four digits: a run that leaves the padding is two patterns
            leaves = width > 1 and first < padded and last >= full
            for low, high in [(first, full - 1), (full, last)] if leaves else [(first, last)]:
                number = f"{low:0{width}d}"
                yield head + (number if low == high else f"{{{number}..{high:0{width}d}}}") + tail

    def order(self) -> tuple[object, ...]:
        return _natural(self.prefix), self.numbers[:1], self.suffix, self.width


def _sorted_series(names: Iterable[str]) -> list[_Series]:
    found = list(_find_series(names))
    return sorted(found, key=_Series.order) if len(found) > 1 else found


def _natural(text: str) -> tuple[str | int, ...]:
    """A sort key in which the digits compare as numbers (of any length, so never through int())."""
    parts = _DIGITS.split(text)
    if len(parts) == 1:
        return (text,)
    key: list[str | int] = [parts[0]]
    for digits, rest in zip(parts[1::2], parts[2::2], strict=True):
        value = digits.lstrip("0")
        key += (len(value), value, rest)
    return tuple(key)


def _find_series(names: Iterable[str]) -> Iterator[_Series]:
    if isinstance(names, str):
        raise UrlError(f"{names[:80]!r} is one name; pass a list of names")
    unique = list(dict.fromkeys(names))
    # The shape of a name is the name with every digit 0. Names of one shape have their digits in the same columns, so
    # everything below is slices, not parsing; all shapes are made at once, at the speed of memory. In UTF-8 no other
    # character contains the byte of a digit.
    shapes = _shapes("\0".join(unique)).split("\0")
    if len(shapes) != len(unique):  # a NUL in a name
        shapes = [_shapes(name) for name in unique]
    by_shape: defaultdict[str, list[str]] = defaultdict(list)
    for shape, name in zip(shapes, unique, strict=True):
        by_shape[shape].append(name)
    families: defaultdict[str, list[str]] = defaultdict(list)  # shapes that differ only in how many digits a run has
    for shape in by_shape:
        family = shape
        while "00" in family:
            family = family.replace("00", "0")
        families[family].append(shape)
    for members in families.values():
        if len(members) == 1 and len(by_shape[members[0]]) == 1:
            yield _Series(by_shape[members[0]][0], "", 1, [])
            continue
        yield from _split_family({shape: by_shape[shape] for shape in members})


def _shapes(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").translate(_ZEROS).decode("utf-8", "surrogatepass")


def _split_family(by_shape: dict[str, list[str]]) -> Iterable[_Series]:
    """The series in names that are equal but for their digits."""
    names = [name for members in by_shape.values() for name in members]
    runs = {shape: [run.span() for run in _DIGITS.finditer(shape)] for shape in by_shape}
    columns: list[list[str]] = [[] for _ in next(iter(runs.values()))]
    for shape, members in by_shape.items():
        for column, (start, end) in zip(columns, runs[shape], strict=True):
            column.extend([name[start:end] for name in members])
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    best: list[_Series] = []
    fewest = len(names) + 1
    for which in reversed(varying):
        found = list(_split_column(names, columns, which, [i for i in varying if i != which]))
        if len(varying) == 1:
            return found
        count = sum(len(series.spans()) for series in found)
        if count < fewest:
            best, fewest = found, count
    return best


def _split_column(names: list[str], columns: list[list[str]], which: int, others: list[int]) -> Iterator[_Series]:
    """The series in one family when run number `which` varies and the runs `others` split."""
    groups: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    if others:
        keys = zip(*(columns[i] for i in others), strict=True)
        for name, number, rest in zip(names, columns[which], keys, strict=True):
            if (group := groups.get(rest)) is None:
                groups[rest] = (name, [number])
            else:
                group[1].append(number)
    else:
        groups[()] = (names[0], columns[which])
    for name, numbers in groups.values():
        start, end = [run.span() for run in _DIGITS.finditer(name)][which]
        yield from _split_widths(name[:start], name[end:], numbers)


def _split_widths(prefix: str, suffix: str, numbers: list[str]) -> Iterator[_Series]:
    """The series in distinct numbers: one for each padded width, one for those without padding."""
    lengths = set(map(len, numbers))
    if max(lengths) > _MAX_DIGITS:
        yield from (_Series(prefix + number + suffix, "", 1, []) for number in numbers if len(number) > _MAX_DIGITS)
        numbers = [number for number in numbers if len(number) <= _MAX_DIGITS]
        if not numbers:
            return
    if len(lengths) == 1:  # text and number sort alike
        width = len(numbers[0]) if min(numbers).startswith("0") else 1
        yield _Series(prefix, suffix, width, sorted(map(int, numbers)))
        return
    padded = sorted({len(number) for number in numbers if number[0] == "0"} | {1})
    series: defaultdict[int, list[int]] = defaultdict(list)
    for number in numbers:
        # 100 after 099 belongs to the padded ones, and so does 1000, which overflows their width
        width = len(number) if number[0] == "0" else padded[bisect_right(padded, len(number)) - 1]
        series[width].append(int(number))
    for width, values in series.items():
        yield _Series(prefix, suffix, width, sorted(values))
