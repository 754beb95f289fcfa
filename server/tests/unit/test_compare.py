"""Which answers are the same code, and what differs from the teacher's."""

from hypothesis import given
from hypothesis import strategies as st

from nbpulse.classroom.compare import LINES_MAX, compare_lines, group_sources, normalise_source

SOURCES = st.text(alphabet=" \t\nab=(),'", max_size=60)


def test_blanks_that_mean_nothing_make_no_difference_and_indentation_does() -> None:
    same = ("if a:\n    x = f(1, 2)  \n", "if a :\r\n\n    x=f( 1,2 )")
    assert len({normalise_source(one) for one in same}) == 1
    assert normalise_source("if a:\n  x\ny") != normalise_source("if a:\n  x\n  y")
    assert normalise_source("\tx") == normalise_source("        x")
    assert normalise_source("a b") != normalise_source("ab")


@given(SOURCES)
def test_what_is_normal_stays_so(source: str) -> None:
    assert normalise_source(normalise_source(source)) == normalise_source(source)


@given(st.dictionaries(st.sampled_from("abcdefgh"), SOURCES), st.randoms())
def test_groups_hold_everybody_once_in_whatever_order_they_come(sources: dict[str, str], random: object) -> None:
    groups = group_sources(sources)
    assert sorted(one for group in groups for one in group.user_ids) == sorted(sources)
    assert [len(group.user_ids) for group in groups] == sorted((len(group.user_ids) for group in groups), reverse=True)
    shuffled = sorted(sources, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert group_sources({one: sources[one] for one in shuffled}) == groups
    for group in groups:
        assert group.source in {sources[one] for one in group.user_ids}


@given(SOURCES, SOURCES)
def test_a_difference_tells_both_sides_whole(original: str, source: str) -> None:
    lines = compare_lines(original, source)
    assert [one.text for one in lines if one.sign != "+"] == original.splitlines()
    assert [one.text for one in lines if one.sign != "-"] == source.splitlines()


def test_of_long_texts_the_beginning_is_compared() -> None:
    lines = compare_lines("a\n" * 5_000, "b\n" * 5_000)
    assert len(lines) == 2 * LINES_MAX
