"""The reference of the API from its docstrings: `docs/api.md`, and with a folder as argument HTML pages by pdoc."""

import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

# The packages and modules whose `__all__` is public.
PUBLIC = (
    "nil_jax",
    "nil_jax.adapters",
    "nil_jax.envs",
    "nil_jax.learning",
    "nil_jax.reference",
    "nil_jax.rendering",
    "nil_jax.rewards",
)
PAGES = (*PUBLIC, "nil_jax.config", "nil_jax.rollout")  # the last two explain settings
FIELD = re.compile(r"    (\w+): [^#]*(?:# ?(.*))?")
HEAD = """# Public names

From the docstrings, by `docs/make_api.py`. `make docs` makes pages with all that they say: `build/docs/index.html`.
"""


def summary(value: object) -> str:
    """The first sentence of a docstring in one line; of a value, which has none, what it is."""
    if isinstance(value, tuple):
        return "names: " + ", ".join(f"`{part}`" for part in value)
    if not (inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value))):
        return f"`{re.sub(r'(?:[a-z]+[_a-z]*[.])+', '', str(value))}`"
    text = (inspect.getdoc(value) or "").split("\n\n")[0]
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(text.split()))[0]


def table(module: ModuleType) -> str:
    """The public names of a module, one line each."""
    rows = [f"| `{name}` | {summary(getattr(module, name)).replace('|', chr(92) + '|')} |" for name in module.__all__]
    return "\n".join((f"## {module.__name__}", "", summary(module), "", "| name | what |", "|---|---|", *rows, ""))


def markdown() -> str:
    """The text of `docs/api.md`."""
    return "\n".join((HEAD, *(table(importlib.import_module(name)) for name in PUBLIC)))


def field_comments(cls: type) -> dict[str, str]:
    """What the comments beside and above the fields of a dataclass say, as the help of the commands has it."""
    found, above = {}, []
    for line in inspect.getsource(cls).splitlines():
        field = FIELD.fullmatch(line)
        if line.strip().startswith("#"):
            above.append(line.strip("# "))
            continue
        if field and (field[2] or above):
            found[field[1]] = " ".join((*above, field[2] or "")).strip()
        above = []
    return found


def write_pages(folder: Path) -> None:
    """HTML pages of all modules, which pdoc makes."""
    from pdoc import doc, doc_ast, render

    render.configure(docformat="google")
    modules = {name: doc.Module(importlib.import_module(name)) for name in PAGES}
    for name, module in modules.items():
        module.submodules = [other for other in modules.values() if other.fullname.rpartition(".")[0] == name]
        for cls in filter(dataclasses.is_dataclass, vars(module.obj).values()):
            if inspect.isclass(cls) and cls.__module__.startswith("nil_jax"):
                for field, comment in field_comments(cls).items():
                    doc_ast.walk_tree(cls).var_docstrings.setdefault(field, comment)  # pdoc itself reads no comments
    texts = {f"{name.replace('.', '/')}.html": render.html_module(module, modules) for name, module in modules.items()}
    texts |= {"index.html": render.html_index(modules), "search.js": render.search_index(modules)}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"jaxtyping\.(?=\w+\[)|jaxlib\._jax\.", "", text))  # shapes read better without


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_pages(Path(sys.argv[1]))
    else:
        (Path(__file__).parent / "api.md").write_text(markdown())
