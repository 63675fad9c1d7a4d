"""Digests of problems: different content, different digests; the same content, the same in any process."""

from __future__ import annotations

import enum
import functools
import pathlib
import random
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints, transforms

from astrozoo import registry
from astrozoo._content_hash import content_hash
from astrozoo.errors import InputError
from astrozoo.types import Problem, stack

F64 = torch.float64
X = torch.arange(6.0, dtype=F64).reshape(3, 2)


def code(source: str, name: str = "f", **names):
    """The object ``name`` that a piece of source defines, with the given globals."""
    space = {"__name__": "user_module", "torch": torch, "np": np, "dist": dist, **names}
    exec(compile(textwrap.dedent(source), "<user>", "exec"), space)
    return space[name]


def closure(value):
    return lambda x: x * value


class Net(nn.Module):
    def __init__(self, weight=0.0, power=1.0, buffer=0.0):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.constant_(self.layer.weight, weight)
        nn.init.zeros_(self.layer.bias)
        self.power = power
        self.register_buffer("hidden", torch.tensor(buffer), persistent=False)

    def forward(self, x):
        return self.layer(x) ** self.power


class Slotted:
    __slots__ = ("__private", "a")

    def __init__(self, a, private=0):
        self.a, self.__private = a, private

    def __call__(self, x):
        return self.a * x


class Method:
    def __init__(self, a):
        self.a = a

    def model(self, x):
        return self.a * x


@dataclass(frozen=True)
class M:
    prior: object

    def __call__(self, y):
        return self.prior

    @functools.cached_property
    def cached(self):
        return 1


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Text(str):
    pass


def module(**names):
    made = ModuleType("helpers")
    for name, value in names.items():
        setattr(made, name, value)
    return made


def class_with(body: str, base: str = "object", **names):
    return code(f"class C({base}):\n    def __call__(self, x):\n        return {body}", "C", **names)


def normal(value, **settings):
    return dist.Normal(torch.full((3,), value, dtype=F64), 0.01, **settings).to_event(1)


def after(change, value):
    change(value)
    return value


