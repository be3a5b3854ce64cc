"""How many spikes differ between a library and its equal here: the table in docs/interop.md.

python -m tests.models.interop.table 200      # settings for each library
"""

import sys

from tests.models.interop import test_norse, test_sinabs, test_snntorch, test_spikingjelly
from tests.models.interop.compare import current, difference, draws

LIBRARIES = {
    "SpikingJelly": (test_spikingjelly, test_spikingjelly.from_lifnode),
    "snnTorch": (test_snntorch, test_snntorch.from_leaky),
    "norse": (test_norse, test_norse.from_norse),
    "sinabs": (test_sinabs, test_sinabs.from_sinabs),
}


def rows(count: int):
    """For each kind of neuron: settings, spikes compared and different on the grid and off it, and gradients."""
    for library, (tests, convert) in LIBRARIES.items():
        found = {}
        for on_grid, rng in draws(count, seed=1):
            theirs = tests.setting(on_grid, rng)
            one = difference(tests.run, theirs, convert(theirs), current((16, 4, 500), on_grid))
            found.setdefault(type(theirs).__name__, []).append((on_grid, one))
        for kind, results in sorted(found.items()):
            counts = []
            for wanted in (True, False):
                chosen = [one for on_grid, one in results if on_grid == wanted]
                counts.append(f"{sum(one.spikes for one in chosen)} of {sum(one.compared for one in chosen):,}")
            gradient = max(one.gradient for _, one in results)
            yield f"| {library} `{kind}` | {len(results)} | {counts[0]} | {counts[1]} | {gradient:.0e} |"


if __name__ == "__main__":
    print("| neuron | settings | differ, on the grid | differ, other inputs | largest difference of gradients |")
    print("|---|---|---|---|---|")
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
        print(row)
