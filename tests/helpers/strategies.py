"""What hypothesis draws for the kit's building blocks."""

from hypothesis import strategies as st

from zsqretrieval.testing.index_model import Operation

# Few keys, so that repeats, refusals and re-additions are common; some where narrow types would break.
_keys = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**53 + 1, 2**63 - 1]), max_size=6).map(tuple)
_seeds = st.integers(0, 5)  # few, so that identical vectors are common

operations = st.lists(
    st.one_of(
        st.builds(Operation, st.just("add"), keys=_keys, seed=_seeds),
        st.builds(Operation, st.just("remove"), keys=_keys),
        st.builds(Operation, st.just("search"), seed=_seeds, k=st.integers(1, 12)),
        st.builds(Operation, st.just("reload")),
    ),
    max_size=12,
)