def quietly(make, *args):
    """``make(*args)``, of a part of torch that warns of its deprecation when it is loaded or used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(*args)


scripted = partial(quietly, torch.jit.script)
compiled = partial(quietly, torch.compile)


POINT = namedtuple("Point", "x y")
CALLS = "def f(x): return g(x)"
USES = "def f(x): return x * SCALE"
CIRCLE = "def f(x): return g(x)\ndef g(x): return f(x) {}"
HALF = torch.full((3,), 0.5)
VALUES = torch.linspace(0, 1, 5000, dtype=F64)
NEARLY = VALUES.clone().index_fill_(0, torch.tensor([2500]), 0.5 + 1e-4)
EYE = torch.eye(2, dtype=F64)

DIFFERENT = {
    "code": (closure(1), code("def f(x): return x * 2")),
    "a constant in code": (code("def f(x): return x + 1"), code("def f(x): return x + 2")),
    "int and float constants": (code("def f(x): return x + 1"), code("def f(x): return x + 1.0")),
    "a nested function": (
        code("def f(x):\n def g(): return 1\n return g()"),
        code("def f(x):\n def g(): return 2\n return g()"),
    ),
    "a set in code": (code("def f(x): return x in {1, 2}"), code("def f(x): return x in {1, 3}")),
    "an attribute that code names": (code("def f(x): return x.sin()"), code("def f(x): return x.cos()")),
    "a library function that code names": (
        code("def f(x): return torch.sin(x)"),
        code("def f(x): return torch.cos(x)"),
    ),
    "what a handler catches": (
        code("def f(x):\n try: x()\n except KeyError: pass"),
        code("def f(x):\n try: x()\n except ValueError: pass"),
    ),
    "closed-over numbers": (closure(1.0), closure(2.0)),
    "closed-over functions": (closure(code("def f(x): return 1")), closure(code("def f(x): return 2"))),
    "closed-over library functions": (closure(torch.sin), closure(torch.cos)),
    "closed-over ufuncs": (closure(np.sin), closure(np.cos)),
    "closed-over modules: weights": (closure(Net(0.0)), closure(Net(1.0))),
    "closed-over modules: buffers that are not saved": (closure(Net(buffer=0.0)), closure(Net(buffer=1.0))),
    "closed-over modules: settings": (closure(Net(power=1.0)), closure(Net(power=2.0))),
    "closed-over modules: activation": (closure(nn.ReLU()), closure(nn.Tanh())),
    "closed-over modules: code": (
        closure(class_with("1", "torch.nn.Module")()),
        closure(class_with("2", "torch.nn.Module")()),
    ),
    "closed-over modules: mode": (closure(Net()), closure(Net().eval())),
    "defaults": (code("def f(x, a=1): pass"), code("def f(x, a=2): pass")),
    "keyword defaults": (code("def f(x, *, a=1): pass"), code("def f(x, *, a=2): pass")),
    "global constants": (code(USES, SCALE=1.0), code(USES, SCALE=2.0)),
    "global tensors": (code(USES, SCALE=VALUES), code(USES, SCALE=NEARLY)),
    "global functions": (code(CALLS, g=closure(1)), code(CALLS, g=closure(2))),
    "globals of globals": (
        code(CALLS, g=code(USES, SCALE=1.0)),
        code(CALLS, g=code(USES, SCALE=2.0)),
    ),
    "functions that call each other": (code(CIRCLE.format("+ 1")), code(CIRCLE.format("+ 2"))),
    "functions of a module": (
        code("def f(x): return h.g(x)", h=module(g=closure(1))),
        code("def f(x): return h.g(x)", h=module(g=closure(2))),
    ),
    "functions of a module in a module": (
        code("def f(x): return h.k.g(x)", h=module(k=module(g=closure(1)))),
        code("def f(x): return h.k.g(x)", h=module(k=module(g=closure(2)))),
    ),
    "globals named in a nested function": (
        code("def f(x):\n return [SCALE for y in x]", SCALE=1),
        code("def f(x):\n return [SCALE for y in x]", SCALE=2),
    ),
    "a decorated function": (torch.no_grad()(closure(1)), torch.no_grad()(closure(2))),
    "a cached function": (functools.cache(closure(1)), functools.cache(closure(2))),
    "attributes of a function": (
        after(lambda f: setattr(f, "scale", 1), closure(1)),
        after(lambda f: setattr(f, "scale", 2), closure(1)),
    ),
    "partial": (partial(closure(1), a=1), partial(closure(1), a=2)),
    "bound methods": (Method(1).model, Method(2).model),
    "methods of one object": (Method(1).model, Method(1)),
    "a class with other code": (class_with("x + 1")(), class_with("x + 2")()),
    "a class itself": (class_with("x + 1"), class_with("x + 2")),
    "a base class": (
        class_with("1", "B", B=class_with("3"))(),
        class_with("1", "B", B=class_with("4"))(),
    ),
    "a metaclass": (
        code("class T(type):\n def __len__(cls): return 1\nclass C(metaclass=T): pass", "C")(),
        code("class T(type):\n def __len__(cls): return 2\nclass C(metaclass=T): pass", "C")(),
    ),
    "a property": (
        code("class C:\n @property\n def a(self): return 1", "C")(),
        code("class C:\n @property\n def a(self): return 2", "C")(),
    ),
    "a static method": (
        code("class C:\n @staticmethod\n def a(): return 1", "C")(),
        code("class C:\n @staticmethod\n def a(): return 2", "C")(),
    ),
    "a class attribute": (code("class C:\n a = 1", "C")(), code("class C:\n a = 2", "C")()),
    "slots": (Slotted(1), Slotted(2)),
    "private slots": (Slotted(1, 1), Slotted(1, 2)),
    "the prior of the issue": (M(normal(0.0)), M(normal(100.0))),
    "tensors that print alike": (M(dist.Normal(VALUES, 1.0)), M(dist.Normal(NEARLY, 1.0))),
    "probabilities and logits": (dist.Bernoulli(probs=HALF), dist.Bernoulli(logits=HALF)),
    "categories": (dist.Categorical(torch.tensor([0.4, 0.6])), dist.Categorical(torch.tensor([0.5, 0.5]))),
    "covariances": (
        dist.MultivariateNormal(torch.zeros(2, dtype=F64), EYE),
        dist.MultivariateNormal(torch.zeros(2, dtype=F64), 2 * EYE),
    ),
    "independent dimensions": (dist.Normal(HALF, 1.0), dist.Normal(HALF, 1.0).to_event(1)),
    "masks": (dist.Normal(HALF, 1.0).mask(HALF > 0), dist.Normal(HALF, 1.0).mask(HALF > 1)),
    "transforms": (
        dist.TransformedDistribution(normal(0.0), [transforms.AffineTransform(0.0, HALF)]),
        dist.TransformedDistribution(normal(0.0), [transforms.AffineTransform(0.0, 2 * HALF)]),
    ),
    "inverse transforms": (transforms.ExpTransform(), transforms.ExpTransform().inv),
    "inverses of different transforms": (
        transforms.AffineTransform(0.0, 1.0).inv,
        transforms.AffineTransform(0.0, 2.0).inv,
    ),
    "composed transforms": (
        transforms.ComposeTransform([transforms.AffineTransform(0.0, 1.0)]),
        transforms.ComposeTransform([transforms.AffineTransform(0.0, 2.0)]),
    ),
    "mixtures": (
        dist.MixtureSameFamily(dist.Categorical(HALF), dist.Normal(HALF, 1.0)),
        dist.MixtureSameFamily(dist.Categorical(HALF), dist.Normal(2 * HALF, 1.0)),
    ),
    "constraints": (constraints.interval(0.0, 1.0), constraints.interval(0.0, 2.0)),
    "constraints of tensors": (constraints.greater_than(HALF), constraints.greater_than(2 * HALF)),
    "scripts": (scripted(nn.ReLU()), scripted(nn.Tanh())),
    "array values": (np.arange(5000.0), np.append(np.arange(4999.0), 0)),
    "empty arrays": (np.zeros((0, 2)), np.zeros((2, 0))),
    "empty tensors": (torch.zeros(0, 2), torch.zeros(2, 0)),
    "array types": (np.arange(4, dtype="<i4"), np.arange(4, dtype=">i4")),
    "array shapes": (np.zeros((2, 3)), np.zeros((3, 2))),
    "masked arrays": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 0])),
    "records": (np.array([(1, 2.0)], dtype="i4,f8"), np.array([(1, 3.0)], dtype="i4,f8")),
    "dates": (np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-01"], "M8[s]")),
    "array scalars": (np.float64(1), np.float32(1)),
    "array and number": (np.float64(1), 1.0),
    "tensor types": (X, X.float()),
    "tensor shapes": (X, X.reshape(2, 3)),
    "transposed tensors": (X, X.T.contiguous().reshape(3, 2)),
    "half precision": (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.float16)),
    "sparse tensors": (EYE.to_sparse(), (2 * EYE).to_sparse()),
    "conjugates": (torch.tensor([1j]), torch.tensor([1j]).conj()),
    "parameters and tensors": (nn.Parameter(X), X),
    "states of numpy generators": (np.random.default_rng(0), np.random.default_rng(1)),
    "advanced generators": (np.random.default_rng(0), after(lambda g: g.random(), np.random.default_rng(0))),
    "legacy random states": (np.random.RandomState(0), np.random.RandomState(1)),
    "states of torch generators": (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    "states of Python generators": (random.Random(0), random.Random(1)),
    "members of an enum": (Colour.RED, Colour.BLUE),
    "enums": (Colour.RED, 1),
    "int and float": (1, 1.0),
    "bool and int": (True, 1),
    "bool and int in a tuple": ((True,), (1,)),
    "zeros": (0.0, -0.0),
    "nan and None": (float("nan"), None),
    "text and bytes": ("a", b"a"),
    "list and tuple": ([1, 2], (1, 2)),
    "named tuple and tuple": (POINT(1, 2), (1, 2)),
    "parts run together": (("ab", "c"), ("a", "bc")),
    "nesting": (((1,), 2), ((1, 2),)),
    "order": ((1, 2), (2, 1)),
    "sets": ({1, 2}, {1, 3}),
    "set and frozen set": ({1, 2}, frozenset({1, 2})),
    "values of a dict": ({"a": 1}, {"a": 2}),
    "keys of a dict": ({"a": 1}, {"b": 1}),
    "types of keys": ({1: 0}, {1.0: 0}),
    "ranges": (range(3), range(4)),
    "ranges and lists": (range(3), [0, 1, 2]),
    "slices": (slice(1, 2), slice(1, 3)),
    "paths": (pathlib.Path("a"), pathlib.Path("b")),
    "paths and text": (pathlib.Path("a"), "a"),
    "dtypes": (torch.float32, torch.float64),
    "numpy dtypes": (np.dtype("f4"), np.dtype("f8")),
    "devices": (torch.device("cpu"), torch.device("meta")),
    "namespaces": (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "text of a class": (Text("a"), Text("b")),
    "text and its class": (Text("a"), "a"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_content_has_different_hashes(case):
    first, second = DIFFERENT[case]
    assert content_hash(first) != content_hash(second)
    assert content_hash((first, second)) != content_hash((second, first))
    assert content_hash(closure(first)) != content_hash(closure(second))


ALIKE = {
    "functions made twice": lambda: code("def f(x): return x + 1"),
    "comments and line numbers": (
        code("def f(x): return x + 1"),
        code("\n\n# a comment\ndef f(x):\n    # another\n    return x + 1"),
    ),
    "closures made twice": lambda: closure(Net(1.0)),
    "globals that are not named": (code(USES, SCALE=1, other=1), code(USES, SCALE=1, other=2)),
    "attributes of a module that are not named": (
        code("def f(x): return h.g", h=module(g=1, k=1)),
        code("def f(x): return h.g", h=module(g=1, k=2)),
    ),
    "functions that call each other": lambda: code(CIRCLE.format("+ 1")),
    "classes defined twice": lambda: class_with("x + 1")(),
    "docstrings of classes": (code("class C:\n 'a'", "C"), code("class C:\n 'b'", "C")),
    "models": lambda: M(normal(0.0)),
    "slotted objects": lambda: Slotted(1, 2),
    "a dict of any order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "a set of any order": (set("abcdefgh"), set("hgfedcba")),
    "mixed sets": lambda: {1, "a", None, (1, 2)},
    "nan": (float("nan"), -float("nan")),
    "tensors and their copies": ((X, X), (X, X.clone())),
    "tensors that are strided": (X.T.contiguous().T, X),
    "lists and their copies": lambda: [[1], [1]],
    "arrays that are strided": (np.arange(6)[::2], np.array([0, 2, 4])),
    "a list in itself": lambda: after(lambda x: x.append(x), [1]),
    "an object in itself": lambda: after(lambda x: setattr(x, "me", x), SimpleNamespace()),
    "a distribution before and after use": (
        dist.Categorical(probs=HALF),
        after(lambda d: (d.logits, d.sample(), d.log_prob(torch.tensor(1))), dist.Categorical(probs=HALF)),
    ),
    "a covariance before and after use": (
        dist.MultivariateNormal(HALF, scale_tril=torch.eye(3)),
        after(lambda d: d.covariance_matrix, dist.MultivariateNormal(HALF, scale_tril=torch.eye(3))),
    ),
    "a transform before and after use": (
        transforms.ExpTransform(cache_size=1),
        after(lambda t: (t.inv, t(HALF)), transforms.ExpTransform(cache_size=1)),
    ),
    "a cached property before and after use": (M(1), after(lambda m: m.cached, M(1))),
    "a module before and after use": (Net(1.0), after(lambda m: m(torch.ones(2)), Net(1.0))),
    "a function before and after many calls": (
        code("def f(x): return x + 1"),
        after(lambda f: [f(i) for i in range(1000)], code("def f(x): return x + 1")),
    ),
    "validation": (dist.Normal(0.0, 1.0, validate_args=True), dist.Normal(0.0, 1.0, validate_args=False)),
    "namedtuples": lambda: POINT(1, X),
    "ordered dicts": lambda: OrderedDict(a=1),
    "graphs": lambda: torch.fx.symbolic_trace(Net(1.0)),
    "scripted modules": lambda: scripted(Net(1.0)),
    "generators": lambda: np.random.default_rng(3),
}  # fmt: skip


@pytest.mark.parametrize("case", ALIKE)
def test_the_same_content_has_one_hash(case):
    pair = ALIKE[case]
    first, second = pair if isinstance(pair, tuple) else (pair(), pair())
    assert content_hash(first) == content_hash(second)
    assert content_hash(closure(first)) == content_hash(closure(second))


def test_compiled_functions_and_modules_are_hashed_by_what_was_compiled():
    hashes = [content_hash(compiled(f)) for f in (closure(1), closure(1), closure(2))]
    assert hashes[0] == hashes[1] != hashes[2]
    nets = [content_hash(compiled(Net(w))) for w in (0.0, 0.0, 1.0)]
    assert nets[0] == nets[1] != nets[2]


def test_two_functions_cannot_share_a_number():
    """Functions are numbered in the order in which they are met: other functions are other numbers."""
    f, g = closure(1), closure(2)
    assert content_hash((f, g, f)) != content_hash((f, g, g))


UNREADABLE = {
    "a generator": lambda: (i for i in range(3)),
    "a lock": threading.Lock,
    "an array of objects": lambda: np.array([object()], dtype=object),
    "a tensor without content": lambda: torch.ones(2, device="meta"),
    "an open file": lambda: sys.__stderr__,
    "a ufunc of Python code": lambda: np.frompyfunc(lambda x: x, 1, 1),
    "a deep list": lambda: functools.reduce(lambda inner, _: [inner], range(100_000), []),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_where_a_digest_is_used(case, tmp_path):
    value = UNREADABLE[case]()
    problem = Problem(closure(value), (X,))  # making a problem needs no digest
    with pytest.raises(InputError, match=r"Problem\(version='...'\)"):
        _ = problem.digest
    with pytest.raises(InputError, match=r"Problem\(version='...'\)"):
        stack([problem, problem])
    first, second = (Problem(closure(value), (X,), version=v) for v in "ab")
    assert first.digest != second.digest
    assert first.digest != Problem(closure(value), (X + 1,), version="a").digest
    assert stack([first, first]).batch == 2
    with pytest.raises(InputError, match="model or its settings"):
        stack([first, second])


def test_the_refusal_names_the_place():
    with pytest.raises(InputError, match=r"_thread.lock at .*prior: "):
        content_hash(M(threading.Lock()))


@pytest.mark.parametrize("version", ["", 3, b"a"])
def test_a_version_is_a_string(version):
    with pytest.raises(InputError, match="version: got"):
        Problem(closure(1), version=version)


def test_the_digest_is_of_the_posterior():
    base = Problem(M(1), (X,))
    others = [
        Problem(M(1), (X + 1e-12,)),
        Problem(M(1), (X.float(),)),
        Problem(M(1), (X, 1)),
        Problem(M(1), (X,), batch=3),
        Problem(M(1), (X,), data_plates=("data",)),
        Problem(M(1), (X,), version="1"),
        Problem(M(2), (X,)),
    ]
    assert len({base.digest, *(p.digest for p in others)}) == len(others) + 1
    same = Problem(M(1), (X.clone(),), name="other", start={"a": X}, dims={"a": ("i", "j")})
    assert same.digest == base.digest
    assert len(base.digest) == 16


def test_the_digest_follows_data_that_change_in_place():
    x = X.clone()
    problem = Problem(M(1), (x,))
    before = problem.digest
    x += 1
    assert problem.digest != before == Problem(M(1), (X,)).digest


def test_problems_with_other_priors_are_not_one_batch():
    problems = [Problem(M(normal(value)), (X,)) for value in (0.0, 100.0)]
    with pytest.raises(InputError, match=r"problems\[1\]: got a model or its settings"):
        stack(problems)


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
import torch, helper, pyro, pyro.distributions as dist
from dataclasses import dataclass
from astrozoo.types import Problem

@dataclass(frozen=True)
class Model:
    prior: object
    names: frozenset
    def __call__(self, x):
        import helper as again
        return [y for y in x if y in {{'a', 'b', 'c'}}] + helper.scaled(x) + again.extra

model = Model(dist.Normal(torch.ones(3), 1.).to_event(1), frozenset('abcdef'))
print(Problem(model, args=(torch.ones(2), {{'n': 1, 'm': {{'x', 'y', 'z'}}}})).digest)
"""
HELPER = (
    "SCALE = {scale}\nKEEP = {{'p', 'q', 'r'}}\nextra = {extra}\ndef scaled(x): return [SCALE, x in KEEP]\n"
)


