"""SpODE against a plain re-implementation, its identities, and its behaviour on a trained digits network."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.unit.rules.paths import COLLAPSE, F64, ROW_KEYS, kept, prune, situation, toy
from torch import nn
from torch.nn import functional as F

from openwork.allocation import Global
from openwork.core.now import Phase
from openwork.core.select import count_kept
from openwork.core.serial import from_plain, to_plain
from openwork.core.targets import Select, find_targets
from openwork.criteria import Magnitude
from openwork.rules.path import hess_step, radius_at
from openwork.rules.spode import SpODE, _Run, integrate, total_regrowth
from openwork.rules.topk import TopK
from openwork.structure import NM, Block, Column, Element, Filter, Kernel, Row

# --- against a slow re-implementation -----------------------------------------------------------------------------


def plain(model, batches, parts, share, steps, radius, kind, momentum):
    """The paper's loop (ohh, exp, global) over one vector of units, with x e + y g and an argsort."""
    weights = {n: p.detach() for n, p in model.named_parameters() if n in parts}
    owner = torch.cat([torch.full((p.n_units,), i) for i, p in enumerate(parts.values())])
    # membership of every weight in its unit, written as an index map
    index = {n: p.spread(torch.arange(p.n_units))[n] for n, p in parts.items()}
    mass = torch.cat([torch.zeros(p.n_units, dtype=F64).index_add(0, index[n].flatten(), weights[n].abs().flatten())
                      for n, p in parts.items()])  # fmt: skip
    cost = torch.cat([torch.bincount(index[n].flatten(), minlength=p.n_units) for n, p in parts.items()]).double()
    m, score, total, energies = torch.ones(len(owner), dtype=F64), 0.0, cost.sum(), []
    for k in range(steps):
        density, then = share ** (k / steps), share ** ((k + 1) / steps)
        a = m.abs() * mass
        b = torch.zeros_like(m)
        b[a.argsort(descending=True, stable=True)[: count_kept(density, len(m))]] = 1
        leaves = {n: b[owner == i][index[n]].requires_grad_() for i, n in enumerate(parts)}
        x, y = batches[k % len(batches)]
        out = torch.func.functional_call(model, {n: weights[n] * leaves[n] for n in parts}, (x,))
        loss = F.cross_entropy(out, y)
        energies.append(float(loss.detach()))
        slopes = dict(zip(parts, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        e = -torch.cat([torch.zeros(p.n_units, dtype=F64).index_add(0, index[n].flatten(), slopes[n].flatten())
                        for n, p in parts.items()])  # fmt: skip
        g = -(cost * m.sign() / total if kind == "l1" else cost * m / (total * (cost * m * m).sum().div(total).sqrt()))
        inner = g @ e
        x_ = ((radius**2 - 1) / ((g @ g) * (e @ e) - inner**2)).sqrt()
        m = m + (density - then) * (x_ * e + (1 - x_ * inner) / (g @ g) * g)
        score = m.abs() * mass + momentum * score
    alive = torch.zeros(len(m), dtype=torch.bool)
    alive[score.argsort(descending=True, stable=True)[: count_kept(share, len(m))]] = True
    return {n: alive[owner == i] for i, n in enumerate(parts)}, energies


@COLLAPSE
@pytest.mark.parametrize("structure", [Element(), Block(3, 5), Row(), Column()], ids=str)
@pytest.mark.parametrize(("kind", "momentum", "radius"), [("l2", 0.0, 1.1), ("l1", 0.0, 1.3), ("l2", 0.9, 1.5)])
def test_the_path_is_that_of_a_plain_implementation(structure, kind, momentum, radius):
    model, batches = toy(F64)
    rule = SpODE(steps=12, radius=radius, measure=kind, momentum=momentum)
    now, units, rows = prune(model, rule, batches, 0.3, structure)
    expected, energies = plain(model, batches, now.parts, 0.3, 12, radius, kind, momentum)
    assert [r["energy"] for r in rows] == pytest.approx(energies, rel=1e-9)
    assert {n: u.tolist() for n, u in units.items()} == {n: u.tolist() for n, u in expected.items()}
    assert total_regrowth(rows) + kept(units) > 0


# --- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1.0, 1.1, 1.7])
def test_recursion_of_the_density_along_the_path(radius):
    model, batches = toy(F64)
    rows = prune(model, SpODE(steps=20), batches, 0.2, radius=radius)[2]
    for now, then in pairwise(rows):
        expected = (now["G"] - now["dt"]) ** 2 + (radius**2 - 1) * now["dt"] ** 2
        assert then["G"] ** 2 == pytest.approx(expected, abs=1e-12)
    assert rows[0]["G"] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("field_scope", ["global", "local"])
def test_the_log_tells_the_path(field_scope):
    model, batches = toy()
    now, units, rows = prune(model, SpODE(steps=10, radius=1.2, field_scope=field_scope), batches, 0.25)
    assert all(set(r) == ROW_KEYS for r in rows)
    assert all(type(v) in (int, float) for r in rows for v in r.values())
    assert [r["k"] for r in rows] == list(range(10))
    assert [r["density"] for r in rows] == pytest.approx([0.25 ** ((k + 1) / 10) for k in range(10)])
    assert sum(r["dt"] for r in rows) == pytest.approx(0.75)
    if field_scope == "global":  # F.g = 1 and |F| = r / |g|
        assert [r["cos_Fg"] for r in rows] == pytest.approx([1 / 1.2] * 10, rel=1e-5)
    assert all(r["cos_Fe"] > 0 for r in rows[1:])
    n = sum(u.numel() for u in units.values())
    assert [round(r["kept"] * n) for r in rows] == [count_kept(0.25 ** (k / 10), n) for k in range(10)]
    assert sum(r["removed"] - r["regrown"] for r in rows) == kept(now.units) - kept(units)


def test_hess_and_invexp_follow_their_formulas():
    model, batches = toy()
    rows = prune(model, SpODE(steps=6, path="hess", radius_path="invexp"), batches, 0.2)[2]
    assert [r["cos_Fg"] for r in rows] == pytest.approx(
        [1 / radius_at("invexp", 1.1, k, 6, 0.0) for k in range(6)], 1e-5
    )
    left, steep = 0.8, []
    for k, row in enumerate(rows):
        steep.append(row["e_norm"])
        assert row["dt"] == pytest.approx(hess_step(left, steep, 6 - k))
        left -= row["dt"]
    assert rows[-1]["density"] == 0.2
    rows = prune(model, SpODE(steps=3, radius_path="hess"), batches, 0.2)[2]
    assert [r["cos_Fg"] for r in rows] == pytest.approx([1 / max(1.1, 1 + 3 * r["e_norm"]) for r in rows], rel=1e-5)


@COLLAPSE
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("conv", [False, True])
def test_radius_one_is_global_magnitude_bit_for_bit(share, conv):
    model, batches = toy(conv=conv)
    now, units, rows = prune(model, SpODE(steps=30), batches, share, radius=1.0)
    magnitude = TopK(Magnitude(), Global()).update(now, Phase(share, True), None).units
    assert all(torch.equal(units[n], magnitude[n]) for n in units)
    assert total_regrowth(rows) == 0


# --- exact counts everywhere --------------------------------------------------------------------------------------

STRUCTURES = [Element(), Block(4, 4), Row(), Column(), Filter(), Kernel()]


@COLLAPSE
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_counts_are_exact(structure, share, scope):
    model, batches = toy(conv=True)
    _, units, rows = prune(model, SpODE(steps=4, scope=scope), batches, share, structure)
    sizes = [u.numel() for u in units.values()]
    if scope == "global":
        assert kept(units) == count_kept(share, sum(sizes))
    else:
        assert [int(u.sum()) for u in units.values()] == [count_kept(share, n) for n in sizes]
    assert len(rows) == 4


@pytest.mark.parametrize("polariser", ["ohh", "ohm", "oh", "qt", "qtm", "gau", "id"])
@pytest.mark.parametrize("options", [
    {}, {"measure": "l1"}, {"scope": "local"}, {"field_scope": "local"}, {"path": "hess", "radius_path": "hess"},
    {"path": "lin", "radius_path": "invexp"}, {"path": "invexp", "momentum": 0.9}, {"density_from": "measure"},
    {"clamp": True}, {"floor": 3},
], ids=str)  # fmt: skip
def test_every_option_reaches_the_density(polariser, options):
    model, batches = toy()
    now, units, rows = prune(model, SpODE(steps=5, polariser=polariser, **options), batches, 0.2)
    sizes = [p.n_units for p in now.parts.values()]
    expected = sum(count_kept(0.2, n) for n in sizes) if "scope" in options else count_kept(0.2, sum(sizes))
    assert kept(units) == expected
    assert rows[-1]["density"] == 0.2
    assert sum(r["removed"] - r["regrown"] for r in rows) == sum(sizes) - expected


@pytest.mark.parametrize(("structure", "share"), [(NM(keep=2, of=4), 0.5), (Element(per="row"), 0.3)], ids=str)
@pytest.mark.parametrize("polariser", ["ohh", "qt"])
def test_regions_hold_their_quota(structure, share, polariser):
    model, batches = toy()
    rule = SpODE(steps=6, polariser=polariser, scope="local")
    now, units, _ = prune(model, rule, batches, share, structure)
    for name, part in now.parts.items():
        runs = units[name].view(-1, part.scope()).sum(1)
        assert runs.unique().tolist() == [2 if part.quota else count_kept(share, part.scope())]
    run = _Run(rule, now)
    hard = run.choose(torch.rand(run.n), 0.7).split(run.sizes)
    for alive, part in zip(hard, now.parts.values(), strict=True):
        assert alive.view(-1, part.scope()).sum(1).unique().tolist() == [count_kept(0.7, part.scope())]


@COLLAPSE
def test_sigmoids_take_their_quantiles_where_the_scope_says():
    model, batches = toy()
    with torch.no_grad():
        model[2].weight.mul_(100)
    shares = {}
    for scope in ("global", "local"):
        rule, seen = SpODE(steps=2, polariser="qt", scope=scope), []
        now = situation(model, rule, batches)

        def energy(masks, step, again=False, seen=seen):
            seen.append({n: float((m > 0.5).float().mean()) for n, m in masks.items()})
            return 0.0, masks

        integrate(rule, replace(now, stats={rule.energy: energy}), 0.25, 1.1)
        shares[scope] = seen[1]
    assert shares["local"] == pytest.approx({"0.weight": 0.5, "2.weight": 0.5}, abs=0.1)
    assert shares["global"]["2.weight"] > 0.9


def test_bfloat16_weights_keep_a_float32_mask():
    model, batches = toy(torch.bfloat16)
    now, units, _ = prune(model, SpODE(steps=5), batches, 0.2)
    assert kept(units) == count_kept(0.2, 144)
    assert _Run(SpODE(), now).mask.dtype == torch.float32


def test_floor_and_layer_collapse():
    model, batches = toy()
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
    with pytest.warns(UserWarning, match=r"SpODE: no unit of 2\.weight is kept \(layer collapse\); set floor=1"):
        _, units, _ = prune(model, SpODE(steps=3), batches, 0.1)
    assert int(units["2.weight"].sum()) == 0
    _, units, _ = prune(model, SpODE(steps=3, floor=4), batches, 0.1)
    assert int(units["2.weight"].sum()) == 4
    assert kept(units) == count_kept(0.1, 144)


# --- what the masks mean ------------------------------------------------------------------------------------------


def test_overlapping_partitions_follow_the_product_rule():
    model, batches = toy(F64)
    target = next(t for t in find_targets(model, Select())[0] if t.name == "0.weight")
    parts = {"rows": Row().fit(target), "single": Element().fit(target)}
    rule = SpODE(steps=3, polariser="id")
    run = _Run(rule, situation(model, rule, batches[:1], parts=parts))
    run.mask = torch.rand(run.n, dtype=F64) + 0.5
    leaf = run.mask.clone().requires_grad_()
    weight = model[0].weight.detach() * leaf[:12, None] * leaf[12:].view(12, 8)
    loss = F.cross_entropy(torch.func.functional_call(model, {"0.weight": weight}, (batches[0][0],)), batches[0][1])
    energy, _, pull = run.pull(run.mask.abs(), run.mask > 0, 1.0, 0)
    assert energy == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(pull, -torch.autograd.grad(loss, leaf)[0], rtol=1e-9, atol=1e-14)


def test_weights_statistics_and_gradients_stay_untouched():
    model, batches = toy(conv=True)
    model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    prune(model, SpODE(steps=5), batches, 0.2)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_clamp_and_negative_masks():
    model, batches = toy()
    wild = SpODE(steps=5, radius=20.0)
    assert prune(model, wild, batches, 0.1)[2][-1]["negative"] > 0
    assert all(r["negative"] == 0 for r in prune(model, replace(wild, clamp=True), batches, 0.1)[2])


def test_density_from_measure_polarises_at_the_soft_density():
    """After a binary start the l2 measure is the square root of the density."""
    model, batches = toy()
    half = {n: torch.arange(s) % 4 == 0 for n, s in (("0.weight", 96), ("2.weight", 48))}
    for kind, share in (("schedule", 0.25), ("measure", 0.5)):
        row = prune(model, SpODE(steps=4, density_from=kind), batches, 0.1, units=half)[2][0]
        assert row["kept"] == pytest.approx(share)
        assert row["G"] == pytest.approx(0.5)


def test_iterative_start_from_a_binary_mask():
    model, batches = toy()
    _, first, _ = prune(model, SpODE(steps=8, radius=1.5), batches, 0.5)
    _, second, rows = prune(model, SpODE(steps=20, radius=1.5), batches, 0.25, units=first)
    assert kept(second) == count_kept(0.25, 144)
    assert rows[0]["kept"] == 0.5
    assert rows[0]["density"] == pytest.approx(0.5 * 0.5 ** (1 / 20))
    assert sum(r["removed"] - r["regrown"] for r in rows) == 36


def test_a_dead_unit_comes_back_when_the_loss_asks_for_it():
    model, batches = toy()
    rule = SpODE(steps=10, radius=1.5)
    half = {n: torch.arange(s) % 2 == 0 for n, s in (("0.weight", 96), ("2.weight", 48))}
    now = replace(situation(model, rule, batches), units=half)
    dead = int((now.weights["0.weight"].flatten().abs() * ~half["0.weight"]).argmax())

    def energy(masks, step, again=False):
        wish = {n: torch.zeros_like(m) for n, m in masks.items()}
        wish["0.weight"].view(-1)[dead] = -1.0
        return 0.0, wish

    units, rows = integrate(rule, replace(now, stats={rule.energy: energy}), 0.25, 1.5)
    assert bool(units["0.weight"][dead])
    assert total_regrowth(rows) == 1
    assert kept(units) == 36


def test_asking_for_the_present_density_changes_nothing():
    model, batches = toy()
    _, first, _ = prune(model, SpODE(steps=4), batches, 0.5)
    _, again, rows = prune(model, SpODE(steps=4), batches, 0.5, units=first)
    assert rows == []
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_update_answers_the_engines():
    model, batches = toy()
    rule, state = SpODE(steps=3), object()
    update = rule.update(situation(model, rule, batches), Phase(0.3, True), state)
    assert update.state is state
    assert list(update.log) == ["path"]
    assert len(update.log["path"]) == 3
    assert rule.needs == frozenset({rule.energy})
    assert from_plain(to_plain(rule)) == rule


def test_the_same_seed_gives_the_same_path():
    model, batches = toy(conv=True)
    model.insert(3, nn.Dropout(0.5))
    runs = [prune(model, SpODE(steps=5), batches, 0.2, seed=s) for s in (3, 3, 4)]
    assert runs[0][2] == runs[1][2]
    assert all(torch.equal(runs[0][1][n], runs[1][1][n]) for n in runs[0][1])
    assert runs[0][2][0]["energy"] != runs[2][2][0]["energy"]  # the drop-out draws differ