def test_the_digest_is_the_same_in_every_process_and_follows_a_users_module(tmp_path):
    def run(seed: str, scale: float = 1.0, extra: int = 0, lines: str = "") -> str:
        (tmp_path / "helper.py").write_text(lines + HELPER.format(scale=scale, extra=extra))
        return subprocess.run(
            [sys.executable, "-B", "-c", PROGRAM.format(folder=str(tmp_path))],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed},
        ).stdout  # fmt: skip

    first = run("1")
    assert first == run("2", lines="# a comment\n\n")
    assert len({first, run("3", scale=2.0), run("3", extra=1)}) == 3


@pytest.mark.parametrize("name", ["celeste", "strong_lens"])
def test_models_of_the_zoo_follow_their_code(name, monkeypatch):
    entry = registry.get(name)
    data, _ = entry.simulate(seed=0)
    before = entry.problem(data).digest
    assert entry.problem(data).digest == before
    model = type(entry.problem(data).model)
    monkeypatch.setattr(model, "__call__", lambda self, patch: None)  # data plates name the argument
    assert entry.problem(data).digest != before


def test_ten_million_data_are_hashed_in_a_second_and_once():
    problem = Problem(M(1), (torch.ones(10_000_000, dtype=F64),))
    start = time.process_time()
    digest = problem.digest
    assert time.process_time() - start < 2.0  # [s] of one core; 80 MB at 40 MB/s
    start = time.process_time()
    assert problem.digest == digest
    assert time.process_time() - start < 0.01


def test_functions_of_a_compiled_part_of_a_library_are_known_by_its_version():
    """``softplus`` belongs to a module without a file, inside torch's extension."""
    make = "def f(x): return act(x)"
    soft = [content_hash(code(make, act=act)) for act in (nn.functional.softplus, nn.functional.gelu)]
    assert soft[0] != soft[1]
    assert soft[0] == content_hash(code(make, act=nn.functional.softplus))


def test_a_lock_that_code_names_is_no_content():
    make = "def f(x):\n with LOCK:\n  return x * {}"
    first, second, other = (code(make.format(n), LOCK=threading.RLock()) for n in (1, 1, 2))
    assert content_hash(first) == content_hash(second)
    assert content_hash(first) != content_hash(other)
